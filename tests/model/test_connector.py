"""The connector: options reach the loader, every failure names the part and has the right status."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from clips import clip
from PIL import Image
from vllm.exceptions import VLLMUnprocessableEntityError, VLLMValidationError
from vllm.multimodal.media.image import ImageMediaIO
from vllm.multimodal.media.video import VideoMediaIO

from cope_codec.options import VideoOptions
from cope_model import account, loader
from cope_model.addresses import AddressPolicy
from cope_model.connector import CoPEConnector
from cope_model.media_errors import MediaError, MediaFetchError
from cope_model.presets import PRESETS
from cope_model.url_options import attach

PART = "messages[0].content[1].video_url"


def make_connector(**kwargs: Any) -> CoPEConnector:
    """A connector to which this machine's own web servers are open."""
    return CoPEConnector(policy=AddressPolicy.parse(["127.0.0.0/8"]), **kwargs)


def video_io(**kwargs: Any) -> VideoMediaIO:
    return VideoMediaIO(ImageMediaIO(), video_backend="cope", **kwargs)


def data_uri(content: bytes, kind: str = "video/mp4") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def load(url: str, connector: CoPEConnector | None = None, **kwargs: Any) -> loader.VideoGops:
    """As the server does it: asynchronously."""
    media = asyncio.run(_load(connector or make_connector(), url, video_io(**kwargs)))
    content, metadata = media.media
    assert metadata["video_backend"] == "cope"
    assert isinstance(content, loader.VideoGops)
    return content


async def _load(connector: CoPEConnector, url: str, media_io: Any) -> Any:
    return await connector.load_from_url_async(url, media_io, fetch_timeout=20)


class Handler(BaseHTTPRequestHandler):
    paths: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.paths.append(self.path)
        status = int(self.path.strip("/")) if self.path.strip("/").isdigit() else 200
        body = clip(3) if status == 200 and "empty" not in self.path else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    clip(3)  # made here, not within the time limit of whoever asks first
    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def one_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_MEDIA_FETCH_MAX_RETRIES", "1")


def test_options_of_the_url_reach_the_loader_and_not_the_network(host: str) -> None:
    Handler.paths.clear()
    video = load(attach(f"{host}/a.mp4?x=1", {"fps": 2, "keyframes_per_gop": 2, "gop_slots": 4}, PART))
    assert Handler.paths == ["/a.mp4?x=1"]
    assert video.plan.options == VideoOptions(fps=2, keyframes_per_gop=2, gop_slots=4)
    assert (video.plan.i_frames, video.plan.p_frames) == (3, 3)
    assert video.gops is None


def test_conversations_of_a_batch_have_a_context_each() -> None:
    tokens = PRESETS["tiny"].geometry.tokens(1, 2)
    url = data_uri(clip(3))

    async def request(*places: str) -> account.RequestVideos:
        videos = account.RequestVideos(PRESETS["tiny"].geometry, tokens + 1)
        account.current.set(videos)
        for place in places:
            await _load(make_connector(), attach(url, {}, place), video_io())
        return videos

    batch = [f"messages[{i}][0].content[0].video_url" for i in range(3)]
    assert len(asyncio.run(request(*batch)).in_order()) == 3
    for together in (
        ("messages[1][0].content[0].video_url", "messages[1][2].content[0].video_url"),
        ("messages[0].content[0].video_url", "messages[1].content[0].video_url"),
        ("input[0].content[0]", "input[1].content[0]"),
    ):
        with pytest.raises(MediaError, match=f"after {tokens} of the media before it") as caught:
            asyncio.run(request(*together))
        assert (caught.value.code, caught.value.parameter) == ("context_exceeded", together[1])


def test_without_options_the_defaults_hold() -> None:
    assert load(data_uri(clip(3))).plan.options == VideoOptions()


def test_the_loader_extracts_when_it_knows_the_side() -> None:
    video = load(attach(data_uri(clip(3)), {}), side=64)
    assert video.gops is not None
    assert [gop.model_side for gop in video.gops] == [64]
    assert video.gops == video.extracted(64)


def test_options_of_the_server_yield_to_those_of_the_request() -> None:
    assert load(data_uri(clip(3)), fps=2).plan.options == VideoOptions(fps=2)
    assert load(attach(data_uri(clip(3)), {"fps": 3}), fps=2).plan.options == VideoOptions(fps=3)


def test_two_parts_of_one_connector_keep_their_own_options() -> None:
    async def both() -> list[Any]:
        connector = make_connector()
        urls = [attach(data_uri(clip(3)), {"frames": n}) for n in (2, 3)]
        return await asyncio.gather(*(_load(connector, url, video_io()) for url in urls))

    assert [media.media[0].plan.i_frames for media in asyncio.run(both())] == [2, 3]


