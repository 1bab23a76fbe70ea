"""OpenAI's Files API on the server's own store: create, list, retrieve, content, delete."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Request
from fastapi import Path as InPath
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.types import Receive, Scope, Send

from cope_codec.errors import CodecError
from cope_model.transfers import in_thread
from cope_server.access import key_name
from cope_server.files.errors import FileError
from cope_server.files.form import LEAST_EXPIRY_S, MOST_EXPIRY_S, MOST_OTHER_BYTES, PURPOSES, UploadForm
from cope_server.files.index import StoredFile
from cope_server.files.prefetch import KINDS, Prefetch, Prefetches, prefetch
from cope_server.files.store import ID_PATTERN, FileStore, Upload

if TYPE_CHECKING:
    from starlette.datastructures import State

    from cope_codec.executor import CodecExecutor

_NOBODY = "everyone"  # owner of all files where the server asks for no key
_MOST_PAGE = 10_000  # as OpenAI's
_MOST_DIGITS = 19  # of a length that means anything
_WRITE_BYTES = 1 << 20  # a thread is worth its while for so much

_UPLOAD_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file", "purpose"],
                "additionalProperties": False,
                "patternProperties": {r"^options\[[a-z_]+\]$": {"type": "string"}},
                "properties": {
                    "prefetch": {"type": "string", "enum": list(KINDS)},
                    "file": {"type": "string", "format": "binary"},
                    "purpose": {"type": "string", "enum": list(PURPOSES)},
                    "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                    "expires_after[seconds]": {
                        "type": "integer",
                        "minimum": LEAST_EXPIRY_S,
                        "maximum": MOST_EXPIRY_S,
                    },
                },
            }
        }
    },
}


def _query(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema}


# Published by hand: FastAPI's own checks would answer in another shape, without a code.
_LIST_QUERY = [
    _query("limit", {"type": "integer", "minimum": 1, "maximum": _MOST_PAGE, "default": _MOST_PAGE}),
    _query("after", {"type": "string"}),
    _query("order", {"type": "string", "enum": ["asc", "desc"], "default": "desc"}),
    _query("purpose", {"type": "string"}),
]

# Published, and not checked: an id that cannot be is one that there is no file with.
FileId = Annotated[str, InPath(json_schema_extra={"pattern": ID_PATTERN})]

router = APIRouter(tags=["files"])


def owner_of(request: Request) -> str:
    """Whose request it is: its API key's name, or a hash of a key without one; one owner for all if none is asked for.

    Whether the key is good has been checked before. Keys with names are ours (`cope_server.access`); those of a plain
    `vllm serve --api-key` have none, and `app.state.cope_keyed` says whether there are any.
    """
    name = key_name(request.scope)
    if name is not None:
        return f"key:{name}"  # a key that replaces another one finds its files
    if not request.app.state.cope_keyed:
        return _NOBODY
    key = request.headers.get("authorization", "").partition(" ")[2]
    return hashlib.sha256(b"cope-files:" + key.encode()).hexdigest()


def uploads_of(request: Request) -> Callable[[str], Path | None]:
    """What tells where a file lies, if it is one of those that the request may read; it blocks.

    It raises `FileError` if the storage is full or does not answer.
    """
    store, owner = _store(request.app.state), owner_of(request)

    def path_of(name: str) -> Path | None:
        try:
            return store.local_path(owner, name)
        except FileError as error:
            if error.code == "unknown_file":
                return None
            raise

    return path_of


@router.post("/v1/files", openapi_extra={"requestBody": _UPLOAD_BODY})
async def create_file(request: Request) -> JSONResponse:
    """Take in a video. Its bytes go to disk as they come, and a codec worker must be able to open them."""
    form = UploadForm(request.headers.get("content-type", ""))
    store = _store(request.app.state)
    length = request.headers.get("content-length", "")
    at_most = int(length) if length.isascii() and length.isdigit() and len(length) < _MOST_DIGITS else None
    at_least = max(0, (at_most or 0) - MOST_OTHER_BYTES)
    upload = await asyncio.to_thread(store.begin, owner_of(request), at_least, at_most)
    try:
        await _receive(request, form, upload)
        await _check_type(request.app.state.cope_codec_executor, upload)
        file = await in_thread(upload.keep, form.filename, form.purpose, form.expires_after_s)
    finally:
        await asyncio.to_thread(upload.discard)
    if form.prefetch is not None:
        file = replace(file, prefetch=await _prefetch(request, file.id, form.prefetch))
    return JSONResponse(_described(file))


async def _prefetch(request: Request, name: str, wanted: Prefetch) -> str:
    """Begin what an upload asks for; the answer does not wait for it."""
    from cope_model import account
    from cope_model.url_options import attach

    state = request.app.state
    videos = account.RequestVideos(state.cope_geometry, state.cope_context_tokens, uploads_of(request))

    key = key_name(request.scope)

    async def work() -> None:
        # In this task's context, which also holds the salt of the request's key. The request's share ends with it.
        account.current.set(videos)
        with state.cope_gate.ticket(key):
            await prefetch(state, attach(name, wanted.options, "file"), wanted.kind)

    prefetches: Prefetches = state.cope_prefetches
    return await prefetches.begin(name, wanted, work, key)


async def _receive(request: Request, form: UploadForm, upload: Upload) -> None:
    """Read the request's body to its end, and write the file in it.

    Raises:
        FileError: the form is wrong, the file too large, or the client gone.
    """
    pieces: list[bytes] = []
    size = 0
    try:
        async for chunk in request.stream():
            found = form.feed(chunk)
            pieces += found
            size += sum(map(len, found))
            if size >= _WRITE_BYTES:
                await asyncio.to_thread(upload.write, pieces)
                pieces, size = [], 0
    except ClientDisconnect:
        raise FileError("invalid_upload", "the upload broke off", parameter="file") from None
    form.finish()
    await asyncio.to_thread(upload.write, pieces)


async def _check_type(executor: CodecExecutor, upload: Upload) -> None:
    """Have a worker open the file as a question about it would: what it says of itself does not count.

    Raises:
        FileError: the codec worker's own code.
    """
    try:
        await executor.open_async(upload.path)
    except CodecError as error:
        raise FileError(error.code, str(error), parameter="file") from error


@router.get("/v1/files", openapi_extra={"parameters": _LIST_QUERY})
async def list_files(request: Request) -> JSONResponse:
    """The key's files, page by page."""
    query = request.query_params
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise FileError("invalid_option", "order must be asc or desc", parameter="order")
    files, more = await asyncio.to_thread(
        _store(request.app.state).page,
        owner_of(request),
        limit=_limit(query),
        after=query.get("after"),
        newest_first=order == "desc",
        purpose=query.get("purpose"),
    )
    return JSONResponse(
        {
            "object": "list",
            "data": [_described(file) for file in files],
            "first_id": files[0].id if files else None,
            "last_id": files[-1].id if files else None,
            "has_more": more,
        }
    )


