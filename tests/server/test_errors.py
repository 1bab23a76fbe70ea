from __future__ import annotations

import runpy
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client import REGISTRY
from requirements import require

from cope_codec import CODES, CodecError, errors
from cope_server.errors import add_error_handlers, ending_clearly

PART = "messages[0].content[1].video_url"


@pytest.fixture
def client() -> TestClient:
    require("ENGINE", find_spec("vllm") is not None, "vLLM is not installed (make setup)")
    from cope_model.media_errors import MediaFetchError, from_codec

    app = FastAPI()
    add_error_handlers(app)

    @app.get("/raises/{words}")
    def in_flight(words: str) -> None:
        with ending_clearly():
            raise RuntimeError(words)

    @app.post("/body")
    def body(_: dict[str, object]) -> None:
        pass

    @app.get("/{code}")
    def fail(code: str) -> None:
        if code == "unreachable_url":
            raise MediaFetchError("nobody answers", parameter=PART)
        if code == "storage_full":
            raise MediaFetchError("no room", parameter=PART, code="storage_full")
        raise from_codec(CodecError(code, "no good", param="fps" if code == "invalid_option" else None), PART)  # type: ignore[arg-type]

    return TestClient(app, raise_server_exceptions=False)


def refusals(code: str) -> float:
    return REGISTRY.get_sample_value("cope_rejected_total", {"code": code}) or 0.0


@pytest.mark.parametrize(
    ("code", "status", "param"),
    [
        ("invalid_video", 400, PART),
        ("invalid_option", 400, f"{PART}.fps"),
        ("unreachable_url", 422, PART),
        ("video_too_large", 413, PART),
        ("timeout", 422, PART),
        ("out_of_memory", 422, PART),
        ("worker_died", 422, PART),
    ],
)
def test_refusals_have_openais_shape_and_their_own_code(client: TestClient, code: str, status: int, param: str) -> None:
    before = refusals(code)
    answer = client.get(f"/{code}")
    assert answer.status_code == status
    assert refusals(code) == before + 1
    error = answer.json()["error"]
    assert (error["code"], error["param"], error["type"]) == (code, param, "invalid_request_error")
    assert error["message"] in ("no good", "nobody answers")


@pytest.mark.parametrize(("code", "status", "kind"), [("queue_full", 429, "rate_limit_error"), ("cancelled", 503, "")])
def test_what_is_not_the_clients_fault_may_be_tried_again(
    client: TestClient, code: str, status: int, kind: str
) -> None:
    answer = client.get(f"/{code}")
    assert (answer.status_code, answer.headers["Retry-After"]) == (status, "1")
    assert answer.json()["error"]["type"] == (kind or "service_unavailable")
    assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == (code, PART)


def test_the_queue_says_when_to_come_again(client: TestClient) -> None:
    client.app.state.cope_gate = SimpleNamespace(retry_after_s=lambda: 17)  # type: ignore[attr-defined]
    assert client.get("/queue_full").headers["Retry-After"] == "17"
    assert client.get("/cancelled").headers["Retry-After"] == "1"
    assert "Retry-After" not in client.get("/timeout").headers


def test_a_full_disk_is_the_servers_own(client: TestClient) -> None:
    answer = client.get("/storage_full")
    assert answer.status_code == 507
    assert answer.json()["error"] == {
        "message": "no room",
        "type": "server_error",
        "param": PART,
        "code": "storage_full",
    }


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/no/such/path", 404, "unknown_route"),
        ("PUT", "/invalid_video", 405, "method_not_allowed"),
        ("POST", "/body", 400, "invalid_request"),
    ],
)
def test_what_no_route_takes_is_refused_in_openais_shape(
    client: TestClient, method: str, path: str, status: int, code: str
) -> None:
    before = refusals(code)
    answer = client.request(method, path, content=b"[" * 100_000, headers={"content-type": "application/json"})
    assert (answer.status_code, set(answer.json())) == (status, {"error"})
    assert answer.json()["error"]["code"] == code
    assert refusals(code) == before + 1
    assert ("allow" in answer.headers) == (status == 405)


def test_every_code_has_a_meaning() -> None:
    require("ENGINE", find_spec("vllm") is not None, "vLLM is not installed (make setup)")
    from cope_model import media_errors

    assert tuple(errors.MEANINGS) == CODES
    codes = get_args(media_errors.MediaErrorCode) + get_args(media_errors.FetchErrorCode)
    assert tuple(media_errors.MEANINGS) == codes


def test_the_page_of_errors_is_what_the_code_says() -> None:
    require("ENGINE", find_spec("vllm") is not None, "vLLM is not installed (make setup)")
    root = Path(__file__).parents[2]
    page = runpy.run_path(str(root / "scripts" / "write_errors_page.py"))["page"]()
    assert (root / "docs" / "errors.md").read_text() == page, "run scripts/write_errors_page.py"
    assert "| `queue_full` | 429 |" in page
    assert "| `unreachable_url` | 422 |" in page
    assert "| `invalid_video` | 400 |" in page


def test_a_request_in_flight_when_the_server_ends_may_be_tried_again(client: TestClient) -> None:
    with ThreadPoolExecutor(1) as threads:
        pass
    with pytest.raises(RuntimeError) as caught:
        threads.submit(int)
    before = refusals("cancelled")
    answer = client.get(f"/raises/{caught.value}")
    assert refusals("cancelled") == before + 1
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    message = "the server is shutting down"
    want = {"message": message, "type": "service_unavailable", "param": None, "code": "cancelled"}
    assert answer.json()["error"] == want
    assert client.get("/raises/other").status_code == 500