def test_local_files_are_read_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ein film.mp4"
    path.write_bytes(clip(3))
    connector = make_connector(allowed_local_media_path=str(tmp_path))
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("read into memory"))
    video = load(attach(path.as_uri(), {"fps": 2}, PART), connector)
    assert video.video.source == path
    assert video.plan.options.fps == 2


def in_request(uploaded: Any, url: str, media_io: Any) -> Any:
    """Load a URL within a request that has these uploads, in both ways."""

    async def asked() -> Any:
        account.current.set(account.RequestVideos(PRESETS["tiny"].geometry, 4096, uploaded))
        media = await _load(make_connector(), url, media_io)
        assert make_connector().load_from_url(url, media_io).media is not None
        return media

    return asyncio.run(asked())


def test_an_uploaded_file_is_read_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "upload"
    path.write_bytes(clip(3))
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("read into memory"))
    asked: list[str] = []

    def uploaded(name: str) -> Path:
        asked.append(name)
        return path

    video, _ = in_request(uploaded, attach("file-abc", {"fps": 2}, PART), video_io()).media
    assert video.video.source == path
    assert video.plan.options.fps == 2
    assert set(asked) == {"file-abc"}
    with pytest.raises(MediaError, match="not an image") as caught:
        in_request(uploaded, attach("file-abc", {}, PART), ImageMediaIO())
    assert (caught.value.code, caught.value.parameter) == ("invalid_media", PART)


def test_files_on_their_way_do_not_keep_others_waiting(tmp_path: Path) -> None:
    (tmp_path / "upload").write_bytes(clip(3))
    arrived = threading.Event()

    def uploaded(_: str) -> Path:
        assert arrived.wait(60)  # an object store takes its time
        return tmp_path / "upload"

    async def run() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        account.current.set(account.RequestVideos(PRESETS["tiny"].geometry, 4096, uploaded))
        coming = [
            asyncio.create_task(_load(make_connector(), attach("file-abc", {}, PART), video_io())) for _ in range(4)
        ]
        await asyncio.sleep(0)
        assert await asyncio.wait_for(asyncio.to_thread(lambda: 1), 10) == 1
        assert not any(task.done() for task in coming)
        arrived.set()
        assert all(media.media is not None for media in await asyncio.gather(*coming))

    asyncio.run(run())


def test_a_file_that_vanishes_in_this_moment_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object, **__: object) -> None:
        raise FileNotFoundError(str(tmp_path))

    (tmp_path / "upload").write_bytes(clip(3))
    monkeypatch.setattr(loader, "load_source", gone)
    with pytest.raises(MediaError, match="no file with this id") as caught:
        in_request(lambda _: tmp_path / "upload", attach("file-abc", {}, PART), video_io())
    assert (caught.value.code, caught.value.parameter) == ("unknown_file", PART)
    served = attach((tmp_path / "upload").as_uri(), {}, PART)
    assert failure(served, make_connector(allowed_local_media_path=str(tmp_path))).code == "file_not_found"


def test_a_file_that_is_not_the_requests_own_is_unknown() -> None:
    url = attach("file-abc", {}, PART)
    assert (failure(url).code, failure(url).parameter) == ("unknown_file", PART)  # no request, no uploads
    for uploaded in (None, lambda _: None):
        with pytest.raises(MediaError, match="no file with this id") as caught:
            in_request(uploaded, url, video_io())
        assert (caught.value.code, caught.value.parameter) == ("unknown_file", PART)


def failure(url: str, connector: CoPEConnector | None = None, media_io: Any = None) -> MediaError | MediaFetchError:
    """The failure of a URL, which must be the same without and with an event loop."""
    chosen = connector or make_connector()
    with pytest.raises((MediaError, MediaFetchError)) as sync:
        chosen.load_from_url(url, media_io or video_io(), fetch_timeout=20)
    with pytest.raises((MediaError, MediaFetchError)) as caught:
        asyncio.run(_load(chosen, url, media_io or video_io()))
    error = caught.value
    assert (str(sync.value), sync.value.code) == (str(error), error.code)
    assert "Traceback" not in str(error)
    return error


@pytest.mark.parametrize(
    ("url", "code", "message"),
    [
        ("data:video/mp4;base64,@@@@", "invalid_data_uri", "the data URI is not base64"),
        ("data:video/mp4;base64", "invalid_url", "missing ','"),
        ("data:video/mp4,AAAA", "invalid_data_uri", "only base64 data URIs are served"),
        ("data:video/mp4;base64,", "empty_media", "the part holds no bytes"),
        ("data:video/mp4;base64,AAAA", "invalid_video", ""),
        (data_uri(b"\0" * 5000), "invalid_video", ""),
        ("ftp://host/a.mp4", "invalid_url", "must be either a HTTP, data or file URL"),
        ("just text", "invalid_url", "malformed"),
        ("http://[::1/a.mp4", "invalid_url", "malformed"),
        ("http://", "invalid_url", "malformed"),
        ("file:///etc/passwd", "file_not_allowed", "this server does not read local files"),
    ],
)
def test_what_the_client_got_wrong_is_400(url: str, code: str, message: str) -> None:
    error = failure(attach(url, {}, PART))
    assert isinstance(error, VLLMValidationError)
    assert (error.code, error.parameter) == (code, PART)
    assert message in str(error)


