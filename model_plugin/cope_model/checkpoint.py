"""Model directories in Hugging Face's layout: all but the weights."""

from __future__ import annotations

import json
from pathlib import Path

from cope_model.config import CoPEConfig
from cope_model.presets import PRESETS, Preset
from cope_model.tokenizer import IM_END, IMAGE, SPECIAL_TOKENS, VIDEO, write_tokenizer


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
    # Text-only chat stops at <|im_end|>; sampling is left to the request.
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


def _write_json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
