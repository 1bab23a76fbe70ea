"""`cope-tiny`, the bundled model: trained by `training/runs/cope_tiny.sh`, put here by `training/runs/bundle.py`."""

from __future__ import annotations

from pathlib import Path

_DIRECTORY = Path(__file__).parent / "data" / "cope-tiny"


def bundled_model() -> Path:
    """The model's directory.

    Raises:
        FileNotFoundError: this installation lacks its weights.
    """
    if not (_DIRECTORY / "model.safetensors").is_file():
        raise FileNotFoundError(2, "the bundled model is missing: name one with --model", str(_DIRECTORY))
    return _DIRECTORY
