"""Uploaded files in an object store: a server that speaks S3, and several folders that share a bucket."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from requirements import require
from s3_server import s3_server

from cope_server.errors import http_status
from cope_server.file_settings import FileSettings, to_environment
from cope_server.files import object_storage
from cope_server.files.errors import FileError
from cope_server.files.object_storage import ObjectStorage, open_bucket
from cope_server.files.store import FileLimits, FileStore

LIMITS = FileLimits(file_bytes=1 << 20, owner_bytes=4 << 20, owner_files=50)
URL = "s3://videos/some/prefix"
START = 1_700_000_000


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture
def s3(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The bucket as others see it: an empty one, and the environment that leads to it."""
    import boto3

    settings = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}
    for name, value in {**settings, "AWS_ENDPOINT_URL": endpoint}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(object_storage, "_PAUSE_S", 0.01)
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    with contextlib.suppress(client.exceptions.NoSuchBucket):
        for key in keys(client):
            client.delete_object(Bucket="videos", Key=key)
        client.delete_bucket(Bucket="videos")
    client.create_bucket(Bucket="videos")
    return client


def keys(client: Any) -> list[str]:
    return [entry["Key"] for entry in client.list_objects_v2(Bucket="videos").get("Contents", [])]


class Clock:
    def __init__(self) -> None:
        self.now = float(START)

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@contextlib.contextmanager
def replica(folder: Path, clock: Clock, spool_bytes: int = 1 << 30) -> Iterator[FileStore]:
    """A server's store, with a folder of its own."""
    store = FileStore(folder, LIMITS, ObjectStorage(open_bucket(URL), folder / "spool", spool_bytes, clock), clock)
    try:
        yield store
    finally:
        store.close()


def upload(store: FileStore, data: bytes = b"a video", owner: str = "owner", expires_after_s: int | None = None) -> str:
    coming = store.begin(owner)
    try:
        coming.write([data])
        return coming.keep("a.mp4", "vision", expires_after_s).id
    finally:
        coming.discard()


def code(error: pytest.ExceptionInfo[FileError]) -> tuple[str, int]:
    return error.value.code, http_status(error.value.code)


def unreachable() -> Any:
    """The bucket at an address where nobody answers."""
    with socket.socket() as free, pytest.MonkeyPatch.context() as patch:
        free.bind(("127.0.0.1", 0))
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
        return open_bucket(URL)


def copies(folder: Path) -> set[str]:
    return {path.name for path in (folder / "spool").iterdir()}


def test_a_file_is_one_object_with_a_record(tmp_path: Path, s3: Any, clock: Clock) -> None:
    with replica(tmp_path, clock) as store:
        name = upload(store, b"a video", expires_after_s=3600)
        assert keys(s3) == [f"some/prefix/data/{name}", f"some/prefix/records/{name}/{START + 3600}"]
        assert s3.get_object(Bucket="videos", Key=f"some/prefix/data/{name}")["Body"].read() == b"a video"
        assert store.local_path("owner", name).read_bytes() == b"a video"
        assert list((tmp_path / "incoming").iterdir()) == []
        store.delete("owner", name)
        assert keys(s3) == []
        assert copies(tmp_path) == set()
        with pytest.raises(FileError) as caught:
            store.get("owner", name)
        assert code(caught) == ("unknown_file", 404)


def test_another_server_finds_a_file_by_its_id_and_its_owner(tmp_path: Path, s3: Any, clock: Clock) -> None:
    with replica(tmp_path / "a", clock) as first, replica(tmp_path / "b", clock) as second:
        name = upload(first)
        assert second.get("owner", name) == first.get("owner", name)
        assert second.local_path("owner", name).read_bytes() == b"a video"
        assert copies(tmp_path / "b") == {name}
        for use in (second.get, second.local_path, second.delete, first.delete):
            with pytest.raises(FileError) as caught:
                use("other", name)
            assert code(caught) == ("unknown_file", 404)
        assert second.page("owner", limit=9, after=None, newest_first=True, purpose=None) == ([], False)


def test_a_file_that_one_server_deletes_is_gone_on_all(
    tmp_path: Path, s3: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / name for name in "abc"]
    with contextlib.ExitStack() as stack:
        stores = [stack.enter_context(replica(folder, clock)) for folder in folders]
        name = upload(stores[0])
        for store in stores:
            store.local_path("owner", name)
        stores[1].delete("owner", name)
        assert keys(s3) == []
        # The first has it in its index until it sweeps, the third remembers the record for a while.
        monkeypatch.setattr(object_storage, "_RECORDS_FOR_S", 0.0)
        monkeypatch.setattr(object_storage, "_IN_USE_S", 0.0)
        for store in stores:
            store.sweep()
            with pytest.raises(FileError):
                store.get("owner", name)
        assert [copies(folder) for folder in folders] == [set(), set(), set()]
        assert stores[0]._index.used("owner", START) == (0, 0)


