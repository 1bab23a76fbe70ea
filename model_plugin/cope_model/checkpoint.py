"""Model directories in Hugging Face's layout: configuration, tokenizer and, for small models, random weights."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from cope_model.config import CoPEConfig
from cope_model.presets import PRESETS, Preset
from cope_model.reference import CoPEModel
from cope_model.tokenizer import IM_END, IMAGE, SPECIAL_TOKENS, VIDEO, write_tokenizer

_WEIGHT_STD = 0.08  # large enough that an untrained model's answer depends visibly on what it is shown
_BIAS_STD = 0.02


def make_config(preset: Preset) -> CoPEConfig:
    """The preset's configuration with the token ids of our tokenizer."""
    config = CoPEConfig(
        **preset.config_kwargs(),
        image_token_id=SPECIAL_TOKENS.index(IMAGE),
        video_token_id=SPECIAL_TOKENS.index(VIDEO),
        dtype="float32" if preset.name == "tiny" else "bfloat16",
    )
    config.text_config.eos_token_id = SPECIAL_TOKENS.index(IM_END)
    return config


def write_files(directory: Path, preset: Preset) -> None:
    """Write everything but the weights and the model card."""
    make_config(preset).save_pretrained(directory)
    write_tokenizer(directory, vocab_size=preset.text["vocab_size"])
    write_preprocessor_config(directory, preset.geometry.side)
    # Text-only chat stops at <|im_end|>; temperature 0 makes an untrained model's answers repeatable.
    _write_json(directory / "generation_config.json", {"eos_token_id": SPECIAL_TOKENS.index(IM_END)})


def write_preprocessor_config(directory: Path, side: int) -> None:
    """Write `preprocessor_config.json`: vLLM finds our video loader by it; nothing reads its other values."""
    _write_json(
        directory / "preprocessor_config.json",
        {
            "video_processor_type": "CoPEVideoProcessor",
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "size": {"height": side, "width": side},
        },
    )


def write_shape(preset_name: str, directory: str | Path) -> Path:
    """Write a directory of that shape without weights, for `--load-format dummy` and for processor tests.

    Args:
        preset_name: a key of `PRESETS`.
        directory: where to; made if missing.

    Returns:
        The directory.
    """
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    write_files(target, PRESETS[preset_name])
    return target


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


def write_weights(directory: Path, preset: Preset, seed: int) -> int:
    """Write `model.safetensors` with random weights; returns the number of parameters."""
    with torch.device("meta"):
        model = CoPEModel(make_config(preset))
    state = random_weights(model, seed)
    path = directory / "model.safetensors"
    save_file(state, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors makes it readable for its owner only
    return sum(tensor.numel() for tensor in state.values())


def _write_json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
