"""Sends our routes what schemathesis makes of their OpenAPI description, and sees that no answer is a 5xx."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

OPERATIONS = [
    ("POST", "/v1/files"),
    ("GET", "/v1/files"),
    ("GET", "/v1/files/{file_id}"),
    ("GET", "/v1/files/{file_id}/content"),
    ("DELETE", "/v1/files/{file_id}"),
    ("POST", "/v1/videos/plan"),
]


def drive(
    schema: Any,
    method: str,
    path: str,
    mode: GenerationMode,
    examples: int,
    aim: Callable[[Any], None] = lambda case: None,
) -> Counter[int]:
    """Drive one operation.

    Args:
        schema: the description with its app or server, as schemathesis loaded it.
        method, path: of the operation.
        mode: whether what is sent is to match the description, or not.
        examples: how many requests.
        aim: changes each case before it is sent.

    Returns:
        How often each status came.
    """
    statuses: Counter[int] = Counter()

    # By hand and not by its pytest plugin, which counts on private parts of pytest.
    @given(case=schema[path][method].as_strategy(generation_mode=mode))
    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    def run(case: schemathesis.Case) -> None:
        aim(case)
        answer = case.call()
        statuses[answer.status_code] += 1
        case.validate_response(answer, checks=[not_a_server_error])

    run()
    return statuses