def test_expired_files_are_removed_by_whoever_sweeps(tmp_path: Path, s3: Any, clock: Clock) -> None:
    with replica(tmp_path / "a", clock) as first, replica(tmp_path / "b", clock) as second:
        name, stays = upload(first, expires_after_s=3600), upload(first)
        clock.now += 3599
        assert second.get("owner", name).expires_at == START + 3600
        clock.now += 1
        with pytest.raises(FileError):
            second.get("owner", name)  # though it remembers the record
        second.sweep()
        assert keys(s3) == [f"some/prefix/data/{stays}", f"some/prefix/records/{stays}/0"]
        first.sweep()
        assert first.get("owner", stays).id == stays


# Uploads 8 MB; `argv` is the folder and where it is killed.
_CHILD = """
import os, signal, sys
from pathlib import Path
from cope_server.files import object_storage
from cope_server.files.object_storage import ObjectStorage, open_bucket
from cope_server.files.store import FileLimits, FileStore

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

class Dying(ObjectStorage):
    def _send(self, temporary, key):
        if sys.argv[2] == "between":  # the bytes and their record
            super()._send(temporary, key)
            die()
        whole = Path.open
        def opened(path, mode):
            file = whole(path, mode)
            read, file_read = [0], file.read
            class Half:
                def __enter__(self): return self
                def __exit__(self, *_): file.close()
                def fileno(self): return file.fileno()
                def read(self, size):
                    read[0] += 1
                    return die() if read[0] > 4 else file_read(size)
            return Half()
        Path.open = opened
        super()._send(temporary, key)

folder = Path(sys.argv[1])
store = FileStore(folder, FileLimits(1 << 30, 1 << 31, 50), Dying(open_bucket("%s"), folder / "spool", 1 << 30))
coming = store.begin("owner")
coming.write([bytes(8 << 20)])
coming.keep("a.mp4", "vision", None)
"""


@pytest.mark.parametrize("where", ["half", "between"])
def test_a_killed_upload_leaves_nothing(tmp_path: Path, s3: Any, clock: Clock, where: str) -> None:
    died = subprocess.run([sys.executable, "-c", _CHILD % URL, str(tmp_path), where], timeout=60)
    assert died.returncode == -signal.SIGKILL
    assert "Uploads" not in s3.list_multipart_uploads(Bucket="videos")
    with replica(tmp_path, clock) as store:
        store.sweep()
        assert keys(s3) == []
        assert list((tmp_path / "incoming").iterdir()) == []
        assert copies(tmp_path) == set()
        assert store._index.used("owner", START) == (0, 0)


def test_bytes_whose_server_never_came_back_go_after_a_day(tmp_path: Path, s3: Any, clock: Clock) -> None:
    for key in ("data/file-" + "a" * 32, "records/file-" + "b" * 32 + "/0"):
        s3.put_object(Bucket="videos", Key=f"some/prefix/{key}", Body=b"x")
    clock.now = time.time()
    with replica(tmp_path, clock) as store:
        store.sweep()
        assert len(keys(s3)) == 2
        clock.now += 25 * 3600
        store.sweep()
        assert keys(s3) == ["some/prefix/records/file-" + "b" * 32 + "/0"]


