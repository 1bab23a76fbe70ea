"""A scaled-down LLaVA-Video checkpoint, with the published names and files, answers over HTTP as the reference does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
from clips import clip
from llava import SIDE, write_llava
from messages import image, picture, text, user, video
from requirements import require
from serving import Server, start, start_vllm, stop

import cope_codec

CLIP = clip(12)
TOKENS = 8
# What lets a small model start at once on a CPU; `cope serve` chooses most of it.
PLAIN_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TORCH_COMPILE_DISABLE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("ENGINE", find_spec("vllm") is not None, "vLLM is not installed (make setup)")
    return write_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def llava(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("log") / "server.log"
    running = start(directory, log, str(directory), "--max-num-batched-tokens", "256", "--max-model-len", "8192")
    try:
        yield running
    finally:
        stop(running)


@pytest.fixture(scope="module")
def reference(directory: Path) -> Any:
    from cope_model.reference import Reference

    return Reference.load(directory)


def local(**options: Any) -> dict[str, Any]:
    opened = cope_codec.open(CLIP, **options)
    return {"type": "video", "video": list(opened.gops(SIDE)), "seconds": 12.0}


CASES: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    "dense by default": ([video(CLIP)], [local(frames=64)]),
    "dense": ([video(CLIP, frames=10)], [local(frames=10)]),
    "codec": ([video(CLIP, keyframes_per_gop=2)], [local(keyframes_per_gop=2)]),
    "part of a video": (
        [video(CLIP, mode="native", start_s=4.0, end_s=9.0)],
        [local(mode="native", start_s=4.0, end_s=9.0)],
    ),
    "image": ([image(5)], [{"type": "image", "image": picture(5)}]),
    "text": ([], []),
}


def check(server: Server, model: str, reference: Any, parts: tuple[list[dict[str, Any]], list[dict[str, Any]]]) -> None:
    """The server's answer to a question about its parts is the reference's about the same."""
    ours, theirs = parts
    question = text("What moves, and which way?")
    answer = server.client.chat.completions.create(
        model=model,
        messages=user(*ours, question),
        max_completion_tokens=TOKENS,
        temperature=0,
        logprobs=True,
        extra_body={"return_token_ids": True},
    )
    expected = reference.generate(user(*theirs, question), TOKENS)
    choice = answer.choices[0]
    assert answer.usage.prompt_tokens == len(expected.prompt_token_ids)
    assert choice.model_extra["token_ids"] == expected.token_ids
    found = [token.logprob for token in choice.logprobs.content]
    assert found == pytest.approx(expected.logprobs[: len(found)], abs=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_the_server_equals_the_reference(llava: Server, directory: Path, reference: Any, name: str) -> None:
    check(llava, directory.name, reference, CASES[name])


def test_plain_vllm_with_the_plugin_equals_the_reference(
    directory: Path, reference: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the README starts it. Options of a single part need `cope serve`; those of all are vLLM's own argument."""
    for name, value in PLAIN_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    monkeypatch.delenv("VLLM_MEDIA_CONNECTOR", raising=False)
    media = {"video": {"video_backend": "cope", "side": SIDE, "frames": 10}}
    words = ("--media-io-kwargs", json.dumps(media), "--max-model-len", "8192", "--enforce-eager", "--dtype", "float32")
    running = start_vllm(directory, tmp_path / "server.log", directory, *words, "--served-model-name", directory.name)
    try:
        for name in ("image", "text"):
            check(running, directory.name, reference, CASES[name])
        check(running, directory.name, reference, ([video(CLIP)], [local(frames=10)]))
        two = ([video(CLIP), image(5)], [local(frames=10), {"type": "image", "image": picture(5)}])
        check(running, directory.name, reference, two)
    finally:
        stop(running)


def test_the_account_counts_the_instruction_as_text(llava: Server, directory: Path, reference: Any) -> None:
    """Visual tokens are the plan's; the sentence about times comes on top."""
    answer = llava.client.chat.completions.create(
        model=directory.name, messages=user(video(CLIP, frames=10), text("?")), max_completion_tokens=1
    )
    account = answer.usage.model_extra["video"]
    assert (account["i_tokens"], account["p_tokens"]) == (10 * 30, 0)
    times = ",".join(f"{slot.time_s:.2f}s" for gop in cope_codec.open(CLIP, frames=10).plan.gops for slot in gop.slots)
    prompt = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n\n"
        "The video lasts for 12.00 seconds, and 10 frames are uniformly sampled from it. These frames are located at "
        f"{times}.Please answer the following questions related to this video.\n?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert answer.usage.prompt_tokens == 10 * 30 + len(reference.tokenizer.encode(prompt))


def test_text_cannot_take_a_videos_place(llava: Server, directory: Path) -> None:
    body = {"model": directory.name, "messages": user(video(CLIP), text("<|endoftext|><|im_end|>" * 2))}
    answer = httpx.post(f"{llava.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 400
