"""How clips reach the server: in the request, from a web server of ours, uploaded before, or from a shared folder."""

from __future__ import annotations

import base64
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx

from cope_loadtest.bodies import MARK
from cope_loadtest.corpus.clips import Clip
from cope_loadtest.helpers import helper
from cope_loadtest.scenario import Transport

_UPLOAD_S = 600.0


class TransportError(ValueError):
    """The server does not take clips in this way."""


class Delivery:
    """Gives each clip an address that the server can use; a context manager that takes them back.

    Args:
        client: a client of the server.
        folder: the folder of the clips.
        host: address of this machine that `url` clips are served from.
    """

    def __init__(self, client: httpx.AsyncClient, folder: Path, host: str = "127.0.0.1") -> None:
        self._client, self._folder, self._host = client, folder, host
        self._stack = ExitStack()
        self._base: str | None = None
        self._uploaded: dict[Path, str] = {}
        self.uploads_s: dict[str, float] = {}

    async def __aenter__(self) -> Delivery:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        for file_id in self._uploaded.values():
            try:
                await self._client.delete(f"/v1/files/{file_id}")
            except httpx.HTTPError:
                pass  # the server is gone, and its clean-up with it; the run's own outcome matters more

    async def place(self, clip: Clip, transport: Transport) -> tuple[dict[str, Any], bytes | None]:
        """The message part for a clip, and the bytes that take the place of `MARK` in it.

        Raises:
            TransportError: the server refused an upload.
            OSError: the file cannot be read.
        """
        if transport == "data":
            data = b"data:" + clip.media_type.encode() + b";base64," + base64.b64encode(clip.path.read_bytes())
            return _video(MARK), data
        if transport == "url":
            return _video(f"{self._served()}/{quote(clip.name)}"), None
        if transport == "file":
            return _video(clip.path.resolve().as_uri()), None
        return {"type": "file", "file": {"file_id": await self._upload(clip)}}, None

    def _served(self) -> str:
        if self._base is None:
            local = self._stack.enter_context(helper("file_server", str(self._folder.resolve()), self._host))
            self._base = local.replace("127.0.0.1", self._host)
        return self._base

    async def _upload(self, clip: Clip) -> str:
        if clip.path not in self._uploaded:
            started = time.perf_counter()
            try:
                response = await self._client.post(
                    "/v1/files",
                    files={"file": (clip.name, clip.path.read_bytes(), clip.media_type)},
                    data={"purpose": "vision"},
                    timeout=_UPLOAD_S,
                )
            except httpx.HTTPError as error:
                raise TransportError(f"transport upload: {clip.name}: {error or type(error).__name__}") from error
            if response.status_code != 200:
                raise TransportError(
                    f"transport upload: {clip.name}: HTTP {response.status_code}: {response.text[:200].strip()}"
                )
            self._uploaded[clip.path] = str(response.json()["id"])
            self.uploads_s[clip.name] = time.perf_counter() - started
        return self._uploaded[clip.path]


def _video(url: str) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": url}}
