"""Models with random weights, the same on every machine: what a test needs that compares two ways to one answer."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from cope_model.checkpoint import make_config, write_files
from cope_model.presets import PRESETS
from cope_model.reference import CoPEModel

_WEIGHT_STD = 0.08  # large enough that the answer depends visibly on what the model is shown
_BIAS_STD = 0.02


def random_weights(model: CoPEModel, seed: int) -> dict[str, torch.Tensor]:
    """Random weights for every tensor of the model, the same for the same name, shape and seed on every machine.

    numpy's generator and not torch's: its stream is fixed by contract. Norm weights stray from 1 and biases from 0, so
    that a weight which is loaded into the wrong place, or not at all, changes the answer.
    """
    state: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.text_config.tie_word_embeddings:
            continue
        draw = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
        noise = torch.from_numpy(draw.standard_normal(tuple(tensor.shape), np.float32))
        if name.endswith("num_batches_tracked"):
            state[name] = tensor.clone()
        elif name.endswith("running_var"):
            state[name] = 1 + _BIAS_STD * noise.abs()
        elif tensor.ndim > 1 or name == "model.image_newline":
            state[name] = _WEIGHT_STD * noise
        else:
            centre = 1.0 if name.endswith(".weight") else 0.0
            state[name] = centre + _BIAS_STD * noise
    return state


def write_random(directory: Path, preset_name: str = "tiny", seed: int = 20260330) -> Path:
    """A model directory of a preset's shape; the same bytes every time."""
    directory.mkdir(parents=True, exist_ok=True)
    preset = PRESETS[preset_name]
    write_files(directory, preset)
    with torch.device("meta"):
        model = CoPEModel(make_config(preset))
    save_file(random_weights(model, seed), directory / "model.safetensors", metadata={"format": "pt"})
    return directory
