"""Reads one media part: decodes what was fetched, or leaves it to others, and blames the part for what fails."""

from __future__ import annotations

import binascii
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL.Image import Image
from PIL.Image import fromarray as from_array
from vllm.connections import MediaDownloadSizeExceededError
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.media.base import MediaIO, MediaWithBytes
from vllm.multimodal.media.image import ImageMediaIO
from vllm.multimodal.media.video import VideoMediaIO

from cope_model import account, fetching, images, loader

# media_errors brings cope_codec along, which most vLLM processes never need.


@dataclass(frozen=True, slots=True)
class FetchedVideo:
    """A video that is there and not yet opened.

    Attributes:
        source: its bytes, or a file that can be read.
        name: the id of an uploaded file, whose bytes never change.
    """

    source: bytes | Path
    name: str | None = None


class PartReader(MediaIO[Any]):  # type: ignore[misc]
    """A MediaIO that knows which part it reads for: it times the decoding and blames the part.

    Args:
        inner: vLLM's own.
        part: where in the request the part stands.
        elsewhere: hand videos out as they were fetched: they are opened and decoded by others, and vLLM's media
            threads, of which there are few, do not wait for them.
        side: S, side of the model's square input, pixels: images are kept at this size, and not at their own, which
            their senders choose. None keeps them as they are.
    """

    def __init__(self, inner: MediaIO[Any], part: str, elsewhere: bool = False, side: int | None = None) -> None:
        super().__init__()
        self.inner = inner
        self.part = part
        self.side = side
        self.uploaded = False  # its URL is the id of an uploaded file
        self.elsewhere = elsewhere and self.is_video
        self.decoding_since: float | None = None

    @property
    def is_video(self) -> bool:
        """Whether our own loader reads this part."""
        return isinstance(self.inner, VideoMediaIO) and isinstance(self.inner.video_loader, loader.CoPEVideoLoader)

    @property
    def is_image(self) -> bool:
        """Whether this part is a still image."""
        return isinstance(self.inner, ImageMediaIO)

    def get_max_bytes(self) -> int | None:
        """vLLM's limit for the modality."""
        limit: int | None = self.inner.get_max_bytes()
        return limit

    def load_bytes(self, data: bytes) -> Any:
        """Decode bytes."""
        from cope_model.media_errors import MediaError

        if not data:
            raise MediaError("empty_media", "the part holds no bytes", parameter=self.part)
        if self.elsewhere:
            return FetchedVideo(data)
        with self.decoding():
            return self._load_image(data) if self.is_image else self.inner.load_bytes(data)

    def _load_image(self, data: bytes) -> Any:
        """Decode a still image, and make it as small as the model wants it: a request may have many."""
        with images.decoding(data):
            media = self.inner.load_bytes(data)
            if self.side is not None and isinstance(media, MediaWithBytes) and isinstance(media.media, Image):
                # What the model's processor does with an image that comes as it is.
                media.media = from_array(images.to_square(media.media, self.side))
        return media

    def load_base64(self, media_type: str, data: str) -> Any:
        """Decode a data URI's payload."""
        import pybase64

        from cope_model.media_errors import MediaError

        if not self.is_video and media_type.lower() == "video/jpeg":
            with self.decoding():  # vLLM's own way to send frames, for other loaders than ours
                return self.inner.load_base64(media_type, data)
        try:
            content = pybase64.b64decode(data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise MediaError("invalid_data_uri", f"the data URI is not base64: {error}", parameter=self.part) from None
        return self.load_bytes(content)

    def load_file(self, path: Path) -> Any:
        """Decode a file; our own loader reads it in place."""
        from cope_model.media_errors import MediaError

        try:
            if not path.stat().st_size:
                raise MediaError("empty_media", "the file is empty", parameter=self.part)
            if not self.is_video:
                return self.load_bytes(self._read(path))
            with path.open("rb"):
                pass  # readable? FFmpeg's own message would show the path
        except OSError:
            raise self._missing() from None
        if self.elsewhere:
            return FetchedVideo(path)
        with self.decoding():
            return MediaWithBytes(loader.load_source(path, **self.inner.kwargs), b"")

    def _missing(self) -> Exception:
        from cope_model.media_errors import MediaError

        if self.uploaded:
            return MediaError("unknown_file", "there is no file with this id", parameter=self.part)
        return MediaError("file_not_found", "there is no such file, or it cannot be read", parameter=self.part)

    def _read(self, path: Path) -> bytes:
        """A file that goes into memory: no larger than what may be fetched into it.

        Raises:
            MediaDownloadSizeExceededError: it is.
        """
        limit = fetching.size_limit(self.get_max_bytes())
        with path.open("rb") as file:
            data = file.read() if limit is None else file.read(limit + 1)
        if limit is not None and len(data) > limit:
            raise MediaDownloadSizeExceededError(limit, path.stat().st_size)
        return data

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Note when decoding begins, and turn what it raises into errors of the part."""
        from cope_codec.errors import CodecError
        from cope_model.media_errors import MediaError, from_codec

        self.decoding_since = time.perf_counter()
        try:
            yield
        except MediaError:
            raise
        except CodecError as error:
            raise from_codec(error, self.part) from error
        except account.ContextExceededError as error:
            raise MediaError("context_exceeded", str(error), parameter=self.part) from None
        except VLLMValidationError as error:
            raise MediaError("invalid_media", str(error.args[0]), parameter=self.part) from error
        except Exception as error:
            if self.is_video and isinstance(error, FileNotFoundError):  # removed after it had been found
                raise self._missing() from None
            # Pillow's readers raise anything, from SyntaxError to what it has for images of too many pixels.
            if self.is_video or isinstance(error, MemoryError):
                raise
            message = "the bytes cannot be read as this kind of media"
            raise MediaError("invalid_media", message, parameter=self.part) from error
