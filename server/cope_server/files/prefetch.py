"""Work for uploaded files before anybody asks about them: their primitives, or the prefix of a question about them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from cope_server.admission import Turns
from cope_server.files.store import FileStore

logger = logging.getLogger("vllm.cope_server.files")  # below vLLM's logger, so that its settings apply

PrefetchKind = Literal["primitives", "prefill"]
KINDS: tuple[str, ...] = get_args(PrefetchKind)
MOST_WAITING = 64  # in one process; what is asked for beyond fails, the file itself is kept
_MOST_OF_KEY = MOST_WAITING // 2


@dataclass(frozen=True, slots=True)
class Prefetch:
    """What an upload asks for.

    Attributes:
        kind: `primitives` extracts them; `prefill` has the model read the video, too.
        options: of the questions to come, by name.
    """

    kind: PrefetchKind
    options: Mapping[str, Any] = field(default_factory=dict)

    def described(self, status: str, error: str | None = None) -> str:
        """JSON for the file's object."""
        told = {"kind": self.kind, "options": dict(self.options), "status": status}
        return json.dumps(told if error is None else {**told, "error": error})


class Prefetches:
    """Tasks of one event loop; their states are kept in the index, where all processes find them.

    Args:
        store: whose files they are for.
        at_once: how many run; the others wait, and those of a key that has none running go first.
    """

    def __init__(self, store: FileStore, at_once: int) -> None:
        self._store = store
        self._turns = Turns(at_once, 0)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._keys: dict[str, str | None] = {}  # of whom each task is
        self._closed = False

    async def begin(
        self, name: str, wanted: Prefetch, work: Callable[[], Awaitable[None]], key: str | None = None
    ) -> str:
        """Start, or wait for a turn; the task runs in a copy of the caller's context.

        Args:
            name: the file's id.
            wanted: what is asked for.
            work: does it; what it raises is the end of it.
            key: name of the API key that asks; None where there are none.

        Returns:
            The state, as `Prefetch.described` gives it.
        """
        told = wanted.described("queued")
        await asyncio.to_thread(self._store.begin_prefetch, name, told)
        of_key = 0 if key is None else sum(one == key for one in self._keys.values())
        if self._closed or len(self._tasks) >= MOST_WAITING or of_key >= _MOST_OF_KEY:
            told = wanted.described("failed", "cancelled" if self._closed else "queue_full")
            await asyncio.to_thread(self._store.note_prefetch, name, told, ended=True)
            return told
        task = asyncio.create_task(self._run(name, wanted, work, key))
        self._tasks[name], self._keys[name] = task, key
        task.add_done_callback(lambda ended: self._forget(name, ended))
        return told

    def _forget(self, name: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(name) is task:
            del self._tasks[name], self._keys[name]

    async def _run(self, name: str, wanted: Prefetch, work: Callable[[], Awaitable[None]], key: str | None) -> None:
        async def end(status: str, error: str | None = None) -> None:
            await asyncio.to_thread(self._store.note_prefetch, name, wanted.described(status, error), ended=True)

        try:
            async with self._turns.turn(key):
                await asyncio.to_thread(self._store.note_prefetch, name, wanted.described("running"))
                await work()
        except Exception as error:
            code = getattr(error, "code", None)
            if not isinstance(code, str):
                logger.exception("prefetch of %s failed", name)
            await end("failed", code if isinstance(code, str) else "internal_error")
        else:
            await end("completed")

    async def cancel(self, name: str) -> None:
        """The file is gone: nobody needs the rest."""
        task = self._tasks.get(name)
        if task is None:
            return
        task.cancel()
        await asyncio.wait([task])
        # Not in the task: one that has not begun yet would never come to it.
        file = await asyncio.to_thread(self._store.prefetch_of, name)
        if file:
            told = json.dumps({**json.loads(file), "status": "failed", "error": "cancelled"})
            await asyncio.to_thread(self._store.note_prefetch, name, told, ended=True)

    async def close(self) -> None:
        """End all tasks; what is asked for from here on fails."""
        self._closed = True
        for name in list(self._tasks):
            await self.cancel(name)


async def prefetch(state: Any, url: str, kind: PrefetchKind) -> None:
    """Do the work for one video through the same doors as a question; `account.current` is set.

    Args:
        state: of the app.
        url: the file's id with the options in its fragment.
        kind: how far to go.

    Raises:
        MediaError, MediaFetchError: the video cannot be used, or does not fit.
    """
    if kind == "primitives":
        await state.cope_connector().load_video_async(url)
        return
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    from cope_model.media_errors import MediaError

    # A question's text follows the video, so what the cache keeps of this prompt is the beginning of the other's.
    request = ChatCompletionRequest(
        messages=[{"role": "user", "content": [{"type": "video_url", "video_url": {"url": url}}]}],
        max_completion_tokens=1,
        temperature=0.0,
    )
    answer = await state.openai_serving_chat.create_chat_completion(request, None)
    if getattr(answer, "error", None) is not None:
        raise MediaError("invalid_media", answer.error.message, parameter="prefetch")
