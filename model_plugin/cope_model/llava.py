"""Configuration of LLaVA-Video checkpoints as lmms-lab publishes them, in the terms of `CoPEConfig`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from transformers import LlavaConfig, PretrainedConfig, Qwen2Config, SiglipVisionConfig

from cope_model.config import CoPEConfig
from cope_model.presets import DELTA_KEYS, PRESETS, is_llava_qwen, llava_vision

# Keys of a published config.json that are Qwen2's, and lie at its top level.
_TEXT_KEYS = (
    "attention_dropout", "bos_token_id", "eos_token_id", "hidden_act", "hidden_size", "initializer_range",
    "intermediate_size", "max_position_embeddings", "max_window_layers", "num_attention_heads", "num_hidden_layers",
    "num_key_value_heads", "rms_norm_eps", "rope_scaling", "rope_theta", "rope_parameters", "sliding_window",
    "use_sliding_window", "vocab_size",
)  # fmt: skip
# What this model computes; a file that asks for something else would be answered wrongly.
_FIXED: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "mm_projector_type": ("mlp2x_gelu",),
        "mm_newline_position": ("grid",),
        "mm_patch_merge_type": ("spatial_unpad",),
        "mm_resampler_type": (None,),
        "add_faster_video": (None, False),
        "mm_use_im_start_end": (None, False),
    }
)
# Qwen2's tokenizer knows no placeholders, but has three special tokens, which are found in a text before all others.
# ChatML never writes these two sequences of them.
_PLACEHOLDERS = MappingProxyType({"image": "<|im_end|><|endoftext|>", "video": "<|endoftext|><|im_end|>"})


class LlavaQwenConfig(CoPEConfig):
    """A `config.json` of architecture `LlavaQwenForCausalLM`.

    The published names of what can be overridden stay valid: `mm_spatial_pool_mode`, `mm_spatial_pool_stride`,
    `mm_vision_select_layer`, `add_time_instruction` (vLLM: `--hf-overrides '{"mm_spatial_pool_mode": "average"}'`).
    Keys of `CoPEConfig` are taken too: `delta_*` for weights of a delta-encoder, a SigLIP `vision_config`.

    Args:
        published: the file's keys; see LLaVA-NeXT.

    Raises:
        ValueError: the file describes another model than LLaVA-Video, by the name of the key.
    """

    model_type: ClassVar[str] = "llava_qwen"
    attribute_map: ClassVar[dict[str, str]] = {
        "mm_spatial_pool_mode": "spatial_pool_mode",
        "mm_spatial_pool_stride": "spatial_pool_stride",
        "mm_vision_select_layer": "vision_feature_layer",
    }
    placeholders: ClassVar[Mapping[str, str]] = _PLACEHOLDERS

    def __init__(self, **published: Any) -> None:
        values = dict(published)
        text = values.pop("text_config", None)
        vision = values.pop("vision_config", None)
        values.pop("model_type", None)
        if not published:  # transformers compares a configuration with its class's defaults when it saves one
            super().__init__()
            return
        if isinstance(text, Mapping) and text.get("model_type") == "qwen2":
            text = dict(text)
        elif not isinstance(text, Qwen2Config):
            text = _text(values)
        if not isinstance(vision, SiglipVisionConfig):
            vision = dict(llava_vision({**values, "vision_config": vision}))
        for key in _TEXT_KEYS:
            values.pop(key, None)
        for key, ours in self.attribute_map.items():
            given = values.pop(key, None)
            if given is not None:
                values[ours] = given
        width = vision.hidden_size if isinstance(vision, SiglipVisionConfig) else vision["hidden_size"]
        _refuse_other_models(values, width)
        for key, name in DELTA_KEYS.items():
            # A checkpoint without a delta-encoder gets the small one: it is zeroed, and only takes memory.
            values.setdefault(key, getattr(PRESETS["7b-light"].delta, name))
        values["add_time_instruction"] = bool(values.get("add_time_instruction"))
        size = text.vocab_size if isinstance(text, Qwen2Config) else text["vocab_size"]
        # Rows of the embedding that no text reaches: Qwen2's tokenizer has 151,646 tokens for 152,064 rows.
        values.setdefault("image_token_id", size - 2)
        values.setdefault("video_token_id", size - 1)
        values.setdefault("architectures", ["LlavaQwenForCausalLM"])
        super().__init__(vision_config=vision, text_config=text, **values)


def _text(values: Mapping[str, Any]) -> dict[str, Any]:
    """Qwen2's keys of a flat file."""
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"):
        if values.get(key) is None:
            raise ValueError(f"config.json of a LLaVA-Video model lacks {key}")
    text = {key: values[key] for key in _TEXT_KEYS if values.get(key) is not None}
    text["tie_word_embeddings"] = bool(values.get("tie_word_embeddings"))
    if not text.get("use_sliding_window"):
        text.pop("sliding_window", None)  # published as 131,072 and not used
    return text


def _refuse_other_models(values: Mapping[str, Any], vision_width: int) -> None:
    for key, accepted in _FIXED.items():
        # What a file does not say is what LLaVA-Video does: its first releases lack some of these.
        if key in values and values[key] not in accepted:
            raise ValueError(f"{key} must be {' or '.join(map(repr, accepted))} for LLaVA-Video, not {values[key]!r}")
    given = values.get("mm_hidden_size")
    if given is not None and given != vision_width:
        raise ValueError(f"mm_hidden_size ({given}) is not the width of the vision encoder ({vision_width})")


class LlavaFamilyConfig(LlavaConfig):  # type: ignore[misc]
    """What `AutoConfig` makes of model type `llava`: LLaVA-Video's own configuration, or else transformers'.

    Some of lmms-lab's files say `llava`, which transformers reads as a CLIP and Llama model.
    """

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> PretrainedConfig:
        """Read a `config.json`."""
        chosen = LlavaQwenConfig if is_llava_qwen(config_dict) else LlavaConfig
        return chosen.from_dict(config_dict, **kwargs)


def load_config(directory: str | Path, **overrides: Any) -> CoPEConfig:
    """The configuration of a model directory of either kind.

    Args:
        directory: holds a `config.json`.
        overrides: keys that win over the file's.

    Raises:
        ValueError: it is no model that we know, or a value is refused.
        OSError: there is no `config.json`.
    """
    values = json.loads((Path(directory) / "config.json").read_text(encoding="utf-8"))
    if is_llava_qwen(values):
        config: CoPEConfig = LlavaQwenConfig.from_dict({**values, **overrides})
        return config
    if values.get("model_type") != CoPEConfig.model_type:
        raise ValueError(
            f"{directory} is neither a cope_videolm nor a LLaVA-Video model: its model_type is "
            f"{values.get('model_type')!r}"
        )
    config = CoPEConfig.from_dict({**values, **overrides})
    return config
