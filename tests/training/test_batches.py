"""What a training batch is made of: one number of keyframes, the questions that need motion first, balanced weights."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from small_model import SIDE, write_small
from transformers import AutoTokenizer

from cope_codec import VideoOptions
from cope_model.interleave import close_groups, interleave_gops
from cope_model.reference import Reference
from cope_training import network, primitives, qa
from cope_training.batches import Mixture, QuestionBatches, type_weights
from cope_training.finetune import Answering
from cope_training.packing import Prompts
from cope_training.qa import Clip
from cope_training.question_types import TYPES
from cope_training.questions import Question, flip_text


def question(kind: str) -> Question:
    return Question(kind, "?", "left")


def test_every_type_weighs_the_same_and_the_mean_is_one() -> None:
    counts = {"colour": 6, "direction": 2, "": 1, "happens": 4}
    clips = [Clip(Path("x"), "x", (question(kind),) * count) for kind, count in counts.items()]
    weights = type_weights(clips)
    assert "happens" not in weights  # a sentence weighs 1
    assert [weights[kind] * counts[kind] for kind in weights] == pytest.approx([3, 3, 3])


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("small"))


def batches(data: Path, cache: Path, model_dir: Path, mixture: Mixture) -> QuestionBatches:
    clips = qa.read([data])
    found = primitives.build(
        cache, [c.path for c in clips], [c.name for c in clips], options=VideoOptions(), side=SIDE, workers=1
    )
    config = Reference.load(model_dir).model.config
    return QuestionBatches(
        clips,
        found.videos,
        prompts=Prompts(AutoTokenizer.from_pretrained(model_dir), config.video_token_id),
        geometry=config.geometry,
        video_token=config.video_token_id,
        mixture=mixture,
        size=4,
        seed=0,
    )


def test_batches_of_one_length_with_the_motion_sentence(data: Path, tmp_path: Path, model_dir: Path) -> None:
    whole = Mixture(keyframes=(1, 4), questions=1, zeroed=0, without=0)
    made = batches(data, tmp_path / "cache", model_dir, whole)
    seen = set()
    for number in range(8):
        batch = made[number]
        (keyframes,) = {layout.count(0) for layout in batch.layouts}
        seen.add(keyframes)
        again = made[number]
        assert all(torch.equal(getattr(batch, name), getattr(again, name)) for name in ("ids", "motion", "weight"))
    assert seen == {1, 4}
    # One question per clip: what happens. Its words are found in the packed ids.
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    batch = made[0]
    told = [tokenizer.decode(batch.token[batch.owner == owner].tolist()) for owner in range(len(batch.weight))]
    for sentence in told:
        assert re.search(r"moves|zooms|turns|rotates|grows|shrinks|appears", sentence), sentence
        assert sentence.endswith("<|im_end|>")


def test_a_plus_asks_only_where_several_could_be_meant(data: Path, tmp_path: Path, model_dir: Path) -> None:
    number = list(TYPES).index("colour")
    for group, wanted in (("colour+", {2 * number + 1}), ("colour", {2 * number, 2 * number + 1})):
        made = batches(data, tmp_path / "cache", model_dir, Mixture(keyframes=(1,), groups=(group,)))
        assert {kind for batch in (made[0], made[1], made[2]) for kind in batch.kind.tolist()} == wanted
    with pytest.raises(ValueError, match="appearance\\+"):
        Mixture(groups=("appearance+",))


def test_of_a_mirrored_question_all_wordings_are_drawn(data: Path, tmp_path: Path, model_dir: Path) -> None:
    """Also where mirroring makes "right or left" of "left or right", which is no wording."""
    made = batches(data, tmp_path / "cache", model_dir, Mixture(zeroed=0, without=0))
    asked = Question("which_moves", TYPES["which_moves"].training[0], "left", ("left", "right"))
    drawn = [made._draw(Clip(Path("x"), "x", (asked,)), 1, np.random.default_rng(seed)) for seed in range(200)]
    for mirrored in (False, True):
        texts = {flip_text(only.text, x=mirrored, y=False) for view, (only,) in drawn if view.flip_x == mirrored}
        assert texts >= set(TYPES["which_moves"].training)


def test_clips_of_which_nothing_is_known_keep_their_deltas(data: Path, tmp_path: Path, model_dir: Path) -> None:
    made = batches(data, tmp_path / "cache", model_dir, Mixture(zeroed=0.6, without=0.4))
    for kind, expected in (("", {"on"}), ("direction", {"zeroed", "none"})):
        clip = Clip(Path("x"), "x", (question(kind),))
        assert {made._draw(clip, 1, np.random.default_rng(seed))[0].deltas for seed in range(20)} == expected


def test_tokens_that_will_be_zero_are_not_computed_and_zero(data: Path, tmp_path: Path, model_dir: Path) -> None:
    """Half of the clips zeroed: only the others' P-frames reach the delta-encoder."""
    made = batches(data, tmp_path / "cache", model_dir, Mixture(keyframes=(1,), zeroed=0.5, without=0))
    model = Reference.load(model_dir).model
    batch = next(one for one in (made[number] for number in range(16)) if 0 < one.kept.any(1).sum() < len(one.kept))
    encoded = []
    hook = model.model.delta_encoder.register_forward_hook(lambda _, given, __: encoded.append(len(given[0])))
    with torch.inference_mode():
        tokens = network.visual_tokens(model, batch, network.delta_tokens(model, batch))
        hook.remove()
        assert encoded == [int(batch.kept.any(1).sum())]
        # As if all had been encoded and then multiplied.
        body = model.model
        deltas = body.multi_modal_projector(body.delta_encoder(batch.motion, batch.residual))
        deltas *= batch.kept.repeat_interleave(deltas.shape[1] // 2, 1)[..., None]
        groups = close_groups(deltas, body.image_newline)
        keyframes = model.embed_keyframes(batch.keyframes)
        expected = torch.cat(interleave_gops(batch.layouts, keyframes, groups))
    torch.testing.assert_close(tokens, expected)


def test_a_batch_without_delta_tokens_trains_with_decoding(data: Path, tmp_path: Path, model_dir: Path) -> None:
    """No P slots at all; and P slots whose tokens are all zeroed."""
    model = Reference.load(model_dir).model
    objective, alone = Answering(model, decode=0.5), Answering(model)
    asked = list(objective.decoding.parameters())
    for without in (1.0, 0.0):
        mixture = Mixture(keyframes=(1,), without=without, zeroed=1 - without)
        batch = batches(data, tmp_path / "cache", model_dir, mixture)[0]
        assert len(batch.kept) == (0 if without else 4 * 7)
        assert not batch.kept.any()
        objective.zero_grad(set_to_none=True)
        loss, numbers = objective(batch)
        assert float(loss) == pytest.approx(float(alone(batch)[0]))
        assert float(numbers["motion_lost"]) == float(numbers["residual_lost"]) == 0
        loss.backward()
        # Zeros, not nothing: what a process with P slots has learnt must not be missing from the mean.
        assert all(parameter.grad is not None and not parameter.grad.any() for parameter in asked)
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)


def test_the_loss_is_the_weighted_mean(data: Path, tmp_path: Path, model_dir: Path) -> None:
    made = batches(data, tmp_path / "cache", model_dir, Mixture(keyframes=(1,)))
    objective = Answering(Reference.load(model_dir).model)
    batch = made[0]
    alone = []
    for answer in range(len(batch.weight)):
        batch.weight.zero_()[answer] = 1.0
        alone.append(float(objective(batch)[0]) * len(batch.weight))
    weights = torch.rand(len(alone))
    batch.weight.copy_(weights)
    expected = float((weights * torch.tensor(alone)).mean())
    assert float(objective(batch)[0]) == pytest.approx(expected, rel=1e-4)
