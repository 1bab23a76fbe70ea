from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from starlette.middleware.cors import CORSMiddleware
from starlette.websockets import WebSocket, WebSocketDisconnect

from cope_model import isolation
from cope_server import access
from cope_server.access import guard, key_name, salt_engine, to_environment
from cope_server.keys import KeyRing

KEYS = "alice:sk-alice\nalice:sk-alice-new\nbob:sk-bob"
PATHS = ("/v1/chat/completions", "/invocations", "/tokenize", "/openapi.json", "/docs", "/v1/files", "/version", "/")


@pytest.fixture(autouse=True)
def shared_again() -> Iterator[None]:
    yield
    isolation.install(frozenset())


def make_client(**environment: str) -> TestClient:
    """An app that tells who asked, behind the middleware."""
    app = FastAPI()
    guard(app, {"COPE_API_KEYS": KEYS, "COPE_CACHE_SECRET": "s3cret", **environment})

    @app.api_route("/{path:path}", methods=["GET", "POST", "OPTIONS"])
    async def who(request: Request) -> dict[str, Any]:
        async def in_a_task() -> str | None:
            return isolation.current.get()

        return {"name": key_name(request.scope), "salt": await asyncio.create_task(in_a_task())}

    @app.websocket("/v1/realtime")
    async def talk(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_json({"name": key_name(socket.scope)})
        await socket.close()

    return TestClient(app)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
@pytest.mark.parametrize(
    "headers", [{}, bearer(""), bearer("sk-carol"), {"Authorization": "Basic sk-bob"}, {"Authorization": "sk-bob"}]
)
def test_nothing_is_answered_without_a_key(path: str, method: str, headers: dict[str, str]) -> None:
    answer = make_client().request(method, path, headers=headers)
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    error = answer.json()["error"]
    assert (error["code"], error["type"], error["param"]) == ("invalid_api_key", "invalid_request_error", None)
    assert "sk-" not in answer.text and "alice" not in answer.text


@pytest.mark.parametrize("path", ["/health", "/ping", "/metrics", "/metrics/"])
def test_probes_need_none(path: str) -> None:
    assert make_client().get(path).json()["name"] is None


@pytest.mark.parametrize("path", ["/health/../v1/files", "/healthy", "/metrics/x", "//health", "/v1/health"])
def test_what_only_looks_like_a_probe_does(path: str) -> None:
    assert make_client().request("GET", f"http://testserver{path}").status_code == 401


def test_the_keys_name_is_known_behind_it() -> None:
    client = make_client()
    names = [client.get("/v1/models", headers=bearer(key)).json()["name"] for key in ("sk-alice", "sk-alice-new")]
    assert names == ["alice", "alice"]
    assert client.get("/x", headers={"authorization": "bearer sk-bob"}).json()["name"] == "bob"


def test_each_name_has_a_salt_that_depends_on_the_secret() -> None:
    def salts(client: TestClient) -> list[str]:
        return [client.get("/x", headers=bearer(key)).json()["salt"] for key in ("sk-alice", "sk-alice-new", "sk-bob")]

    alice, again, bob = salts(make_client())
    assert alice == again != bob
    assert isolation.required() and isolation.current.get() is None
    assert salts(make_client())[0] == alice
    assert salts(make_client(COPE_CACHE_SECRET="other"))[0] != alice
    assert salts(make_client(COPE_SHARE_CACHES="1")) == [None, None, None]
    assert not isolation.required()


def test_websockets_are_guarded() -> None:
    client = make_client()
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/v1/realtime"):
        pass
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/health"):
        pass
    with client.websocket_connect("/v1/realtime", headers=bearer("sk-bob")) as socket:
        assert socket.receive_json() == {"name": "bob"}


def test_without_keys_everybody_may_come_in() -> None:
    app = FastAPI()
    guard(app, {})
    assert app.user_middleware == []
    assert not isolation.required()


def test_a_browsers_preflight_is_answered_where_origins_are_allowed() -> None:
    """vLLM puts its CORS middleware around ours."""
    client = make_client()
    app = client.app
    assert isinstance(app, FastAPI)
    app.add_middleware(CORSMiddleware, allow_origins=["https://ours.test"], allow_methods=["*"], allow_headers=["*"])
    asked = {"Origin": "https://ours.test", "Access-Control-Request-Method": "POST"}
    assert TestClient(app).options("/v1/chat/completions", headers=asked).status_code == 200
    refused = TestClient(app).options("/v1/chat/completions", headers={**asked, "Origin": "https://evil.test"})
    assert refused.status_code == 400
    assert "access-control-allow-origin" not in refused.headers


class Engine:
    """An engine client that remembers prompts."""

    def __init__(self) -> None:
        self.prompts: list[Any] = []

    async def generate(self, prompt: Any, params: str, request_id: str) -> AsyncGenerator[str, None]:
        if isinstance(prompt, AsyncGenerator):
            prompt = [piece.prompt async for piece in prompt]
        self.prompts.append(prompt)
        yield f"{params} {request_id}"


@dataclass(frozen=True)
class Piece:
    prompt: Any


def ask(salt: str | None, prompt: Any) -> Any:
    """What the engine gets."""
    engine = Engine()
    salt_engine(engine)

    async def run() -> list[str]:
        isolation.current.set(salt)
        return [text async for text in engine.generate(prompt, "params", request_id="r1")]

    assert asyncio.run(run()) == ["params r1"]
    return engine.prompts[0]


def test_the_engine_never_sees_a_clients_salt_alone() -> None:
    prompt = {"type": "token", "prompt_token_ids": [1, 2]}
    assert ask(None, prompt) == prompt
    assert ask(None, {**prompt, "cache_salt": "mine"})["cache_salt"] == "mine"
    salts = {
        ask(salt, {**prompt, **({"cache_salt": own} if own else {})})["cache_salt"]
        for salt in ("a" * 32, "b" * 32)
        for own in (None, "mine", "a" * 32, "b" * 32)
    }
    assert len(salts) == 8, "neither another key's salt nor the same wish leads to another key's cache"
    assert "mine" not in salts
    assert prompt == {"type": "token", "prompt_token_ids": [1, 2]}


def test_prompts_of_every_kind_are_salted() -> None:
    assert ask("s", "text") == {"prompt": "text", "cache_salt": "s"}
    assert ask("s", [1, 2]) == {"prompt_token_ids": [1, 2], "cache_salt": "s"}

    async def live() -> AsyncGenerator[Piece, None]:
        yield Piece({"prompt_token_ids": [1]})
        yield Piece([2])

    assert ask("s", live()) == [
        {"prompt_token_ids": [1], "cache_salt": "s"},
        {"prompt_token_ids": [2], "cache_salt": "s"},
    ]
    with pytest.raises(TypeError, match="cannot be salted"):
        ask("s", object())


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    access.add_arguments(parser)
    return parser.parse_args(words)


def test_options_travel_as_hashes(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("carol:sk-carol")
    path.chmod(0o600)
    environment = {"COPE_API_KEYS": KEYS, "VLLM_API_KEY": "sk-vllm"}
    words = ("--api-key-file", str(path), "--share-caches", "--allow-private-media", "10.0.0.0/8")
    to_environment(options(*words, "--allow-private-media", "nas.local"), None, environment)
    assert environment.pop("COPE_ALLOW_PRIVATE_MEDIA") == "10.0.0.0/8,nas.local"
    assert environment.pop("COPE_SHARE_CACHES") == "1"
    assert len(environment.pop("COPE_CACHE_SECRET")) == 64
    assert set(environment) == {"COPE_API_KEYS"} and "sk-" not in environment["COPE_API_KEYS"]
    ring = KeyRing.from_environment(environment)
    assert ring.names == {"alice", "bob", "carol", "key-1"}
    assert ring.owner("sk-vllm") == "key-1"


def test_vllms_option_goes_before_its_variable_and_no_key_is_no_ring() -> None:
    environment = {"VLLM_API_KEY": "sk-variable"}
    to_environment(options(), ["sk-option", "sk-two"], environment)
    ring = KeyRing.from_environment(environment)
    assert (ring.owner("sk-option"), ring.owner("sk-two"), ring.owner("sk-variable")) == ("key-1", "key-2", None)
    empty: dict[str, str] = {}
    to_environment(options(), None, empty)
    assert empty == {}
    with pytest.raises(ValueError, match="no host, address or network"):
        to_environment(options("--allow-private-media", "http://x"), None, {})
