"""CoPEConfig: presets in, config.json out and back, clear refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from cope_model.config import CoPEConfig
from cope_model.presets import PRESETS


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_survive_the_way_through_config_json(name: str, tmp_path: Path) -> None:
    preset = PRESETS[name]
    CoPEConfig(**preset.config_kwargs(), image_token_id=3, video_token_id=4).save_pretrained(tmp_path)
    config = CoPEConfig.from_pretrained(tmp_path)
    assert config.delta == preset.delta
    assert config.geometry == preset.geometry
    assert config.architectures == ["CoPEForConditionalGeneration"]
    assert (config.image_token_id, config.video_token_id) == (3, 4)
    assert config.get_text_config().hidden_size == preset.text["hidden_size"]


def test_defaults_are_the_papers() -> None:
    config = CoPEConfig()
    assert config.delta == PRESETS["7b"].delta
    assert (config.delta.width, config.delta.layers, config.delta.heads, config.delta.queries) == (1152, 4, 9, 4)
    assert config.delta.bound_px == 96.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spatial_pool_mode": "max"}, "spatial_pool_mode must be 'bilinear' or 'average', not 'max'"),
        ({"vision_feature_layer": 3}, "vision_feature_layer must be -1 or -2"),
        ({"motion_cell_px": 8}, "motion_cell_px must be 4"),
        ({"image_token_id": 7, "video_token_id": 7}, "must differ"),
        ({"video_token_id": 2048}, r"video_token_id \(2048\) must lie within the vocabulary of 2048"),
        ({"delta_heads": 7}, "must be divisible by heads"),
        ({"delta_queries": 0}, "queries must be a positive whole number"),
    ],
)
def test_refusals_name_the_setting(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CoPEConfig(**{**PRESETS["tiny"].config_kwargs(), **change})
