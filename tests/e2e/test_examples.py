"""The examples do what their page says, each against the real server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from clips import clip
from serving import Server

FOLDER = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("clip") / "clip.mp4"
    made.write_bytes(clip(12, seed=51))
    return made


def run(server: Server, name: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    command = ["sh"] if name.endswith(".sh") else [sys.executable]
    settings = {"OPENAI_BASE_URL": f"{server.url}/v1", "OPENAI_API_KEY": "none"}
    before = {file.id for file in server.client.files.list()}
    done = subprocess.run(
        [*command, FOLDER / name, *words], capture_output=True, text=True, timeout=120, env={**os.environ, **settings}
    )
    assert {file.id for file in server.client.files.list()} == before, "an example left its upload behind"
    return done


def output(server: Server, name: str, *words: str | Path) -> str:
    done = run(server, name, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_curl(server: Server, path: Path) -> None:
    answer = json.loads(output(server, "ask.sh", path))
    assert answer["choices"][0]["message"]["content"]
    assert answer["usage"]["video"]["gops"] == 2
    done = run(server, "ask.sh", __file__)
    assert done.returncode != 0
    assert json.loads(done.stderr.splitlines()[-1])["error"]["code"] == "invalid_video"


def test_the_official_client(server: Server, path: Path) -> None:
    answer, account = output(server, "ask_openai.py", path, "What moves?").splitlines()
    assert answer.strip()
    assert account == "216 tokens of pictures, 90 of motion and residuals; dense frames would be 4608"
    done = run(server, "ask_openai.py", __file__)
    assert done.returncode == 1
    assert re.search(r"^messages\[0\]\.content\[0\]\.video_url: .* \[invalid_video\]$", done.stderr.strip())


def test_async_streams(server: Server, path: Path) -> None:
    lines = output(server, "stream_async.py", path, "What moves?", "Which way?").splitlines()
    assert {re.sub(r"\?.*", "?", line) for line in lines} == {"What moves?", "Which way?"}
    for line in lines:
        assert re.search(r"\? .+ \(first piece after \d+ ms, extract \d+ ms\)$", line), line


def test_a_conversation(server: Server, path: Path) -> None:
    lines = output(server, "conversation.py", path).splitlines()
    found = [re.search(r"\((\d+) of (\d+) prompt tokens were cached\)$", line) for line in lines]
    counts = [(int(match[1]), int(match[2])) for match in found if match]
    assert len(counts) == len(lines) == 3
    for cached, prompt in counts[1:]:
        assert cached > 0.5 * prompt


def test_the_page_lists_every_example() -> None:
    listed = set(re.findall(r"examples/(\S+\.(?:py|sh))", (FOLDER / "README.md").read_text()))
    assert listed == {path.name for path in FOLDER.iterdir() if path.suffix in (".py", ".sh")}
