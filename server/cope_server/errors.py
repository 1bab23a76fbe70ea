"""Refusals in OpenAI's shape, with codes that stay the same."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, get_args

from cope_server.metrics import REJECTED

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.responses import JSONResponse

logger = logging.getLogger("vllm.cope_server.errors")  # below vLLM's logger, so that its settings apply

# What is not the usual 400 of a bad part, or 422 of a URL that does not give its bytes.
_STATUS: dict[str, HTTPStatus] = {
    "video_too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "media_too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "invalid_api_key": HTTPStatus.UNAUTHORIZED,
    "timeout": HTTPStatus.UNPROCESSABLE_ENTITY,
    "out_of_memory": HTTPStatus.UNPROCESSABLE_ENTITY,
    "worker_died": HTTPStatus.UNPROCESSABLE_ENTITY,
    "queue_full": HTTPStatus.TOO_MANY_REQUESTS,
    "cancelled": HTTPStatus.SERVICE_UNAVAILABLE,  # the server is shutting down
    "too_many_videos": HTTPStatus.UNPROCESSABLE_ENTITY,
    "too_many_requests": HTTPStatus.TOO_MANY_REQUESTS,
    "unknown_route": HTTPStatus.NOT_FOUND,
    "method_not_allowed": HTTPStatus.METHOD_NOT_ALLOWED,
    "request_timeout": HTTPStatus.REQUEST_TIMEOUT,
    "request_too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "unknown_file": HTTPStatus.NOT_FOUND,
    "file_too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "quota_exceeded": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    "storage_full": HTTPStatus.INSUFFICIENT_STORAGE,
    "storage_unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
    "internal_error": HTTPStatus.INTERNAL_SERVER_ERROR,
}
# Refusals that no part is at fault for.
REQUEST_MEANINGS = {
    "invalid_api_key": "no API key, or one that is not known here",
    "invalid_request": "what came is no request that can be read, such as JSON that is nested too deeply",
    "unknown_route": "there is no such path",
    "method_not_allowed": "the path does not take this method",
    "request_timeout": "the body of the request does not come, or hardly (`--limit-idle-s`)",
    "request_too_large": "the body has more bytes than one request may have (`--limit-body-mb`)",
    "internal_error": "a fault of the server's own, such as a disk that fails; its log says which",
    "too_many_requests": "too many requests, or bytes of them, are being answered, in all or for this API key",
}
_TYPES = {
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
    HTTPStatus.SERVICE_UNAVAILABLE: "service_unavailable",
    HTTPStatus.INSUFFICIENT_STORAGE: "server_error",
    HTTPStatus.INTERNAL_SERVER_ERROR: "server_error",
}
_TO_BE_TRIED_AGAIN = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
_QUEUED = (HTTPStatus.TOO_MANY_REQUESTS,)  # of these the queue says when; what shuts down, or is down, has none
_RETRY_AFTER_S = 1
CLIENT_CLOSED_REQUEST = 499  # nginx's, for logs


class ShuttingDownError(Exception):
    """The server ends while it is at a request."""


@contextmanager
def ending_clearly() -> Iterator[None]:
    """Recognise what vLLM's renderer raises once its threads have ended: a request in flight at SIGTERM meets that.

    Raises:
        ShuttingDownError: the server ends.
    """
    try:
        yield
    except RuntimeError as error:
        if "cannot schedule new futures after" not in str(error):  # Python's words; the class says nothing
            raise
        raise ShuttingDownError("the server is shutting down") from error


def add_error_handlers(app: FastAPI) -> None:
    """Answer media errors with their own code; vLLM's handler would put the HTTP status there.

    The codes are those of `cope_model.media_errors`, `cope_codec.errors` and `cope_server.files.errors`.
    """
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import JSONResponse

    from cope_model.media_errors import MediaError, MediaFetchError
    from cope_server.files.errors import FileError

    async def media_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, MediaError | MediaFetchError | FileError)
        gate = getattr(request.app.state, "cope_gate", None)
        again_s = _RETRY_AFTER_S if gate is None or http_status(error.code) not in _QUEUED else gate.retry_after_s()
        return refusal(error.code, str(error), error.parameter, retry_after_s=again_s)

    async def shutting_down(_: Request, error: Exception) -> JSONResponse:
        return refusal("cancelled", str(error))

    async def not_routed(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        code = {404: "unknown_route", 405: "method_not_allowed"}.get(error.status_code)
        if code is not None or error.status_code == http_status("invalid_request"):
            return refusal(code or "invalid_request", error.detail, headers=error.headers)
        return JSONResponse(error_body(error.detail, None, "invalid_request"), error.status_code, error.headers)

    async def broken(_: Request, error: Exception) -> JSONResponse:
        logger.error("a request failed", exc_info=error)
        return refusal("internal_error", "the server cannot do this now; its log says why")

    # What Starlette and FastAPI themselves refuse: vLLM has a handler for FastAPI's own subclass only.
    app.add_exception_handler(HTTPException, not_routed)
    # vLLM answers with what the exception says, which for these is a path of the server.
    app.add_exception_handler(OSError, broken)
    app.add_exception_handler(sqlite3.Error, broken)
    # Starlette takes the handler of the most special class, so these come before vLLM's for its base classes.
    app.add_exception_handler(MediaError, media_error)
    app.add_exception_handler(MediaFetchError, media_error)
    app.add_exception_handler(FileError, media_error)
    app.add_exception_handler(ShuttingDownError, shutting_down)


def refusal(
    code: str,
    message: str,
    param: str | None = None,
    headers: Mapping[str, str] | None = None,
    retry_after_s: int = _RETRY_AFTER_S,
) -> JSONResponse:
    """The answer to a request that is refused with one of our codes; it is counted.

    Args:
        code: one of docs/errors.md.
        message: for people.
        param: what of the request is at fault; None if nothing is.
        headers: further ones.
        retry_after_s: of an answer that says to come again, seconds.
    """
    from starlette.responses import JSONResponse

    status = http_status(code)
    again = {"Retry-After": str(retry_after_s)} if status in _TO_BE_TRIED_AGAIN else {}
    REJECTED.labels(code).inc()
    body = error_body(message, param, code, _TYPES.get(status, "invalid_request_error"))
    return JSONResponse(body, status, {**again, **(headers or {})})


def error_body(message: str, param: str | None, code: str, kind: str = "invalid_request_error") -> dict[str, Any]:
    """OpenAI's error object. Names that a client made up may hold halves of characters, which UTF-8 cannot carry."""
    whole, place = (text and text.encode(errors="backslashreplace").decode() for text in (message, param))
    return {"error": {"message": whole, "type": kind, "param": place, "code": code}}


def http_status(code: str) -> HTTPStatus:
    """What a refusal with this code is answered with."""
    from cope_model.media_errors import FetchErrorCode

    fetched = code in get_args(FetchErrorCode)
    return _STATUS.get(code, HTTPStatus.UNPROCESSABLE_ENTITY if fetched else HTTPStatus.BAD_REQUEST)
