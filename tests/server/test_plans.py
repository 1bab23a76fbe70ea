"""Plans of videos before anything is decoded, and what a refused video is told about options that would fit."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clips import clip, encoded
from fastapi import FastAPI
from fastapi.testclient import TestClient
from media_app import GEOMETRY, media_app

import cope_codec
from cope_codec.options import VideoOptions
from cope_model.account import ContextExceededError, RequestVideos, fitting_gops
from cope_server.files.store import FileLimits, FileStore
from cope_server.plans import MOST_SETS

SIDE = GEOMETRY.side
CONTEXT = 400


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastAPI]:
    store = FileStore(tmp_path_factory.mktemp("files"), FileLimits(1 << 20, 4 << 20, 5))
    with media_app(store, CONTEXT) as made:
        yield made
    store.close()


@pytest.fixture
def client(app: FastAPI) -> TestClient:
    return TestClient(app, raise_server_exceptions=False)


def uri(data: bytes) -> str:
    return f"data:video/mp4;base64,{base64.b64encode(data).decode()}"


SHORT = uri(encoded(2))


def test_every_set_of_options_has_its_plan(client: TestClient) -> None:
    data = clip(20)
    sets: list[dict[str, Any]] = [{}, {"keyframes_per_gop": 4}, {"fps": 2.0, "max_gops": 1}, {"frames": 16}]
    answer = client.post("/v1/videos/plan", json={"url": uri(data), "options": sets}).json()
    assert answer["context_tokens"] == CONTEXT
    for given, plan in zip(sets, answer["plans"], strict=True):
        expected = cope_codec.open(data, VideoOptions.from_mapping(given)).plan
        tokens = GEOMETRY.tokens(expected.i_frames, expected.p_frames)
        assert plan["options"] == given
        assert plan["tokens"] == plan["i_tokens"] + plan["p_tokens"] == tokens
        assert (plan["gops"], plan["total_gops"]) == (len(expected.gops), expected.total_gops)
        assert plan["dense_tokens"] == expected.dense_frames * GEOMETRY.i_tokens
        assert plan["fits"] == (tokens < CONTEXT)
        assert plan["gops_that_fit"] == fitting_gops(expected, GEOMETRY, CONTEXT)
    assert not answer["plans"][1]["fits"]


def test_a_single_set_of_an_uploaded_file(client: TestClient) -> None:
    name = client.post("/v1/files", files={"file": ("a.mp4", clip(9))}, data={"purpose": "vision"}).json()["id"]
    (plan,) = client.post("/v1/videos/plan", json={"file_id": name, "options": {"fps": 1}}).json()["plans"]
    assert plan["gops"] == 2
    assert plan["mode"] == "native"


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({}, "invalid_part", "url"),
        ({"url": "x", "file_id": "y"}, "invalid_part", "file_id"),
        ({"url": 3}, "invalid_part", "url"),
        ({"file_id": "file-nobody"}, "unknown_file", "file_id"),
        ({"url": "ftp://x/y"}, "invalid_url", "url"),
        ({"url": uri(b"no video")}, "invalid_video", "url"),
        ({"url": SHORT, "fps": 1}, "invalid_option", "fps"),
        ({"url": SHORT, "options": {"fps": 0}}, "invalid_option", "options.fps"),
        ({"url": SHORT, "options": [{}, {"speed": 1}]}, "invalid_option", "options[1].speed"),
        ({"url": SHORT, "options": []}, "invalid_option", "options"),
        ({"url": SHORT, "options": [{}] * (MOST_SETS + 1)}, "invalid_option", "options"),
    ],
)
def test_refusals_name_the_field(client: TestClient, body: dict[str, Any], code: str, param: str) -> None:
    answer = client.post("/v1/videos/plan", json=body)
    assert 400 <= answer.status_code < 500, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == (code, param), error


def test_an_option_that_the_stream_refuses_is_named_with_its_set(client: TestClient) -> None:
    data = encoded(3, codec="libvpx-vp9", container="webm")
    answer = client.post("/v1/videos/plan", json={"url": uri(data), "options": [{}, {"mode": "native"}]})
    assert answer.json()["error"]["param"] == "options[1].mode"


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'"x"', b"\xff"])
def test_a_body_that_is_no_object(client: TestClient, body: bytes) -> None:
    answer = client.post("/v1/videos/plan", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "body"


def refused(context: int, seconds: int, **options: Any) -> str:
    videos = RequestVideos(GEOMETRY, context)
    with pytest.raises(ContextExceededError) as caught:
        videos.check(cope_codec.open(clip(seconds), VideoOptions(**options)).plan)
    return str(caught.value)


def test_a_refused_video_is_told_what_would_fit(tmp_path: Path) -> None:
    whole = cope_codec.open(clip(30), VideoOptions(keyframes_per_gop=2)).plan
    one = GEOMETRY.tokens(whole.gops[0].i_frames, whole.gops[0].p_frames)
    message = refused(2 * one + 1, 30, keyframes_per_gop=2)
    assert "max_gops=2" in message
    # What it names does fit.
    RequestVideos(GEOMETRY, 2 * one + 1).check(
        cope_codec.open(clip(30), VideoOptions(keyframes_per_gop=2, max_gops=2)).plan
    )
    slots = whole.i_frames + whole.p_frames
    least = GEOMETRY.tokens(len(whole.gops), slots - len(whole.gops))
    message = refused(least + 1, 30, keyframes_per_gop=2)
    assert f"keyframes_per_gop=1 would fit with {least:,}" in message
    RequestVideos(GEOMETRY, least + 1).check(cope_codec.open(clip(30), VideoOptions(keyframes_per_gop=1)).plan)
    assert "frames=2 would fit" in refused(3 * GEOMETRY.i_tokens, 30, frames=16)
    assert refused(10, 30).endswith("ask for a lower fps or a shorter clip")


def test_a_client_that_leaves_waits_for_no_plan(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        begun, ended = asyncio.Event(), asyncio.Event()

        class Endless:
            async def plan_async(self, *_: Any) -> None:
                begun.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    ended.set()

        monkeypatch.setattr(app.state, "cope_connector", Endless)
        messages = [{"type": "http.request", "body": json.dumps({"url": SHORT}).encode(), "more_body": False}]
        statuses = []

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await begun.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            statuses.append(message.get("status"))

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/videos/plan", "headers": headers, "query_string": b""}
        async with asyncio.timeout(5):
            await app(scope, receive, send)
            await ended.wait()
        assert statuses[0] == 499

    asyncio.run(run())


def test_what_json_can_say_and_others_cannot_is_refused(client: TestClient) -> None:
    for body, param in (
        (b'{"\\ud800": 1}', "\\ud800"),
        (b'{"url": "x", "options": {"\\ud800": 1}}', "options.\\ud800"),
        (b'{"url": "x", "options": {"fps": 1%s}}' % (b"0" * 400), "options.fps"),
        (b'{"url": "x", "options": {"start_s": 1%s}}' % (b"0" * 400), "options.start_s"),
    ):
        answer = client.post("/v1/videos/plan", content=body)
        assert answer.status_code == 400, answer.text
        error = answer.json()["error"]
        assert (error["code"], error["param"]) == ("invalid_option", param)
        assert len(error["message"]) < 200
