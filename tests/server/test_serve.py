from __future__ import annotations

import json
from pathlib import Path

import pytest

from cope_server.commands import serve


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "my-model"
    folder.mkdir()
    config = {"model_type": "cope_videolm", "vision_config": {"image_size": 128, "patch_size": 8}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def pairs(words: list[str]) -> dict[str, str]:
    return {word: words[i + 1] for i, word in enumerate(words[:-1]) if word.startswith("--")}


def test_defaults_tell_the_loader_the_models_side(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    chosen = pairs(serve.defaults(model))
    assert json.loads(chosen["--media-io-kwargs"]) == {"video": {"side": 128}}
    assert chosen["--served-model-name"] == "my-model"


def test_a_published_llava_video_checkpoint_is_given_our_video_loader(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    published = {
        "model_type": "llava",
        "architectures": ["LlavaQwenForCausalLM"],
        "mm_vision_tower": "google/siglip-so400m-patch14-384",
    }
    (model / "config.json").write_text(json.dumps(published))
    chosen = pairs(serve.defaults(model))
    assert json.loads(chosen["--media-io-kwargs"]) == {"video": {"video_backend": "cope", "frames": 64, "side": 384}}
    (model / "config.json").write_text(json.dumps({"model_type": "llava"}))
    assert "--media-io-kwargs" not in serve.defaults(model)


def test_only_the_cpu_build_gets_cpu_defaults(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(serve, "on_cpu", lambda: True)
    assert pairs(serve.defaults(model))["--block-size"] == "32"
    monkeypatch.setattr(serve, "on_cpu", lambda: False)
    assert "--block-size" not in serve.defaults(model)


def test_a_model_is_found_however_it_is_named(model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("cope_model.tiny.bundled_model", lambda: tmp_path)
    assert serve.model_directory(str(model)) == model
    assert serve.model_directory("lmms-lab/some-hub-name") is None
    assert serve.model_directory(None) == tmp_path


def test_a_preset_and_a_model_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="--preset tiny is a model by itself: some/model cannot be served"):
        serve.preset_directory("tiny", "some/model")
    with pytest.raises(ValueError, match="--preset must be one of 7b, 7b-light, tiny, not '70b'"):
        serve.preset_directory("70b", None)


def test_plugins_are_added_to_what_the_user_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VLLM_MEDIA_CONNECTOR", "VLLM_NO_USAGE_STATS", "VLLM_CPU_KVCACHE_SPACE", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "kept")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "kept")
    monkeypatch.setenv("VLLM_PLUGINS", "theirs")
    serve.set_environment()
    import os

    assert os.environ["VLLM_PLUGINS"] == "theirs,cope"
    assert os.environ["VLLM_MEDIA_CONNECTOR"] == "kept"


def test_no_site_is_allowed_unless_it_is_named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for chosen in (serve.defaults(model), serve.defaults(None)):
        assert pairs(chosen)["--allowed-origins"] == "[]"  # the user's own comes later and wins


def test_what_runs_at_sigterm_has_time_to_finish(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for chosen in (serve.defaults(model), serve.defaults(None)):
        assert 10 <= int(pairs(chosen)["--shutdown-timeout"]) < 30
