"""Next-frame retrieval: which of a clip's other frames is the one that follows?"""

# T slots, g patches a side, D vision width.

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cope_codec import I_SLOT, P_SLOT
from cope_training import jobs
from cope_training.pretrain import NextFrame
from cope_training.primitives import CachedVideo
from cope_training.scores import recall
from cope_training.views import View, show

AT = (1, 2, 5)
# Mean |dx| + |dy| below which a slot shows nearly the same picture as the one before, sixteenths of a pixel: a quarter
# of a pixel, as when a thing of a fiftieth of the picture moves by a dozen pixels.
_STILL = 4


def rank(query: Tensor, gallery: Tensor, match: int, own: int) -> float:
    """Rank of the match among a clip's frames, from 1, by distance to the query; equal distances share their ranks.

    Args:
        query: (g * g, D).
        gallery: (T, g * g, D).
        match: the frame that follows.
        own: the frame that the query was made from, which is no candidate.
    """
    distances = (gallery - query).square().mean((1, 2))
    others = [t for t in range(len(gallery)) if t not in (own, match)]
    nearer = sum(float(distances[t]) < float(distances[match]) for t in others)
    level = sum(float(distances[t]) == float(distances[match]) for t in others)
    return 1 + nearer + level / 2


@torch.inference_mode()
def measure(predictor: NextFrame, videos: Sequence[CachedVideo], *, device: torch.device) -> dict[str, object]:
    """Recall of the frame after each frame, among the other frames of the same GOP.

    Queries are the tokens that the pre-trained delta-encoder and its transformers predict, or, for comparison, the
    vision encoder's tokens of the frame itself. Slots in which nothing moves far are left out: their frames are all
    alike.

    Args:
        predictor: from stage 1, in evaluation mode.
        videos: held-out clips.
        device: to compute on.
    """
    ranks: dict[str, list[float]] = {"delta_encoder": [], "vision_encoder": []}
    with jobs.bar("clips") as progress:
        task = progress.add_task("retrieval", total=len(videos), note="")
        for video in videos:
            for gop in video.gops():
                shown = show(gop, View())
                moved = np.abs(np.asarray(gop.motion, np.float32)).sum(3).mean((1, 2))
                slots = [slot for slot, kind in enumerate(gop.layout) if kind == P_SLOT and moved[slot] >= _STILL]
                if not slots:
                    continue
                frames = predictor.tokens(torch.tensor(np.array(gop.pictures), device=device))
                deltas = [slot - gop.layout[:slot].count(I_SLOT) for slot in slots]
                before = [slot - 1 for slot in slots]
                motion = torch.from_numpy(shown.motion[deltas]).to(device)
                residual = torch.from_numpy(shown.residual[deltas]).to(device)
                predicted = predictor.predict(frames[before], motion, residual)
                for row, slot in enumerate(slots):
                    ranks["delta_encoder"].append(rank(predicted[row], frames, slot, slot - 1))
                    ranks["vision_encoder"].append(rank(frames[slot - 1], frames, slot, slot - 1))
            progress.advance(task)
    if not ranks["delta_encoder"]:
        raise ValueError("nothing moves in the clips: there is no next frame to tell from the others")
    return {
        "queries": len(ranks["delta_encoder"]),
        **{name: {f"recall_{at}": recall(own, at) for at in AT} for name, own in ranks.items()},
    }
