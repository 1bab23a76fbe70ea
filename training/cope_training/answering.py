"""Lets a model answer questions about clips: the likelihood of every option, and what greedy decoding would say."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from cope_model.reference import CoPEModel
from cope_training import directories, jobs, network
from cope_training.batches import collate, instruction_of, pack, tokens_of
from cope_training.packing import Prompts
from cope_training.primitives import CachedVideo
from cope_training.qa import Clip
from cope_training.scores import Answered
from cope_training.views import View, show

Pair = tuple[Clip, CachedVideo]


@torch.inference_mode()
def answer(
    model: CoPEModel, prompts: Prompts, pairs: Sequence[Pair], view: View, *, batch: int, description: str
) -> list[Answered]:
    """Answer all questions of clips.

    Args:
        model: in evaluation mode, on the device that is to be used.
        prompts: its chat template.
        pairs: clips with their primitives; every question has options.
        view: how the clips are shown.
        batch: clips at once.
        description: shown before the progress bar.

    Returns:
        One entry per question, in order.
    """
    device = next(model.parameters()).device
    config = model.config
    video_token = directories.video_token(config)
    out: list[Answered] = []
    with jobs.bar("clips") as progress:
        task = progress.add_task(description, total=len(pairs), note="")
        for start in range(0, len(pairs), batch):
            part = pairs[start : start + batch]
            trees, shown = [], []
            for clip, video in part:
                gops = [show(gop, view) for gop in video.gops()]
                shown += gops
                told = instruction_of(prompts, video, gops)
                trees.append(pack(prompts, clip.questions, tokens_of(gops, config.geometry), told, options=True))
            packed = collate(trees, shown, video_token).to(device)
            logits = network.target_logits(model, packed)
            owners = int(packed.owner.max()) + 1
            lost = F.cross_entropy(logits, packed.token, reduction="none")
            likelihood = -torch.zeros(owners, device=device).index_add_(0, packed.owner, lost)
            wrong = (logits.argmax(-1) != packed.token).float()
            missed = torch.zeros(owners, device=device).index_add_(0, packed.owner, wrong)
            scores, greedy = likelihood.tolist(), (missed == 0).tolist()
            at = 0
            for clip, _ in part:
                for question in clip.questions:
                    options = question.options
                    own = scores[at : at + len(options)]
                    best = options[own.index(max(own))]
                    exact = greedy[at + options.index(question.answer)]
                    out.append(Answered(question, best, bool(exact)))
                    at += len(options)
            progress.advance(task, len(part))
    return out
