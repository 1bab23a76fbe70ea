"""The token account of a request's videos: what they cost, and what dense frames would have cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class Plan(Protocol):
    """What is read of `cope_codec.VideoPlan`."""

    @property
    def seconds(self) -> float: ...  # noqa: D102
    @property
    def mode(self) -> str: ...  # noqa: D102
    @property
    def gops(self) -> Sequence[object]: ...  # noqa: D102
    @property
    def i_frames(self) -> int: ...  # noqa: D102
    @property
    def p_frames(self) -> int: ...  # noqa: D102
    @property
    def dense_frames(self) -> int: ...  # noqa: D102


class TokenGeometry(Protocol):
    """What is read of `cope_model.presets.Geometry`."""

    @property
    def i_tokens(self) -> int: ...  # noqa: D102
    @property
    def p_tokens(self) -> int: ...  # noqa: D102


def video_account(plans: Sequence[Plan], geometry: TokenGeometry) -> dict[str, Any]:
    """Sum up the videos of a request.

    Args:
        plans: one per video.
        geometry: tokens per keyframe and per P-frame of the model.

    Returns:
        seconds, gops, i_frames, p_frames, i_tokens, p_tokens, mode (`mixed` if the videos differ) and dense_tokens:
        what LLaVA-Video's 64 uniformly sampled RGB frames of each video would have taken.
    """
    i_frames = sum(plan.i_frames for plan in plans)
    p_frames = sum(plan.p_frames for plan in plans)
    modes = {plan.mode for plan in plans}
    return {
        "seconds": round(sum(plan.seconds for plan in plans), 3),
        "gops": sum(len(plan.gops) for plan in plans),
        "i_frames": i_frames,
        "p_frames": p_frames,
        "i_tokens": i_frames * geometry.i_tokens,
        "p_tokens": p_frames * geometry.p_tokens,
        "mode": modes.pop() if len(modes) == 1 else "mixed",
        "dense_tokens": sum(plan.dense_frames for plan in plans) * geometry.i_tokens,
    }
