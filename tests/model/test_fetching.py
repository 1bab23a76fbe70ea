"""Fetches of media: where they may go, by whatever way they are sent there, and how much they may take."""

from __future__ import annotations

import asyncio
import gzip
import ipaddress
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import unquote

import aiohttp
import pytest
from clips import clip
from leftovers import descriptors
from vllm.connections import MediaDownloadSizeExceededError
from vllm.multimodal.media.image import ImageMediaIO
from vllm.multimodal.media.video import VideoMediaIO

from cope_codec.pool import CodecPool
from cope_model import extraction, fetching
from cope_model.addresses import AddressPolicy, RefusedUrlError, is_public
from cope_model.connector import CoPEConnector
from cope_model.fetching import GuardedConnection, TooManyRedirectsError
from cope_model.media_errors import MediaError, MediaFetchError
from cope_model.url_options import attach

NOTHING = AddressPolicy()
# Tests have no internet: a name that is opened stands for a public host, and leads to this machine.
PUBLIC = AddressPolicy.parse(["public.test"])
PART = "messages[0].content[0].video_url"


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.255.0.9", "0.0.0.0", "0.1.2.3", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
        *("169.254.169.254", "169.254.170.2", "100.64.0.1", "100.100.100.200", "168.63.129.16", "192.0.0.192"),
        *("224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1"),
        *("::", "::1", "::127.0.0.1", "fe80::1", "fe80::1%1", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1"),
        *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:10.0.0.1", "64:ff9b::a00:1", "64:ff9b:1::1"),
        *("2002:7f00:1::1", "2002:a9fe:a9fe::1", "2001:0:7f00:1::1", "2001:db8::1", "3fff::1", "100::1", "4000::1"),
    ],
)
def test_addresses_of_our_own_networks_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"],
)
def test_addresses_of_the_internet_are(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("entry", ["10.0.0.1/8", "a b", "http://host", "host/24", "*.example.com", "0", "127.1", "-x"])
def test_what_is_no_host_address_or_network_is_named(entry: str) -> None:
    with pytest.raises(ValueError, match="is no host, address or network"):
        AddressPolicy.parse([entry])
    with pytest.raises(ValueError, match="COPE_ALLOW_PRIVATE_MEDIA"):
        AddressPolicy.from_environment(environment={"COPE_ALLOW_PRIVATE_MEDIA": entry.replace(" ", "/")})


def test_networks_and_hosts_are_opened_and_nothing_else() -> None:
    policy = AddressPolicy.from_environment(environment={"COPE_ALLOW_PRIVATE_MEDIA": "10.0.0.0/8, Media.Internal. ::1"})
    inside, outside = ipaddress.ip_address("10.9.9.9"), ipaddress.ip_address("192.168.0.1")
    assert policy.allows(inside) and policy.allows(ipaddress.ip_address("::1"))
    assert policy.allows(ipaddress.ip_address("::ffff:10.9.9.9"))
    assert not policy.allows(outside)
    assert policy.allows(outside, "media.internal") and policy.allows(outside, "MEDIA.internal.")
    assert not policy.allows(outside, "internal") and not policy.allows(outside, "x.media.internal")


class Handler(BaseHTTPRequestHandler):
    """`/to?URL` redirects there, `/again/N` to `/again/N-1`, `/bytes/N` has N bytes."""

    seen: ClassVar[list[str]] = []
    hosts: ClassVar[list[str]] = []
    cookies: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        self.seen.append(self.path)
        self.hosts.append(self.headers["Host"])
        self.cookies.append(self.headers["Cookie"])
        rest = unquote(self.path.partition("?")[2])
        kind, _, number = self.path.lstrip("/").partition("/")
        if kind.startswith("to?"):
            self.answer(302, Location=rest)
        elif kind == "again":
            self.answer(302, Location=f"/again/{int(number) - 1}" if number != "0" else "/bytes/5")
        elif kind == "bytes":
            self.answer(200, b"x" * int(number))
        elif kind == "endless":
            self.send_response(200)
            self.end_headers()
            self.write_until_gone(b"x" * 65536, 0.0)
        elif kind == "drip":
            self.send_response(200)
            self.end_headers()
            self.write_until_gone(b"x", 0.05)
        elif kind == "bomb":
            self.answer(200, gzip.compress(bytes(10 << 20)), **{"Content-Encoding": "gzip"})
        elif kind == "flaky":
            self.answer(503 if self.seen.count(self.path) < 3 else 200, b"at last")
        elif kind == "cut":
            first = self.seen.count(self.path) < 2
            self.send_response(200)
            self.send_header("Content-Length", "8")
            self.end_headers()
            self.wfile.write(b"half" if first else b"complete")
        elif kind == "video":
            self.answer(200, clip(3))
        else:
            self.answer(200, b"ok", **{"Set-Cookie": "who=me"})

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def write_until_gone(self, piece: bytes, pause_s: float) -> None:
        deadline = time.monotonic() + 30
        try:
            while time.monotonic() < deadline:
                self.wfile.write(piece)
                time.sleep(pause_s)
        except OSError:
            pass

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    clip(3)  # made here, not within the time limit of whoever asks first
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for log in (Handler.seen, Handler.hosts, Handler.cookies):
        log.clear()
    monkeypatch.setenv("VLLM_MEDIA_FETCH_MAX_RETRIES", "1")


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Look-ups as a name server of the attacker's would answer them; each answer is given once, the last one stays."""
    table = {
        "public.test": ["127.0.0.1"],
        "evil.test": ["127.0.0.1"],
        "mapped.test": ["::ffff:127.0.0.1"],
        "metadata.test": ["169.254.169.254"],
        "localhost": ["127.0.0.1"],
    }

    def getaddrinfo(host: str, port: int, *_: Any) -> list[tuple[Any, ...]]:
        name = host.rstrip(".")
        if name not in table:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        answers = table[name]
        return [
            (socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in answers
        ]

    monkeypatch.setattr(fetching.socket, "getaddrinfo", getaddrinfo)
    return table


def get(url: str, policy: AddressPolicy = NOTHING, **limits: Any) -> bytes:
    """The body, fetched without and with an event loop: both must end the same."""
    connection = GuardedConnection(policy)
    limits = {"timeout": 20, **limits}
    try:
        awaited: bytes | Exception = asyncio.run(connection.async_get_bytes(url, **limits))
    except Exception as error:  # noqa: BLE001 - whatever it is, both must raise it
        awaited = error
    try:
        called: bytes | Exception = connection.get_bytes(url, **limits)
    except Exception as error:  # noqa: BLE001 - whatever it is, both must raise it
        called = error
    assert type(awaited) is type(called)
    if isinstance(awaited, Exception):
        raise awaited
    assert awaited == called
    return awaited


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "localhost.", "LOCALHOST", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]"),
        *("0", "0.0.0.0", "127.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "017700000001", "127.0.0.1."),
        *("evil.test", "mapped.test", "metadata.test", "user@evil.test", "public.test@evil.test", "[::]", "[fe80::1]"),
        "①②⑦.0.0.1",
    ],
)
def test_this_machine_is_not_reached_under_any_name(port: int, host: str) -> None:
    with pytest.raises((RefusedUrlError, aiohttp.InvalidURL)) as caught:
        get(f"http://{host}:{port}/secret")
    assert Handler.seen == []
    assert "127" not in str(caught.value).replace(host, "") and "169" not in str(caught.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "0", "evil.test", "metadata.test", "2130706433"])
