"""One request: its clocks against a server that waits for known times, and its one outcome whatever goes wrong."""

from __future__ import annotations

import asyncio
import json
import socket
import time

import pytest
from fake_chat import OK_HEAD, ROLE, Behaviour, Request, delta, serving, streaming

from cope_loadtest.client import Body, Patience, make_client, send
from cope_loadtest.outcomes import OUTCOMES
from cope_loadtest.records import Record

CALM = Patience(stall_s=20.0, timeout_s=40.0)
QUICK = Patience(stall_s=1.0, timeout_s=3.0)
# How late a clock may be on a busy machine, seconds; never how early.
LATE = 0.4


def ask(url: str, body: Body | None = None, patience: Patience = CALM, count: int = 1) -> list[Record]:
    """Send requests one after another over one client."""

    async def work() -> list[Record]:
        records = []
        async with make_client(url) as client:
            for number in range(count):
                record = Record(0, number, "measured", "test", None, time.perf_counter())
                await send(client, body or Body([b"{}"]), record, patience)
                records.append(record)
        return records

    return asyncio.run(work())


def ask_one(behaviour: Behaviour, patience: Patience = CALM, body: Body | None = None) -> Record:
    with serving(behaviour) as fake:
        (record,) = ask(fake.url, body, patience)
    return record


def test_clocks_are_those_of_the_server() -> None:
    record = ask_one(streaming(first_s=0.3, gap_s=0.1, tokens=4))
    assert record.outcome == "ok" and record.status == 200 and record.detail is None
    moments = [record.scheduled, record.sent, record.body_sent, record.first_byte, record.first_token, record.last]
    assert None not in moments
    assert moments == sorted(moments)  # type: ignore[type-var]
    assert record.ttft_s == pytest.approx(0.3, abs=LATE) and record.ttft_s >= 0.3
    # The headers and the role came at once: neither is a token.
    assert record.first_token - record.first_byte >= 0.29  # type: ignore[operator]
    assert len(record.tokens) == 4
    assert record.tokens[0] == record.first_token
    assert record.tokens[-1] - record.tokens[0] == pytest.approx(0.3, abs=LATE)
    assert record.finished is not None and record.tokens[-1] <= record.finished <= record.last  # type: ignore[operator]
    assert record.tpot_s == pytest.approx((record.finished - record.tokens[0]) / 3)
    assert sum(record.itl_s) == pytest.approx(record.tokens[-1] - record.tokens[0])
    assert record.e2el_s == pytest.approx(0.6, abs=LATE) and record.e2el_s >= 0.59
    assert record.usage["completion_tokens"] == 4 and record.text_length == 20


def test_time_from_scheduled_counts_what_the_client_was_late() -> None:
    async def work(url: str) -> Record:
        async with make_client(url) as client:
            record = Record(0, 0, "measured", "test", None, time.perf_counter() - 1.0)
            await send(client, Body([b"{}"]), record, CALM)
            return record

    with serving(streaming(first_s=0.1)) as fake:
        record = asyncio.run(work(fake.url))
    assert record.delay_s is not None and record.delay_s >= 1.0
    assert record.ttft_s is not None and record.ttft_s >= 1.1
    assert record.ttft_sent_s == pytest.approx(record.ttft_s - record.delay_s)


def test_a_slow_upload_is_not_the_servers_thinking() -> None:
    # More than sockets and loops buffer, and a server that reads it late.
    body = Body([b"x" * (24 << 20)])
    with serving(streaming(first_s=0.2), read_delay_s=0.5) as fake:
        (record,) = ask(fake.url, body)
    assert record.outcome == "ok" and record.body_bytes == 24 << 20
    assert record.upload_s is not None and record.upload_s >= 0.45
    assert record.ttft_body_s is not None and 0.15 <= record.ttft_body_s < record.ttft_s
    assert record.ttft_s is not None and record.ttft_s >= 0.7


def test_connections_are_kept() -> None:
    with serving(streaming()) as fake:
        records = ask(fake.url, count=5)
        assert [record.outcome for record in records] == ["ok"] * 5
        assert fake.connections == 1


def test_parts_of_a_body_arrive_in_order() -> None:
    parts = [b'{"a":"', b"v" * (600 << 10), b'"}']
    with serving(streaming()) as fake:
        ask(fake.url, Body(parts))
        assert fake.seen[0].content == b"".join(parts)
        assert fake.seen[0].headers["content-type"] == "application/json"


def test_chunks_that_come_in_one_piece_have_one_time() -> None:
    async def behave(request: Request) -> None:
        events = [ROLE, delta("a"), delta("b"), delta("c", "stop")]
        text = "".join(f"data: {json.dumps(event)}\r\n\r\n" for event in events) + "data: [DONE]\r\n\r\n"
        await request.write(OK_HEAD)
        await request.piece(text.encode())
        await request.end()

    record = ask_one(behave)
    assert record.outcome == "ok" and len(set(record.tokens)) == 1 and record.itl_s == [0, 0]
    assert record.output_tokens == 3  # no usage came: chunks are counted


def test_a_stream_in_single_bytes_is_read() -> None:
    async def behave(request: Request) -> None:
        await request.write(OK_HEAD)
        for byte in f"data: {json.dumps(delta('a', 'stop'))}\n\ndata: [DONE]\n\n".encode():
            await request.piece(bytes([byte]))
        await request.end()

    record = ask_one(behave)
    assert record.outcome == "ok" and record.text_length == 1


def test_an_answer_without_content_has_its_first_token_at_the_end() -> None:
    async def behave(request: Request) -> None:
        await request.write(OK_HEAD)
        await request.event(ROLE)
        await asyncio.sleep(0.2)
        await request.event(delta("", "stop"))
        await request.event("[DONE]")
        await request.end()

    record = ask_one(behave)
    assert record.outcome == "ok" and record.tokens == [] and record.tpot_s is None
    assert record.ttft_s is not None and record.ttft_s >= 0.2


