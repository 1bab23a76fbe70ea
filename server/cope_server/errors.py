"""Refusals in OpenAI's shape, with codes that stay the same."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastapi import FastAPI


_TOO_LARGE = ("video_too_large", "media_too_large")


def add_error_handlers(app: FastAPI) -> None:
    """Answer media errors with their own code; vLLM's handler would put the HTTP status there.

    The codes are those of `cope_model.media_errors` and `cope_codec.errors`.
    """
    from starlette.requests import Request
    from starlette.responses import JSONResponse

    from cope_model.media_errors import MediaError, MediaFetchError

    async def media_error(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, MediaError | MediaFetchError)
        usual = HTTPStatus.BAD_REQUEST if isinstance(error, MediaError) else HTTPStatus.UNPROCESSABLE_ENTITY
        status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE if error.code in _TOO_LARGE else usual
        return JSONResponse(error_body(str(error), error.parameter, error.code), status)

    # Starlette takes the handler of the most special class, so these come before vLLM's for its base classes.
    app.add_exception_handler(MediaError, media_error)
    app.add_exception_handler(MediaFetchError, media_error)


def error_body(message: str, param: str | None, code: str) -> dict[str, Any]:
    """OpenAI's error object."""
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}
