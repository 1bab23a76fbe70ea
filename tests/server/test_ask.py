"""`cope ask` against a small server that takes uploads and streams a fixed answer."""

from __future__ import annotations

import http.server
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cope_server.cli import main
from cope_server.commands import ask as command

FILE_ID = "file-" + "a" * 32
USAGE = {
    "prompt_tokens": 162,
    "completion_tokens": 2,
    "video": {
        "seconds": 7.4,
        "gops": 1,
        "i_frames": 1,
        "p_frames": 7,
        "i_tokens": 72,
        "p_tokens": 70,
        "mode": "native",
        "dense_tokens": 4608,
    },
    "timings": {"receive": 0.001, "fetch": 0.0, "extract": 0.05, "preprocess": 0.01, "queue": 0.01, "prefill": 0.03},
}
EVENTS = [
    {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
    {"choices": [{"delta": {"content": "[down]"}}]},  # text in brackets is markup for the terminal's library
    {"choices": [{"delta": {"content": " it goes"}}]},
    {"choices": [], "usage": USAGE},
]


@dataclass
class Fake:
    """What the server was asked, and what it is to answer instead of the usual."""

    url: str = ""
    uploads: list[bytes] = field(default_factory=list)
    chats: list[dict[str, Any]] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    refusals: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=lambda: list(EVENTS))


@pytest.fixture
def fake() -> Iterator[Fake]:
    state = Fake()

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("content-length", 0)))

        def answer(self, value: Any, kind: str = "application/json") -> None:
            status, data = state.refusals.get(self.path, (200, value if isinstance(value, bytes) else json_of(value)))
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            self.answer({"data": [{"id": "cope-tiny"}]})

        def do_DELETE(self) -> None:
            state.deleted.append(self.path.rpartition("/")[2])
            self.answer({"deleted": True})

        def do_POST(self) -> None:
            body = self.body()
            if self.path == "/v1/files":
                state.uploads.append(body)
                self.answer({"id": FILE_ID})
            else:
                state.chats.append(json.loads(body))
                lines = [b"data: " + json_of(event) + b"\n\n" for event in state.events]
                self.answer(b"".join([*lines, b"data: [DONE]\n\n"]), "text/event-stream")

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    state.url = f"http://127.0.0.1:{httpd.server_address[1]}"
    yield state
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def json_of(value: Any) -> bytes:
    return json.dumps(value).encode()


