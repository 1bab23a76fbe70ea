from __future__ import annotations

import hashlib
import json
import logging
import secrets
from pathlib import Path
from typing import Any

import pytest

from cope_server.keys import KeyRing

ALICE, BOB = "sk-alice-0123456789", "sk-bob-0123456789"
TEXT = f"# who may come in\n\nalice:{ALICE}\nbob  {BOB}\n"


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        f"alice: {ALICE}\r\nbob :{BOB}",
        json.dumps({"alice": ALICE, "bob": [BOB, "sk-second"]}),
        f"alice:sha256={hashlib.sha256(ALICE.encode()).hexdigest()}\nbob {BOB}",
    ],
)
def test_keys_have_owners(text: str) -> None:
    ring = KeyRing.parse(text)
    assert ring.names == {"alice", "bob"}
    assert (ring.owner(ALICE), ring.owner(BOB)) == ("alice", "bob")
    for wrong in ("", "alice", ALICE.upper(), ALICE + " ", ALICE[:-1], "sha256=" + "0" * 64, "ключ", "\udcff"):
        assert ring.owner(wrong) is None


def test_a_key_can_be_replaced_while_the_old_one_still_works() -> None:
    ring = KeyRing.parse("alice:new-key\nalice:old-key")
    assert (ring.owner("new-key"), ring.owner("old-key")) == ("alice", "alice")


def test_every_key_is_compared_whichever_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = KeyRing.parse("\n".join(f"n{i}:key-{i}" for i in range(10)))
    compared: list[tuple[int, int]] = []
    original = secrets.compare_digest

    def counting(a: Any, b: Any) -> bool:
        compared.append((len(a), len(b)))
        return original(a, b)

    monkeypatch.setattr(secrets, "compare_digest", counting)
    for key in ("key-0", "key-9", "no-key", "k", "k" * 5000):
        compared.clear()
        ring.owner(key)
        assert compared == [(32, 32)] * 10, "digests of one length, all of them"


def test_what_travels_and_is_shown_holds_no_key() -> None:
    ring = KeyRing.parse(TEXT).with_unnamed(["sk-third"])
    text = ring.to_text()
    assert KeyRing.parse(text) == ring
    assert KeyRing.parse(text).owner("sk-third") == "key-1"
    for key in (ALICE, BOB, "sk-third"):
        assert key not in text and key not in repr(ring)
    assert repr(ring) == "KeyRing(alice, bob, key-1)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alice", "line 1 is not of the form"),
        (f"\n#\n{ALICE}", "line 3 is not of the form"),
        (f"al/ice:{ALICE}", "line 1: a name has"),
        ("alice:two words", "line 1: a key is of visible"),
        ("alice:schlüssel", "line 1: a key is of visible"),
        ("alice:sha256=abc", "line 1: after sha256="),
        (f"alice:{ALICE}\nbob:{ALICE}", "'alice' and 'bob' have the same API key"),
        ("{not json", "begins like JSON"),
        ('{"alice": 5}', "the key of 'alice' is no text"),
        ('{"": "sk-x"}', "entry 1: a name has"),
    ],
)
def test_mistakes_are_named_without_the_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        KeyRing.from_file(write(tmp_path / "keys", text))
    assert "sk-" not in str(caught.value) and "words" not in str(caught.value)


@pytest.mark.parametrize("mode", [0o604, 0o606, 0o620, 0o602, 0o644, 0o777])
def test_a_file_that_others_can_read_or_change_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ValueError, match=rf"mode {mode:04o}: others may read or change it"):
        KeyRing.from_file(write(tmp_path / "keys", TEXT, mode))


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o440, 0o640])
def test_a_file_of_ones_own_is_read(tmp_path: Path, mode: int) -> None:
    assert KeyRing.from_file(write(tmp_path / "keys", TEXT, mode)).owner(BOB) == "bob"


def test_a_file_that_holds_no_key_does_not_open_the_server(tmp_path: Path) -> None:
    for text in ("", "\n# nothing\n", "{}"):
        with pytest.raises(ValueError, match="holds none"):
            KeyRing.from_file(write(tmp_path / "keys", text))
    with pytest.raises(FileNotFoundError):
        KeyRing.from_file(tmp_path / "missing")
    (tmp_path / "bytes").write_bytes(b"alice:\xff\xfe")
    (tmp_path / "bytes").chmod(0o600)
    with pytest.raises(ValueError, match="UTF-8"):
        KeyRing.from_file(tmp_path / "bytes")


def test_file_and_environment_add_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    path = write(tmp_path / "keys", f"alice:{ALICE}")
    ring = KeyRing.from_environment({"COPE_API_KEY_FILE": str(path), "COPE_API_KEYS": f"bob:{BOB}"})
    assert ring.names == {"alice", "bob"}
    assert KeyRing.from_environment({}).names == frozenset()
    with pytest.raises(ValueError, match="COPE_API_KEYS: line 1"):
        KeyRing.from_environment({"COPE_API_KEYS": "x"})
    assert "sk-" not in caplog.text
