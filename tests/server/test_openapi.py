"""Our routes on an app of their own, driven by schemathesis from their OpenAPI description."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from clips import clip
from driving import OPERATIONS, drive
from fastapi import FastAPI
from fastapi.testclient import TestClient
from media_app import media_app
from schemathesis import GenerationMode

from cope_server.files.prefetch import Prefetches
from cope_server.files.store import FileLimits, FileStore


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastAPI]:
    store = FileStore(tmp_path_factory.mktemp("files"), FileLimits(1 << 20, 1 << 30, 10_000))
    with media_app(store, 400) as made:
        made.state.cope_prefetches = Prefetches(store, 1)
        yield made
    store.close()


@pytest.fixture(scope="module")
def schema(app: FastAPI) -> Any:
    return schemathesis.openapi.from_asgi("/openapi.json", app)


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_nothing_that_is_sent_ends_in_a_server_error(schema: Any, method: str, path: str, mode: GenerationMode) -> None:
    drive(schema, method, path, mode, 40)


@pytest.mark.parametrize(("method", "path"), [entry for entry in OPERATIONS if entry != ("GET", "/v1/files")])
def test_nor_does_what_is_sent_about_a_real_video(app: FastAPI, schema: Any, method: str, path: str) -> None:
    client = TestClient(app)

    def aim(case: schemathesis.Case) -> None:
        """Put a video, or the id of one, where there is something made up."""
        if path == "/v1/files":
            case.body = {**case.body, "file": clip(3)}
            return
        name = client.post("/v1/files", files={"file": ("a.mp4", clip(3))}, data={"purpose": "vision"}).json()["id"]
        if "{file_id}" in path:
            case.path_parameters["file_id"] = name
        else:
            case.body = {"file_id": name, "options": case.body.get("options", {})}

    assert drive(schema, method, path, GenerationMode.POSITIVE, 25, aim)[200] > 0


def test_every_route_of_ours_is_driven(app: FastAPI) -> None:
    paths = app.openapi()["paths"]
    assert {(method.upper(), path) for path, methods in paths.items() for method in methods} == set(OPERATIONS)
