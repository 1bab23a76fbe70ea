from pathlib import Path

import pytest
import torch
from small_model import SIDE, write_small
from transformers import AutoTokenizer

import cope_codec
from cope_codec import VideoOptions
from cope_model.reference import Reference
from cope_training import network, primitives, qa
from cope_training.batches import collate, pack, tokens_of
from cope_training.packing import Prompts, Tree
from cope_training.views import View, show


def test_a_segment_sees_its_ancestors_and_its_own_past() -> None:
    tree = Tree()
    root = tree.add([1, 2])
    one = tree.add([3, 4], root)
    tree.add([5], one, owner=0)
    tree.add([6, 7], root, owner=1)
    assert tree.positions == [0, 1, 2, 3, 4, 2, 3]
    assert tree.mask().astype(int).tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 1, 1],
    ]
    # The first token of a branch is predicted where its parent ends, the others where the one before stands.
    assert (tree.at, tree.token, tree.owner) == ([3, 1, 5], [5, 6, 7], [0, 1, 1])


@pytest.mark.parametrize("keyframes", [1, 4])
def test_packed_answers_are_as_likely_as_the_reference_finds_them_one_by_one(
    data: Path, tmp_path: Path, keyframes: int
) -> None:
    """Two clips, all their questions and options in one batch, against one sequence per option."""
    directory = write_small(tmp_path)
    reference = Reference.load(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    config = reference.model.config
    clips = [clip for clip in qa.read([data]) if cope_codec.open(clip.path).plan.mode == "native"][:2]
    cache = primitives.build(
        tmp_path / "cache",
        [c.path for c in clips],
        [c.name for c in clips],
        options=VideoOptions(),
        side=SIDE,
        workers=1,
    )
    prompts = Prompts(tokenizer, config.video_token_id)
    trees, shown = [], []
    for clip, video in zip(clips, cache.videos, strict=True):
        assert video is not None
        gops = [show(gop, View(keyframes)) for gop in video.gops()]
        shown += gops
        trees.append(pack(prompts, clip.questions, tokens_of(gops, config.geometry), options=True))
    batch = collate(trees, shown, config.video_token_id)
    with torch.inference_mode():
        logits = network.target_logits(reference.model, batch).log_softmax(-1)
    packed = logits.gather(1, batch.token[:, None])[:, 0]

    alone = []
    with torch.inference_mode():
        for clip in clips:
            visual = reference.model.embed_gops(
                list(cope_codec.open(clip.path, keyframes_per_gop=keyframes).gops(SIDE))
            )
            for question in clip.questions:
                before, after = prompts.question(question.text)
                for option in question.options or (question.answer,):
                    answer = prompts.answer(option)
                    embed = reference.model.model.language_model.embed_tokens
                    text = embed(torch.tensor(after + answer))
                    sequence = torch.cat([embed(torch.tensor(before)), visual, text])[None]
                    scores = reference.model(sequence)[0].log_softmax(-1)
                    first = len(before) + len(visual) + len(after)
                    alone += [scores[first + i - 1, token] for i, token in enumerate(answer)]
    torch.testing.assert_close(packed, torch.stack(alone), atol=2e-4, rtol=1e-4)
