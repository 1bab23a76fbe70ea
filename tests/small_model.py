"""A model that is far smaller than any that is served, for tests of the training's arithmetic."""

from __future__ import annotations

from pathlib import Path

import torch
from random_model import random_weights

from cope_model.checkpoint import make_config, write_files
from cope_model.presets import PRESETS, DeltaSettings, Geometry, Preset
from cope_model.reference import CoPEModel
from cope_training import directories

SIDE = 128


def small_preset() -> Preset:
    """One layer of everything, 32 wide."""
    tiny = PRESETS["tiny"]
    vision = {**tiny.vision, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "patch_size": 16}
    text = {**tiny.text, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2}
    return Preset(
        name="small",
        geometry=Geometry(side=SIDE, patch=16, queries=2),
        delta=DeltaSettings(side=SIDE, output_width=32, width=32, layers=1, heads=2, queries=2, trunk_width=8),
        vision=vision,
        text=text,
        vision_feature_layer=-1,
    )


def write_small(directory: Path, seed: int = 1) -> Path:
    """A model directory of that shape with random weights."""
    preset = small_preset()
    model = CoPEModel(make_config(preset))
    model.load_state_dict(random_weights(model, seed))
    source = directory / "source"
    source.mkdir(parents=True)
    write_files(source, preset)
    directories.save(model, source, directory / "model")
    return directory / "model"


def randomised(model: torch.nn.Module, seed: int) -> None:
    """Give every parameter random values, zeros and ones too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
