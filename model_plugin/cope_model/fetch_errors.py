"""What fetching a part can raise, as errors of the part that a client understands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
from urllib3.exceptions import LocationParseError
from vllm.connections import MediaDownloadSizeExceededError
from vllm.exceptions import VLLMUnprocessableEntityError, VLLMValidationError

from cope_model import fetching
from cope_model.addresses import RefusedUrlError
from cope_model.part_reader import PartReader

# media_errors brings cope_codec along, which most vLLM processes never need.


@contextmanager
def room_for(part: PartReader) -> Iterator[None]:
    """Tell a disk that is full, or cannot be written to, from a URL that does not answer.

    Raises:
        MediaFetchError: `storage_full`.
    """
    from cope_model.media_errors import MediaFetchError

    try:
        yield
    except OSError:
        message = "the server has no room for what is fetched"
        raise MediaFetchError(message, parameter=part.part, code="storage_full") from None


@contextmanager
def fetching_for(reader: PartReader) -> Iterator[None]:
    """Turn what the fetch raises into errors of the part."""
    from cope_model.media_errors import MediaError, MediaFetchError

    part = reader.part
    try:
        yield
    except (MediaError, MediaFetchError):
        raise
    except Exception as error:
        if reader.decoding_since is not None:
            raise  # not the fetch: `decoding` has translated all that a client can cause
        raise _fetch_error(error, part) from None


def _fetch_error(error: Exception, part: str) -> Exception:
    """The part's error for what a fetch raised, or what was raised if no client can cause it."""
    from cope_model.media_errors import MediaError, MediaFetchError

    if isinstance(error, VLLMUnprocessableEntityError) and error.__cause__ is not None:
        error = error.__cause__  # vLLM's word for some of what its connection raises
    if isinstance(error, MediaError | MediaFetchError):
        return error
    if isinstance(error, RefusedUrlError):
        return MediaError("url_not_allowed", str(error), parameter=part)
    if isinstance(error, MediaDownloadSizeExceededError):
        return MediaFetchError(str(error), parameter=part, code="media_too_large")
    if isinstance(error, aiohttp.ClientResponseError):
        return MediaFetchError(f"the URL answered with HTTP status {error.status}", parameter=part)
    if isinstance(error, fetching.TooManyRedirectsError):
        return MediaFetchError(str(error), parameter=part)
    if isinstance(error, aiohttp.InvalidURL | LocationParseError | UnicodeError):
        return MediaError("invalid_url", "the URL is malformed", parameter=part)
    if isinstance(error, TimeoutError):
        return MediaFetchError("fetching the URL took too long", parameter=part)
    if isinstance(error, aiohttp.ClientError | OSError):
        return MediaFetchError("the URL cannot be reached", parameter=part)
    if isinstance(error, NotImplementedError):  # what vLLM raises for data URIs in other encodings
        return MediaError("invalid_data_uri", "only base64 data URIs are served", parameter=part)
    if isinstance(error, ValueError | VLLMValidationError):
        return MediaError("invalid_url", _words(error), parameter=part)
    return error


def _words(error: Exception) -> str:
    """vLLM's own words about a URL that is none of http, data and file, or yarl's silence about a malformed one."""
    words = str(error.args[0]) if error.args else ""
    return words if words.startswith(("The URL must", "Invalid data URL")) else "the URL is malformed"
