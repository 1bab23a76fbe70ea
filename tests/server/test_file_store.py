"""The store of uploaded files under processes that are killed, and several that share a folder."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from cope_server import cli, file_settings
from cope_server.file_settings import FileSettings
from cope_server.files.errors import FileError
from cope_server.files.store import FileLimits, FileStore
from cope_server.files.sweeping import keep_swept

LIMITS = FileLimits(file_bytes=1 << 20, owner_bytes=4 << 20, owner_files=50)

# Keeps one file and receives another; `argv` is the folder and how far the second one comes.
_CHILD = """
import os, signal, sys
from pathlib import Path
from cope_server.files.store import FileLimits, FileStore

store = FileStore(Path(sys.argv[1]), FileLimits(1 << 20, 4 << 20, 50))
done = store.begin("owner")
done.write([b"finished"])
print(done.keep("a.mp4", "vision", None).id, flush=True)
coming = store.begin("owner")
coming.write([b"half"])
if sys.argv[2] == "stored":  # killed between the file and its row
    store._index.finish = lambda file: os.kill(os.getpid(), signal.SIGKILL)
    coming.keep("b.mp4", "vision", None)
if sys.argv[2] == "deleted":  # killed between the row and the file
    store._storage.delete = lambda name: os.kill(os.getpid(), signal.SIGKILL)
    other = store.begin("owner")
    store.delete("owner", other.keep("c.mp4", "vision", None).id)
