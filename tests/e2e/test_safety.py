"""The real server between clients who do not trust each other, and against one who means harm."""

from __future__ import annotations

import re
import struct
import sys
import zlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from clips import clip
from messages import data_uri, image, text, user, video
from requirements import require
from serving import Server, start, stop

ALICE, BOB = "sk-alice-5f3a9c", "sk-bob-77d1e0"
LONG = "A story: " + "the quick brown fox jumps over the lazy dog and runs away. " * 12
BLOCK = 32  # tokens of a block of the prefix cache


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with two keys, as `cope serve` starts it."""
    require("ENGINE", find_spec("vllm") is not None, "vLLM is not installed (make setup)")
    folder = tmp_path_factory.mktemp("media")
    (folder / "film.mp4").write_bytes(clip(4))
    keys = tmp_path_factory.mktemp("keys") / "api-keys"
    keys.write_text(f"alice:{ALICE}\nbob:{BOB}\n")
    keys.chmod(0o600)
    words = ("--api-key-file", str(keys), "--allowed-local-media-path", str(folder), "--max-model-len", "8192")
    running = start(folder, tmp_path_factory.mktemp("log") / "server.log", *words)
    try:
        yield running
    finally:
        stop(running)


def post(server: Server, path: str, body: Any, key: str | None = ALICE, **more: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    if isinstance(body, dict):
        more["json"] = {"model": "cope-tiny", **body}
    else:
        more["content"] = body
        headers["Content-Type"] = "application/json"
    return httpx.post(f"{server.url}{path}", headers=headers, timeout=120, **more)


def ask(server: Server, key: str, *parts: dict[str, Any], path: str = "/v1/chat/completions", **more: Any) -> int:
    """Prompt tokens that the answer says were cached."""
    body = {"messages": user(*parts), "max_completion_tokens": 1, "temperature": 0, **more}
    answer = post(server, path, body, key)
    assert answer.status_code == 200, answer.text
    return int((answer.json()["usage"]["prompt_tokens_details"] or {}).get("cached_tokens") or 0)


def complete(server: Server, key: str, prompt: str) -> int:
    """The same of a plain completion."""
    answer = post(server, "/v1/completions", {"prompt": prompt, "max_tokens": 1}, key)
    assert answer.status_code == 200, answer.text
    return int((answer.json()["usage"]["prompt_tokens_details"] or {}).get("cached_tokens") or 0)


def respond(server: Server, key: str, words: str) -> int:
    """The same of the Responses API."""
    answer = post(server, "/v1/responses", {"input": words, "max_output_tokens": 1, "store": False}, key)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["usage"]["input_tokens_details"]["cached_tokens"])


def test_every_route_but_the_probes_asks_for_a_key(guarded: Server) -> None:
    paths = set(httpx.get(f"{guarded.url}/openapi.json", headers={"Authorization": f"Bearer {BOB}"}).json()["paths"])
    assert {"/v1/chat/completions", "/tokenize", "/invocations", "/health"} <= paths
    opened = {path for path in paths if httpx.get(guarded.url + path).status_code != 401}
    assert opened <= {"/health", "/ping", "/metrics"}
    for path in ("/openapi.json", "/docs", "/v1/chat/completions", "/invocations"):
        assert post(guarded, path, {"messages": user(text("x"))}, None).status_code == 401
        assert post(guarded, path, {"messages": user(text("x"))}, "sk-guess").status_code == 401
    with pytest.raises(openai.AuthenticationError) as caught:
        guarded.client.models.list()
    assert caught.value.code == "invalid_api_key"


def test_a_key_opens_and_is_written_nowhere(guarded: Server) -> None:
    client = openai.OpenAI(base_url=f"{guarded.url}/v1", api_key=ALICE, max_retries=0, timeout=60)
    assert [model.id for model in client.models.list()] == ["cope-tiny"]
    parent = psutil.Process(guarded.process.pid)
    for process in (parent, *parent.children(recursive=True)):
        seen = Path(f"/proc/{process.pid}/environ").read_bytes() + Path(f"/proc/{process.pid}/cmdline").read_bytes()
        assert ALICE.encode() not in seen and BOB.encode() not in seen
    log = guarded.log.read_text(errors="replace")
    assert ALICE not in log and BOB not in log
    assert "API keys of alice, bob; caches are separate" in log


@pytest.mark.parametrize("way", ["text", "video", "image", "invocations", "completions", "responses"])
def test_what_one_key_has_sent_is_not_cached_for_another(guarded: Server, way: str) -> None:
    words = f"{way}: {LONG}"
    media = {"video": [video(clip(4, seed=51))], "image": [image(52)]}.get(way, [])

    def cached(key: str) -> int:
        if way == "completions":
            return complete(guarded, key, words)
        if way == "responses":
            return respond(guarded, key, words)
        path = "/invocations" if way == "invocations" else "/v1/chat/completions"
        return ask(guarded, key, text(words), *media, path=path)

    assert cached(ALICE) == 0
    assert cached(ALICE) >= BLOCK
    assert cached(BOB) == 0
    assert cached(BOB) >= BLOCK


def test_a_salt_of_ones_own_divides_and_does_not_cross(guarded: Server) -> None:
    words = text("salts: " + LONG)
    assert ask(guarded, ALICE, words, cache_salt="mine") == 0
    assert ask(guarded, ALICE, words, cache_salt="mine") >= BLOCK
    assert ask(guarded, ALICE, words, cache_salt="other") == 0
    assert ask(guarded, BOB, words, cache_salt="mine") == 0


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/invocations"])
def test_a_video_that_one_key_has_named_is_nobody_elses(guarded: Server, path: str) -> None:
    sent = {**video(clip(4, seed=61)), "uuid": "holiday"}
    named = {"type": "video_url", "video_url": None, "uuid": "holiday"}
    ask(guarded, ALICE, sent, text("What moves?"), path=path)
    if path == "/v1/chat/completions":
        assert ask(guarded, ALICE, named, text("What moves?"), path=path) > 0
    answer = post(guarded, path, {"messages": user(named, text("What moves?")), "max_completion_tokens": 1}, BOB)
    assert answer.status_code == 400, answer.text
    assert "send it along" in answer.json()["error"]["message"]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "0x7f.1", "169.254.169.254", "2130706433", "0"])
@pytest.mark.parametrize("kind", ["video_url", "image_url"])
def test_urls_do_not_lead_into_the_servers_own_network(guarded: Server, host: str, kind: str) -> None:
    port = guarded.url.rpartition(":")[2]
    part = {"type": kind, kind: {"url": f"http://{host}:{port}/metrics"}}
    answer = post(guarded, "/v1/chat/completions", {"messages": user(part, text("x"))})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (
        400,
        "url_not_allowed",
        f"messages[0].content[0].{kind}",
    )
    assert "127" not in error["message"] and "::1" not in error["message"]


def test_a_url_that_leads_nowhere_is_422(guarded: Server) -> None:
    for url in ("http://no-such-host.invalid/a.mp4", "https://no-such-host.invalid/a.mp4"):
        answer = post(guarded, "/v1/chat/completions", {"messages": user(video(url), text("x"))})
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "unreachable_url")


def test_browsers_of_other_sites_get_nothing(guarded: Server) -> None:
    headers = {"Origin": "https://evil.test", "Authorization": f"Bearer {ALICE}"}
    answer = httpx.get(f"{guarded.url}/v1/models", headers=headers)
    assert "access-control-allow-origin" not in answer.headers
    preflight = {"Origin": "https://evil.test", "Access-Control-Request-Method": "POST"}
    answer = httpx.options(f"{guarded.url}/v1/chat/completions", headers=preflight)
    assert answer.status_code in (400, 401) and "access-control-allow-origin" not in answer.headers


# What gives away where the server is installed, what it runs on, or how it failed.
GIVEAWAY = re.compile(
    r"Traceback|File \"|\bline \d+, in|site-packages|/(home|root|tmp|usr|proc)/|\.py\b|0x[0-9a-f]{6,}|"
    r"object at |cope_model\.|cope_server\.|vllm\.|" + re.escape(sys.prefix)
)


def bomb() -> bytes:
    """The beginning of a PNG of a thousand million pixels."""
    header = struct.pack(">IIBBBBB", 1 << 15, 1 << 15, 1, 0, 0, 0, 0)
    chunk = struct.pack(">I", len(header)) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 100) + b"IDAT"


def bad_inputs(folder: Path) -> list[tuple[str, Any]]:
    """Requests that cannot be answered, of many kinds."""
    chat = "/v1/chat/completions"
    urls = [
        *(
            "",
            " ",
            "x",
            "http://",
            "http://[",
            "ftp://host/x",
            "data:",
            "data:video/mp4;base64,%%",
            "file:///etc/passwd",
        ),
        *(
            "file://",
            "file:///",
            f"file://{folder}",
            f"file://{folder}/none.mp4",
            f"file://{folder}/../x",
            "file://%00",
        ),
        *("http://127.0.0.1/", "http://no-such-host.invalid/", "data:video/mp4;base64,AAAA", "javascript:alert(1)"),
        *("/proc/self/environ", "file:///proc/self/environ", "http://a:b:c/", "data:video/mp4,AAAA", "\x00", "💥"),
    ]
    parts: list[Any] = [{"type": kind, kind: {"url": url}} for url in urls for kind in ("video_url", "image_url")]
    parts += [{"type": "video_url"}, {"type": "video_url", "video_url": 5}, {"type": "nonsense"}, {}, 5, None, [[]]]
    parts += [video(b"\0" * 1000, fps="x"), video(b"x", speed=1), {"type": "text"}, {"type": "text", "text": 5}]
    parts += [{"type": "video_url", "video_url": None, "uuid": "unknown"}, {"type": "image_url", "uuid": "unknown"}]
    parts += [{"type": "image_url", "image_url": {"url": data_uri(bomb(), "image/png")}}]
    parts += [{"type": kind, kind: "x"} for kind in ("image_pil", "image_embeds", "video_embeds", "audio_url")]
    parts += [{"type": "input_image", "image_url": "file:///etc/passwd"}, {"type": ["file"], "file": {}}]
    parts += [{"type": "file", "file": {"file_data": "file:///etc/passwd"}}, {"type": "prompt_embeds", "data": "x"}]
    bodies: list[tuple[str, Any]] = [(chat, {"messages": [{"role": "user", "content": [part]}]}) for part in parts]
    bodies += [
        (chat, body)
        for body in (b"", b"{", b"[]", b"null", b"\xff", b'{"model": 5}', b'{"messages": "x"}', b'{"messages": [5]}')
    ]
    bodies += [(chat, b'{"messages": ' + b"[" * depth + b"]" * depth + b"}") for depth in (900, 100_000)]
    hello = user(text("x"))
    bodies += [
        (chat, {"messages": hello, **wrong})
        for wrong in (
            {"model": "/etc/passwd"},
            {"max_completion_tokens": -1},
            {"temperature": "hot"},
            {"cache_salt": ""},
            {"cache_salt": 5},
            {"n": 0},
            {"stop": 5},
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}},
            {"tools": [{}]},
            {"chat_template": "{{ 1 / 0 }}"},
            {"mm_processor_kwargs": {"x": 1}},
            {"media_io_kwargs": {"video": {"side": -1}}},
        )
    ]
    bodies += [("/v1/completions", {"prompt": prompt}) for prompt in (None, "", [-1], [10**9], {"x": 1})]
    bodies += [("/tokenize", {"messages": [{"role": "user", "content": [video("file:///x")]}]}), ("/tokenize", {})]
    bodies += [("/invocations", {"messages": user(video("file:///etc/passwd"))}), ("/invocations", {"x": 1})]
    bodies += [("/v1/nothing", {}), ("/v1/responses", {"input": 5}), ("/v1/files/../../etc/passwd", {})]
    return bodies


def test_no_answer_to_bad_input_gives_anything_away(guarded: Server) -> None:
    found = []
    for path, body in bad_inputs(guarded.folder):
        answer = post(guarded, path, body)
        if answer.status_code == 200 or GIVEAWAY.search(answer.text) or str(guarded.folder) in answer.text:
            found.append((path, body, answer.status_code, answer.text[:300]))
        elif answer.status_code >= 500 and answer.status_code != 501:
            found.append((path, body, answer.status_code, answer.text[:300]))
    assert not found, "\n".join(map(str, found))
    assert httpx.get(f"{guarded.url}/health").status_code == 200