@pytest.mark.parametrize("url", ["", "  "])
def test_an_empty_url_is_400(url: str) -> None:
    error = failure(url)
    assert (error.code, error.parameter, str(error)) == ("invalid_url", "video_url", "the URL is empty")


@pytest.mark.parametrize(
    ("query", "param"), [("fps=fast", "fps"), ("speed=1", "speed"), ("frames=8&mode=native", "mode")]
)
def test_wrong_options_are_400_and_named(query: str, param: str) -> None:
    error = failure(f"{data_uri(clip(3))}#cope:{query}&part={PART}")
    assert isinstance(error, VLLMValidationError)
    assert (error.code, error.parameter) == ("invalid_option", f"{PART}.{param}")


def test_options_that_do_not_suit_the_video_are_400_and_named() -> None:
    error = failure(attach(data_uri(clip(3)), {"start_s": 100}, PART))
    assert (error.code, error.parameter) == ("no_frames", f"{PART}.start_s")


def test_without_a_part_the_kind_is_named(host: str) -> None:
    assert failure("data:video/mp4;base64,@@@@").parameter == "video_url"
    assert failure(f"{host}/404", media_io=ImageMediaIO()).parameter == "image_url"


@pytest.mark.parametrize("status", [401, 404, 429, 500, 503])
def test_a_url_that_answers_badly_is_422(host: str, status: int) -> None:
    error = failure(attach(f"{host}/{status}", {}, PART))
    assert isinstance(error, VLLMUnprocessableEntityError)
    assert (error.code, error.parameter) == ("unreachable_url", PART)
    assert str(status) in str(error)


def test_a_closed_port_is_422() -> None:
    error = failure(attach("http://127.0.0.1:9/a.mp4", {}, PART))
    assert isinstance(error, VLLMUnprocessableEntityError)
    assert (str(error), error.parameter) == ("the URL cannot be reached", PART)


