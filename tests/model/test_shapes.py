"""Directories without weights: all that the engine and the tokenizer need, made once and found again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from cope_model import shapes
from cope_model.presets import PRESETS, geometry_from_config


@pytest.mark.parametrize("name", ["tiny", "7b"])
def test_everything_but_weights(name: str, tmp_path: Path) -> None:
    directory = shapes.cached_shape(name, {"XDG_CACHE_HOME": str(tmp_path)})
    assert directory.name == f"cope-random-{name}"
    assert directory.is_relative_to(tmp_path / "cope-serve" / "presets")
    config = json.loads((directory / "config.json").read_text())
    assert geometry_from_config(config) == PRESETS[name].geometry
    assert not list(directory.glob("*.safetensors"))
    tokenizer = AutoTokenizer.from_pretrained(directory)
    vocabulary = PRESETS[name].text["vocab_size"]
    assert len(tokenizer) == vocabulary
    text = "What moves? Größe, 動く \N{GRINNING FACE}"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode([vocabulary - 1])  # whatever random weights say can be shown
    message = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "?"}]}]
    prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    assert prompt == "<|im_start|>user\n<video>\n?<|im_end|>\n<|im_start|>assistant\n"


def test_it_is_found_again_and_nothing_else_stays(tmp_path: Path) -> None:
    cache = {"XDG_CACHE_HOME": str(tmp_path)}
    first = shapes.cached_shape("tiny", cache)
    stamp = (first / "config.json").stat().st_mtime_ns
    assert shapes.cached_shape("tiny", cache) == first
    assert (first / "config.json").stat().st_mtime_ns == stamp
    assert list((tmp_path / "cope-serve" / "presets").iterdir()) == [first.parent]


def test_other_contents_are_another_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = {"XDG_CACHE_HOME": str(tmp_path)}
    first = shapes.cached_shape("tiny", cache)
    template = tmp_path / "other.jinja"
    template.write_text("other")
    monkeypatch.setattr("cope_model.tokenizer.CHAT_TEMPLATE", template)
    assert shapes.cached_shape("tiny", cache) != first
    assert (first / "chat_template.jinja").read_text() != "other"


def test_a_cache_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        shapes.cached_shape("tiny", {"XDG_CACHE_HOME": str(tmp_path / "file")})
