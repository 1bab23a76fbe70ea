from __future__ import annotations

import argparse
import logging

import pytest

from cope_server import request_log
from cope_server.stages import RequestClock


def clock() -> RequestClock:
    return RequestClock(
        started=0.0, received=0.5, ended=2.0, status=200, input="codec", cache="cold", request_id="chatcmpl-7"
    )


def lines(caplog: pytest.LogCaptureFixture, clock: RequestClock) -> list[logging.LogRecord]:
    request_log.logger.addHandler(caplog.handler)  # vLLM's logger does not propagate
    try:
        with caplog.at_level(logging.INFO, logger=request_log.logger.name):
            request_log.write(clock)
    finally:
        request_log.logger.removeHandler(caplog.handler)
    return list({id(record): record for record in caplog.records}.values())


def test_requests_are_logged_on_request_only(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(request_log.VARIABLE, raising=False)
    assert lines(caplog, clock()) == []
    monkeypatch.setenv(request_log.VARIABLE, "json")
    (line,) = (vars(record) for record in lines(caplog, clock()))
    assert [line[name] for name in ("request_id", "status", "complete", "input", "cache", "video")] == [
        *("chatcmpl-7", 200, True, "codec", "cold", None)
    ]
    assert (line["timings"]["receive"], line["timings"]["e2e"]) == (0.5, 2.0)


@pytest.mark.parametrize(("status", "complete"), [(None, False), (200, False), (499, False), (422, True)])
def test_an_answer_that_broke_off_is_not_complete(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, status: int | None, complete: bool
) -> None:
    monkeypatch.setenv(request_log.VARIABLE, "json")
    broken = clock()
    broken.ended, broken.status = None, status
    (line,) = (vars(record) for record in lines(caplog, broken))
    assert (line["status"], line["complete"]) == (status, complete)


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    request_log.add_arguments(parser)
    return parser.parse_args(words)


def test_the_option_goes_before_the_variable_and_vllm_follows() -> None:
    environment = {request_log.VARIABLE: "text"}
    assert request_log.to_environment(arguments(), environment) == []
    words = request_log.to_environment(arguments("--log-format", "json"), environment)
    assert (words, environment) == (["--logging-config.formatter", "json"], {request_log.VARIABLE: "json"})
    with pytest.raises(ValueError, match="COPE_LOG_FORMAT must be one of text, json, not 'yaml'"):
        request_log.to_environment(arguments(), {request_log.VARIABLE: "yaml"})