def test_a_server_that_does_not_close_the_body_after_the_end_mark() -> None:
    async def behave(request: Request) -> None:
        await request.write(OK_HEAD)
        await request.event(delta("a", "stop"))
        await request.event("[DONE]")
        await asyncio.sleep(30)

    record = ask_one(behave)
    assert (
        record.outcome == "ok" and record.e2el_s is not None and record.e2el_s < 0.9
    )  # it was waited for, off the clock


async def refuse_429(request: Request) -> None:
    error = {"error": {"message": "too busy", "code": "queue_full"}}
    await request.answer(429, error, "retry-after: 1\r\n")


async def refuse_500(request: Request) -> None:
    await request.write(b"HTTP/1.1 500 Oh\r\ncontent-length: 4\r\n\r\nboom")


async def stall_before_headers(_: Request) -> None:
    await asyncio.sleep(30)


async def stall_in_stream(request: Request) -> None:
    await request.write(OK_HEAD)
    await request.event(delta("a"))
    await asyncio.sleep(30)


async def drip(request: Request) -> None:
    await request.write(OK_HEAD)
    for _ in range(100):
        await request.event(delta("a"))
        await asyncio.sleep(0.2)


async def cut_before_headers(_: Request) -> None:
    raise ConnectionError


async def cut_in_stream(request: Request) -> None:
    await request.write(OK_HEAD)
    await request.event(delta("a"))
    raise ConnectionError


async def end_without_mark(request: Request) -> None:
    await request.write(OK_HEAD)
    await request.event(delta("a"))
    await request.end()


async def end_without_token(request: Request) -> None:
    await request.write(OK_HEAD)
    await request.event(ROLE)
    await request.event("[DONE]")
    await request.end()


async def error_in_stream(request: Request) -> None:
    await request.write(OK_HEAD)
    await request.event(delta("a"))
    await request.event({"error": {"message": "the engine died", "code": 500}})
    await request.end()


async def json_only(request: Request) -> None:
    await request.answer(200, {"choices": []})


async def web_page(request: Request) -> None:
    await request.write(OK_HEAD)
    await request.piece(b"<html>\n<body>hello</body>\n")
    await request.end()


async def other_events(request: Request) -> None:
    await request.write(OK_HEAD)
    await request.event({"temperature": 20})
    await request.end()


async def redirect(request: Request) -> None:
    await request.write(b"HTTP/1.1 302 There\r\nlocation: /there\r\ncontent-length: 0\r\n\r\n")


async def no_http(request: Request) -> None:
    await request.write(b"220 mail server ready\r\n\r\n")


FAULTS = [
    (refuse_429, "busy", "HTTP 429: too busy [queue_full]"),
    (lambda request: request.answer(503, {}), "busy", "HTTP 503"),
    (lambda request: request.answer(422, {"error": {"message": "no video"}}), "refused", "HTTP 422: no video"),
    (refuse_500, "server_error", "HTTP 500: boom"),
    (stall_before_headers, "stalled", "nothing moved for 1 s"),
    (stall_in_stream, "stalled", "nothing moved for 1 s"),
    (drip, "timed_out", "not complete after 3 s"),
    (cut_before_headers, "disconnected", ""),
    (cut_in_stream, "broken_stream", ""),
    (end_without_mark, "broken_stream", "without its end mark"),
    (end_without_token, "broken_stream", "without a token"),
    (error_in_stream, "error_event", "the engine died"),
    (json_only, "not_sse", "content-type application/json"),
    (web_page, "not_sse", "<html>"),
    (other_events, "not_sse", "without choices"),
    (redirect, "not_sse", "HTTP 302"),
    (no_http, "disconnected", ""),
]


@pytest.mark.parametrize(("behaviour", "outcome", "detail"), FAULTS)
def test_every_fault_has_its_outcome(behaviour: Behaviour, outcome: str, detail: str) -> None:
    record = ask_one(behaviour, QUICK)
    assert record.outcome == outcome
    assert outcome in OUTCOMES
    assert record.detail and detail in record.detail
    assert record.last is not None and record.last >= record.scheduled


def test_tokens_before_a_fault_are_kept() -> None:
    record = ask_one(cut_in_stream)
    assert record.first_token is not None and len(record.tokens) == 1


def test_nobody_listens() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (record,) = ask(f"http://127.0.0.1:{port}")
    assert record.outcome == "connect_error" and record.sent is None and record.detail


def test_a_server_that_refuses_before_it_reads_is_understood() -> None:
    async def behave(request: Request) -> None:
        await request.answer(413, {"error": {"message": "too large"}}, "connection: close\r\n")

    record = ask_one(behave, body=Body([b"x" * (8 << 20)]))
    assert record.outcome == "refused" and record.status == 413


def test_cancelling_ends_in_cut_off() -> None:
    async def work(url: str) -> Record:
        async with make_client(url) as client:
            record = Record(0, 0, "measured", "test", None, time.perf_counter())
            task = asyncio.create_task(send(client, Body([b"{}"]), record, CALM))
            await asyncio.sleep(0.2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return record

    with serving(stall_in_stream) as fake:
        record = asyncio.run(work(fake.url))
    assert record.outcome == "cut_off" and record.first_token is not None


def test_a_record_comes_back_from_json() -> None:
    record = ask_one(streaming(tokens=2))
    row = json.loads(json.dumps(record.to_json(record.scheduled)))
    again = Record.from_json(row)
    assert again.scheduled == 0 and again.ttft_s == pytest.approx(record.ttft_s, abs=2e-6)
    assert again.to_json(0.0) == row
