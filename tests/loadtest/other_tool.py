#!/usr/bin/env python3
"""Stands in for the interpreter of other load tests: takes their files and flags, sends the requests, tells times.

COPE_TEST_TOOL, in JSON, says how it behaves: `late_s` is added to each time it tells, `fail` ends it with an error,
`hang` keeps it running with a child, `refused` makes it tell of a failed request, `short` leaves out the last one.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


def ask(base_url: str, body: dict[str, Any]) -> tuple[float, float]:
    """When the request was sent, and seconds to its first content."""
    connection = http.client.HTTPConnection(urlsplit(base_url).netloc)
    text = json.dumps(body).encode()
    moment, started = time.time(), time.perf_counter()
    connection.request("POST", "/v1/chat/completions", text, {"content-type": "application/json"})
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    while b'"content": "word' not in answer.readline():
        pass
    seconds = time.perf_counter() - started
    answer.read()
    connection.close()
    return moment, seconds


def rows(path: str) -> list[dict[str, Any]]:
    """Of a JSONL file."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def vllm(words: dict[str, str], how: dict[str, Any]) -> None:
    """As `vllm bench serve` with its data set `custom`."""
    extra = json.loads(words["extra-body"])
    common = {"model": words["model"], "stream": True, **extra}
    told = [ask(words["base-url"], {**common, "messages": row["prompt"]})[1] for row in rows(words["dataset-path"])]
    assert len(told) == int(words["num-prompts"])
    told = [seconds + how.get("late_s", 0.0) for seconds in told][: -1 if how.get("short") else None]
    failed = int(bool(how.get("refused")))
    result = {"ttfts": told, "failed": failed, "errors": ["no such model"] * failed}
    (Path(words["result-dir"]) / words["result-filename"]).write_text(json.dumps(result))


def guidellm(config: Path, how: dict[str, Any]) -> None:
    """As `guidellm run`; it tells of its requests backwards."""
    assert config.stat().st_mode & 0o77 == 0
    spec = json.loads(config.read_text())["spec"]
    backend = spec["backend"]
    extra = {**backend["extras"]["body"], "max_completion_tokens": backend["max_tokens"]}
    common = {"model": backend["model"], "stream": True, "stream_options": {"include_usage": True}, **extra}
    done = []
    for row in rows(spec["data"][0]["path"]):
        moment, seconds = ask(backend["target"], {**common, "messages": row["messages"]})
        milliseconds = 1e3 * (seconds + how.get("late_s", 0.0))
        done.append({"time_to_first_token_ms": milliseconds, "info": {"timings": {"request_start": moment}}})
    errored = [{"info": {"error": "no such model"}}] if how.get("refused") else []
    requests = {"successful": done[::-1], "errored": errored, "incomplete": []}
    Path(spec["outputs"][0]["path"]).write_text(json.dumps({"benchmarks": [{"requests": requests}]}))


def main() -> int:
    """What the real ones do with these arguments."""
    how = json.loads(os.environ.get("COPE_TEST_TOOL", "{}"))
    if sys.argv[1] == "-c" and "find_spec" in sys.argv[2]:
        print("missing pandas" if how.get("missing") else f"{sys.argv[3].split(',')[0]} 1.2.3")
        return 0
    if how.get("fail"):
        print("something\nwent wrong", file=sys.stderr)
        return 1
    if how.get("hang"):
        child = subprocess.Popen(["sleep", "600"])
        Path(how["hang"]).write_text(f"{os.getpid()} {child.pid}")
        child.wait()
    if sys.argv[1] == "-c":
        pairs = zip(sys.argv[3:], sys.argv[4:], strict=False)
        vllm({name.removeprefix("--"): value for name, value in pairs if name.startswith("--")}, how)
    else:
        assert sys.argv[1:5] == ["-m", "guidellm", "run", "--config"]
        guidellm(Path(sys.argv[5]), how)
    return 0


if __name__ == "__main__":
    sys.exit(main())
