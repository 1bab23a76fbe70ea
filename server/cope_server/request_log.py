"""One line per chat request, for machines: `cope serve --log-format json`."""

from __future__ import annotations

import argparse
import logging
import os
import time
from collections.abc import MutableMapping

from cope_server.stages import RequestClock, timings

VARIABLE = "COPE_LOG_FORMAT"
_FORMATS = ("text", "json")

logger = logging.getLogger("vllm.cope_server.requests")  # below vLLM's logger, so that its settings apply


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--log-format`."""
    parser.add_argument("--log-format", choices=_FORMATS)


def to_environment(arguments: argparse.Namespace, environment: MutableMapping[str, str] = os.environ) -> list[str]:
    """Put the option into the environment, before what it held: vLLM's other API-server processes get nothing else.

    Returns:
        vLLM's option for the same format of its own lines.

    Raises:
        ValueError: the variable holds something else than a format.
    """
    if getattr(arguments, "log_format", None) is not None:
        environment[VARIABLE] = arguments.log_format
    chosen = environment.get(VARIABLE, "").strip()
    if chosen not in ("", *_FORMATS):
        raise ValueError(f"{VARIABLE} must be one of {', '.join(_FORMATS)}, not {chosen!r}")
    return ["--logging-config.formatter", "json"] if chosen == "json" else []


def is_on() -> bool:
    """Whether requests are logged."""
    return os.environ.get(VARIABLE) == "json"


def write(clock: RequestClock) -> None:
    """Log a request that has come to its end, whatever that was.

    The fields are the record's own, where vLLM's JSON formatter finds them: request_id, status (null if the client left
    before there was one), complete (the last byte was sent), input, cache, prompt_tokens, timings and video.
    """
    if not is_on():
        return
    fields = {
        "request_id": clock.request_id,
        "status": clock.status,
        "complete": clock.ended is not None or clock.status not in (None, 200, 499),  # 499: the client left
        "input": clock.input,
        "cache": clock.cache,
        "prompt_tokens": clock.prompt_tokens,
        "timings": timings(clock, clock.ended if clock.ended is not None else time.perf_counter()),
        "video": clock.account or None,
    }
    logger.info("chat request", extra=fields)