def refusal(code: str | int, param: str | None, message: str = "no") -> bytes:
    return json_of({"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}})


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "a.mp4"
    path.write_bytes(bytes(range(256)) * 2000)
    return path


def ask(fake: Fake, *words: str) -> int:
    return main(["ask", *words, "--url", fake.url])


def test_a_file_is_uploaded_asked_about_and_deleted(fake: Fake, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(fake, str(clip), "Which way?", "--fps", "2", "--max-tokens", "5") == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == "[down] it goes"
    assert re.search(r"upload +[\d,]+ ms +512\.0 kB, before the request", out)
    assert re.search(r"64 dense frames +4,608 +would have been; 97% fewer video tokens", out)
    bars = {line.split()[0]: line.count("█") for line in lines if "█" in line}
    assert bars["extract"] == pytest.approx(20, abs=1)
    assert bars["prefill"] == pytest.approx(12, abs=1)
    assert err == ""  # nothing is drawn where nobody watches
    (form,) = fake.uploads
    assert clip.read_bytes() in form
    for name, value in (("purpose", b"vision"), ("expires_after[seconds]", b"3600")):
        assert f'name="{name}"\r\n\r\n'.encode() + value in form
    (chat,) = fake.chats
    part, question = chat["messages"][0]["content"]
    assert part == {"type": "file", "file": {"file_id": FILE_ID, "fps": 2.0}}
    assert question["text"] == "Which way?"
    assert (chat["model"], chat["max_completion_tokens"]) == ("cope-tiny", 5)
    assert fake.deleted == [FILE_ID]


def test_the_bar_counts_the_bytes_on_a_terminal(
    fake: Fake, clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "stderr", Console(stderr=True, force_terminal=True, width=100))
    assert ask(fake, str(clip), "Why?") == 0
    err = capsys.readouterr().err
    assert "upload" in err
    assert "512.0/512.0 kB" in err


def test_a_kept_file_can_be_asked_about_again(fake: Fake, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(fake, str(clip), "Why?", "--keep") == 0
    assert f"kept as {FILE_ID}" in capsys.readouterr().out
    assert b"expires_after" not in fake.uploads[0]
    assert ask(fake, FILE_ID, "Why?") == 0
    assert len(fake.uploads) == 1
    assert fake.deleted == []
    assert fake.chats[1]["messages"] == fake.chats[0]["messages"]


@pytest.mark.parametrize("url", ["https://example.com/a.mp4", "file:///srv/a.mp4", "data:video/mp4;base64,AAAA"])
def test_urls_are_the_servers_to_fetch(fake: Fake, url: str) -> None:
    assert ask(fake, url, "Why?", "--keyframes-per-gop", "2") == 0
    part = fake.chats[0]["messages"][0]["content"][0]
    assert part == {"type": "video_url", "video_url": {"url": url, "keyframes_per_gop": 2}}
    assert fake.uploads == fake.deleted == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{clip}", "Why?", "--fps", "0"], "fps must be between 0.01 and 60, not 0.0 (--fps) [invalid_option]"),
        (["{clip}", "Why?", "--frames", "8", "--gop-slots", "4"], "which gop_slots does not apply to (--gop-slots)"),
        (["{clip}", "Why?", "--max-tokens", "0"], "--max-tokens must be at least 1, not 0"),
        (["{clip}", " "], "QUESTION is empty"),
        (["nothing.mp4", "Why?"], "nothing.mp4: No such file"),
        (["{folder}", "Why?"], "Is a directory"),
        (["/dev/null", "Why?"], "VIDEO: /dev/null is no ordinary file"),
        (["ftp://example.com/a.mp4", "Why?"], "VIDEO: URLs begin with http://, https://, file:// or data:, not ftp://"),
        (["https://example.com/a.mp4", "Why?", "--keep"], "--keep: only a file that is uploaded can be kept"),
    ],
)
def test_mistakes_are_told_before_anything_is_sent(
    fake: Fake, clip: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(fake, *(word.format(clip=clip, folder=clip.parent) for word in words)) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert fake.uploads == fake.chats == []


@pytest.mark.parametrize(
    ("path", "status", "body", "message"),
    [
        ("/v1/files", 413, refusal("file_too_large", "file"), "HTTP 413: no (VIDEO) [file_too_large]"),
        ("/v1/chat/completions", 400, refusal("x", "messages[0].content[0].file.fps"), "HTTP 400: no (--fps) [x]"),
        ("/v1/chat/completions", 404, refusal(404, "model"), "HTTP 404: no (--model)"),
        ("/v1/chat/completions", 502, b"<html>bad gateway", "HTTP 502: <html>bad gateway"),
        ("/v1/models", 200, b"<html>hello", "is no OpenAI-compatible server"),
        ("/v1/models", 200, b'{"data": []}', "serves no model"),
    ],
)
def test_what_the_server_refuses_names_what_the_user_wrote(
    fake: Fake,
    clip: Path,
    path: str,
    status: int,
    body: bytes,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake.refusals[path] = (status, body)
    assert ask(fake, str(clip), "Why?") == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert fake.deleted == ([] if path == "/v1/files" else [FILE_ID])


def test_an_answer_that_breaks_off_is_told(fake: Fake, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake.events = [*EVENTS[:2], {"error": {"message": "the engine died", "code": 500}}]
    assert ask(fake, str(clip), "Why?") == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("[down]\n", "cope: the engine died\n")
    assert fake.deleted == [FILE_ID]


def test_an_upload_that_cannot_be_deleted_is_told(fake: Fake, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake.refusals[f"/v1/files/{FILE_ID}"] = (503, refusal("cancelled", None))
    assert ask(fake, str(clip), "Why?") == 0
    assert "could not be deleted (HTTP 503: no); it expires within an hour" in " ".join(capsys.readouterr().err.split())
