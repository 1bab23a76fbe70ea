"""Model directories in Hugging Face's layout: read one, write one that `cope serve` takes."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors.torch import save_file

from cope_model import convert
from cope_model.checkpoint import make_config, write_files
from cope_model.config import CoPEConfig
from cope_model.delta_encoder import DeltaEncoder
from cope_model.llava import LlavaQwenConfig, load_config
from cope_model.presets import DELTA_KEYS, PRESETS
from cope_model.reference import CoPEModel, read_weights
from cope_model.weights import DELTA
from cope_model.whole import appearing
from cope_training import network
from cope_training.files import read_json, write_json
from cope_training.packing import Prompts

_WEIGHTS = "*.safetensors*"
_DRAWN = "7b"  # whose delta-encoder a published checkpoint gets: the paper's widths
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def video_token(config: CoPEConfig) -> int:
    """The placeholder that stands for a video.

    Raises:
        ValueError: the configuration names none.
    """
    if config.video_token_id is None:
        raise ValueError("config.json names no video_token_id")
    return int(config.video_token_id)


def prompts(directory: Path, config: CoPEConfig) -> Prompts:
    """How questions are put to a model.

    Args:
        directory: whose tokenizer and chat template; of either kind.
        config: of the model that `load` made of it.
    """
    return Prompts(convert.load_tokenizer(directory), video_token(config), times=config.add_time_instruction)


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


def load(
    directory: Path,
    *,
    missing_delta: bool = False,
    delta_preset: str | None = None,
    seed: int = 0,
    kept: Collection[str] = (),
) -> CoPEModel:
    """Load a CoPE directory or a published LLaVA-Video checkpoint.

    The model's configuration is a CoPE directory's either way, as `save` writes it and `cope convert join` would.

    Args:
        directory: with `config.json` and safetensors.
        missing_delta: draw the delta-encoder's weights where the checkpoint has none.
        delta_preset: whose delta-encoder is drawn; None is what `config.json` says, or else `7b`.
        seed: of what is drawn.
        kept: parts (`network.PARTS`) that stay in bfloat16 where the checkpoint stores them in it: frozen ones. All
            else becomes float32.

    Raises:
        ValueError: weights are missing, of other shapes or too many; there is no such preset, or nothing to draw.
        OSError: there is no such directory.
    """
    if not (directory / "config.json").is_file():
        raise FileNotFoundError(2, "no model directory: config.json is missing", str(directory))
    stored = convert.stores_delta(directory)
    if stored and delta_preset is not None:
        raise ValueError(f"delta_preset: {directory} has a delta-encoder, none is drawn")
    if not stored and not missing_delta:
        raise ValueError(f"{directory} has no delta-encoder: none of its weights is called {DELTA}*")
    config = _config(directory, stored, delta_preset)
    # Without parameters at first: those of 7B would take minutes to draw, and twice the memory beside the files'.
    with init_empty_weights():
        model = CoPEModel(config)
    torch.manual_seed(seed)
    model.model.delta_encoder = DeltaEncoder(config.delta)
    model.load_state_dict(read_weights(directory, model), strict=False, assign=True)
    if config.text_config.tie_word_embeddings:
        model.lm_head.weight = model.model.language_model.embed_tokens.weight
    for module in model.modules():
        if any(parameter.is_meta for parameter in module.parameters(recurse=False)):
            module.to_empty(device="cpu", recurse=False)  # an unused norm, which a checkpoint may lack
            module.reset_parameters()  # type: ignore[operator]
    half = {id(parameter) for name in kept for parameter in network.part(model, name)}
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point() and not (id(tensor) in half and tensor.dtype == torch.bfloat16):
            tensor.data = tensor.data.to(torch.float32, copy=True)  # the files' own memory is not written to
    return model


def _config(directory: Path, stored: bool, delta_preset: str | None) -> CoPEConfig:
    """A CoPE directory's configuration for the model, with the delta-encoder that it has or shall have."""
    source = load_config(directory)
    published = isinstance(source, LlavaQwenConfig)
    if (
        published
        and not stored
        and delta_preset is None
        and not DELTA_KEYS.keys() & read_json(directory / "config.json")
    ):
        delta_preset = _DRAWN
    if delta_preset is not None:
        settings = convert.preset_delta(delta_preset)
    else:
        settings = {key: getattr(source, key) for key in DELTA_KEYS}
    config = convert.with_delta(source, settings)
    if published:
        convert.set_placeholders(config, directory)
    return config


def save(model: CoPEModel, source: Path | str, directory: Path, *, dtype: str = "auto", facts: Any = None) -> None:
    """Write a model directory; it appears when it is whole, and until then what was there stays.

    Args:
        model: the weights.
        source: the directory whose configuration and tokenizer it has, published ones as `cope convert join` writes
            them, or a preset's name.
        directory: where to; replaced if it exists.
        dtype: of the stored weights: `float32`, `bfloat16`, `float16`, or `auto`: as they are in memory, which leaves
            parts that were `kept` as the checkpoint had them.
        facts: how it was made, written to `training.json`.

    Raises:
        ValueError: no such dtype.
    """
    if dtype != "auto" and dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of auto, {', '.join(_DTYPES)}, not {dtype!r}")
    with appearing(directory, overwrite=True) as building:
        if isinstance(source, str):
            write_files(building, PRESETS[source])
        elif isinstance(load_config(source), LlavaQwenConfig):
            convert.write_files(source, building, model.config)
        else:
            ignore = shutil.ignore_patterns(_WEIGHTS, "training.json", "README.md")
            shutil.copytree(source, building, dirs_exist_ok=True, ignore=ignore)
            _write_changes(building, model.config)
        state = {
            name: tensor.detach().cpu().to(_DTYPES.get(dtype, tensor.dtype)).contiguous()
            for name, tensor in model.state_dict().items()
        }
        if model.config.text_config.tie_word_embeddings:
            state.pop("lm_head.weight")
        save_file(state, building / "model.safetensors", metadata={"format": "pt"})
        (building / "model.safetensors").chmod(0o644)  # safetensors makes it readable for its owner only
        if facts is not None:
            write_json(building / "training.json", facts, indent=2)


def _write_changes(directory: Path, config: CoPEConfig) -> None:
    """Say how deep the language model is and what its delta-encoder is like, where training has changed that."""
    path = directory / "config.json"
    told, before, text = read_json(path), load_config(directory), config.text_config
    changed = {key: getattr(config, key) for key in DELTA_KEYS if getattr(config, key) != getattr(before, key)}
    if before.text_config.num_hidden_layers != text.num_hidden_layers:  # `growth.deepen`
        deeper = {"num_hidden_layers": text.num_hidden_layers, "layer_types": text.layer_types}
        changed["text_config"] = told["text_config"] | deeper
    if changed:
        write_json(path, told | changed, indent=2)
