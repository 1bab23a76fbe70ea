"""Prefetching for uploaded files: states, failures, limits, what happens when the file or the server goes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clips import clip
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient
from media_app import GEOMETRY, media_app

from cope_codec.cache import PrimitivesCache
from cope_codec.extract import primitives_key
from cope_codec.options import VideoOptions
from cope_server.admission import Gate
from cope_server.files import prefetch
from cope_server.files.prefetch import Prefetch, Prefetches
from cope_server.files.store import FileLimits, FileStore
from cope_server.limit_settings import LimitSettings

WANTED = Prefetch("primitives", {"fps": 1.0})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FileStore]:
    opened = FileStore(tmp_path / "files", FileLimits(1 << 20, 4 << 20, 5))
    yield opened
    opened.close()


def kept(store: FileStore) -> str:
    upload = store.begin("me")
    upload.write([b"x"])
    return upload.keep("a.mp4", "vision", None).id


def told(store: FileStore, name: str, owner: str = "me") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(store.get(owner, name).prefetch)
    return found


async def ended(store: FileStore, name: str, owner: str = "me") -> dict[str, Any]:
    while told(store, name, owner)["status"] in ("queued", "running"):  # noqa: ASYNC110 - as a client would
        await asyncio.sleep(0.01)
    return told(store, name, owner)


class _Refused(Exception):
    code = "undecodable_video"


def test_states_from_queued_to_the_end(store: FileStore) -> None:
    async def run() -> None:
        prefetches, go = Prefetches(store, at_once=1), asyncio.Event()

        async def waits() -> None:
            await go.wait()

        async def fails() -> None:
            raise _Refused

        async def breaks() -> None:
            raise KeyError("a path: /secret")

        names = [kept(store) for _ in range(3)]
        for name, work in zip(names, (waits, fails, breaks), strict=True):
            assert json.loads(await prefetches.begin(name, WANTED, work))["status"] == "queued"
        await asyncio.sleep(0.2)
        assert [told(store, name)["status"] for name in names] == ["running", "queued", "queued"]
        go.set()
        assert await ended(store, names[0]) == {"kind": "primitives", "options": {"fps": 1.0}, "status": "completed"}
        assert (await ended(store, names[1]))["error"] == "undecodable_video"
        assert (await ended(store, names[2]))["error"] == "internal_error"
        await prefetches.close()

    asyncio.run(run())


def test_what_is_cancelled_is_told_and_frees_its_turn(store: FileStore) -> None:
    async def run() -> None:
        prefetches = Prefetches(store, at_once=1)
        first, second = kept(store), kept(store)
        await prefetches.begin(first, WANTED, asyncio.Event().wait)
        await prefetches.begin(second, WANTED, lambda: asyncio.sleep(0))
        await prefetches.cancel(first)
        assert told(store, first)["error"] == "cancelled"
        assert (await ended(store, second))["status"] == "completed"
        await prefetches.begin(second, WANTED, asyncio.Event().wait)
        await prefetches.close()
        assert told(store, second)["error"] == "cancelled"
        late = json.loads(await prefetches.begin(first, WANTED, asyncio.Event().wait))  # the server is ending
        assert (late["status"], late["error"]) == ("failed", "cancelled")

    asyncio.run(run())


def test_one_key_keeps_others_neither_out_nor_waiting(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "_MOST_OF_KEY", 3)

    async def run() -> None:
        prefetches, go, order = Prefetches(store, at_once=2), asyncio.Event(), []

        names = [kept(store) for _ in range(5)]

        async def begin(key: str, name: str) -> str:
            async def work() -> None:
                order.append(key)
                await go.wait()

            return str(json.loads(await prefetches.begin(name, WANTED, work, key)).get("error"))

        assert [await begin("alice", name) for name in names[:4]] == ["None", "None", "None", "queue_full"]
        assert [await begin("bob", names[3]), await begin("alice", names[4])] == ["None", "queue_full"]
        await asyncio.sleep(0.2)
        go.set()
        while len(order) < 4:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)
        assert order[:2] == ["alice", "alice"] and sorted(order[2:]) == ["alice", "bob"]
        await asyncio.sleep(0.2)
        assert await begin("alice", names[4]) == "None"
        await prefetches.close()

    asyncio.run(run())


def test_too_many_fail_at_once_and_the_file_stays(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "MOST_WAITING", 1)

    async def run() -> None:
        prefetches = Prefetches(store, at_once=1)
        first, second = kept(store), kept(store)
        await prefetches.begin(first, WANTED, asyncio.Event().wait)
        assert json.loads(await prefetches.begin(second, WANTED, asyncio.Event().wait))["error"] == "queue_full"
        assert told(store, second)["status"] == "failed"
        await prefetches.close()

    asyncio.run(run())


def test_a_server_that_dies_leaves_no_prefetch_running(tmp_path: Path, store: FileStore) -> None:
    other = FileStore(tmp_path / "files", FileLimits(1 << 20, 4 << 20, 5))
    name = kept(other)
    other.begin_prefetch(name, WANTED.described("running"))
    store.sweep()
    assert told(store, name)["status"] == "running"
    other.close()
    store.sweep()
    assert told(store, name) == {
        "kind": "primitives",
        "options": {"fps": 1.0},
        "status": "failed",
        "error": "cancelled",
    }


@pytest.fixture
def app(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[FastAPI]:
    monkeypatch.setattr("cope_codec.cache.shared", PrimitivesCache())
    with media_app(store, 300) as made:
        made.state.cope_gate = Gate(LimitSettings())
        yield made


async def upload(app: FastAPI, seconds: int, **fields: str) -> tuple[Any, AsyncClient]:
    client = AsyncClient(transport=ASGITransport(app), base_url="http://here")
    form = {"purpose": "vision", **fields}
    return await client.post("/v1/files", files={"file": ("a.mp4", clip(seconds))}, data=form), client


def test_an_upload_extracts_its_primitives(app: FastAPI) -> None:
    async def run() -> None:
        from cope_model import extraction

        app.state.cope_prefetches = Prefetches(app.state.cope_files, at_once=1)
        answer, client = await upload(app, 9, prefetch="primitives", **{"options[fps]": "1", "options[gop_slots]": "4"})
        made = answer.json()
        assert made["prefetch"]["status"] == "queued"
        while (state := (await client.get(f"/v1/files/{made['id']}")).json()["prefetch"])["status"] != "completed":
            assert state["status"] in ("queued", "running"), state
            await asyncio.sleep(0.02)
        running = extraction.in_charge()
        assert running is not None
        path = app.state.cope_files.local_path("everyone", made["id"])
        video = await running.executor.open_async(path, VideoOptions.from_mapping(state["options"]))
        assert len(video.plan.gops) == 3
        store = running.flights.store
        assert all(store.peek(primitives_key(gop, GEOMETRY.side)) is not None for gop in video.plan.gops)
        await app.state.cope_prefetches.close()

    asyncio.run(run())


def test_a_prefetch_that_does_not_fit_says_so(app: FastAPI) -> None:
    async def run() -> None:
        app.state.cope_prefetches = Prefetches(app.state.cope_files, at_once=1)
        answer, client = await upload(app, 30, prefetch="primitives")
        name = answer.json()["id"]
        assert (await client.get(f"/v1/files/{name}")).json()["prefetch"]["options"] == {}
        deadline = asyncio.get_running_loop().time() + 60
        while told(app.state.cope_files, name, "everyone")["status"] != "failed":
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.02)
        assert told(app.state.cope_files, name, "everyone")["error"] == "context_exceeded"

    asyncio.run(run())


def test_a_prefetch_counts_among_the_requests_with_video(app: FastAPI) -> None:
    async def run() -> None:
        app.state.cope_prefetches = Prefetches(app.state.cope_files, at_once=1)
        app.state.cope_gate = gate = Gate(LimitSettings(video_requests=1))
        with gate.ticket(None) as other:
            other.add_video("messages[0].content[0].video_url")
            answer, _ = await upload(app, 9, prefetch="primitives")
            name = answer.json()["id"]
            assert (await ended(app.state.cope_files, name, "everyone"))["error"] == "queue_full"
        assert gate.video_requests.total == 0

    asyncio.run(run())


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prefetch": "everything"}, "prefetch"),
        ({"prefetch": "primitives", "options[fps]": "0"}, "options.fps"),
        ({"prefetch": "primitives", "options[fps]": "nan"}, "options.fps"),
        ({"prefetch": "primitives", "options[speed]": "1"}, "options.speed"),
        ({"options[fps]": "1"}, "options"),
    ],
)
def test_wrong_fields_are_named_and_nothing_is_kept(app: FastAPI, fields: dict[str, str], param: str) -> None:
    async def run() -> None:
        answer, client = await upload(app, 3, **fields)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert (error["code"], error["param"]) == ("invalid_option", param)
        assert (await client.get("/v1/files")).json()["data"] == []

    asyncio.run(run())
