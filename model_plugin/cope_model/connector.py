"""From a media part's URL to its content: options taken off, bytes fetched under vLLM's limits, errors made clear."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import url2pathname

from urllib3.util import Url
from vllm import envs
from vllm.connections import HTTPConnection
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, MediaConnector
from vllm.multimodal.media.base import MediaIO, MediaWithBytes
from vllm.multimodal.media.image import ImageMediaIO
from vllm.multimodal.media.video import VideoMediaIO

from cope_model import account, admission, fetching, isolation, loader, transfers
from cope_model.addresses import AddressPolicy, RefusedUrlError
from cope_model.extraction import in_charge
from cope_model.fetch_errors import fetching_for, room_for
from cope_model.part_reader import FetchedVideo, PartReader

if TYPE_CHECKING:
    from cope_codec.options import VideoOptions
    from cope_codec.plan import VideoPlan
    from cope_model.loader import VideoGops

FILE_ID = "file-"  # how the ids of uploaded files begin, which stand where others have a URL

# url_options and media_errors bring cope_codec along, which most vLLM processes never need.


@MEDIA_CONNECTOR_REGISTRY.register("cope")
class CoPEConnector(MediaConnector):  # type: ignore[misc]
    """vLLM's connector (`VLLM_MEDIA_CONNECTOR=cope`), with options on URLs and errors that name the part.

    Every failure that a client can cause is a `MediaError` (400) or a `MediaFetchError` (422); each video that was
    loaded is noted in `account.current`.

    Args:
        media_io_kwargs: vLLM's.
        connection: in place of the one that fetches from allowed addresses only.
        allowed_local_media_path: vLLM's.
        allowed_media_domains: vLLM's; holds for redirects, too.
        policy: where to fetch from; None is what `COPE_ALLOW_PRIVATE_MEDIA` says.
    """

    def __init__(
        self,
        media_io_kwargs: dict[str, dict[str, Any]] | None = None,
        connection: HTTPConnection | None = None,
        *,
        allowed_local_media_path: str = "",
        allowed_media_domains: list[str] | None = None,
        policy: AddressPolicy | None = None,
    ) -> None:
        domains = tuple(allowed_media_domains or ())
        self.policy = (
            AddressPolicy.from_environment(domains) if policy is None else dataclasses.replace(policy, domains=domains)
        )
        super().__init__(
            media_io_kwargs,
            fetching.GuardedConnection(self.policy) if connection is None else connection,
            allowed_local_media_path=allowed_local_media_path,
            allowed_media_domains=allowed_media_domains,
        )
        # vLLM makes a connector per request; what it keeps of a URL's answer (`VLLM_MEDIA_CACHE`) is a cache as others.
        self._salt = isolation.current.get()

    def load_from_url(self, url: str, media_io: MediaIO[Any], *, fetch_timeout: int | None = None) -> Any:
        """Load a part; see `CoPEConnector`."""
        plain, part = self._prepare(url, media_io)
        start = time.perf_counter()
        with fetching_for(part):
            if plain.startswith(FILE_ID):
                media = _load_uploaded(plain, part)
            else:
                media = super().load_from_url(plain, part, fetch_timeout=fetch_timeout)
        _note(media, part, start)
        return media

    async def load_from_url_async(self, url: str, media_io: MediaIO[Any], *, fetch_timeout: int | None = None) -> Any:
        """Load a part without blocking the event loop; see `CoPEConnector`."""
        extraction = in_charge()
        start = time.perf_counter()
        async with self._fetched(url, media_io, fetch_timeout, elsewhere=extraction is not None) as (media, part):
            if extraction is not None and isinstance(media, FetchedVideo):
                limits = admission.current.get()
                turn = None if limits is None else partial(limits.decoding, part=part.part)
                with part.decoding():
                    loaded = await loader.load_async(
                        media.source, extraction, name=media.name, turn=turn, **part.inner.kwargs
                    )
                media = MediaWithBytes(loaded, b"")
        salt = isolation.current.get()
        if salt is not None and isinstance(media, MediaWithBytes) and not part.is_video:
            media.io_config = {**(media.io_config or {}), "salt": salt}  # goes into vLLM's hash of an image
        _note(media, part, start)
        return media

    async def plan_async(self, url: str, part: str, sets: Sequence[tuple[str, VideoOptions]]) -> list[VideoPlan]:
        """What a video would become, fetched once; no frame is decoded. Codec workers must be in charge.

        Args:
            url: the video's; it carries no options.
            part: what errors of the fetch blame.
            sets: of options, each with the name that errors blame; they win over the server's own.

        Raises:
            MediaError, MediaFetchError: the video or an option cannot be used.
        """
        from cope_codec.errors import CodecError
        from cope_model.media_errors import MediaError, from_codec
        from cope_model.url_options import attach

        extraction = in_charge()
        assert extraction is not None
        media_io = self._video_io()
        plans = []
        async with self._fetched(attach(url, {}, part), media_io, envs.VLLM_VIDEO_FETCH_TIMEOUT, elsewhere=True) as (
            media,
            reader,
        ):
            for name, chosen in sets:
                try:
                    with reader.decoding():
                        wanted = loader.merged(chosen, _without(media_io.kwargs, "side", "options", "check"))
                        video = await extraction.executor.open_async(media.source, wanted)
                except MediaError as error:
                    cause = error.__cause__
                    if isinstance(cause, CodecError) and cause.param is not None:
                        raise from_codec(cause, name) from None
                    raise
                plans.append(video.plan)
        return plans

    async def load_video_async(self, url: str) -> VideoGops:
        """Load a video by our loader, as a chat would; see `load_from_url_async`."""
        media = await self.load_from_url_async(url, self._video_io(), fetch_timeout=envs.VLLM_VIDEO_FETCH_TIMEOUT)
        loaded: VideoGops = media.media[0]
        return loaded

    def _video_io(self) -> VideoMediaIO:
        return VideoMediaIO(
            ImageMediaIO(), **{**self.media_io_kwargs.get("video", {}), "video_backend": loader.BACKEND}
        )

    @asynccontextmanager
    async def _fetched(
        self, url: str, media_io: MediaIO[Any], timeout_s: float | None, *, elsewhere: bool
    ) -> AsyncIterator[tuple[Any, PartReader]]:
        """What a URL leads to, for as long as the block lasts: a video that others will open is a `FetchedVideo`."""
        plain, part = self._prepare(url, media_io, elsewhere=elsewhere)
        limits = admission.current.get()
        if limits is not None and part.is_video:
            limits.add_video(part.part)
        if part.is_image:
            _count_image(part)
        with ExitStack() as until_loaded:
            with fetching_for(part), _held(limits, part):
                if plain.startswith(FILE_ID):
                    media = await transfers.in_thread(_load_uploaded, plain, part)
                elif part.elsewhere and plain[:5].lower() in ("http:", "https") and self._media_cache_dir is None:
                    media = await self._download(plain, part, timeout_s, until_loaded)
                else:
                    media = await super().load_from_url_async(plain, part, fetch_timeout=timeout_s)
            yield media, part

    async def _download(self, url: str, part: PartReader, timeout_s: float | None, keep: ExitStack) -> FetchedVideo:
        """Fetch a video to disk: memory does not grow with it, nor with how many are fetched at a time.

        The file has no name, so nothing is left behind, however this process ends.
        """
        from cope_model.media_errors import MediaError

        # Pieces go to the page cache, which takes microseconds; a thread for each would take longer. Without a buffer,
        # which would fail once more when it is closed on a full disk.
        with room_for(part):
            file = keep.enter_context(tempfile.TemporaryFile(buffering=0))
        limits, held = admission.current.get(), 0

        def release() -> None:
            nonlocal held
            if limits is not None:
                limits.release_bytes(held)
            held = 0

        keep.callback(release)

        def write(piece: bytes) -> None:
            nonlocal held
            if limits is not None:
                limits.hold_bytes(len(piece), part.part)
                held += len(piece)
            left = memoryview(piece)
            with room_for(part):
                while left:
                    left = left[file.write(left) :]

        def restart() -> None:
            release()
            file.seek(0)
            file.truncate()

        await fetching.fetch(
            url,
            write,
            self.policy,
            restart=restart,
            timeout_s=timeout_s,
            max_bytes=part.get_max_bytes(),
            redirects=fetching.redirects_followed(),
        )
        if not os.fstat(file.fileno()).st_size:
            raise MediaError("empty_media", "the part holds no bytes", parameter=part.part)
        return FetchedVideo(Path(f"/proc/self/fd/{file.fileno()}"))

    def _assert_url_in_allowed_media_domains(self, url_spec: Url) -> None:
        """vLLM's check; `fetching` repeats it for each redirect."""
        if self.allowed_media_domains and url_spec.hostname not in self.allowed_media_domains:
            raise RefusedUrlError("the URL's host is not among the domains that this server fetches from")

    def _media_cache_path(self, url: str) -> Path:
        """Where vLLM keeps an answer: each API key has its own."""
        path: Path = super()._media_cache_path(f"{self._salt}@{url}" if self._salt else url)
        return path

    def _prepare(self, url: str, media_io: MediaIO[Any], *, elsewhere: bool = False) -> tuple[str, PartReader]:
        """Take the options off the URL and give them to the video loader."""
        from cope_codec.errors import CodecError
        from cope_model.media_errors import MediaError, from_codec
        from cope_model.url_options import detach, part_of

        fallback = "video_url" if isinstance(media_io, VideoMediaIO) else "image_url"
        if not isinstance(url, str) or not url.strip():
            raise MediaError("invalid_url", "the URL is empty", parameter=fallback)
        try:
            plain, options, named = detach(url)
        except CodecError as error:
            raise from_codec(error, part_of(url) or fallback) from None
        extraction = in_charge()
        part = PartReader(media_io, named or fallback, elsewhere, None if extraction is None else extraction.side)
        if part.is_video:
            # vLLM makes one MediaIO per part, so its arguments are this part's own.
            request = account.current.get()
            given = {"options": options} if len(plain) != len(url) else {}
            check = {"check": partial(request.check, part=part.part)} if request is not None else {}
            media_io.kwargs = {**media_io.kwargs, **given, **check}
        return plain, part

    def _load_file_url(self, url_spec: Url, media_io: Any) -> Any:
        """Read a file below the allowed folder; messages name neither the folder nor what lies outside of it."""
        from cope_model.media_errors import MediaError

        part = media_io.part
        allowed = self.allowed_local_media_path
        if allowed is None:
            raise MediaError("file_not_allowed", "this server does not read local files", parameter=part)
        try:
            path = Path(url2pathname((url_spec.netloc or "") + (url_spec.path or ""))).resolve()
        except (OSError, RuntimeError, ValueError):  # a ring of links, a name that is too long, a zero byte
            path = None
        if path is None or allowed not in path.parents:
            raise MediaError("file_not_allowed", "the file lies outside the folder that is served", parameter=part)
        return media_io.load_file(path)


