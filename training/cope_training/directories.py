"""Model directories in Hugging Face's layout: read one, write one that `cope serve` takes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cope_model.checkpoint import make_config, write_files
from cope_model.config import CoPEConfig
from cope_model.presets import PRESETS
from cope_model.reference import CoPEModel
from cope_model.whole import appearing
from cope_training.files import read_json, write_json

_WEIGHTS = "*.safetensors*"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def video_token(config: CoPEConfig) -> int:
    """The placeholder that stands for a video.

    Raises:
        ValueError: the configuration names none.
    """
    if config.video_token_id is None:
        raise ValueError("config.json names no video_token_id")
    return int(config.video_token_id)


def fresh(preset: str, seed: int) -> CoPEModel:
    """A model of a preset with weights to begin training with.

    transformers' and torch's own initialisation.
    """
    if preset not in PRESETS:
        raise ValueError(f"no preset is called {preset!r}: there are {', '.join(PRESETS)}")
    torch.manual_seed(seed)
    model = CoPEModel(make_config(PRESETS[preset]))
    torch.nn.init.normal_(model.lm_head.weight, std=0.02)
    torch.nn.init.normal_(model.model.image_newline, std=0.02)
    return model


def load(directory: Path, *, missing_delta: bool = False, seed: int = 0) -> CoPEModel:
    """Load a model.

    Args:
        directory: with `config.json` and safetensors.
        missing_delta: draw the delta-encoder's weights where the checkpoint has none.
        seed: for that.

    Raises:
        ValueError: weights are missing or too many.
        OSError: there is no such directory.
    """
    if not (directory / "config.json").is_file():
        raise FileNotFoundError(2, "no model directory: config.json is missing", str(directory))
    torch.manual_seed(seed)
    model = CoPEModel(CoPEConfig.from_pretrained(directory))
    state: dict[str, Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        state |= load_file(path)
    lacks = set(model.state_dict()) - set(state)
    if missing_delta:
        lacks = {name for name in lacks if not name.startswith("model.delta_encoder.")}
    if model.config.text_config.tie_word_embeddings:
        lacks.discard("lm_head.weight")
    unknown = set(state) - set(model.state_dict())
    if lacks or unknown:
        what = "lacks" if lacks else "has unknown weights"
        raise ValueError(f"{directory} {what}: {', '.join(sorted(lacks or unknown)[:3])} ...")
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=False)
    return model


def save(model: CoPEModel, source: Path | str, directory: Path, *, dtype: str = "float32", facts: Any = None) -> None:
    """Write a model directory; it appears when it is whole, and until then what was there stays.

    Args:
        model: the weights.
        source: the directory whose configuration and tokenizer it has, or a preset's name.
        directory: where to; replaced if it exists.
        dtype: of the stored weights: `float32`, `bfloat16` or `float16`.
        facts: how it was made, written to `training.json`.

    Raises:
        ValueError: no such dtype.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, not {dtype!r}")
    with appearing(directory, overwrite=True) as building:
        if isinstance(source, str):
            write_files(building, PRESETS[source])
        else:
            ignore = shutil.ignore_patterns(_WEIGHTS, "training.json", "README.md")
            shutil.copytree(source, building, dirs_exist_ok=True, ignore=ignore)
            _write_depth(building / "config.json", model.config)
        state = {
            name: tensor.detach().cpu().to(_DTYPES[dtype]).contiguous() for name, tensor in model.state_dict().items()
        }
        if model.config.text_config.tie_word_embeddings:
            state.pop("lm_head.weight")
        save_file(state, building / "model.safetensors", metadata={"format": "pt"})
        (building / "model.safetensors").chmod(0o644)  # safetensors makes it readable for its owner only
        if facts is not None:
            write_json(building / "training.json", facts, indent=2)


def _write_depth(path: Path, config: CoPEConfig) -> None:
    """Say how deep the language model is, if training has changed that (`growth.deepen`)."""
    told, text = read_json(path), config.text_config
    if told["text_config"].get("num_hidden_layers", text.num_hidden_layers) != text.num_hidden_layers:
        told["text_config"] |= {"num_hidden_layers": text.num_hidden_layers, "layer_types": text.layer_types}
        write_json(path, told, indent=2)
