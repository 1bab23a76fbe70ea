"""A deepened language model answers as before, learns in its new layers, and is saved with its depth."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_model import write_small

from cope_training import directories
from cope_training.growth import deepen


def answer(model: torch.nn.Module) -> torch.Tensor:
    width = model.config.text_config.hidden_size
    given = torch.randn(1, 9, width, generator=torch.Generator().manual_seed(3))
    return model.eval()(given)


def test_it_answers_as_before_and_the_new_layers_learn(tmp_path: Path) -> None:
    model = directories.load(write_small(tmp_path))
    before = answer(model)
    old = len(model.model.language_model.layers)
    deepen(model, 2 * old)
    torch.testing.assert_close(answer(model), before)
    layers = model.model.language_model.layers
    assert len(layers) == 2 * old and [layer.self_attn.layer_idx for layer in layers] == list(range(2 * old))
    answer(model).sum().backward()
    for layer in (layers[1], layers[3]):
        assert layer.self_attn.o_proj.weight.grad.abs().sum() > 0 and layer.mlp.down_proj.weight.grad.abs().sum() > 0


def test_the_directory_tells_the_depth(tmp_path: Path) -> None:
    source = write_small(tmp_path)
    model = directories.load(source)
    layers = 3 * len(model.model.language_model.layers)
    deepen(model, layers, seed=1)
    directories.save(model, source, tmp_path / "grown")
    again = directories.load(tmp_path / "grown")
    assert again.config.text_config.num_hidden_layers == layers == len(again.config.text_config.layer_types)
    torch.testing.assert_close(answer(again), answer(model))


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_layers_that_are_no_multiple_are_refused(layers: int, tmp_path: Path) -> None:
    model = directories.load(write_small(tmp_path))
    assert len(model.model.language_model.layers) == 2
    with pytest.raises(ValueError, match=f"a multiple of the language model's 2, not {layers}"):
        deepen(model, layers)
