"""One CoPE directory from a base checkpoint and delta-encoder weights, and the delta-encoder back out of it."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import AddedToken
from torch import Tensor

from cope_model.checkpoint import write_preprocessor_config
from cope_model.config import CoPEConfig
from cope_model.llava import LlavaQwenConfig, load_config
from cope_model.presets import DELTA_KEYS, PRESETS
from cope_model.reference import CoPEModel
from cope_model.tokenizer import IMAGE, VIDEO, chat_template
from cope_model.weights import DELTA, INDEX, cope_name, has_delta, mismatches, shards
from cope_model.whole import appearing

DELTA_METADATA = "cope_delta"  # key in a delta file's metadata: the settings of `DELTA_KEYS`, as JSON
_SYSTEM = "You are a helpful assistant."  # what Qwen2's own template says, and LLaVA-Video was trained with
_DTYPE_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}
_OTHER_PARTS = ("vision", "projector", "language")  # what `cope train finetune --part-lr` calls them
_WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth", INDEX)


@dataclass(frozen=True, slots=True)
class Step:
    """Progress: bytes of weights written so far, and in all."""

    done_bytes: int
    total_bytes: int


def join(
    base: Path,
    delta: Path,
    out: Path,
    *,
    preset: str | None = None,
    overwrite: bool = False,
    tick: Callable[[Step], None] = lambda step: None,
) -> Path:
    """Write a CoPE directory: the base model, its weights under our names, and the delta-encoder in a shard of its own.

    One shard of the base is in memory at a time. Every shape is checked before anything is written, and the directory
    appears when it is whole.

    Args:
        base: a published LLaVA-Video checkpoint, or a CoPE directory whose delta-encoder is to be replaced.
        delta: safetensors file of the delta-encoder, as `split` and the training write it.
        out: the directory to make.
        preset: shape of the delta-encoder, for a file that does not say it.
        overwrite: replace `out` if it is a model directory.
        tick: called after each shard.

    Returns:
        `out`.

    Raises:
        ValueError: a weight is missing, of another shape or unknown, all of them named with both shapes; `out` exists.
        OSError: a file cannot be read or written.
    """
    _refuse_existing(out, overwrite)
    source = load_config(base)
    config = with_delta(source, _delta_of_file(source, delta, preset))
    groups = _read_headers([*shards(base), delta], config, delta)
    with torch.device("meta"):
        needed = {name: tensor.shape for name, tensor in CoPEModel(config).state_dict().items()}
    found = {weight.name: weight.shape for group in groups.values() for weight in group}
    wrong = mismatches(found, needed, config)
    if wrong:
        raise ValueError(f"{base} and {delta} do not make a model:\n  " + "\n  ".join(wrong))

    total = sum(weight.nbytes for group in groups.values() for weight in group)
    with appearing(out, overwrite) as target:
        write_files(base, target, config)
        done = 0
        weight_map: dict[str, str] = {}
        for number, (path, group) in enumerate(groups.items(), 1):
            name = f"model-{number:05}-of-{len(groups):05}.safetensors"
            with safe_open(path, "pt") as file:
                _save({weight.name: file.get_tensor(weight.theirs) for weight in group}, target / name)
            weight_map |= {weight.name: name for weight in group}
            done += sum(weight.nbytes for weight in group)
            tick(Step(done, total))
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (target / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return out


def split(model: Path, out: Path, *, overwrite: bool = False) -> Path:
    """Write the delta-encoder of a model directory to a file of its own, with its settings.

    Raises:
        ValueError: the model has no delta-encoder, or one that does not fit its configuration; `out` exists.
        OSError: a file cannot be read or written.
    """
    if out.exists() and not overwrite:
        raise ValueError(f"{out} exists; --overwrite replaces it")
    config = load_config(model)
    state: dict[str, Tensor] = {}
    for path in shards(model):
        with safe_open(path, "pt") as file:
            state |= {name: file.get_tensor(name) for name in file.keys() if name.startswith(DELTA)}
    if not state:
        raise ValueError(f"{model} has no delta-encoder: none of its weights is called {DELTA}*")
    save_delta(state, config, out)
    return out


def also_trained(model: Path) -> list[str]:
    """Parts beside the delta-encoder that fine-tuning has changed, as the model's `training.json` tells.

    `split` leaves them behind: what it writes fits the base that they were before, but was not trained with it.

    Raises:
        ValueError: the file is not JSON.
    """
    path = model / "training.json"
    if not path.is_file():
        return []
    runs = json.loads(path.read_text(encoding="utf-8")).get("finetune", [])
    return [part for part in _OTHER_PARTS if any(run.get("scales", {}).get(part, 1) > 0 for run in runs)]


def stores_delta(directory: Path) -> bool:
    """Whether a checkpoint's files hold weights of a delta-encoder; reads their headers alone.

    Raises:
        ValueError: it has no files of weights.
    """
    for path in shards(directory):
        with safe_open(path, "pt") as file:
            if has_delta(file.keys()):
                return True
    return False


def save_delta(state: Mapping[str, Tensor], config: CoPEConfig, out: Path) -> None:
    """Write delta-encoder weights, under the names that they have in a CoPE directory, with the settings beside them.

    Raises:
        ValueError: they are not those of `config.delta`.
    """
    with torch.device("meta"):
        model = CoPEModel(config).state_dict()
    needed = {name: tensor.shape for name, tensor in model.items() if name.startswith(DELTA)}
    wrong = mismatches({name: tensor.shape for name, tensor in state.items()}, needed, config)
    if wrong:
        raise ValueError("not the delta-encoder of this configuration:\n  " + "\n  ".join(wrong))
    settings = json.dumps({key: getattr(config, key) for key in DELTA_KEYS})
    out.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{out.name}-", dir=out.parent)
    os.close(handle)
    try:
        _save(dict(state), Path(name), {DELTA_METADATA: settings})
        os.replace(name, out)
    finally:
        Path(name).unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class _Weight:
    """A weight in a file: our name, the file's own, its shape and size."""

    name: str
    theirs: str
    shape: tuple[int, ...]
    nbytes: int


