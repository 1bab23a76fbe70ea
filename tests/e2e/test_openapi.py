"""The real server's published OpenAPI description, and what it leads to."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from driving import OPERATIONS, drive
from schemathesis import GenerationMode
from serving import Server


@pytest.fixture(scope="module")
def schema(server: Server) -> Any:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_nothing_that_is_sent_ends_in_a_server_error(schema: Any, method: str, path: str, mode: GenerationMode) -> None:
    drive(schema, method, path, mode, 10)
