"""`cope ask` against the real server."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from clips import broken_clips, clip
from serving import Server

from cope_server.cli import main


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "clip.mp4"
    made.write_bytes(clip(12))
    return made


def kept_by(server: Server) -> set[str]:
    return {file.id for file in server.client.files.list()}


def ask(server: Server, *words: str) -> int:
    return main(["ask", *words, "--url", server.url, "--max-tokens", "4"])


def test_the_answer_its_account_and_its_stages(server: Server, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = kept_by(server)
    assert ask(server, str(path), "What moves?", "--keyframes-per-gop", "2") == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].strip()
    for row in (
        r"upload +[\d,]+ ms",
        r"TTFT +[\d,]+ ms",
        r"I tokens +216 +3 keyframes",
        r"P tokens +90 +9 delta slots",
    ):
        assert re.search(row, out), out
    shown = re.findall(r"^ *(receive|fetch|extract|preprocess|queue|prefill) +[\d,.]+ ms", out, re.MULTILINE)
    assert shown == ["receive", "fetch", "extract", "preprocess", "queue", "prefill"]
    assert "█" in out
    assert kept_by(server) == before


def test_a_kept_file_is_asked_about_by_its_id(server: Server, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = kept_by(server)
    assert ask(server, str(path), "What moves?", "--keep") == 0
    first = capsys.readouterr().out
    (file_id,) = kept_by(server) - before
    kept = server.client.files.retrieve(file_id)
    try:
        assert f"kept as {kept.id}" in first
        assert (kept.filename, kept.expires_at) == ("clip.mp4", None)
        assert ask(server, kept.id, "What moves?") == 0
        assert capsys.readouterr().out.splitlines()[0] == first.splitlines()[0]
    finally:
        server.client.files.delete(kept.id)


def test_a_url_is_fetched_by_the_server(
    server: Server, files: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, address = files
    (folder / "asked.mp4").write_bytes(clip(12))
    assert ask(server, f"{address}/asked.mp4", "What moves?") == 0
    assert "upload" not in capsys.readouterr().out


def test_refusals_of_the_server_name_what_was_written(
    server: Server, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = kept_by(server)
    path.write_bytes(broken_clips()["text"])
    assert ask(server, str(path), "What moves?") == 2
    assert re.search(r"HTTP 400: .* \(VIDEO\) \[invalid_video\]$", capsys.readouterr().err)
    path.write_bytes(clip(12))
    assert ask(server, str(path), "What moves?", "--start-s", "100") == 2
    assert "(--start-s)" in capsys.readouterr().err
    assert ask(server, str(path), "What moves?", "--model", "gpt") == 2
    assert re.search(r"HTTP 404: .* \(--model\)$", capsys.readouterr().err)
    assert kept_by(server) == before