def preset_delta(name: str) -> dict[str, Any]:
    """A preset's delta-encoder as the keys of a configuration.

    Raises:
        ValueError: there is no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; known are {', '.join(PRESETS)}")
    return {key: getattr(PRESETS[name].delta, field) for key, field in DELTA_KEYS.items()}


def with_delta(base: CoPEConfig, settings: Mapping[str, Any]) -> CoPEConfig:
    """The base's configuration as a CoPE directory has it, with another delta-encoder.

    Args:
        base: of either kind.
        settings: the delta-encoder's, by the keys of `DELTA_KEYS`.
    """
    if not isinstance(base, LlavaQwenConfig):
        config: CoPEConfig = CoPEConfig.from_dict({**base.to_dict(), **settings})
        return config
    return CoPEConfig(
        vision_config=copy.deepcopy(base.vision_config),
        text_config=copy.deepcopy(base.text_config),
        vision_feature_layer=base.vision_feature_layer,
        spatial_pool_stride=base.spatial_pool_stride,
        spatial_pool_mode=base.spatial_pool_mode,
        add_time_instruction=base.add_time_instruction,
        dtype=base.dtype,
        **settings,
    )


def _delta_of_file(base: CoPEConfig, delta: Path, preset: str | None) -> dict[str, Any]:
    """Settings of the delta-encoder in a file: the preset's, those that the file says, or the base's own."""
    if preset is not None:
        return preset_delta(preset)
    with safe_open(delta, "pt") as file:
        said = (file.metadata() or {}).get(DELTA_METADATA)
    if said is not None:
        return {key: value for key, value in json.loads(said).items() if key in DELTA_KEYS}
    if isinstance(base, LlavaQwenConfig):
        raise ValueError(f"{delta} does not say the shape of its delta-encoder; name it with --preset")
    return {key: getattr(base, key) for key in DELTA_KEYS}


def _read_headers(paths: list[Path], config: CoPEConfig, delta: Path) -> dict[Path, list[_Weight]]:
    """What is to be written, per file, from the files' headers alone. The base's own delta-encoder is left out."""
    groups: dict[Path, list[_Weight]] = {}
    for path in paths:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            bare = path == delta and not has_delta(names)
            group = []
            for theirs in names:
                name = DELTA + theirs if bare else cope_name(theirs, config)
                if name is None or (name.startswith(DELTA) and path != delta):
                    continue
                tensor = file.get_slice(theirs)
                shape = tuple(tensor.get_shape())
                nbytes = math.prod(shape) * _DTYPE_BYTES.get(tensor.get_dtype(), 1)
                group.append(_Weight(name, theirs, shape, nbytes))
        if group:
            groups[path] = group
    return groups


def write_files(base: Path, target: Path, config: CoPEConfig) -> None:
    """Write everything but the weights of a CoPE directory.

    Args:
        base: whose tokenizer, chat template and other files it has.
        target: where to; must exist.
        config: of `with_delta`; the ids of placeholders are set here where the base is a published checkpoint.

    Raises:
        ValueError: see `set_placeholders`.
    """
    if isinstance(load_config(base), LlavaQwenConfig):
        set_placeholders(config, base).save_pretrained(target)
        write_preprocessor_config(target, config.geometry.side)
        generation = base / "generation_config.json"
        if generation.exists():
            shutil.copyfile(generation, target / generation.name)
        else:
            text = json.dumps({"eos_token_id": config.text_config.eos_token_id}, indent=2) + "\n"
            (target / generation.name).write_text(text, encoding="utf-8")
    else:
        for path in base.iterdir():
            if path.is_file() and not path.name.endswith(_WEIGHT_FILES):
                shutil.copyfile(path, target / path.name)
    config.save_pretrained(target)


def load_tokenizer(directory: Path) -> Any:
    """A model's tokenizer with our placeholders and a chat template that puts them: a published one gets both."""
    from transformers import AutoTokenizer

    source = load_config(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory, config=source)
    if isinstance(source, LlavaQwenConfig):
        tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in (IMAGE, VIDEO)])
        tokenizer.chat_template = chat_template(_SYSTEM)
    return tokenizer


def set_placeholders(config: CoPEConfig, base: Path) -> Any:
    """Write the ids of our placeholders into the configuration that a published checkpoint gets.

    Returns:
        The tokenizer that knows them.

    Raises:
        ValueError: the checkpoint's embedding has no rows for them.
    """
    tokenizer = load_tokenizer(base)
    image, video = tokenizer.convert_tokens_to_ids([IMAGE, VIDEO])
    rows = config.text_config.vocab_size
    if max(image, video) >= rows:
        raise ValueError(
            f"{base} has no room for {IMAGE} and {VIDEO}: {rows} rows of embeddings for {len(tokenizer) - 2} tokens"
        )
    config.image_token_id, config.video_token_id = image, video
    return tokenizer


def _save(state: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    save_file(state, path, metadata={"format": "pt", **(metadata or {})})
    path.chmod(0o644)  # safetensors makes it readable for its owner only


def _refuse_existing(out: Path, overwrite: bool) -> None:
    if not out.exists():
        return
    if not overwrite:
        raise ValueError(f"{out} exists; --overwrite replaces it")
    if not (out / "config.json").is_file():
        raise ValueError(f"{out} is no model directory (it has no config.json) and is not replaced")
