"""A deeper language model that begins as the same function: its new layers add nothing yet."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from cope_model.reference import CoPEModel

_STD = 0.05  # of the new layers' inner matrices, about that of trained ones as wide as `tiny`


def deepen(model: CoPEModel, layers: int, seed: int = 0) -> None:
    """Put new layers behind each of the language model's own, as many behind every one.

    A layer adds to its input what its two last matrices make; they begin at zero, so the model answers as before, and
    the first steps teach them alone (block expansion, LLaMA Pro, arXiv 2401.02415).

    Args:
        model: changed in place, its configuration too.
        layers: how many the language model then has: a multiple of those that it has.
        seed: of the new weights.

    Raises:
        ValueError: not a multiple.
    """
    language = model.model.language_model
    own: list[Any] = list(language.layers)
    if layers < len(own) or layers % len(own):
        raise ValueError(f"layers must be a multiple of the language model's {len(own)}, not {layers}")
    random = torch.Generator().manual_seed(seed)
    grown: list[Any] = []
    for layer in own:
        grown.append(layer)
        grown += [_neutral(layer, random) for _ in range(layers // len(own) - 1)]
    for number, layer in enumerate(grown):
        layer.self_attn.layer_idx = number
    language.layers = nn.ModuleList(grown)
    for config in (model.config.text_config, language.config):
        config.num_hidden_layers = layers
        config.layer_types = [config.layer_types[0]] * layers


def _neutral(layer: nn.Module, random: torch.Generator) -> nn.Module:
    """A layer of the same form that adds nothing."""
    made = copy.deepcopy(layer)
    with torch.no_grad():
        for name, tensor in made.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "bias")):
                tensor.zero_()
            elif tensor.ndim > 1:
                tensor.normal_(std=_STD, generator=random)
            else:
                tensor.fill_(1.0)
    return made
