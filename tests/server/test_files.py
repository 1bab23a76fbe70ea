"""The Files API on an app of its own, with the official client's requests and with broken ones."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import logging
import os
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
from clips import clip
from fastapi import FastAPI
from fastapi.testclient import TestClient
from leftovers import descriptors
from requirements import require

from cope_codec.pool import CodecPool
from cope_server.errors import add_error_handlers
from cope_server.files.errors import FileError
from cope_server.files.form import UploadForm
from cope_server.files.index import FileIndex
from cope_server.files.prefetch import Prefetches
from cope_server.files.routes import router, uploads_of
from cope_server.files.store import FileLimits, FileStore, Upload, is_id

LIMITS = FileLimits(file_bytes=1 << 20, owner_bytes=4 << 20, owner_files=5)
START = 1_700_000_000


class Clock:
    """A time that tests turn on."""

    def __init__(self) -> None:
        self.now = float(START)

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def pool() -> Iterator[CodecPool]:
    with CodecPool(1) as workers:
        workers.wait_until_warm()
        yield workers


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[FileStore]:
    opened = FileStore(tmp_path / "files", LIMITS, now=clock)
    yield opened
    opened.close()


@pytest.fixture
def app(pool: CodecPool, store: FileStore) -> FastAPI:
    require("ENGINE", find_spec("vllm") is not None, "vLLM is not installed (make setup)")
    made = FastAPI()
    add_error_handlers(made)
    made.include_router(router)
    made.state.cope_files, made.state.cope_codec_executor, made.state.cope_keyed = store, pool, True
    made.state.cope_prefetches = Prefetches(store, 1)
    return made


@pytest.fixture
def client(app: FastAPI) -> TestClient:
    return TestClient(app, headers={"authorization": "Bearer first"}, raise_server_exceptions=False)


OTHER = {"authorization": "Bearer second"}


def upload(
    client: TestClient, data: bytes, *, purpose: str = "vision", filename: str = "a.mp4", **more: Any
) -> httpx.Response:
    return client.post("/v1/files", files={"file": (filename, data)}, data={"purpose": purpose}, **more)


def refusal(answer: httpx.Response) -> tuple[int, str, str | None]:
    error = answer.json()["error"]
    assert error["message"]
    return answer.status_code, error["code"], error["param"]


def left(folder: Path) -> list[str]:
    """What lies in the folder beside the index."""
    return [path.name for kind in ("incoming", "stored") for path in (folder / kind).iterdir()]


def test_a_file_lives_from_create_to_delete(client: TestClient, tmp_path: Path) -> None:
    data = clip(3)
    created = upload(client, data, purpose="user_data").json()
    name = created["id"]
    assert is_id(name)
    assert created == {
        "id": name,
        "object": "file",
        "bytes": len(data),
        "created_at": START,
        "expires_at": None,
        "filename": "a.mp4",
        "purpose": "user_data",
        "status": "processed",
    }
    assert client.get(f"/v1/files/{name}").json() == created
    answer = client.get(f"/v1/files/{name}/content")
    assert answer.content == data
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == 'attachment; filename="a.mp4"'
    assert answer.headers["etag"] == f'"{hashlib.sha256(data).hexdigest()}"'
    assert client.delete(f"/v1/files/{name}").json() == {"id": name, "object": "file", "deleted": True}
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        assert refusal(client.request(method, f"/v1/files/{name}{path}")) == (404, "unknown_file", "file_id")
    assert left(tmp_path / "files") == []


def test_a_part_of_the_content_can_be_asked_for(client: TestClient) -> None:
    data = clip(3)
    address = f"/v1/files/{upload(client, data).json()['id']}/content"
    part = client.get(address, headers={"range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, data[100:200])
    assert part.headers["content-range"] == f"bytes 100-199/{len(data)}"
    assert client.get(address, headers={"range": "bytes=-7"}).content == data[-7:]
    assert client.get(address, headers={"range": f"bytes={len(data)}-"}).status_code == 416


def test_another_key_finds_nothing(client: TestClient) -> None:
    name = upload(client, clip(3)).json()["id"]
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        answer = client.request(method, f"/v1/files/{name}{path}", headers=OTHER)
        assert refusal(answer) == (404, "unknown_file", "file_id")
    assert client.get("/v1/files", headers=OTHER).json()["data"] == []
    assert refusal(client.get("/v1/files", params={"after": name}, headers=OTHER)) == (404, "unknown_file", "after")
    assert client.get(f"/v1/files/{name}").status_code == 200


def test_without_keys_there_is_one_owner(client: TestClient, app: FastAPI) -> None:
    app.state.cope_keyed = False
    name = upload(client, clip(3)).json()["id"]
    assert client.get(f"/v1/files/{name}", headers=OTHER).json()["id"] == name


def test_keys_are_not_stored(client: TestClient, tmp_path: Path) -> None:
    secret = "a-key-that-nobody-may-read"
    upload(client, clip(3), headers={"authorization": f"Bearer {secret}"})
    assert not any(secret.encode() in path.read_bytes() for path in (tmp_path / "files").rglob("*") if path.is_file())


def test_ids_cannot_be_guessed(store: FileStore) -> None:
    names = []
    for i in range(20):
        coming = store.begin(f"owner {i}")
        names.append(coming.path.name)
        coming.discard()
    assert all(is_id(name) for name in names)
    assert len({name[5:9] for name in names}) > 15  # no common beginning


def test_pages(client: TestClient, clock: Clock) -> None:
    names = []
    for i in range(4):
        clock.now += i // 2  # two of them within one second
        names.append(upload(client, clip(3), purpose="vision" if i else "user_data").json()["id"])
    page = client.get("/v1/files", params={"limit": 3}).json()
    assert page["object"] == "list"
    assert [file["id"] for file in page["data"]] == names[:0:-1]
    assert (page["first_id"], page["last_id"], page["has_more"]) == (names[3], names[1], True)
    page = client.get("/v1/files", params={"limit": 3, "after": page["last_id"]}).json()
    assert ([file["id"] for file in page["data"]], page["has_more"]) == (names[:1], False)
    page = client.get("/v1/files", params={"limit": 2, "order": "asc", "after": names[0]}).json()
    assert ([file["id"] for file in page["data"]], page["has_more"]) == (names[1:3], True)
    page = client.get("/v1/files", params={"purpose": "user_data"}).json()
    assert [file["id"] for file in page["data"]] == names[:1]
    page = client.get("/v1/files", params={"purpose": "batch"}).json()
    assert page == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


@pytest.mark.parametrize(
    ("query", "param"),
    [({"limit": "0"}, "limit"), ({"limit": "10001"}, "limit"), ({"limit": "x"}, "limit"), ({"order": "up"}, "order")],
)
def test_bad_queries_are_refused_by_name(client: TestClient, query: dict[str, str], param: str) -> None:
    assert refusal(client.get("/v1/files", params=query)) == (400, "invalid_option", param)


def test_expired_files_vanish_at_once_and_are_swept(
    client: TestClient, clock: Clock, store: FileStore, tmp_path: Path
) -> None:
    form = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600", "purpose": "vision"}
    created = client.post("/v1/files", files={"file": ("a.mp4", clip(3))}, data=form).json()
    name = created["id"]
    assert created["expires_at"] == START + 3600
    stays = upload(client, clip(3)).json()["id"]
    clock.now += 3599
    store.sweep()
    assert client.get(f"/v1/files/{name}").status_code == 200
    clock.now += 1
    assert client.get(f"/v1/files/{name}").status_code == 404
    assert [file["id"] for file in client.get("/v1/files").json()["data"]] == [stays]
    assert sorted(left(tmp_path / "files")) == sorted([name, stays])
    store.sweep()
    assert left(tmp_path / "files") == [stays]


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({}, "invalid_upload", "purpose"),
        ({"purpose": "assistants"}, "invalid_option", "purpose"),
        ({"purpose": "vision", "speed": "2"}, "invalid_upload", "speed"),
        ({"purpose": "vision" * 100}, "invalid_upload", "purpose"),
        ({"purpose": "vision", "expires_after[seconds]": "3600"}, "invalid_upload", "expires_after"),
        ({"purpose": "vision", "expires_after[anchor]": "now"}, "invalid_option", "expires_after.anchor"),
        ({"purpose": "vision", "expires_after[seconds]": "3599"}, "invalid_option", "expires_after.seconds"),
        ({"purpose": "vision", "expires_after[seconds]": "1e4"}, "invalid_option", "expires_after.seconds"),
    ],
)
def test_bad_fields_are_refused_by_name(
    client: TestClient, tmp_path: Path, fields: dict[str, str], code: str, param: str
) -> None:
    answer = client.post("/v1/files", files={"file": ("a.mp4", clip(3))}, data=fields)
    assert refusal(answer) == (400, code, param)
    assert left(tmp_path / "files") == []


def form(*parts: tuple[str, bytes], end: bytes = b"--x--\r\n") -> bytes:
    body = b"".join(
        f"--x\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + data + b"\r\n" for head, data in parts
    )
    return body + end


MULTIPART = {"content-type": "multipart/form-data; boundary=x"}
FILE, PURPOSE = ('name="file"; filename="a.mp4"', b"no video"), ('name="purpose"', b"vision")


@pytest.mark.parametrize(
    ("body", "headers", "param"),
    [
        (b"{}", {"content-type": "application/json"}, None),
        (b"", {"content-type": "multipart/form-data"}, None),
        (b"", {"content-type": f"multipart/form-data; boundary={'x' * 500}"}, None),
        (b"", MULTIPART, None),
        (b"garbage", MULTIPART, None),
        (form(FILE, PURPOSE, end=b""), MULTIPART, None),
        (form(PURPOSE), MULTIPART, "file"),
        (form(FILE, FILE, PURPOSE), MULTIPART, "file"),
        (form(FILE, PURPOSE, PURPOSE), MULTIPART, "purpose"),
        (form(("filename=b", b"x"), PURPOSE), MULTIPART, None),
        (b"--x\r\n" + b"a: b\r\n" * 1000 + form(FILE), MULTIPART, None),
        (b"--x\r\na: " + b"b" * 100_000, MULTIPART, None),
    ],
)
def test_what_is_no_form_is_refused(
    client: TestClient, tmp_path: Path, body: bytes, headers: dict[str, str], param: str | None
) -> None:
    answer = client.post("/v1/files", content=body, headers=headers)
    assert refusal(answer) == (400, "invalid_upload", param)
    assert left(tmp_path / "files") == []


@pytest.mark.parametrize(
    ("data", "code"), [(b"", "invalid_video"), (b"no video" * 99, "invalid_video"), (clip(3)[:2000], "invalid_video")]
)
def test_the_content_decides_what_is_a_video(client: TestClient, tmp_path: Path, data: bytes, code: str) -> None:
    assert refusal(upload(client, data)) == (400, code, "file")
    assert left(tmp_path / "files") == []
    assert client.get("/v1/files").json()["data"] == []
    assert upload(client, clip(3), filename="a.txt").status_code == 200


def test_a_playlist_is_no_video(client: TestClient) -> None:
    assert refusal(upload(client, b"ffconcat version 1.0\nfile a.mp4\n"))[:2] == (400, "invalid_video")


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\films\\a.mp4", "a.mp4"),
        ("a\x07\u202eb.mp4", "ab.mp4"),
        ("..", ".."),
        ("/", "upload"),
        ("Füchse 🦊.mp4", "Füchse 🦊.mp4"),
        ("x" * 999, "x" * 255),
    ],
)
def test_names_are_for_people_only(client: TestClient, given: str, shown: str) -> None:
    body = form((f'name="file"; filename="{given}"', clip(3)), PURPOSE)
    created = client.post("/v1/files", content=body, headers=MULTIPART).json()
    assert created["filename"] == shown
    assert client.get(f"/v1/files/{created['id']}/content").content == clip(3)


def test_files_that_are_too_large_are_413(client: TestClient, tmp_path: Path) -> None:
    too_large = (413, "file_too_large", "file")
    assert refusal(upload(client, bytes(LIMITS.file_bytes + 100_000))) == too_large
    # Just above, or without a length: found out while it comes.
    assert refusal(upload(client, bytes(LIMITS.file_bytes + 1))) == too_large
    body = form(PURPOSE, ('name="file"', bytes(LIMITS.file_bytes + 100_000)))
    assert refusal(client.post("/v1/files", content=in_pieces(body, 65_536), headers=MULTIPART)) == too_large
    assert left(tmp_path / "files") == []
    # A file of exactly the limit is taken: the codec worker is the one to refuse it.
    assert refusal(upload(client, bytes(LIMITS.file_bytes)))[:2] == (400, "invalid_video")


def in_pieces(body: bytes, size: int) -> Iterator[bytes]:
    for at in range(0, len(body), size):
        yield body[at : at + size]


def padded(size: int) -> bytes:
    """A video of so many bytes: what follows an MP4's last box is a box to be skipped."""
    data = clip(3)
    free = size - len(data)
    return data + free.to_bytes(4, "big") + b"free" + bytes(free - 8)


