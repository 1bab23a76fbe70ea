"""Events come out the same whatever pieces the bytes come in."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cope_loadtest.sse import ChatEvent, EventParser, NotEventsError, read_chat_event

STREAM = (
    b': a comment\n\ndata: {"a": 1}\n\nevent: message\ndata: one\ndata: two\r\n\r\n'
    b"id: 7\nretry: 10\ndata:bare\r\rdata\n\ndata: [DONE]\n\n"
)
EVENTS = [b'{"a": 1}', b"one\ntwo", b"bare", b"", b"[DONE]"]


@given(st.lists(st.integers(0, len(STREAM)), max_size=30))
def test_any_cut_gives_the_same_events(cuts: list[int]) -> None:
    parser = EventParser()
    edges = [0, *sorted(cuts), len(STREAM)]
    got = [event for a, b in itertools.pairwise(edges) for event in parser.feed(STREAM[a:b])]
    assert got == EVENTS


def test_byte_by_byte() -> None:
    parser = EventParser()
    assert [event for byte in STREAM for event in parser.feed(bytes([byte]))] == EVENTS


def test_a_cr_lf_that_is_cut_in_the_middle_is_one_line_end() -> None:
    parser = EventParser()
    assert parser.feed(b"data: x\r") == []
    assert parser.feed(b"\ndata: y\r") == []
    assert parser.feed(b"\n\r") == [b"x\ny"]
    assert parser.feed(b"\n") == []


def test_what_is_no_event_stream_is_refused() -> None:
    with pytest.raises(NotEventsError, match="no event's: '<html>'"):
        EventParser().feed(b"<html>\n")
    parser = EventParser()
    with pytest.raises(NotEventsError, match="more than"):
        for _ in range(17):
            parser.feed(b"data: " + b"x" * (1 << 20))


def chunk(delta: dict[str, object], finish: str | None = None) -> bytes:
    return json.dumps({"choices": [{"delta": delta, "finish_reason": finish}]}).encode()


def test_what_counts_as_content() -> None:
    assert read_chat_event(chunk({"role": "assistant", "content": ""})) == ChatEvent()
    assert read_chat_event(chunk({"content": "Hi"})) == ChatEvent("Hi", has_content=True)
    assert read_chat_event(chunk({"reasoning_content": "Hm"})) == ChatEvent("Hm", has_content=True)
    assert read_chat_event(chunk({"tool_calls": [{"index": 0}]})) == ChatEvent(has_content=True)
    assert read_chat_event(chunk({}, "stop")) == ChatEvent(finished=True)
    assert read_chat_event(b" [DONE]") == ChatEvent(done=True)
    assert read_chat_event(b'{"choices": [], "usage": {"prompt_tokens": 3}}').usage == {"prompt_tokens": 3}
    assert read_chat_event(b'{"error": {"message": "too long", "code": 400}}').error == "too long"
    assert read_chat_event(b'{"error": "too long"}').error == "too long"


@pytest.mark.parametrize("data", [b"hello", b"[1]", b'{"object": "list"}', b'{"choices": [1]}', b'{"choices": null}'])
def test_what_is_no_chunk_is_refused(data: bytes) -> None:
    with pytest.raises(NotEventsError):
        read_chat_event(data)
