"""Other load tests measure the same time to the first token. Optional: docs/loadtest.md says how to install them.

`COPE_GUIDELLM` names the interpreter of guidellm's environment, `COPE_VLLM_BENCH` that of `vllm bench serve`, if it is
not this one. Figures of a busy machine may differ for no other reason.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest
from requirements import require
from serving import Server

from cope_loadtest.peers import PEERS, PeerError, version_of
from cope_server.cli import main

VLLM = os.environ.get("COPE_VLLM_BENCH", sys.executable)
GUIDELLM = os.environ.get("COPE_GUIDELLM")


def missing() -> str | None:
    """What is not installed, if anything."""
    if GUIDELLM is None:
        return "COPE_GUIDELLM names no interpreter that has guidellm"
    try:
        for name, python in (("vllm", VLLM), ("guidellm", GUIDELLM)):
            asyncio.run(version_of(PEERS[name], python))
    except PeerError as error:
        return str(error)
    return None


@pytest.mark.timeout(1800)  # each tool is started six times
def test_vllm_bench_serve_and_guidellm_agree_with_our_clock(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    lacks = missing()
    require("CROSSCHECK", lacks is None, str(lacks))
    assert GUIDELLM is not None
    server: Server = request.getfixturevalue("server")  # not before it is known that it is needed
    tools = ("--vllm", VLLM, "--guidellm", GUIDELLM)
    code = main(["loadtest", "crosscheck", "--base-url", server.url, "--out", str(tmp_path), *tools])
    report = json.loads((tmp_path / "crosscheck.json").read_text())
    assert report["verdict"]["trouble"] is None and len(report["rows"]) == 4
    assert code == 0, [row for row in report["rows"] if not row["agrees"]]
