"""Published config.json files of LLaVA-Video in our terms; what is not LLaVA-Video is refused by name."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from llava import CONFIG, VISION
from transformers import LlavaConfig

from cope_model.llava import LlavaFamilyConfig, LlavaQwenConfig, load_config
from cope_model.presets import PRESETS, geometry_from_config

# LLaVA-Video-7B-Qwen2's sizes.
FULL = {
    **CONFIG, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "vocab_size": 152064, "mm_hidden_size": 1152, "torch_dtype": "bfloat16",
}  # fmt: skip


def read(**changes: Any) -> LlavaQwenConfig:
    config: LlavaQwenConfig = LlavaQwenConfig.from_dict(copy.deepcopy({**FULL, **changes}))
    return config


@pytest.mark.parametrize(("mode", "tokens"), [("bilinear", 210), ("average", 182)])
def test_the_published_file_gives_the_7b_geometry(mode: str, tokens: int) -> None:
    config = read(mm_spatial_pool_mode=mode)
    assert config.geometry.i_tokens == tokens
    assert geometry_from_config({**FULL, "mm_spatial_pool_mode": mode}) == config.geometry
    assert config.text_config.to_dict()["hidden_size"] == 3584
    assert config.vision_config.hidden_size == 1152
    assert (config.vision_layers_used, config.add_time_instruction, str(config.dtype)) == (26, True, "torch.bfloat16")
    preset = PRESETS["7b"]
    for key, value in preset.text.items():
        if key != "rope_theta":
            assert getattr(config.text_config, key) == value, key
    assert config.text_config.rope_parameters["rope_theta"] == preset.text["rope_theta"]


def test_placeholder_ids_lie_where_no_text_reaches() -> None:
    config = read()
    assert (config.image_token_id, config.video_token_id) == (152062, 152063)


def test_what_a_file_does_not_say_is_what_llava_next_defaults_to() -> None:
    keys = ("mm_spatial_pool_mode", "mm_spatial_pool_stride", "mm_vision_select_layer", "add_time_instruction")
    config = LlavaQwenConfig.from_dict({key: value for key, value in FULL.items() if key not in keys})
    assert (config.spatial_pool_mode, config.spatial_pool_stride, config.vision_feature_layer) == ("bilinear", 2, -2)
    assert config.add_time_instruction is False


def test_published_names_override() -> None:
    """As vLLM does with --hf-overrides, after the file was read."""
    config = read()
    config.update({"mm_spatial_pool_mode": "average", "add_time_instruction": False})
    assert (config.geometry.i_tokens, config.add_time_instruction) == (182, False)
    config.update({"mm_spatial_pool_mode": "max"})
    with pytest.raises(ValueError, match="spatial_pool_mode must be 'bilinear' or 'average', not 'max'"):
        _ = config.geometry


@pytest.mark.parametrize("way", [pickle.dumps, lambda config: config])
def test_copies_are_equal(way: Any) -> None:
    config = read(mm_spatial_pool_mode="average")
    made = way(config)
    again = pickle.loads(made) if isinstance(made, bytes) else LlavaQwenConfig.from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict()
    assert again.geometry == config.geometry


def test_saved_and_read_again(tmp_path: Path) -> None:
    read(mm_spatial_pool_mode="average").save_pretrained(tmp_path)
    config = load_config(tmp_path)
    assert isinstance(config, LlavaQwenConfig)
    assert config.geometry.i_tokens == 182


def test_clip_and_llama_defaults_in_a_file_mean_nothing() -> None:
    """Files that went through transformers' LlavaConfig carry them."""
    noise = {
        "vision_config": {"model_type": "clip_vision_model", "hidden_size": 1024, "image_size": 336, "patch_size": 14},
        "text_config": {"model_type": "llama"},
        "vision_feature_layer": -2,
    }
    assert read(**noise).geometry == read().geometry
    assert geometry_from_config({**FULL, **noise}) == read().geometry


def test_published_names_win_over_transformers_own() -> None:
    assert read(vision_feature_layer=-1, mm_vision_select_layer=-2).vision_layers_used == 26


def test_model_type_llava_is_ours_only_with_the_architecture() -> None:
    ours = LlavaFamilyConfig.from_dict({**FULL, "model_type": "llava"})
    assert isinstance(ours, LlavaQwenConfig)
    theirs = LlavaFamilyConfig.from_dict(LlavaConfig().to_dict())
    assert type(theirs) is LlavaConfig


def test_another_siglip_can_be_described() -> None:
    config = read(vision_config=VISION, mm_hidden_size=128)
    assert (config.geometry.side, config.geometry.grid, config.geometry.i_tokens) == (128, 9, 30)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mm_projector_type": "linear"}, "mm_projector_type must be 'mlp2x_gelu' for LLaVA-Video, not 'linear'"),
        ({"mm_newline_position": "one_token"}, "mm_newline_position must be 'grid'"),
        ({"mm_patch_merge_type": "flat"}, "mm_patch_merge_type must be 'spatial_unpad'"),
        ({"mm_resampler_type": "qformer"}, "mm_resampler_type must be None"),
        ({"add_faster_video": True}, "add_faster_video must be None or False"),
        ({"mm_spatial_pool_mode": "max"}, "spatial_pool_mode must be 'bilinear' or 'average', not 'max'"),
        ({"mm_vision_tower": "openai/clip-vit-large-patch14-336"}, "mm_vision_tower: only siglip-so400m-patch14-384"),
        ({"mm_hidden_size": 1024}, r"mm_hidden_size \(1024\) is not the width of the vision encoder \(1152\)"),
        ({"hidden_size": None}, "lacks hidden_size"),
    ],
)
def test_other_models_are_refused_by_the_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(**changes)


def test_unknown_directories_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    with pytest.raises(ValueError, match="its model_type is 'qwen2'"):
        load_config(tmp_path)