def _load_uploaded(name: str, part: PartReader) -> Any:
    """Read an uploaded file in place. The URL is its id and no path: the request knows which files are its own."""
    from cope_model.media_errors import MediaError

    request = account.current.get()
    part.uploaded = True
    path = request.uploaded(name) if request is not None and request.uploaded is not None else None
    if path is None:
        raise MediaError("unknown_file", "there is no file with this id", parameter=part.part)
    if not part.is_video:
        raise MediaError("invalid_media", "the file is a video, not an image", parameter=part.part)
    media = part.load_file(path)
    return dataclasses.replace(media, name=name) if isinstance(media, FetchedVideo) else media


def _count_image(part: PartReader) -> None:
    """Refuse an image for which the model's context has no room: it need not be fetched."""
    from cope_model.media_errors import MediaError

    request = account.current.get()
    try:
        if request is not None:
            request.check_image(part.part)
    except account.ContextExceededError as error:
        raise MediaError("context_exceeded", str(error), parameter=part.part) from None


@contextmanager
def _held(limits: admission.Admission | None, part: PartReader) -> Iterator[None]:
    """Count what is fetched into memory within the block; it stays there until the request has been answered."""
    if limits is None:
        yield
        return
    token = fetching.holding.set(partial(limits.hold_bytes, part=part.part))
    try:
        yield
    finally:
        fetching.holding.reset(token)


def _without(kwargs: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name not in names}


def _note(media: Any, part: PartReader, start: float) -> None:
    """Tell the request's account about a video."""
    content = media.media[0] if isinstance(media, MediaWithBytes) and isinstance(media.media, tuple) else None
    request = account.current.get()
    if request is not None and isinstance(content, loader.VideoGops):
        fetched = part.decoding_since if part.decoding_since is not None else start
        gops = content.gops or ()
        request.loaded.append(
            account.LoadedVideo(
                plan=content.plan,
                part=part.part,
                fetch_s=max(fetched - start, 0.0),
                extract_s=content.extract_s,
                missing_slots=sum(gop.missing for gop in gops),
                corrupt=any(gop.corrupt for gop in gops),
                truncated=content.known.truncated,
                started=start,
                cached=content.cached,
            )
        )
