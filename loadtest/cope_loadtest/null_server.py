"""Answers every chat request at once with a fixed stream: what a request takes here, the client takes for itself.

`python -m cope_loadtest.null_server [CHUNKS]`: each answer has so many chunks with content (default 16), each written
for itself, as a real server does.
"""

from __future__ import annotations

import asyncio
import json
import sys

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def _event(data: bytes) -> bytes:
    event = b"data: " + data + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(event), event)


def _chunk(delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    body = {"id": "chatcmpl-0", "object": "chat.completion.chunk", "created": 0, "model": "null", "choices": [choice]}
    return _event(json.dumps(body).encode())


_FIRST, _TOKEN, _LAST = _chunk({"role": "assistant", "content": ""}), _chunk({"content": "word "}), _chunk({}, "stop")
_END = _event(b"[DONE]") + b"0\r\n\r\n"


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, chunks: int) -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": chunks, "total_tokens": chunks + 1}
    last = _event(json.dumps({"object": "chat.completion.chunk", "choices": [], "usage": usage}).encode())
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = 0
            for line in head.split(b"\r\n"):
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
            while length:
                length -= len(await reader.read(min(length, 1 << 20))) or length
            writer.write(_HEAD + _FIRST)
            for _ in range(chunks):
                writer.write(_TOKEN)
                await writer.drain()
                await asyncio.sleep(0)  # the next one is another write to the socket
            writer.write(_LAST + last + _END)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # the client has gone
    finally:
        writer.close()


async def _main(chunks: int) -> None:
    server = await asyncio.start_server(
        lambda reader, writer: _serve(reader, writer, chunks), "127.0.0.1", 0, limit=1 << 20
    )
    print(server.sockets[0].getsockname()[1], flush=True)  # noqa: T201 - this is how its address is told
    # Standard input ends with whoever started this.
    await asyncio.to_thread(sys.stdin.buffer.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]) if len(sys.argv) > 1 else 16))
