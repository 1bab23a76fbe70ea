"""Uploaded files with the official client against the real server, which knows two keys."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from clips import clip
from messages import data_uri, planned_tokens, text, user, video
from requirements import require
from serving import Server, metric, start, stop

MODEL = "cope-tiny"
QUESTION = text("What moves?")
FIRST, SECOND = "key-of-the-first", "key-of-the-second"
OPTIONS = ("--api-key", FIRST, SECOND, "--files-quota-mb", "3000", "--files-max-mb", "1000")
# A GB in one file, of which the server may hold 64 MB at a time.
LARGE_BYTES, MOST_GROWTH_BYTES = 10**9, 64_000_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    require("ENGINE", find_spec("vllm") is not None, "vLLM is not installed (make setup)")
    folder = tmp_path_factory.mktemp("log")
    running = start(folder, folder / "server.log", *OPTIONS)
    try:
        yield running
    finally:
        stop(running)


def client_of(server: Server, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=300)


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return client_of(server, FIRST)


def file_part(name: str, **options: Any) -> dict[str, Any]:
    return {"type": "file", "file": {"file_id": name, **options}}


def ask(client: openai.OpenAI, *parts: dict[str, Any], **more: Any) -> Any:
    return client.chat.completions.create(
        model=MODEL,
        messages=user(*parts, QUESTION),  # type: ignore[arg-type]  # the options are ours
        max_completion_tokens=8,
        temperature=0,
        **more,
    )


def uploaded(client: openai.OpenAI, data: bytes, name: str = "a.mp4") -> str:
    return client.files.create(file=(name, data), purpose="vision").id


def test_the_official_client_drives_every_route(client: openai.OpenAI, tmp_path: Path) -> None:
    data = clip(12)
    (tmp_path / "clip.mp4").write_bytes(data)
    before = time.time()
    with (tmp_path / "clip.mp4").open("rb") as file:
        made = client.files.create(
            file=file, purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600}
        )
    assert (made.object, made.filename, made.bytes, made.purpose) == ("file", "clip.mp4", len(data), "user_data")
    assert made.expires_at == made.created_at + 3600
    assert int(before) <= made.created_at <= time.time()
    assert client.files.retrieve(made.id) == made
    assert client.files.wait_for_processing(made.id) == made
    assert client.files.content(made.id).read() == data
    others = [uploaded(client, clip(3), f"{i}.mp4") for i in range(4)]
    assert [file.id for file in client.files.list(limit=2)] == [*others[::-1], made.id]  # follows the pages
    page = client.files.list(limit=2, order="asc")
    assert ([file.id for file in page.data], page.has_more) == ([made.id, others[0]], True)
    assert [file.id for file in client.files.list(purpose="user_data")] == [made.id]
    for name in (made.id, *others):
        gone = client.files.delete(name)
        assert (gone.id, gone.deleted, gone.object) == (name, True, "file")
    with pytest.raises(openai.NotFoundError) as caught:
        client.files.retrieve(made.id)
    assert (caught.value.code, caught.value.param) == ("unknown_file", "file_id")
    assert client.files.list().data == []


def test_a_file_is_answered_like_its_bytes(client: openai.OpenAI) -> None:
    data = clip(12)
    options = {"keyframes_per_gop": 2, "start_s": 1, "end_s": 9.5}
    name = uploaded(client, data)
    by_bytes = ask(client, video(data, **options))
    by_id = ask(client, file_part(name, **options))
    by_url = ask(client, video(name, **options))  # an id goes as a URL, too
    for answer in (by_id, by_url):
        assert answer.choices[0].message.content == by_bytes.choices[0].message.content
        assert answer.usage.prompt_tokens == by_bytes.usage.prompt_tokens
        assert answer.usage.model_extra["video"] == by_bytes.usage.model_extra["video"]
    account = by_id.usage.model_extra["video"]
    assert account["i_tokens"] + account["p_tokens"] == planned_tokens(data, **options)
    pieces, usage = [], None
    streamed = ask(client, file_part(name, **options), stream=True, stream_options={"include_usage": True})
    for chunk in streamed:
        usage = chunk.usage or usage
        pieces += [choice.delta.content or "" for choice in chunk.choices]
    assert "".join(pieces) == by_bytes.choices[0].message.content
    assert usage is not None
    assert usage.model_extra["video"] == account


def test_a_second_question_on_a_file_costs_its_words_only(server: Server, client: openai.OpenAI) -> None:
    data = clip(40, seed=31)
    name = uploaded(client, data)
    ask(client, file_part(name))
    warm = 'cope_e2e_latency_seconds_count{cache="warm",input="codec"}'
    before = metric(server, warm)
    usage = ask(client, file_part(name), text("Which way?")).usage
    assert usage.prompt_tokens_details.cached_tokens >= 0.9 * planned_tokens(data)
    assert metric(server, warm) == before + 1  # nothing was decoded


@pytest.mark.parametrize("kind", ["primitives", "prefill"])
def test_what_was_prefetched_is_not_done_again(client: openai.OpenAI, kind: str) -> None:
    data = clip(26, seed=40 + len(kind))
    options = {"keyframes_per_gop": 2}
    made = client.files.create(
        file=("a.mp4", data), purpose="vision", extra_body={"prefetch": kind, "options": options}
    )
    deadline = time.monotonic() + 60
    while (state := client.files.retrieve(made.id).prefetch)["status"] != "completed":  # type: ignore[attr-defined]
        assert state["status"] in ("queued", "running"), state
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (state["kind"], state["options"]) == (kind, options)
    usage = ask(client, file_part(made.id, **options)).usage
    timings = usage.model_extra["timings"]
    assert timings["extract"] < 0.5 * timings["e2e"]
    cached = usage.prompt_tokens_details.cached_tokens
    if kind == "prefill":
        assert cached >= 0.85 * planned_tokens(data, **options)
    else:
        assert cached < 0.5 * planned_tokens(data, **options)


def test_a_plan_is_what_a_question_then_costs(client: openai.OpenAI) -> None:
    data = clip(12)
    name = uploaded(client, data)
    sets: list[dict[str, Any]] = [{}, {"keyframes_per_gop": 4}, {"frames": 8}]
    plans = client.post("/videos/plan", cast_to=object, body={"file_id": name, "options": sets})["plans"]  # type: ignore[index]
    for options, plan in zip(sets, plans, strict=True):
        usage = ask(client, file_part(name, **options)).usage
        account = usage.model_extra["video"]
        assert {key: plan[key] for key in account if key in plan} == {
            key: value for key, value in account.items() if key in plan
        }
        assert plan["tokens"] == account["i_tokens"] + account["p_tokens"]
    (other,) = client.post("/videos/plan", cast_to=object, body={"url": data_uri(data)})["plans"]  # type: ignore[index]
    assert other == plans[0]


def test_another_keys_file_is_unknown_everywhere(server: Server, client: openai.OpenAI) -> None:
    name = uploaded(client, clip(3))
    second = client_of(server, SECOND)
    assert second.files.list().data == []
    for use in (second.files.retrieve, second.files.content, second.files.delete):
        with pytest.raises(openai.NotFoundError):
            use(name)
    for part, where in ((file_part(name), "file"), (video(name), "video_url")):
        with pytest.raises(openai.NotFoundError) as caught:
            ask(second, QUESTION, part)
        assert (caught.value.code, caught.value.param) == ("unknown_file", f"messages[0].content[1].{where}")
    assert ask(client, file_part(name)).usage.completion_tokens > 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("part", "status", "param", "code"),
    [
        (file_part("file-" + "x" * 32), 404, "file", "unknown_file"),
        (file_part("../../etc/passwd"), 404, "file", "unknown_file"),
        (file_part("file-" + "x" * 32, fps=0), 400, "file.fps", "invalid_option"),
        (file_part("file-" + "x" * 32, speed=2), 400, "file.speed", "invalid_option"),
        ({"type": "file", "file": {"filename": "a.mp4"}}, 400, "file.file_id", "invalid_part"),
        ({"type": "file"}, 400, "file.file_id", "invalid_part"),
    ],
)
def test_bad_file_parts_are_refused_by_name(
    client: openai.OpenAI, part: dict[str, Any], status: int, param: str, code: str, stream: bool
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        ask(client, QUESTION, part, stream=stream)
    error = caught.value
    assert (error.status_code, error.param, error.code) == (status, f"messages[0].content[1].{param}", code)


def test_an_uploaded_video_is_no_image(client: openai.OpenAI) -> None:
    name = uploaded(client, clip(3))
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, {"type": "image_url", "image_url": {"url": name}})
    assert (caught.value.code, caught.value.param) == ("invalid_media", "messages[0].content[0].image_url")


def test_what_is_no_video_is_refused_and_leaves_nothing(server: Server, client: openai.OpenAI) -> None:
    kept = stored(server)
    with pytest.raises(openai.BadRequestError) as caught:
        uploaded(client, b"no video" * 1000)
    assert (caught.value.code, caught.value.param) == ("invalid_video", "file")
    assert stored(server) == kept


def test_a_key_is_needed(server: Server) -> None:
    with pytest.raises(openai.AuthenticationError):
        client_of(server, "guessed").files.list()
    assert httpx.get(f"{server.url}/v1/files").status_code == 401


def test_a_gigabyte_passes_through_little_memory(server: Server, client: openai.OpenAI, tmp_path: Path) -> None:
    data = clip(3)
    path = tmp_path / "large.mp4"
    with path.open("wb") as file:  # what follows the video is a box that says it is to be skipped
        free = LARGE_BYTES - len(data)
        file.write(data + free.to_bytes(4, "big") + b"free")
        file.truncate(LARGE_BYTES)
    uploaded(client, data)  # nothing that happens once belongs to the large file
    process = psutil.Process(server.process.pid)
    most = start_bytes = process.memory_info().rss
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.02):
            most = max(most, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with path.open("rb") as file:
            made = client.files.create(file=file, purpose="vision")
    finally:
        done.set()
        watcher.join()
    assert made.bytes == LARGE_BYTES
    assert most - start_bytes < MOST_GROWTH_BYTES
    assert ask(client, file_part(made.id)).usage.model_extra["video"]["seconds"] == 3
    with path.open("r+b") as file, pytest.raises(openai.APIStatusError) as caught:
        file.truncate((1000 << 20) + (1 << 20))
        client.files.create(file=file, purpose="vision")
    assert (caught.value.status_code, caught.value.code) == (413, "file_too_large")
    client.files.delete(made.id)


def test_a_client_that_breaks_off_leaves_nothing(server: Server) -> None:
    kept = stored(server)

    def body() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.mp4"\r\n\r\n'
        for _ in range(64):
            yield bytes(1 << 20)
        assert arriving(server)
        raise ConnectionAbortedError

    headers = {"authorization": f"Bearer {FIRST}", "content-type": "multipart/form-data; boundary=x"}
    with pytest.raises(ConnectionAbortedError):
        httpx.post(f"{server.url}/v1/files", content=body(), headers=headers, timeout=60)
    until = time.monotonic() + 30
    while arriving(server):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert stored(server) == kept


def arriving(server: Server) -> list[str]:
    return [path.name for path in (server.log.parent / "files" / "incoming").iterdir()]


def stored(server: Server) -> set[str]:
    return {path.name for path in (server.log.parent / "files" / "stored").iterdir()}


def test_a_restart_loses_no_file(server: Server, client: openai.OpenAI) -> None:
    """The last test: it kills the server that the others share, with all its processes, and starts another one."""
    data = clip(12, seed=50)
    name = uploaded(client, data)
    want = ask(client, video(data_uri(data))).choices[0].message.content
    os.killpg(server.process.pid, signal.SIGKILL)
    server.process.wait()
    again = start(server.folder, server.log, *OPTIONS)
    try:
        client = client_of(again, FIRST)
        assert client.files.retrieve(name).filename == "a.mp4"
        assert ask(client, file_part(name)).choices[0].message.content == want
        with pytest.raises(openai.NotFoundError):
            client_of(again, SECOND).files.retrieve(name)
    finally:
        stop(again)
