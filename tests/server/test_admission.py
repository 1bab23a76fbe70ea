"""Who is let in, who waits, and what everybody gives back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from prometheus_client import REGISTRY
from requirements import require

from cope_model import admission
from cope_server import metrics
from cope_server.admission import AdmissionMiddleware, Gate, Ledger, Ticket, Turns
from cope_server.limit_settings import LimitSettings
from cope_server.pace import Pace

PART = "messages[0].content[0].video_url"
MIB, GIGA = 1 << 20, 10**9


@pytest.fixture(autouse=True)
def engine() -> None:
    require("ENGINE", find_spec("vllm") is not None, "vLLM is not installed (make setup)")


def gauge(name: str) -> float:
    return REGISTRY.get_sample_value(name) or 0.0


def test_a_ledger_limits_all_together_and_each_key() -> None:
    ledger = Ledger(10, 6, metrics.HELD_BYTES)
    assert ledger.take("alice", 6) is None
    assert ledger.take("alice", 1) == "this API key"
    assert ledger.take("bob", 5) == "all requests together"
    assert ledger.take("bob", 4) is None
    assert gauge("cope_held_bytes") == 10
    ledger.give("alice", 6)
    assert ledger.take("alice", 6) is None
    ledger.give("alice", 6)
    ledger.give("bob", 4)
    assert gauge("cope_held_bytes") == 0


def test_what_is_alone_may_be_allowed_to_be_too_much() -> None:
    strict = Ledger(10, 6, metrics.HELD_BYTES)
    assert strict.take(None, 11) == "all requests together"
    assert strict.take("alice", 7) == "this API key"
    assert [strict.exceeded_by(*amount) for amount in ((None, 10), (None, 11), ("alice", 6), ("alice", 7))] == [
        *(False, True, False, True)
    ]
    ledger = Ledger(10, 6, metrics.HELD_BYTES, alone=True)
    assert not ledger.exceeded_by("alice", 1000)
    assert ledger.take("alice", 50) is None
    assert ledger.take("alice", 50, own=50) is None
    assert ledger.take("bob", 1) == "all requests together"
    ledger.give("alice", 100)
    assert ledger.take(None, 11) is None
    ledger.give(None, 11)


def test_without_keys_only_the_whole_counts() -> None:
    ledger = Ledger(3, 1, metrics.HELD_BYTES)
    assert [ledger.take(None, 1) for _ in range(4)] == [None, None, None, "all requests together"]
    ledger.give(None, 3)


def test_a_ticket_gives_back_what_it_has_and_no_more() -> None:
    gate = Gate(LimitSettings())
    with gate.ticket("alice") as ticket:
        ticket.hold_bytes(100, PART)
        ticket.release_bytes(30)
        assert gate.held.total == 70
    assert gate.held.total == 0
    ticket.release_bytes(70)  # a fetch that ends later than its request
    assert gate.held.total == 0


def test_a_request_that_no_waiting_would_help_is_told_so() -> None:
    from cope_model.media_errors import MediaFetchError

    gate = Gate(LimitSettings(held_mb=2, key_held_mb=1))
    with gate.ticket("alice") as ticket, gate.ticket("bob") as other:
        ticket.hold_bytes(MIB, PART)
        with pytest.raises(MediaFetchError) as caught:
            ticket.hold_bytes(1, PART)
        assert caught.value.code == "media_too_large"
        other.hold_bytes(MIB, PART)
        with gate.ticket("carol") as third:
            assert refusal_of(lambda: third.hold_bytes(1, PART))[0] == "queue_full"
    assert gate.held.total == 0


def refusal_of(call: Callable[[], object]) -> tuple[str, str]:
    from cope_model.media_errors import MediaError

    with pytest.raises(MediaError) as caught:
        call()
    assert caught.value.parameter == PART
    return caught.value.code, str(caught.value)


def test_videos_of_a_request_are_counted_and_none_of_too_many_is_decoded() -> None:
    async def run() -> None:
        with Gate(LimitSettings(videos=2)).ticket(None) as ticket:
            for _ in range(2):
                ticket.add_video(PART)
            assert refusal_of(lambda: ticket.add_video(PART))[0] == "too_many_videos"
            from cope_model.media_errors import MediaError

            with pytest.raises(MediaError, match="at most 2 videos"):
                async with ticket.decoding(1, 1, PART, at_once=True):
                    pytest.fail("it was let in")

    asyncio.run(run())


def test_requests_with_video_are_fewer_than_requests() -> None:
    gate = Gate(LimitSettings(video_requests=3, key_video_requests=1))
    alice, again, bob = (Ticket(gate, name) for name in ("alice", "alice", "bob"))
    for _ in range(3):
        alice.add_video(PART)  # of one request
    assert gate.video_requests.total == 1
    code, words = refusal_of(lambda: again.add_video(PART))
    assert code == "queue_full" and "this API key" in words
    bob.add_video(PART)
    alice.close()
    again.videos = 0
    again.add_video(PART)
    for ticket in (again, bob):
        ticket.close()
    assert gate.video_requests.total == 0


def test_seconds_of_video_that_wait_are_limited() -> None:
    async def run() -> None:
        gate = Gate(LimitSettings(video_seconds=100, key_video_seconds=60, video_gigapixels=100))
        first, second = Ticket(gate, "alice"), Ticket(gate, "bob")
        async with first.decoding(59.5, 70 * GIGA, PART, at_once=False):
            assert gate.seconds.total == 60
            refused = ((first, 1, 1, "seconds.*this API key"), (second, 41, 1, "seconds.*all requests together"))
            for ticket, seconds, pixels, whose in (*refused, (second, 1, 31 * GIGA, "pixels.*all requests together")):
                from cope_model.media_errors import MediaError

                with pytest.raises(MediaError, match=whose) as caught:
                    async with Ticket(gate, ticket.key).decoding(seconds, pixels, PART, at_once=False):
                        pytest.fail("it was let in")
                assert caught.value.code == "queue_full"
            async with second.decoding(500, 500 * GIGA, PART, at_once=True):  # nothing to decode: nothing to wait for
                assert gate.seconds.total == 60
        assert gate.seconds.total == gate.pixels.total == 0

    asyncio.run(run())


def test_a_refusal_says_when_the_videos_before_it_are_decoded() -> None:
    """Two videos at a time went through at 30 seconds of video per second; an idle minute between does not count."""
    pace = Pace()
    assert pace.retry_after_s(500, now=0) == 1  # nothing is known
    pace.note(100, 102, 60)
    pace.note(101, 104, 60)
    pace.note(149, 150, 30)
    assert pace.speed(151) == pytest.approx(150 / 5)
    assert [pace.retry_after_s(waiting_s, now=151) for waiting_s in (0, 31, 300, 10**6)] == [1, 2, 10, 60]
    assert pace.speed(163) == pytest.approx((60 + 30) / (3 + 1))  # what is older than a minute does not count
    assert pace.speed(300) is None
    assert pace.retry_after_s(500, now=300) == 1


def test_the_pace_is_that_of_decoded_videos() -> None:
    async def run() -> None:
        gate = Gate(LimitSettings())
        with gate.ticket(None) as ticket:
            async with ticket.decoding(500, 1, PART, at_once=True):
                pass
            with pytest.raises(KeyError):
                async with ticket.decoding(500, 1, PART, at_once=False):
                    raise KeyError
            assert gate.pace.speed(time.perf_counter()) is None  # neither found in the cache nor failed
            async with ticket.decoding(30, 1, PART, at_once=False):
                await asyncio.sleep(0.1)
            speed = gate.pace.speed(time.perf_counter())
            assert speed is not None and 3 < speed <= 300
            async with ticket.decoding(10**6, 1, PART, at_once=False):
                assert gate.retry_after_s() == 60
            assert gate.retry_after_s() == 1

    asyncio.run(run())


def test_turns_are_taken_in_order_and_each_key_has_its_share() -> None:
    async def run() -> None:
        turns, order, go = Turns(2, 1), [], asyncio.Event()

        async def one(key: str | None, name: str) -> None:
            async with turns.turn(key):
                order.append(name)
                await go.wait()

        names = [("alice", "a1"), ("alice", "a2"), ("bob", "b1"), ("carol", "c1")]
        tasks = [asyncio.create_task(one(key, name)) for key, name in names]
        await asyncio.sleep(0.01)
        assert order == ["a1", "b1"]
        go.set()
        await asyncio.gather(*tasks)
        assert order == ["a1", "b1", "a2", "c1"]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("keys", "expected"), [("aaaabb", "aababa"), ("aaaabc", "aabaca"), ("......", "......"), ("ab" * 3, "ab" * 3)]
)
def test_who_sends_many_keeps_only_themselves_waiting(keys: str, expected: str) -> None:
    async def run() -> None:
        turns, order = Turns(2, 0), []
        go = [asyncio.Event() for _ in keys]

        async def one(key: str) -> None:
            async with turns.turn(None if key == "." else key):
                order.append(key)
                await go[len(order) - 1].wait()

        tasks = [asyncio.create_task(one(key)) for key in keys]
        for event in go:
            await asyncio.sleep(0.005)
            event.set()
        await asyncio.gather(*tasks)
        assert "".join(order) == expected

    asyncio.run(run())


def test_whoever_leaves_takes_no_turn() -> None:
    async def run() -> None:
        turns, order, go = Turns(1, 0), [], asyncio.Event()

        async def one(name: str) -> None:
            async with turns.turn(None):
                order.append(name)
                await go.wait()

        tasks = {name: asyncio.create_task(one(name)) for name in ("first", "waits", "called", "last")}
        await asyncio.sleep(0.01)
        tasks["waits"].cancel()
        await asyncio.sleep(0)
        tasks["first"].cancel()
        await asyncio.sleep(0)  # "called" has been called and has not run yet
        tasks["called"].cancel()
        await asyncio.sleep(0.01)
        assert order[-1] == "last"
        go.set()
        await tasks["last"]
        async with asyncio.timeout(1), turns.turn(None):
            pass

    asyncio.run(run())


def make_app(answer: Callable[[Request], Awaitable[Any]], **limits: float) -> tuple[httpx.AsyncClient, Gate]:
    app, gate = FastAPI(), Gate(LimitSettings(**limits))  # type: ignore[arg-type]  # tests know which are whole
    app.add_middleware(AdmissionMiddleware, gate=gate)

    @app.middleware("http")  # outside: in place of the one that asks for keys
    async def named(request: Request, call_next: Any) -> Any:
        request.scope.setdefault("state", {})["cope_key"] = request.headers.get("who")
        request.scope["root_path"] = request.headers.get("root", "")
        return await call_next(request)

    @app.api_route("/{path:path}", methods=["GET", "POST"])
    async def handle(request: Request) -> Any:
        return await answer(request)

    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here"), gate


def code_of(answer: httpx.Response) -> tuple[int, str, str | None]:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return answer.status_code, error["code"], answer.headers.get("retry-after")


def test_requests_beyond_the_limits_may_come_again() -> None:
    async def run() -> None:
        go, inside = asyncio.Event(), asyncio.Semaphore(0)

        async def waits(request: Request) -> None:
            if request.method == "POST":
                inside.release()
                await go.wait()

        client, gate = make_app(waits, requests=3, key_requests=2)
        tasks = [asyncio.create_task(client.post("/x", headers={"who": who})) for who in ("a", "a", "b")]
        for _ in tasks:
            await inside.acquire()
        before = REGISTRY.get_sample_value("cope_rejected_total", {"code": "too_many_requests"}) or 0
        assert code_of(await client.post("/x", headers={"who": "a"})) == (429, "too_many_requests", "1")
        now = time.perf_counter()
        gate.pace.note(now - 1, now, 10)
        async with Ticket(gate, None).decoding(70, 1, PART, at_once=False):
            assert code_of(await client.post("/x", headers={"who": "b"})) == (429, "too_many_requests", "7")
        assert REGISTRY.get_sample_value("cope_rejected_total", {"code": "too_many_requests"}) == before + 2
        assert (await client.get("/x")).status_code == 200  # nothing that takes anything
        assert gauge("cope_requests") == 3
        tasks[0].cancel()
        await asyncio.wait(tasks[:1])
        go.set()
        assert [answer.status_code for answer in await asyncio.gather(*tasks[1:])] == [200, 200]
        assert gate.requests.total == gauge("cope_requests") == 0

    asyncio.run(run())


async def pieces(count: int, size: int = MIB // 4) -> Any:
    for _ in range(count):
        yield bytes(size)


async def read(request: Request) -> dict[str, int]:
    return {"bytes": len(await request.body())}


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_is_limited_whether_its_length_is_announced_or_not(announced: bool) -> None:
    async def run() -> None:
        client, gate = make_app(read, body_mb=1)
        too_large = bytes(MIB + 1) if announced else pieces(5)
        assert code_of(await client.post("/x", content=too_large)) == (413, "request_too_large", None)
        small, _ = make_app(read, body_mb=3, held_mb=1)
        answer = await small.post("/x", content=bytes(MIB + 1) if announced else pieces(5))
        assert code_of(answer) == (413, "request_too_large", None)
        fits = bytes(MIB) if announced else pieces(4)
        assert (await client.post("/x", content=fits)).json() == {"bytes": MIB}
        uploaded = await client.post("/v1/files", content=bytes(MIB + 1))  # has limits of its own
        assert uploaded.json() == {"bytes": MIB + 1}
        assert gate.held.total == 0

    asyncio.run(run())


@pytest.mark.parametrize("announced", [True, False])
def test_bodies_are_limited_together(announced: bool) -> None:
    async def run() -> None:
        go, inside = asyncio.Event(), asyncio.Event()

        async def waits(request: Request) -> dict[str, int]:
            size = await read(request)
            inside.set()
            await go.wait()
            return size

        client, gate = make_app(waits, held_mb=2, body_mb=2)
        first = asyncio.create_task(client.post("/x", content=bytes(MIB)))
        await inside.wait()
        assert gate.held.total == MIB
        second = bytes(MIB + 1) if announced else pieces(5)
        assert code_of(await client.post("/x", content=second)) == (429, "too_many_requests", "1")
        go.set()
        assert (await first).json() == {"bytes": MIB}
        assert gate.held.total == 0

    asyncio.run(run())


@pytest.mark.parametrize("path", ["/x", "/v1/files"])
@pytest.mark.parametrize("way", ["stalls", "drips"])
def test_a_body_that_does_not_come_gives_its_place_back(path: str, way: str) -> None:
    async def run() -> None:
        async def slow() -> Any:
            yield bytes(10)
            for _ in range(1000):
                await asyncio.sleep(60 if way == "stalls" else 0.02)
                yield b"x"  # 50 bytes a second

        client, gate = make_app(read, idle_s=0.3)
        answer = await asyncio.wait_for(client.post(path, content=slow()), 20)
        assert code_of(answer) == (408, "request_timeout", None)
        assert answer.headers["connection"] == "close"
        assert gate.requests.total == gate.held.total == 0

    asyncio.run(run())


def test_neither_a_slow_server_nor_a_slow_answer_is_taken_for_a_slow_body() -> None:
    async def run() -> None:
        async def busy(request: Request) -> dict[str, int]:
            size = 0
            async for piece in request.stream():
                size += len(piece)
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.3)
            return {"bytes": size}

        client, _ = make_app(busy, idle_s=0.2)
        assert (await client.post("/x", content=pieces(8, 64))).json() == {"bytes": 512}

    asyncio.run(run())


@pytest.mark.parametrize("prefix", ["", "/video"])
def test_uploads_have_their_own_limits_also_behind_a_prefix(prefix: str) -> None:
    async def run() -> None:
        client, _ = make_app(read, body_mb=1)
        answer = await client.post(f"{prefix}/v1/files/", content=bytes(MIB + 1), headers={"root": prefix})
        assert answer.json() == {"bytes": MIB + 1}

    asyncio.run(run())


def test_videos_find_the_share_of_their_request() -> None:
    async def run() -> None:
        found: list[object] = []

        async def note(request: Request) -> None:
            found.append(await asyncio.create_task(current()))

        async def current() -> object:
            return admission.current.get()

        client, _ = make_app(note)
        await client.post("/x", headers={"who": "alice"})
        (ticket,) = found
        assert isinstance(ticket, Ticket) and ticket.key == "alice"
        assert admission.current.get() is None

    asyncio.run(run())
