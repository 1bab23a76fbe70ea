"""Server-sent events, read as the bytes come, whatever pieces they come in."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

MAX_EVENT_BYTES = 16 << 20


class NotEventsError(ValueError):
    """The bytes are no server-sent events of a chat completion."""


class EventParser:
    """Cuts bytes into the data of events.

    Lines may end in LF, CR LF or CR; `data` lines of one event are joined; comments and other fields are passed over.
    """

    def __init__(self) -> None:
        self._pending = bytearray()
        self._data: list[bytes] = []
        self._skip_lf = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of the events that this chunk completes.

        Raises:
            NotEventsError: a line has a field that no event has, or an event does not end.
        """
        events: list[bytes] = []
        if self._skip_lf and chunk:
            chunk = chunk[1:] if chunk[:1] == b"\n" else chunk
            self._skip_lf = False
        self._pending += chunk
        if len(self._pending) > MAX_EVENT_BYTES:
            raise NotEventsError(f"an event of more than {MAX_EVENT_BYTES} bytes")
        if b"\n" not in chunk and b"\r" not in chunk:
            return events
        text = bytes(self._pending)
        # A CR at the very end may be half of a CR LF: its line is complete, the LF to come is not another.
        self._skip_lf = text.endswith(b"\r")
        lines = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._pending = bytearray(lines.pop())
        for line in lines:
            if line:
                self._take(line)
            elif self._data:
                events.append(b"\n".join(self._data))
                self._data = []
        return events

    def _take(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value[1:] if value.startswith(b" ") else value)
        elif name not in (b"", b"event", b"id", b"retry"):
            raise NotEventsError(f"a line that is no event's: {line[:60].decode(errors='replace')!r}")


@dataclass(frozen=True, slots=True)
class ChatEvent:
    """What one event of a chat completion's stream says.

    Attributes:
        text: content, reasoning and arguments of tool calls in it.
        has_content: the model said something.
        finished: it says why the model stopped.
        done: it is the stream's end mark.
        error: the server's words about a failure.
        usage: the usage block.
    """

    text: str = ""
    has_content: bool = False
    finished: bool = False
    done: bool = False
    error: str | None = None
    usage: dict[str, Any] | None = None


_DONE = ChatEvent(done=True)


def read_chat_event(data: bytes) -> ChatEvent:
    """Read an event's data.

    Raises:
        NotEventsError: it is no chunk of a chat completion.
    """
    if data.strip() == b"[DONE]":
        return _DONE
    try:
        body = json.loads(data)
    except ValueError:
        raise NotEventsError(f"an event that is no JSON: {data[:60].decode(errors='replace')!r}") from None
    if not isinstance(body, dict):
        raise NotEventsError("an event that is no JSON object")
    if body.get("error"):
        error = body["error"]
        return ChatEvent(error=str(error.get("message", error)) if isinstance(error, dict) else str(error))
    usage = body.get("usage")
    choices = body.get("choices")
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise NotEventsError("an event without choices")
    text, content, finished = "", False, False
    for choice in choices:
        delta = choice.get("delta")
        if isinstance(delta, dict):
            for name in ("content", "reasoning", "reasoning_content"):
                piece = delta.get(name)
                if piece:
                    content = True
                    text += str(piece)
            content = content or bool(delta.get("tool_calls"))
        finished = finished or bool(choice.get("finish_reason"))
    return ChatEvent(text, content, finished, usage=usage if isinstance(usage, dict) else None)
