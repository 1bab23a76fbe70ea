"""What a P-frame costs in the delta-encoder against a keyframe in the vision encoder: parameters and time."""

# N frames per call, S side of the model's square input (px), C motion cells a side.

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import SiglipVisionModel

from cope_model.config import CoPEConfig
from cope_model.delta_encoder import DeltaEncoder, count_parameters
from cope_model.presets import PRESETS


def delta_cost(
    presets: Sequence[str],
    *,
    batch: int,
    repeats: int,
    device: str,
    dtype: torch.dtype,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Time the encoders with random weights, interleaved, so that a busy machine slows all of them alike.

    Both sides are the encoders alone: integers to tokens of the vision width. What follows (projector, language model)
    costs in proportion to the tokens.

    Args:
        presets: names of presets that share one vision encoder.
        batch: N, frames per call.
        repeats: timed calls of each encoder; one more goes before them.
        device: torch's name.
        dtype: of weights and activations.
        tick: called after each call.

    Returns:
        vision: parameters, ms_per_frame; presets: by name, parameters, ms_per_frame, ratio (of a keyframe's time,
        median of the repetitions' own ratios), ratio_min, ratio_max.

    Raises:
        ValueError: an unknown preset, presets of different vision encoders, or a number below 1.
    """
    for name, value in (("batch", batch), ("repeats", repeats)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    unknown = [name for name in presets if name not in PRESETS]
    if unknown or not presets:
        raise ValueError(f"unknown preset {', '.join(unknown) or 'none'}; known are {', '.join(PRESETS)}")
    config = CoPEConfig(**PRESETS[presets[0]].config_kwargs())
    if any(PRESETS[name].vision != PRESETS[presets[0]].vision for name in presets):
        raise ValueError(f"presets {', '.join(presets)} have different vision encoders; measure them one by one")

    side, cells = config.geometry.side, config.geometry.side // 4
    random = torch.Generator().manual_seed(0)
    pixels = torch.randn(batch, 3, side, side, generator=random).to(device, dtype)
    motion = torch.randint(-500, 500, (batch, cells, cells, 2), generator=random, dtype=torch.int16).to(device)
    residual = torch.randint(-60, 60, (batch, side, side, 3), generator=random, dtype=torch.int16).to(device)

    vision_config = copy.deepcopy(config.vision_config)
    vision_config.num_hidden_layers = config.vision_layers_used
    vision = SiglipVisionModel(vision_config).to(device, dtype).eval()
    deltas = {name: DeltaEncoder(PRESETS[name].delta).to(device, dtype).eval() for name in presets}
    calls: dict[str, Callable[[], object]] = {"": lambda: vision(pixel_values=pixels)}
    calls |= {name: _call(encoder, motion, residual) for name, encoder in deltas.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    with torch.inference_mode():
        for repeat in range(repeats + 1):
            for name, call in calls.items():
                took = _timed(call, device) / batch
                if repeat:
                    times[name].append(took)
                tick()

    frame = statistics.median(times[""])
    report: dict[str, Any] = {
        "vision": {"parameters": sum(p.numel() for p in vision.parameters()), "ms_per_frame": 1e3 * frame},
        "presets": {},
    }
    for name in presets:
        ratios = [own / keyframe for own, keyframe in zip(times[name], times[""], strict=True)]
        report["presets"][name] = {
            "parameters": count_parameters(PRESETS[name].delta),
            "ms_per_frame": 1e3 * statistics.median(times[name]),
            "ratio": statistics.median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
        }
    return report


def _call(encoder: nn.Module, motion: torch.Tensor, residual: torch.Tensor) -> Callable[[], object]:
    return lambda: encoder(motion, residual)


def _timed(call: Callable[[], object], device: str) -> float:
    """Seconds that a call takes, on the device too."""
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize()