def test_nor_by_a_redirect(port: int, host: str) -> None:
    with pytest.raises((RefusedUrlError, aiohttp.InvalidURL)):
        get(f"http://public.test:{port}/to?http://{host}:{port}/secret", PUBLIC)
    assert {unquote(path) for path in Handler.seen} == {f"/to?http://{host}:{port}/secret"}


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://public.test/x", "data:text/plain,x", "gopher://x/"])
def test_redirects_lead_to_http_only(port: int, target: str) -> None:
    with pytest.raises(RefusedUrlError, match="scheme"):
        get(f"http://public.test:{port}/to?{target}", PUBLIC)


def test_a_name_that_changes_its_mind_is_of_no_use(
    port: int, names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rebinding: what was looked up for the check is what is connected to; nobody asks a second time."""
    asked = []

    class Changing(fetching._Resolver):
        async def resolve(self, host: str, *args: Any, **more: Any) -> Any:
            found = await super().resolve(host, *args, **more)
            asked.append(host)
            names["rebinding.test"] = ["127.0.0.1"]
            return found

    monkeypatch.setattr(fetching, "_Resolver", Changing)
    names["rebinding.test"] = ["192.0.2.1"]  # opened below, and nobody is there
    with pytest.raises((aiohttp.ClientError, TimeoutError)):
        policy = AddressPolicy.parse(["192.0.2.0/24"])
        asyncio.run(GuardedConnection(policy).async_get_bytes(f"http://rebinding.test:{port}/secret", timeout=1))
    assert asked == ["rebinding.test"]
    assert Handler.seen == []


def test_the_socket_looks_once_more(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should a look-up ever let an address through, no connection is made."""
    monkeypatch.setattr(AddressPolicy, "check_host", lambda self, host: None)
    with pytest.raises(aiohttp.ClientConnectorError):
        get(f"http://127.0.0.1:{port}/secret")
    assert Handler.seen == []


def test_of_several_addresses_only_the_allowed_ones_are_tried(port: int, names: dict[str, list[str]]) -> None:
    names["both.test"] = ["127.0.0.9", "127.0.0.1"]
    assert get(f"http://both.test:{port}/bytes/3", AddressPolicy.parse(["127.0.0.1"])) == b"xxx"
    with pytest.raises(RefusedUrlError):
        get(f"http://both.test:{port}/bytes/3", AddressPolicy.parse(["127.0.0.2"]))


def test_what_the_operator_opens_is_reached_under_its_own_name(port: int) -> None:
    assert get(f"http://public.test:{port}/bytes/3", PUBLIC) == b"xxx"
    assert set(Handler.hosts) == {f"public.test:{port}"}
    assert get(f"http://127.0.0.1:{port}/bytes/4", AddressPolicy.parse(["127.0.0.0/8"])) == b"xxxx"


def test_domains_hold_for_redirects_and_open_nothing(port: int) -> None:
    both = AddressPolicy.parse(["public.test", "evil.test"], domains=["public.test"])
    assert get(f"http://public.test:{port}/to?/bytes/2", both) == b"xx"
    with pytest.raises(RefusedUrlError, match="domains"):
        get(f"http://public.test:{port}/to?http://evil.test:{port}/secret", both)
    with pytest.raises(RefusedUrlError, match="address"):
        get(f"http://evil.test:{port}/secret", AddressPolicy(domains=("evil.test",)))
    assert "/secret" not in Handler.seen


def test_redirects_are_counted(port: int) -> None:
    assert get(f"http://public.test:{port}/again/4", PUBLIC) == b"xxxxx"
    with pytest.raises(TooManyRedirectsError, match="more than 5"):
        get(f"http://public.test:{port}/again/5", PUBLIC)
    with pytest.raises(TooManyRedirectsError):
        get(f"http://public.test:{port}/again/0", PUBLIC, allow_redirects=False)


@pytest.mark.parametrize("path", ["bytes/1001", "endless", "bomb"])
def test_size_is_bounded_whatever_is_announced(port: int, path: str) -> None:
    assert len(get(f"http://public.test:{port}/bytes/1000", PUBLIC, max_bytes=1000)) == 1000
    with pytest.raises(MediaDownloadSizeExceededError):
        get(f"http://public.test:{port}/{path}", PUBLIC, max_bytes=1000)


def test_the_servers_own_limit_counts_where_it_is_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB", "2")
    assert fetching.size_limit(None) == 2 << 20
    assert fetching.size_limit(1000) == 1000
    assert fetching.size_limit(3 << 20) == 2 << 20
    monkeypatch.setenv("VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB", "0")
    assert fetching.size_limit(None) is None


def test_time_is_bounded_for_everything_together(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that sends a byte now and then keeps each single wait short."""
    monkeypatch.setenv("VLLM_MEDIA_FETCH_MAX_RETRIES", "5")
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        get(f"http://public.test:{port}/drip", PUBLIC, timeout=0.5)
    assert 1.0 <= time.monotonic() - started < 10  # once with and once without an event loop


def test_what_may_pass_is_tried_again_and_begins_anew(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_MEDIA_FETCH_MAX_RETRIES", "3")
    connection = GuardedConnection(PUBLIC)
    assert connection.get_bytes(f"http://public.test:{port}/flaky", timeout=20) == b"at last"
    assert connection.get_bytes(f"http://public.test:{port}/cut", timeout=20) == b"complete"
    with pytest.raises(RefusedUrlError):
        connection.get_bytes(f"http://public.test:{port}/to?http://evil.test/", timeout=20)
    assert len(Handler.seen) == 3 + 2 + 1


def test_nothing_is_kept_between_fetches(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither cookies of others' fetches nor a proxy, which would connect wherever it likes, nor descriptors."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    get(f"http://public.test:{port}/cookie", PUBLIC)
    before = descriptors()
    for _ in range(5):
        get(f"http://public.test:{port}/cookie", PUBLIC)
    assert descriptors(at_most=before) <= before
    assert set(Handler.cookies) == {None}


def test_vllms_own_ways_out_are_closed() -> None:
    connection = GuardedConnection(PUBLIC)
    with pytest.raises(RuntimeError, match="by get_bytes"):
        connection.get_text("http://127.0.0.1/")
    with pytest.raises(RuntimeError, match="by async_get_bytes"):
        asyncio.run(connection.async_get_json("http://127.0.0.1/"))


@pytest.mark.parametrize(
    ("path", "kind", "code"),
    [
        ("to?http://127.0.0.1/", MediaError, "url_not_allowed"),
        ("again/9", MediaFetchError, "unreachable_url"),
        ("bytes/0", MediaError, "empty_media"),
        ("endless", MediaFetchError, "media_too_large"),
        ("to?http://no-such-name.test/", MediaFetchError, "unreachable_url"),
        ("to?http://[::1", MediaError, "invalid_url"),
    ],
)
@pytest.mark.parametrize(
    "media_io", [VideoMediaIO(ImageMediaIO(), video_backend="cope"), ImageMediaIO()], ids=["video", "image"]
)
def test_parts_are_refused_with_a_code_and_without_addresses(
    port: int, path: str, kind: type[Exception], code: str, media_io: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "size_limit", lambda max_bytes: 1000)
    connector = CoPEConnector(policy=PUBLIC)
    url = attach(f"http://public.test:{port}/{path}", {}, PART)
    with pytest.raises(kind) as awaited:
        asyncio.run(connector.load_from_url_async(url, media_io, fetch_timeout=20))
    with pytest.raises(kind) as called:
        connector.load_from_url(url, media_io, fetch_timeout=20)
    for error in (awaited.value, called.value):
        assert isinstance(error, MediaError | MediaFetchError)
        assert (error.code, error.parameter) == (code, PART)
        assert "127" not in str(error) and "::1" not in str(error)


def test_a_video_goes_to_disk_and_nothing_of_it_stays(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GuardedConnection, "async_get_bytes", lambda *_, **__: pytest.fail("read into memory"))
    with CodecPool(1) as pool:
        extraction.install(pool, 64)
        try:
            media_io = VideoMediaIO(ImageMediaIO(), video_backend="cope")
            url = attach(f"http://public.test:{port}/video", {"fps": 2}, PART)

            async def load(path: str = url) -> Any:
                return await CoPEConnector(policy=PUBLIC).load_from_url_async(path, media_io, fetch_timeout=60)

            video, _ = asyncio.run(load()).media
            assert len(video.gops) == 1 and video.plan.options.fps == 2
            before = descriptors()
            asyncio.run(load())
            with pytest.raises(MediaError) as caught:
                asyncio.run(load(url.replace("/video", "/bytes/5000")))
            assert caught.value.code == "invalid_video"
            with pytest.raises(MediaError) as caught:
                asyncio.run(load(url.replace("public.test", "127.0.0.1")))
            assert caught.value.code == "url_not_allowed"
            assert descriptors(at_most=before) <= before
        finally:
            extraction.uninstall()
