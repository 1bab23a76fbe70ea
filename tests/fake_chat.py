"""Small servers with real sockets: each answers chat requests in one way, after times that are known."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

OK_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@dataclass
class Request:
    """What a client has sent, and the way back to it."""

    method: str
    path: str
    headers: dict[str, str]
    content: bytes
    writer: asyncio.StreamWriter
    number: int

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def event(self, body: dict[str, Any] | str) -> None:
        text = body if isinstance(body, str) else json.dumps(body)
        await self.piece(f"data: {text}\n\n".encode())

    async def piece(self, data: bytes) -> None:
        await self.write(b"%x\r\n%s\r\n" % (len(data), data))

    async def end(self) -> None:
        await self.write(b"0\r\n\r\n")

    async def answer(self, status: int, body: Any, headers: str = "") -> None:
        data = json.dumps(body).encode()
        head = f"HTTP/1.1 {status} Status\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n"
        await self.write(f"{head}{headers}\r\n".encode() + data)


Behaviour = Callable[[Request], Awaitable[None]]


@dataclass
class Fake:
    """A running fake server.

    Attributes:
        url: its address.
        seen: requests to the chat route, in order.
        files: uploads by id.
        prefetches: states to tell, one after the other.
    """

    url: str
    seen: list[Request] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    deleted: list[str] = field(default_factory=list)
    prefetches: list[dict[str, Any]] = field(default_factory=list)
    connections: int = 0


@contextmanager
def serving(behaviour: Behaviour, *, read_delay_s: float = 0.0) -> Iterator[Fake]:
    """Run a fake server in a thread of its own.

    Args:
        behaviour: answers a chat request; when it returns, the connection is kept, when it raises, it is cut.
        read_delay_s: wait so long before a request's body is read.
    """
    loop = asyncio.new_event_loop()
    fake = Fake("")
    ready = threading.Event()

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        fake.connections += 1
        try:
            while True:
                await one(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.transport.abort()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.strip().split("\r\n")
        method, path, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if read_delay_s:
            await asyncio.sleep(read_delay_s)
        content = await reader.readexactly(int(headers.get("content-length", "0")))
        request = Request(method, path, headers, content, writer, len(fake.seen))
        if path == "/v1/models":
            await request.answer(200, {"data": [{"id": "fake-model"}]})
        elif path == "/v1/files" and method == "POST":
            name = f"file-{len(fake.files)}"
            fake.files[name] = content
            await request.answer(200, {"id": name})
        elif path.startswith("/v1/files/") and method == "GET":
            await request.answer(200, {"prefetch": fake.prefetches.pop(0)})
        elif path.startswith("/v1/files/") and method == "DELETE":
            fake.deleted.append(path.rsplit("/", 1)[1])
            await request.answer(200, {"deleted": True})
        elif path == "/v1/chat/completions":
            fake.seen.append(request)
            await behaviour(request)
        else:
            await request.answer(404, {"error": {"message": "no such route", "code": None}})

    async def main() -> None:
        server = await asyncio.start_server(connection, "127.0.0.1", 0, limit=1 << 22)
        fake.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ready.set()
        await stop.wait()
        server.close()

    stop = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    ready.wait(10)
    try:
        yield fake
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def delta(text: str, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}]}


ROLE = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}


def streaming(
    first_s: float = 0.0, gap_s: float = 0.0, tokens: int = 4, usage: Callable[[Request], dict[str, Any]] | None = None
) -> Behaviour:
    """A good server: the role at once, the first token after `first_s`, each further one after `gap_s`."""

    async def behave(request: Request) -> None:
        await request.write(OK_HEAD)
        await request.event(ROLE)
        await asyncio.sleep(first_s)
        for number in range(tokens):
            if number:
                await asyncio.sleep(gap_s)
            await request.event(delta("word "))
        await request.event(delta("", "stop"))
        block = {"prompt_tokens": 10, "completion_tokens": tokens, "total_tokens": 10 + tokens}
        await request.event({"choices": [], "usage": block if usage is None else {**block, **usage(request)}})
        await request.event("[DONE]")
        await request.end()

    return behave