print(coming.path.name, flush=True)
sys.stdin.read()
"""


def child(folder: Path, how: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _CHILD, str(folder), how]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def listed(store: FileStore) -> list[str]:
    page, _ = store.page("owner", limit=100, after=None, newest_first=False, purpose=None)
    return [file.id for file in page]


@pytest.mark.parametrize("how", ["arriving", "stored", "deleted"])
def test_a_killed_process_loses_no_finished_file_and_leaves_no_other(tmp_path: Path, how: str) -> None:
    process = child(tmp_path, how)
    done = read_line(process)
    if how == "arriving":
        coming = read_line(process)
        process.send_signal(signal.SIGKILL)
        assert (tmp_path / "incoming" / coming).read_bytes() == b"half"
    assert process.wait(60) == -signal.SIGKILL
    process.communicate()
    store = FileStore(tmp_path, LIMITS)
    store.sweep()
    assert listed(store) == [done]
    assert store.local_path("owner", done).read_bytes() == b"finished"
    assert [path.name for path in (tmp_path / "stored").iterdir()] == [done]
    assert list((tmp_path / "incoming").iterdir()) == []
    assert len(list((tmp_path / "processes").iterdir())) == 1  # its own
    assert store._index.used("owner", 0) == (len(b"finished"), 1)
    store.close()
    assert list((tmp_path / "processes").iterdir()) == []


def test_what_a_living_process_receives_is_not_swept(tmp_path: Path) -> None:
    process = child(tmp_path, "arriving")
    done, coming = read_line(process), read_line(process)
    store = FileStore(tmp_path, LIMITS)
    mine = store.begin("owner")
    mine.write([b"mine"])
    store.sweep()
    assert {path.name for path in (tmp_path / "incoming").iterdir()} == {coming, mine.path.name}
    kept = mine.keep("a.mp4", "vision", None).id
    assert listed(store) == [done, kept]
    process.communicate("")
    store.sweep()
    assert list((tmp_path / "incoming").iterdir()) == []
    assert listed(store) == [done, kept]
    store.close()


def test_an_upload_that_ends_while_the_index_cannot_be_written_is_forgotten_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FileStore(tmp_path, FileLimits(file_bytes=10, owner_bytes=100, owner_files=1))

    def full(_: str) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(store._index, "forget", full)
        coming = store.begin("owner")
        coming.write([b"half"])
        coming.discard()  # says nothing: what went wrong before is what the client is told
    assert list((tmp_path / "incoming").iterdir()) == []
    with pytest.raises(FileError, match="may keep"):
        store.begin("owner")
    store.sweep()
    store.begin("owner").discard()
    store.close()


def test_processes_that_start_together_share_the_folder(tmp_path: Path) -> None:
    processes = [child(tmp_path, "arriving") for _ in range(4)]
    done = [read_line(process) for process in processes]
    for process in processes:
        process.communicate("")
        assert process.returncode == 0
    store = FileStore(tmp_path, LIMITS)
    assert sorted(listed(store)) == sorted(done)
    store.close()


def test_strangers_files_in_the_folder_stay(tmp_path: Path) -> None:
    store = FileStore(tmp_path, LIMITS)
    (tmp_path / "stored" / "notes.txt").write_text("mine")
    store.sweep()
    store.close()
    assert (tmp_path / "stored" / "notes.txt").exists()


def test_nobody_else_may_read_them(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "files", LIMITS)
    coming = store.begin("owner")
    path = store.local_path("owner", coming.keep("a", "vision", None).id)
    places = [place for place in (tmp_path / "files").rglob("*")]
    assert path in places and len([place for place in places if place.name.startswith("index.sqlite3")]) == 3
    assert [place.name for place in places if os.stat(place).st_mode & 0o77] == []
    store.close()
    (tmp_path / "files" / "index.sqlite3").chmod(0o644)  # as earlier versions made it
    FileStore(tmp_path / "files", LIMITS).close()
    assert os.stat(tmp_path / "files" / "index.sqlite3").st_mode & 0o77 == 0


def test_an_index_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    store = FileStore(tmp_path, LIMITS)
    store._index._db.execute("PRAGMA user_version = 99")
    store.close()
    with pytest.raises(ValueError, match="version 99"):
        FileStore(tmp_path, LIMITS)


def test_the_server_sweeps_by_itself(tmp_path: Path) -> None:
    now = [1000.0]
    store = FileStore(tmp_path, LIMITS, now=lambda: now[0])
    store.begin("owner").keep("a", "vision", 3600)

    async def wait() -> None:
        task = asyncio.create_task(keep_swept(store, 0.01))
        await asyncio.sleep(0.1)
        assert len(list((tmp_path / "stored").iterdir())) == 1
        now[0] += 3600
        for _ in range(500):
            await asyncio.sleep(0.02)
            if not list((tmp_path / "stored").iterdir()):
                break
        task.cancel()

    asyncio.run(wait())
    assert list((tmp_path / "stored").iterdir()) == []
    store.close()


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    file_settings.add_arguments(parser)
    return parser.parse_args(words)


def test_options_go_before_the_environment_which_goes_before_the_defaults(tmp_path: Path) -> None:
    environment = {"COPE_FILES_MAX_MB": "7", "COPE_FILES_QUOTA_MB": "20", "COPE_FILES_QUOTA_COUNT": ""}
    words = ("--files-dir", str(tmp_path / "files"), "--files-max-mb", "5")
    file_settings.to_environment(parse(*words), environment)
    settings = FileSettings.from_environment(environment)
    assert settings == FileSettings(str(tmp_path / "files"), max_mb=5, quota_mb=20)
    assert settings.limits() == FileLimits(5 << 20, 20 << 20, 10_000)
    assert settings.folder() == tmp_path / "files"


def test_the_default_folder_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert FileSettings().folder() == tmp_path / ".local/state/cope-serve/files"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert FileSettings().folder() == tmp_path / "state/cope-serve/files"


def test_a_folder_that_cannot_be_used_ends_serve_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("COPE_FILES_DIR", "")
    assert cli.main(["serve", "--files-dir", str(tmp_path / "taken")]) == 2
    error = capsys.readouterr().err
    assert error == f"cope: COPE_FILES_DIR: uploaded files cannot be kept in {tmp_path}/taken: Not a directory\n"
    monkeypatch.setenv("COPE_FILES_MAX_MB", "")
    assert cli.main(["serve", "--files-max-mb", "0"]) == 2
    assert capsys.readouterr().err == "cope: COPE_FILES_MAX_MB must be at least 1, not 0\n"