def test_the_spool_keeps_what_was_used_last(
    tmp_path: Path, s3: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with replica(tmp_path, clock, spool_bytes=1000) as store:
        names = [upload(store, bytes(400)) for _ in range(3)]
        assert copies(tmp_path) == set(names)  # all in use
        monkeypatch.setattr(object_storage, "_IN_USE_S", 0.0)
        for age, name in enumerate(names):
            os.utime(tmp_path / "spool" / name, (START + age, START + age))
        store.local_path("owner", names[0])
        names.append(upload(store, bytes(100)))
        assert copies(tmp_path) == {names[0], names[2], names[3]}
        assert store.local_path("owner", names[1]).stat().st_size == 400  # fetched again
        assert copies(tmp_path) == {names[0], names[1], names[3]}


def test_a_copy_is_fetched_once_however_many_ask(tmp_path: Path, s3: Any, clock: Clock) -> None:
    with replica(tmp_path / "a", clock) as first, replica(tmp_path / "b", clock) as second:
        name = upload(first, bytes(500_000))
        fetched: list[str] = []
        fetch = second._storage._fetch  # type: ignore[attr-defined]
        second._storage._fetch = lambda *words: (fetched.append(words[0]), fetch(*words))  # type: ignore[attr-defined]
        threads = [threading.Thread(target=second.local_path, args=("owner", name)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert fetched == [name]
        assert (tmp_path / "b" / "spool" / name).stat().st_size == 500_000


_MEMORY = """
import sys
from pathlib import Path
from clips import peak_kib
from cope_server.files.object_storage import ObjectStorage, open_bucket

storage = ObjectStorage(open_bucket("%s"), Path(sys.argv[1]) / "spool", 1)
def round_trip(name, size):
    path = Path(sys.argv[1]) / name
    with path.open("wb") as file:
        file.truncate(size)
    storage.put(path, name)
    (Path(sys.argv[1]) / "spool" / name).unlink()
    assert storage.local_path(name).stat().st_size == size

round_trip("small", 1 << 20)
before = peak_kib()
round_trip("large", 256 << 20)
print(peak_kib() - before)
"""


def test_memory_does_not_grow_with_a_file(tmp_path: Path, s3: Any) -> None:
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY % URL, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 64 << 10


def test_a_store_that_does_not_answer_is_told_and_the_server_goes_on(
    tmp_path: Path, s3: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with replica(tmp_path, clock) as store:
        name = upload(store)
        (tmp_path / "spool" / name).unlink()
        with monkeypatch.context() as patch:
            patch.setattr(store._storage, "_store", unreachable())
            for use in (
                lambda: upload(store),
                lambda: store.local_path("owner", name),
                lambda: store.delete("owner", name),
            ):
                with pytest.raises(FileError) as caught:
                    use()
                assert code(caught) == ("storage_unavailable", 503)
                assert "127.0.0.1" not in str(caught.value)
            with pytest.raises(OSError, match="object store"):
                store.sweep()  # the task that sweeps logs this and tries again
        assert store.local_path("owner", name).read_bytes() == b"a video"
        assert store._index.used("owner", START) == (len(b"a video"), 1)  # the upload that failed does not count
        assert len(keys(s3)) == 2


def test_a_question_is_told_to_come_again(
    tmp_path: Path, s3: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    require("ENGINE", find_spec("vllm") is not None, "vLLM is not installed (make setup)")
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    from cope_codec.pool import CodecPool
    from cope_model import extraction
    from cope_model.connector import CoPEConnector
    from cope_model.presets import PRESETS
    from cope_server.errors import add_error_handlers
    from cope_server.files.routes import router as files
    from cope_server.plans import router as plans

    app = FastAPI()
    add_error_handlers(app)
    app.include_router(files)
    app.include_router(plans)
    state = app.state
    state.cope_keyed, state.cope_geometry, state.cope_context_tokens = False, PRESETS["tiny"].geometry, 400
    state.cope_connector = CoPEConnector
    with replica(tmp_path, clock) as state.cope_files, CodecPool(1) as pool:
        extraction.install(pool, state.cope_geometry.side)
        request.addfinalizer(extraction.uninstall)
        name = upload(state.cope_files, owner="everyone")
        (tmp_path / "spool" / name).unlink()
        client = TestClient(app)
        assert client.get(f"/v1/files/{name}/content").content == b"a video"
        (tmp_path / "spool" / name).unlink()
        monkeypatch.setattr(state.cope_files._storage, "_store", unreachable())
        for answer in (client.post("/v1/videos/plan", json={"file_id": name}), client.get(f"/v1/files/{name}/content")):
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "storage_unavailable")
            assert answer.headers["retry-after"] == "1"


def test_a_refused_upload_is_not_tried_again(tmp_path: Path, s3: Any, clock: Clock) -> None:
    with replica(tmp_path, clock) as store:
        s3.delete_bucket(Bucket="videos")
        sent: list[str] = []
        store._storage._http.event_hooks["request"].append(lambda request: sent.append(request.method))  # type: ignore[attr-defined]
        with pytest.raises(FileError) as caught:
            upload(store)
        assert sent == ["PUT"]
        assert code(caught) == ("storage_unavailable", 503)
        assert list((tmp_path / "incoming").iterdir()) == []


def test_settings_lead_to_the_bucket(tmp_path: Path, s3: Any) -> None:
    environment = {"COPE_FILES_DIR": str(tmp_path), "COPE_FILES_STORAGE": URL, "COPE_FILES_SPOOL_MB": "7"}
    store = FileSettings.from_environment(environment).open_store()
    name = upload(store)
    assert keys(s3)[0] == f"some/prefix/data/{name}"
    assert json.loads(s3.get_object(Bucket="videos", Key=keys(s3)[1])["Body"].read())["owner"] == "owner"
    store.close()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"STORAGE": "gs://a/b"}, "COPE_FILES_STORAGE must be s3://BUCKET or s3://BUCKET/PREFIX, not 'gs://a/b'"),
        ({"STORAGE": "s3://a key@x/b"}, "COPE_FILES_STORAGE must be"),
        (
            {"STORAGE": URL, "MAX_MB": "6000"},
            "COPE_FILES_MAX_MB must be at most 5120 with COPE_FILES_STORAGE, not 6000",
        ),
        ({"STORAGE": URL, "SPOOL_MB": "0"}, "COPE_FILES_SPOOL_MB must be at least 1, not 0"),
    ],
)
def test_bad_settings_are_told_at_the_start(tmp_path: Path, more: dict[str, str], message: str) -> None:
    environment = {f"COPE_FILES_{name}": value for name, value in {"DIR": str(tmp_path), **more}.items()}
    with pytest.raises(ValueError, match="COPE_FILES_") as caught:
        to_environment(argparse.Namespace(), environment)
    assert str(caught.value).startswith(message)


def test_a_bucket_that_is_not_there_is_told_at_the_start(tmp_path: Path, s3: Any) -> None:
    environment = {"COPE_FILES_DIR": str(tmp_path), "COPE_FILES_STORAGE": "s3://nothing"}
    with pytest.raises(ValueError, match="COPE_FILES_STORAGE: s3://nothing: the object store cannot be used"):
        FileSettings.from_environment(environment).open_store()