def test_the_quota_counts_bytes_of_each_key(client: TestClient, store: FileStore) -> None:
    name = ""
    for _ in range(4):
        name = upload(client, padded(LIMITS.file_bytes - 20_000)).json()["id"]
    over = (413, "quota_exceeded", "file")
    assert refusal(upload(client, padded(LIMITS.file_bytes))) == over
    body = form(PURPOSE, ('name="file"', padded(LIMITS.file_bytes)))
    assert refusal(client.post("/v1/files", content=in_pieces(body, 65_536), headers=MULTIPART)) == over
    assert upload(client, padded(LIMITS.file_bytes), headers=OTHER).status_code == 200
    client.delete(f"/v1/files/{name}")
    assert upload(client, padded(LIMITS.file_bytes)).status_code == 200


def test_the_quota_counts_files(client: TestClient, clock: Clock) -> None:
    fields = {"purpose": "vision", "expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    for _ in range(5):
        assert client.post("/v1/files", files={"file": clip(3)}, data=fields).status_code == 200
    assert refusal(upload(client, clip(3))) == (413, "quota_exceeded", "file")
    clock.now += 3600
    assert upload(client, clip(3)).status_code == 200


def test_files_that_are_still_coming_count(store: FileStore) -> None:
    coming = [store.begin("owner", at_most=1000) for _ in range(5)]
    with pytest.raises(FileError, match="may keep") as caught:
        store.begin("owner")
    assert caught.value.code == "quota_exceeded"
    coming[0].discard()
    coming[0].discard()
    coming[0] = store.begin("owner")
    for upload in coming:
        upload.discard()


def test_many_at_once_do_not_exceed_the_quota(store: FileStore) -> None:
    kept: list[str] = []

    def one() -> None:
        try:
            coming = store.begin("owner")
        except FileError as error:
            assert error.code == "quota_exceeded"
            return
        try:
            coming.write([b"x" * 100])
            kept.append(coming.keep("a", "vision", None).id)
        finally:
            coming.discard()

    threads = [threading.Thread(target=one) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    page, more = store.page("owner", limit=100, after=None, newest_first=True, purpose=None)
    assert sorted(file.id for file in page) == sorted(kept)
    assert 1 <= len(kept) <= LIMITS.owner_files
    assert not more


async def call(app: FastAPI, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the app sends for an upload of which these messages arrive."""
    headers = [(b"content-type", MULTIPART["content-type"].encode()), (b"authorization", b"Bearer first")]
    scope = {"type": "http", "method": "POST", "path": "/v1/files", "query_string": b"", "headers": headers}
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0)  # where a request that was cancelled notices
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    await app({**scope, "asgi": {"version": "3.0"}}, receive, send)
    return sent


def test_a_client_that_goes_away_leaves_nothing(app: FastAPI, store: FileStore, tmp_path: Path) -> None:
    body = form(PURPOSE, ('name="file"; filename="a.mp4"', clip(3)))
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": body[:5000], "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent = asyncio.run(call(app, messages))
    assert sent[0]["status"] == 400
    assert left(tmp_path / "files") == []
    assert store._index.names() == set()


def test_a_cancelled_upload_leaves_nothing(app: FastAPI, store: FileStore, tmp_path: Path) -> None:
    body = form(PURPOSE, ('name="file"; filename="a.mp4"', padded(LIMITS.file_bytes)))

    async def cancelled() -> None:
        class Arriving(list[dict[str, Any]]):
            def pop(self, _: Any = 0) -> dict[str, Any]:  # type: ignore[override]
                if not len(self):
                    task.cancel()
                    return {"type": "http.request", "body": b"", "more_body": True}
                return super().pop(0)

        arriving = Arriving([{"type": "http.request", "body": body[:-9], "more_body": True}])
        task = asyncio.create_task(call(app, arriving))
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert left(tmp_path / "files") == []
    assert store._index.names() == set()


def test_files_that_are_being_kept_do_not_keep_others_waiting(
    app: FastAPI, store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep, kept = Upload.keep, threading.Event()

    inside: list[Any] = []

    def slow(self: Upload, *args: Any) -> Any:
        loop, waits = inside
        loop.call_soon_threadsafe(waits.release)
        assert kept.wait(60)  # an object store takes its time
        return keep(self, *args)

    monkeypatch.setattr(Upload, "keep", slow)
    body = form(PURPOSE, ('name="file"; filename="a.mp4"', clip(3)))

    async def run() -> None:
        # One for the files that are kept, if they took it, and one for the codec worker's task.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
        waits = asyncio.Semaphore(0)
        inside[:] = asyncio.get_running_loop(), waits
        coming = [asyncio.create_task(call(app, [{"type": "http.request", "body": body}])) for _ in range(3)]
        headers = {"authorization": "Bearer first"}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://h", headers=headers) as asks:
            for _ in coming:
                await asyncio.wait_for(waits.acquire(), 30)
            assert (await asyncio.wait_for(asks.get("/v1/files"), 10)).json()["data"] == []
            assert not any(task.done() for task in coming)
            kept.set()
            assert [(await task)[0]["status"] for task in coming] == [200, 200, 200]

    asyncio.run(run())


def test_a_file_deleted_while_it_is_sent_is_sent_whole(app: FastAPI, store: FileStore, client: TestClient) -> None:
    data = padded(LIMITS.file_bytes)
    name = upload(client, data).json()["id"]
    headers = [(b"authorization", b"Bearer first")]
    scope = {"type": "http", "method": "GET", "path": f"/v1/files/{name}/content", "query_string": b""}
    pieces: list[bytes] = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            store.delete(store_owner(store, name), name)
        pieces.append(message.get("body", b""))

    before = descriptors()
    asyncio.run(app({**scope, "headers": headers, "asgi": {"version": "3.0", "spec_version": "2.4"}}, receive, send))
    assert b"".join(pieces) == data
    assert descriptors(at_most=before) <= before


def store_owner(store: FileStore, name: str) -> str:
    with store._index._lock:
        (owner,) = store._index._db.execute("SELECT owner FROM files WHERE id = ?", (name,)).fetchone()
    return str(owner)


def test_the_files_of_a_request_are_those_of_its_key(app: FastAPI, client: TestClient) -> None:
    from starlette.requests import Request

    def request(key: str) -> Request:
        headers = [(b"authorization", f"Bearer {key}".encode())]
        return Request({"type": "http", "app": app, "headers": headers})

    name = upload(client, clip(3)).json()["id"]
    path = uploads_of(request("first"))(name)
    assert path is not None
    assert path.read_bytes() == clip(3)
    for other in (uploads_of(request("second"))(name), uploads_of(request("first"))("file-" + "x" * 32)):
        assert other is None
    path.unlink()  # by hand
    assert uploads_of(request("first"))(name) is None
    assert refusal(client.get(f"/v1/files/{name}/content")) == (404, "unknown_file", "file_id")


def test_a_busy_pool_is_a_429_and_leaves_nothing(
    client: TestClient, pool: CodecPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "max_queue", 0)
    answer = upload(client, clip(3))
    assert refusal(answer) == (429, "queue_full", "file")
    assert answer.headers["retry-after"] == "1"
    assert left(tmp_path / "files") == []


def test_a_full_disk_is_a_507_and_leaves_nothing(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        assert refusal(upload(client, clip(3))) == (507, "storage_full", "file")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert refusal(upload(client, clip(3))) == (507, "storage_full", "file")
    assert left(tmp_path / "files") == []
    assert upload(client, clip(3)).status_code == 200


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error", "/data/files/stored/x"),
        PermissionError(errno.EACCES, "Permission denied", "/data/files/stored/x"),
        sqlite3.DatabaseError("database disk image is malformed: /data/files/index"),
    ],
)
def test_a_disk_that_fails_is_not_described_to_the_client(
    client: TestClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(FileIndex, "finish", fails)
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    answer = upload(client, clip(3))
    assert refusal(answer) == (500, "internal_error", None)
    assert "/data" not in answer.text
    assert "/data/files" in caplog.text  # the operator learns it
    assert left(tmp_path / "files") == []


def test_the_form_is_read_in_pieces_of_any_size() -> None:
    data = bytes(range(256)) * 3 + b"\r\n--\r\n-x\r\n--y\r"
    body = form(PURPOSE, ('name="expires_after[anchor]"', b"created_at"), ('name="file"; filename="a"', data))
    body = body[: -len(b"--x--\r\n")] + form(('name="expires_after[seconds]"', b"7200"))
    for size in (1, 2, 7, 64, len(body)):
        found = UploadForm("multipart/form-data; boundary=x")
        got = b"".join(piece for chunk in in_pieces(body, size) for piece in found.feed(chunk))
        found.finish()
        assert (got, found.filename, found.purpose, found.expires_after_s) == (data, "a", "vision", 7200)


@pytest.mark.parametrize("way", ["fields", "before", "behind"])
def test_a_form_does_not_grow_beside_its_file(way: str) -> None:
    form = UploadForm("multipart/form-data; boundary=x")
    part = b'--x\r\ncontent-disposition: form-data; name="options[%s]"\r\n\r\n' + b"9" * 200 + b"\r\n"
    whole = b'--x\r\ncontent-disposition: form-data; name="file"\r\n\r\n' + bytes(1 << 20) + b"\r\n--x--\r\n"
    names = (first + second for first in "abcdefghij" for second in "abcdefghij")
    pieces = {
        "fields": [part % name.encode() for name in names],
        "before": [b"\r\n" * 500] * 100,
        "behind": [whole, *[b"x" * 1000] * 100],
    }[way]
    with pytest.raises(FileError) as caught:
        for piece in pieces:
            form.feed(piece)
    assert (caught.value.code, str(caught.value)) == ("invalid_upload", "the form has too much beside its file")


def test_the_published_schema_names_every_field(app: FastAPI) -> None:
    paths = app.openapi()["paths"]
    assert {method for path in paths.values() for method in path} == {"get", "post", "delete"}
    body = paths["/v1/files"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert set(body["required"]) == {"file", "purpose"}
    query = {parameter["name"] for parameter in paths["/v1/files"]["get"]["parameters"]}
    assert query == {"limit", "after", "order", "purpose"}
