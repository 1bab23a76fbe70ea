"""The token account of a request's videos: what they cost, and what dense frames would have cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cope_codec import VideoPlan
    from cope_model.account import LoadedVideo
    from cope_model.presets import Geometry


def plan_account(plans: Sequence[VideoPlan], geometry: Geometry) -> dict[str, Any]:
    """Sum up videos.

    Args:
        plans: one per video.
        geometry: tokens per keyframe and per P-frame of the model.

    Returns:
        seconds, gops, i_frames, p_frames, i_tokens, p_tokens, mode (`mixed` if the videos differ) and dense_tokens:
        what LLaVA-Video's uniformly sampled RGB frames, at most 64 of each video, would have taken.
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


def video_account(videos: Sequence[LoadedVideo], geometry: Geometry) -> dict[str, Any]:
    """`plan_account` of a request's videos, and how whole they were.

    Returns:
        The account, with missing_slots (slots whose own frame could not be decoded), corrupt (the decoder reported
        damage) and truncated (a file breaks off before its announced end).
    """
    return {
        **plan_account([video.plan for video in videos], geometry),
        "missing_slots": sum(video.missing_slots for video in videos),
        "corrupt": any(video.corrupt for video in videos),
        "truncated": any(video.truncated for video in videos),
    }