def test_a_download_that_is_too_large_is_422_with_its_own_code(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cope_model.fetching.size_limit", lambda max_bytes: 1000)
    error = failure(attach(f"{host}/a.mp4", {}, PART))
    assert isinstance(error, VLLMUnprocessableEntityError)
    assert (error.code, error.parameter) == ("media_too_large", PART)


def test_an_empty_answer_is_400(host: str) -> None:
    assert failure(attach(f"{host}/empty", {}, PART)).code == "empty_media"


def test_hosts_that_are_not_allowed_are_400(host: str) -> None:
    error = failure(attach(f"{host}/a.mp4", {}, PART), make_connector(allowed_media_domains=["example.com"]))
    assert (error.code, error.parameter) == ("url_not_allowed", PART)
    assert "domains" in str(error) and "127" not in str(error)


def test_files_outside_the_folder_are_400_and_the_folder_stays_secret(tmp_path: Path) -> None:
    served = tmp_path / "served-folder"
    served.mkdir()
    (tmp_path / "secret.mp4").write_bytes(clip(3))
    (served / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    (served / "empty.mp4").touch()
    connector = make_connector(allowed_local_media_path=str(served))
    for url, code in (
        ((tmp_path / "secret.mp4").as_uri(), "file_not_allowed"),
        ((tmp_path / "missing.mp4").as_uri(), "file_not_allowed"),  # the same answer: nobody learns what exists
        (f"{served.as_uri()}/../secret.mp4", "file_not_allowed"),
        (f"{served.as_uri()}/link.mp4", "file_not_allowed"),
        (f"{served.as_uri()}/missing.mp4", "file_not_found"),
        (served.as_uri() + "/", "file_not_allowed"),
        (f"{served.as_uri()}/empty.mp4", "empty_media"),
    ):
        error = failure(attach(url, {}, PART), connector)
        assert isinstance(error, VLLMValidationError)
        assert (error.code, error.parameter) == (code, PART), url
        assert "served-folder" not in str(error)


@pytest.mark.parametrize(
    "path",
    [
        *("/../secret.mp4", "/%2e%2e/secret.mp4", "/..%2fsecret.mp4", "/%2e%2e%2fsecret.mp4", "/sub/../../secret.mp4"),
        *(
            "/sub/%2E%2E/%2E%2E/secret.mp4",
            "//../secret.mp4",
            "/./../secret.mp4",
            "/%00",
            "/secret.mp4%00.mp4",
            "/ring",
        ),
        *("/out/secret.mp4", "/sub/far", "-beside/secret.mp4", "", "/", "/.", "/sub/..", "/" + "n" * 5000, "/chain"),
    ],
)
def test_no_spelling_leads_out_of_the_folder(tmp_path: Path, path: str) -> None:
    served, beside = tmp_path / "cellar", tmp_path / "cellar-beside"
    for folder in (served, served / "sub", beside):
        folder.mkdir()
    for place in (tmp_path, beside):
        (place / "secret.mp4").write_bytes(clip(3))
    (served / "out").symlink_to(tmp_path)
    (served / "sub" / "far").symlink_to("../../secret.mp4")
    (served / "chain").symlink_to("sub/far")
    (served / "ring").symlink_to("ring")
    connector = make_connector(allowed_local_media_path=str(served))
    error = failure(attach(f"file://{served}{path}", {}, PART), connector)
    assert error.code in ("file_not_allowed", "file_not_found")
    assert "cellar" not in str(error) and "secret" not in str(error)


@pytest.mark.parametrize(
    "path", ["/film.mp4", "/sub/../film.mp4", "/%66ilm.mp4", "/link", "/sub/film.mp4", "/%2566.mp4"]
)
def test_what_stays_within_the_folder_is_read(tmp_path: Path, path: str) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "film.mp4").write_bytes(clip(3))
    (tmp_path / "%66.mp4").write_bytes(clip(3))  # decoded once and not twice
    (tmp_path / "link").symlink_to("film.mp4")
    (tmp_path / "sub" / "film.mp4").symlink_to("../film.mp4")
    connector = make_connector(allowed_local_media_path=str(tmp_path))
    assert len(load(attach(f"file://{tmp_path}{path}", {}, PART), connector).plan.gops) == 1


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    error = failure(
        attach(f"file://{tmp_path}/{kind}", {}, PART), make_connector(allowed_local_media_path=str(tmp_path))
    )
    assert error.code in ("empty_media", "file_not_found")


def test_images_pass_and_bad_ones_are_400() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 2), (9, 8, 7)).save(buffer, "png")
    connector = CoPEConnector()
    image = connector.fetch_image(data_uri(buffer.getvalue(), "image/png"))
    assert image.media.getpixel((0, 0)) == (9, 8, 7)
    error = failure(data_uri(b"no image", "image/png"), media_io=ImageMediaIO())
    assert (error.code, error.parameter) == ("invalid_media", "image_url")


def test_a_fault_of_our_own_is_not_blamed_on_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(loader, "load_source", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        load(data_uri(clip(3)))


def test_videos_are_noted_for_the_request_that_asked(host: str) -> None:
    async def request() -> account.RequestVideos:
        videos = account.RequestVideos(PRESETS["tiny"].geometry, 4096)
        account.current.set(videos)
        connector = make_connector()
        parts = [f"messages[0].content[{i}].video_url" for i in range(3)]
        urls = [attach(f"{host}/a.mp4", {"frames": 1 + i}, part) for i, part in enumerate(parts)]
        await asyncio.gather(*(asyncio.create_task(_load(connector, url, video_io())) for url in reversed(urls)))
        return videos

    begun = time.perf_counter()
    videos = asyncio.run(request()).in_order()
    ended = time.perf_counter()
    assert [video.plan.i_frames for video in videos] == [1, 2, 3]
    assert [video.part for video in videos] == [f"messages[0].content[{i}].video_url" for i in range(3)]
    assert all(video.fetch_s > 0 and video.extract_s > 0 for video in videos)
    assert all(begun <= video.started <= video.started + video.fetch_s + video.extract_s <= ended for video in videos)
    assert account.current.get() is None


def test_what_exceeds_the_context_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "extract", lambda *_: pytest.fail("decoded"))

    async def request() -> None:
        account.current.set(account.RequestVideos(PRESETS["tiny"].geometry, context_tokens=72))
        await _load(make_connector(), attach(data_uri(clip(3)), {}, PART), video_io(side=128))

    with pytest.raises(MediaError, match="takes 92 tokens") as caught:
        asyncio.run(request())
    assert (caught.value.code, caught.value.parameter) == ("context_exceeded", PART)


def test_registered_names() -> None:
    from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY
    from vllm.multimodal.video import VIDEO_LOADER_REGISTRY

    assert isinstance(MEDIA_CONNECTOR_REGISTRY.load("cope"), CoPEConnector)
    assert VIDEO_LOADER_REGISTRY.get_backend_for_video_processor("CoPEVideoProcessor") == "cope"
