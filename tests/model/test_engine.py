"""vLLM against the plain PyTorch reference, in fp32: the same greedy tokens, the same log-probabilities to 1e-4."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model.engines import Engine, engine_environment
from model.gops import make_gop
from PIL import Image

from cope_codec import GopPrimitives

TOKENS = 16
QUESTION = {"type": "text", "text": "What happens in the video?"}


@pytest.fixture(scope="module")
def engine(tiny_dir: Path) -> Iterator[Engine]:
    with engine_environment():
        yield Engine(tiny_dir, TOKENS)


def video(*gops: GopPrimitives) -> dict[str, Any]:
    return {"type": "video", "video": gops}


def image() -> dict[str, Any]:
    noise = np.random.default_rng(0).integers(0, 256, (90, 160, 3), np.uint8)
    return {"type": "image", "image": Image.fromarray(noise)}


def test_text_only(engine: Engine) -> None:
    engine.check("Which way does the red circle move?")


@pytest.mark.parametrize("layout", ["IPPPPPPP", "IPPPIPPP", "IPIPIPIP", "I"])
def test_one_gop(engine: Engine, layout: str) -> None:
    engine.check([video(make_gop(layout, seed=1)), QUESTION])


@pytest.mark.parametrize("gops", [2, 5])
def test_several_gops_in_chunks(engine: Engine, gops: int) -> None:
    answer = engine.check([video(*(make_gop("IPPPIPPP", seed=10 + i) for i in range(gops))), QUESTION])
    assert len(answer.prompt_token_ids) > 256


def test_dense_frames(engine: Engine) -> None:
    answer = engine.check([video(*(make_gop("I" * 8, seed=20 + i) for i in range(3))), QUESTION])
    assert len(answer.prompt_token_ids) > 3 * 576


def test_two_videos(engine: Engine) -> None:
    first, second = video(make_gop("IPPPIPPP", seed=30)), video(make_gop("IP", seed=31), make_gop("IPP", seed=32))
    there = engine.check([first, second, QUESTION])
    back = engine.check([second, first, QUESTION])
    assert list(there.outputs[0].token_ids) != list(back.outputs[0].token_ids)


def test_image_between_videos(engine: Engine) -> None:
    engine.check([video(make_gop("IPIP", seed=40)), image(), QUESTION, video(make_gop("IPIP", seed=41))])


def test_image_alone(engine: Engine) -> None:
    engine.check([image(), QUESTION])


def test_a_grown_video_reuses_its_first_gops(engine: Engine) -> None:
    gops = [make_gop("IPPP", seed=50 + i) for i in range(3)]
    engine.check([video(*gops[:2]), QUESTION])
    grown = engine.check([video(*gops), QUESTION])
    # 7 tokens of text, then two GOPs of 102: 211 tokens are the same, six blocks of 32 of them whole.
    assert grown.num_cached_tokens == 192


def test_the_answer_depends_on_motion_and_on_residuals(engine: Engine) -> None:
    from dataclasses import replace

    gop = make_gop("IPPP", seed=60)
    answers = [
        engine.check([video(changed), QUESTION]).outputs[0].token_ids
        for changed in (
            gop,
            replace(gop, key="still", motion=np.zeros_like(gop.motion)),
            replace(gop, key="flat", residual=np.zeros_like(gop.residual)),
        )
    ]
    assert len({tuple(tokens) for tokens in answers}) == 3


def test_checkpoint_names_of_llava_video_find_their_places() -> None:
    from cope_model.model import CoPEForConditionalGeneration

    names = CoPEForConditionalGeneration.hf_to_vllm_mapper
    for theirs, ours in {
        "model.vision_tower.vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias": "model.vision_tower.vision_model."
        "encoder.layers.0.mlp.fc1.bias",
        "model.mm_projector.0.weight": "model.multi_modal_projector.linear_1.weight",
        "model.mm_projector.2.bias": "model.multi_modal_projector.linear_2.bias",
        "model.layers.3.mlp.up_proj.weight": "model.language_model.layers.3.mlp.up_proj.weight",
        "model.embed_tokens.weight": "model.language_model.embed_tokens.weight",
        "model.norm.weight": "model.language_model.norm.weight",
        "model.image_newline": "model.image_newline",
        "lm_head.weight": "lm_head.weight",
    }.items():
        assert names.map_name(theirs) == names.map_name(ours) != theirs, theirs
    assert names.map_name("model.delta_encoder.motion.fc1.bias") == "delta_encoder.motion.fc1.bias"
