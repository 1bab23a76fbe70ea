"""Names of weights in published LLaVA-Video checkpoints, in CoPE directories and in vLLM, known here alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

from cope_model.config import CoPEConfig

INDEX = "model.safetensors.index.json"
DELTA = "model.delta_encoder."
_PUBLISHED: Mapping[str, str] = MappingProxyType(
    {
        "model.vision_tower.vision_tower.": "model.vision_tower.",
        "model.mm_projector.0.": "model.multi_modal_projector.linear_1.",
        "model.mm_projector.2.": "model.multi_modal_projector.linear_2.",
        "model.layers.": "model.language_model.layers.",
        "model.embed_tokens.": "model.language_model.embed_tokens.",
        "model.norm.": "model.language_model.norm.",
    }
)
_VLLM: Mapping[str, str] = MappingProxyType(
    {
        "model.vision_tower.": "vision_tower.",
        "model.multi_modal_projector.": "multi_modal_projector.",
        "model.image_newline": "image_newline",
        DELTA: "delta_encoder.",
        "model.language_model.": "language_model.model.",
        "lm_head.": "language_model.lm_head.",
    }
)
_VISION_LAYER = re.compile(r"model\.vision_tower\.vision_model\.encoder\.layers\.(\d+)\.")
# Neither read nor needed: SigLIP's pooling head, and buffers that older versions of transformers saved.
USELESS = re.compile(r"\.vision_model\.head\.|\.position_ids$|\.rotary_emb\.inv_freq$")
# The hidden state that is read comes before this norm; the reference has it because transformers' SigLIP does.
_OPTIONAL = "model.vision_tower.vision_model.post_layernorm."


def cope_name(name: str, config: CoPEConfig) -> str | None:
    """The name that a CoPE directory gives a weight of either kind of checkpoint; None if the model does not use it.

    LLaVA deletes the last layer of its vision encoder, and some files keep it: layers behind the hidden state that is
    read are left out.
    """
    for theirs, ours in _PUBLISHED.items():
        if name.startswith(theirs):
            name = ours + name[len(theirs) :]
            break
    layer = _VISION_LAYER.match(name)
    if USELESS.search(name) or (layer and int(layer[1]) >= config.vision_layers_used):
        return None
    return name


def has_delta(names: Iterable[str]) -> bool:
    """Whether weights of a delta-encoder are among these; both kinds of checkpoint call them the same."""
    return any(name.startswith(DELTA) for name in names)


def vllm_prefixes() -> dict[str, str]:
    """Prefixes of both kinds of checkpoint and what they are in the vLLM model, longer ones first."""
    published = {
        theirs: next(_VLLM[prefix] + ours[len(prefix) :] for prefix in _VLLM if ours.startswith(prefix))
        for theirs, ours in _PUBLISHED.items()
    }
    return published | dict(_VLLM)


def may_be_missing(name: str, config: CoPEConfig) -> bool:
    """Whether a checkpoint may lack this weight: it is unused, or tied to another."""
    return name.startswith(_OPTIONAL) or (name == "lm_head.weight" and bool(config.text_config.tie_word_embeddings))


def mismatches(
    found: Mapping[str, Iterable[int]], needed: Mapping[str, Iterable[int]], config: CoPEConfig
) -> list[str]:
    """What is wrong with a checkpoint, one line per weight.

    Args:
        found: shapes in the files, by `cope_name`.
        needed: shapes in the model.
        config: the model's.
    """
    lines = []
    for name, shape in needed.items():
        if name not in found:
            if not may_be_missing(name, config):
                lines.append(f"{name} is missing; the model needs {tuple(shape)}")
        elif tuple(found[name]) != tuple(shape):
            lines.append(f"{name} has shape {tuple(found[name])}; the model needs {tuple(shape)}")
    lines += [f"{name} has shape {tuple(found[name])}; the model has no such weight" for name in found.keys() - needed]
    return sorted(lines)


def shards(directory: Path) -> list[Path]:
    """The safetensors files that make up a checkpoint, those that its index names if it has one.

    Raises:
        ValueError: there are none, or one that the index names is missing.
    """
    index = directory / INDEX
    if index.exists():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        paths = [directory / name for name in names]
    else:
        paths = sorted(directory.glob("*.safetensors"))
    missing = [path.name for path in paths if not path.is_file()]
    if missing or not paths:
        raise ValueError(f"{directory} lacks {', '.join(missing) or 'weights: there is no .safetensors file in it'}")
    return paths
