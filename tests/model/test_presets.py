"""The token account: what the paper's table says, and what a directory's config.json says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cope_model.checkpoint import write_shape
from cope_model.presets import PRESETS, DeltaSettings, Geometry, geometry_from_config


@pytest.mark.parametrize(("keyframes", "tokens"), [(1, 280), (2, 480), (4, 880)])
def test_tokens_per_gop_are_the_papers(keyframes: int, tokens: int) -> None:
    assert PRESETS["7b"].geometry.tokens(keyframes, 8 - keyframes) == tokens


def test_sixty_four_dense_frames_are_13440_tokens() -> None:
    assert PRESETS["7b"].geometry.tokens(64, 0) == 13_440


def test_tokens_per_frame() -> None:
    big, tiny = PRESETS["7b"].geometry, PRESETS["tiny"].geometry
    assert (big.grid, big.pooled, big.i_tokens, big.p_tokens) == (27, 14, 210, 10)
    assert (tiny.grid, tiny.pooled, tiny.i_tokens, tiny.p_tokens) == (16, 8, 72, 10)


def test_average_pooling_drops_the_remainder() -> None:
    geometry = Geometry(side=384, patch=14, pool_mode="average")
    assert (geometry.pooled, geometry.i_tokens, geometry.tokens(1, 7)) == (13, 182, 252)
    assert Geometry(side=128, patch=8, pool_mode="average").i_tokens == PRESETS["tiny"].geometry.i_tokens


@pytest.mark.parametrize("name", ["7b", "tiny"])
def test_config_json_gives_the_geometry_back(name: str, tmp_path: Path) -> None:
    directory = write_shape(name, tmp_path)
    assert geometry_from_config(json.loads((directory / "config.json").read_text())) == PRESETS[name].geometry


def test_config_json_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="model_type is 'llava'"):
        geometry_from_config({"model_type": "llava"})
    with pytest.raises(ValueError, match="lacks vision_config"):
        geometry_from_config({"model_type": "cope_videolm"})


def test_geometry_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="patch must be a positive whole number, not 0"):
        Geometry(side=384, patch=0)
    with pytest.raises(ValueError, match=r"spatial_pool_stride \(28\) cannot exceed the 27 patches of a side"):
        Geometry(side=384, patch=14, pool_stride=28)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 5}, r"width \(128\) must be divisible by heads \(5\)"),
        ({"trunk_stride": 8}, "trunk_stride must be 16 or 32"),
        ({"side": 120}, r"the image side \(120\) must be a multiple of motion_patch_px \(16\)"),
        ({"motion_norm": "none"}, "motion_norm must be 'fixed' or 'minmax'"),
        ({"motion_bound_px": 0.0}, "motion_bound_px must be above 0"),
    ],
)
def test_delta_settings_refuse_nonsense(change: dict[str, object], message: str) -> None:
    values: dict[str, object] = {"side": 128, "output_width": 128, "width": 128, "layers": 2, "heads": 4, **change}
    with pytest.raises(ValueError, match=message):
        DeltaSettings(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("module", ["cope_model", "cope_model.presets", "cope_model.url_options", "cope_model.account"])
def test_light_modules_load_neither_torch_nor_vllm(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'vllm', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_what_the_engine_loads_before_it_forks_has_no_codec() -> None:
    code = (
        "import sys, cope_model; cope_model.register(); import cope_model.model\n"
        "print([m for m in ('cope_codec', 'numba', 'llvmlite') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"