def _limit(query: Mapping[str, str]) -> int:
    text = query.get("limit", str(_MOST_PAGE))
    limit = int(text) if text.isascii() and text.isdigit() and len(text) <= len(str(_MOST_PAGE)) else 0
    if not 1 <= limit <= _MOST_PAGE:
        raise FileError("invalid_option", f"limit must be a whole number from 1 to {_MOST_PAGE}", parameter="limit")
    return limit


@router.get("/v1/files/{file_id}")
async def retrieve_file(request: Request, file_id: FileId) -> JSONResponse:
    """What is known of a file."""
    file = await asyncio.to_thread(_store(request.app.state).get, owner_of(request), file_id)
    return JSONResponse(_described(file))


@router.get("/v1/files/{file_id}/content", response_class=Response)
async def file_content(request: Request, file_id: FileId) -> Response:
    """The bytes of a file, or those of a `Range`."""
    return await in_thread(_opened, _store(request.app.state), owner_of(request), file_id)


@router.delete("/v1/files/{file_id}")
async def delete_file(request: Request, file_id: FileId) -> JSONResponse:
    """Forget a file."""
    await asyncio.to_thread(_store(request.app.state).get, owner_of(request), file_id)
    await request.app.state.cope_prefetches.cancel(file_id)
    await asyncio.to_thread(_store(request.app.state).delete, owner_of(request), file_id)
    return JSONResponse({"id": file_id, "object": "file", "deleted": True})


class _Content(FileResponse):
    """A file that was opened before its answer begins: whoever deletes it meanwhile cannot break the answer off."""

    chunk_size = 256 << 10

    def __init__(self, fd: int, file: StoredFile) -> None:
        self._fd = fd
        super().__init__(
            f"/proc/self/fd/{fd}",
            # A stranger's bytes: nothing that a browser should look into.
            media_type="application/octet-stream",
            headers={"x-content-type-options": "nosniff", "etag": f'"{file.sha256}"', "cache-control": "private"},
            filename=file.filename,
            stat_result=os.stat(fd),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            os.close(self._fd)


def _opened(store: FileStore, owner: str, name: str) -> Response:
    file = store.get(owner, name)
    return _Content(store.open(owner, name), file)


def _store(state: State) -> FileStore:
    store: FileStore = state.cope_files
    return store


def _described(file: StoredFile) -> dict[str, Any]:
    """OpenAI's file object, with the state of the prefetch if there is one."""
    more = {"prefetch": json.loads(file.prefetch)} if file.prefetch else {}
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created_at,
        "expires_at": file.expires_at,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",  # its type is checked before it gets an id
        **more,
    }
