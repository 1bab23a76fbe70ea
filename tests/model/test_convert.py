"""Base checkpoint and delta-encoder to one directory and back; mistakes are named with both shapes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from llava import SIDE, published_name, write_llava
from model.gops import make_gop
from random_model import random_weights
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cope_model import convert
from cope_model.llava import load_config
from cope_model.presets import DELTA_KEYS, PRESETS
from cope_model.reference import CoPEModel, Reference
from cope_model.weights import DELTA, INDEX, cope_name, shards, vllm_prefixes
from cope_server.cli import main

SETTINGS = {"delta_width": 64, "delta_layers": 1, "delta_heads": 4, "delta_trunk_width": 8, "delta_queries": 2}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llava(tmp_path_factory.mktemp("base"), whole_tower=True)


@pytest.fixture(scope="module")
def delta(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A delta-encoder as the training would save it."""
    config = load_config(base, **SETTINGS)
    with torch.device("meta"):
        model = CoPEModel(config)
    weights = {name: tensor for name, tensor in random_weights(model, 3).items() if name.startswith(DELTA)}
    path = tmp_path_factory.mktemp("delta") / "delta.safetensors"
    convert.save_delta(weights, config, path)
    return path


@pytest.fixture(scope="module")
def joined(base: Path, delta: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert.join(base, delta, tmp_path_factory.mktemp("out") / "cope")


def test_the_joined_model_answers_as_its_parts_do(base: Path, delta: Path, joined: Path) -> None:
    content = [
        {"type": "video", "video": [make_gop("IPPP", side=SIDE, seed=i, index=i) for i in range(2)], "seconds": 12.0},
        {"type": "text", "text": "What moves?"},
    ]
    parts = Reference.load(base, **SETTINGS)
    parts.model.load_state_dict(load_file(delta), strict=False)
    expected = parts.generate([{"role": "user", "content": content}], 8)
    found = Reference.load(joined).generate([{"role": "user", "content": content}], 8)
    assert found.token_ids == expected.token_ids
    assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-5)
    assert len(found.prompt_token_ids) == len(expected.prompt_token_ids)


def test_the_joined_directory_is_complete(base: Path, joined: Path) -> None:
    config = json.loads((joined / "config.json").read_text())
    assert config["model_type"] == "cope_videolm"
    assert config["architectures"] == ["CoPEForConditionalGeneration"]
    assert config["add_time_instruction"] is True
    assert {key: config[key] for key in SETTINGS} == SETTINGS
    assert json.loads((joined / "preprocessor_config.json").read_text())["video_processor_type"] == "CoPEVideoProcessor"
    assert json.loads((joined / "generation_config.json").read_text())["eos_token_id"] == 2045
    index = json.loads((joined / INDEX).read_text())
    files = {path.name: load_file(path) for path in shards(joined)}
    assert sorted(files) == [f"model-{i:05}-of-00005.safetensors" for i in range(1, 6)]
    assert index["weight_map"] == {name: file for file, state in files.items() for name in state}
    assert index["metadata"]["total_size"] == sum(w.nbytes for state in files.values() for w in state.values())
    tokenizer = Reference.load(joined).tokenizer
    assert tokenizer.convert_tokens_to_ids(["<image>", "<video>"]) == [2046, 2047]
    assert [config["image_token_id"], config["video_token_id"]] == [2046, 2047]


def test_the_template_has_qwen2s_system_words_and_keeps_others(joined: Path) -> None:
    tokenizer = Reference.load(joined).tokenizer
    user = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Why?"}]}
    turn = "<|im_start|>user\n<video>\nWhy?<|im_end|>\n"
    for messages, system in (
        ([user], "You are a helpful assistant."),
        ([{"role": "system", "content": "Be brief."}, user], "Be brief."),
    ):
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        assert text == f"<|im_start|>system\n{system}<|im_end|>\n{turn}"


def test_the_delta_encoder_comes_out_as_it_went_in(delta: Path, joined: Path, tmp_path: Path) -> None:
    out = convert.split(joined, tmp_path / "out.safetensors")
    before, after = load_file(delta), load_file(out)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with safe_open(delta, "pt") as one, safe_open(out, "pt") as other:
        assert one.metadata() == other.metadata()
    assert [path.name for path in tmp_path.iterdir()] == ["out.safetensors"]


@pytest.mark.parametrize(
    ("runs", "changed"),
    [
        (None, []),
        ([{"scales": {"vision": 0, "projector": 0, "language": 0}}], []),
        ([{"scales": {"vision": 0}}, {"scales": {"vision": 0, "projector": 0}}], ["projector", "language"]),
    ],
)
def test_split_says_which_trained_parts_it_leaves_behind(
    joined: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], runs: list[object] | None, changed: list[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(joined, model)
    if runs is not None:
        (model / "training.json").write_text(json.dumps({"pretrain": {}, "finetune": runs}))
    assert convert.also_trained(model) == changed
    assert main(["convert", "split", str(model), str(tmp_path / "delta.safetensors")]) == 0
    said = capsys.readouterr().err
    assert (f"note: fine-tuning changed {', '.join(changed)} too" in said) if changed else not said


def test_another_delta_encoder_replaces_the_one_that_is_there(joined: Path, tmp_path: Path) -> None:
    tensors = load_file(convert.split(joined, tmp_path / "delta.safetensors"))
    bare = {name.removeprefix(DELTA): torch.zeros_like(tensor) for name, tensor in tensors.items()}
    save_file(bare, tmp_path / "zero.safetensors")  # neither full names nor settings: those of the directory hold
    out = convert.join(joined, tmp_path / "zero.safetensors", tmp_path / "cope")
    assert all(not tensor.any() for tensor in Reference.load(out).model.model.delta_encoder.state_dict().values())
    assert (out / "tokenizer.json").read_bytes() == (joined / "tokenizer.json").read_bytes()


def test_wrong_shapes_are_all_named(base: Path, delta: Path, tmp_path: Path) -> None:
    tensors = load_file(delta)
    first, second = sorted(tensors)[:2]
    changed = {**tensors, first: torch.zeros(3, 5), f"{DELTA}extra": torch.zeros(7)}
    del changed[second]
    save_file(changed, tmp_path / "bad.safetensors", metadata={convert.DELTA_METADATA: json.dumps(SETTINGS)})
    with pytest.raises(ValueError, match="do not make a model") as refused:
        convert.join(base, tmp_path / "bad.safetensors", tmp_path / "out")
    message = str(refused.value)
    assert f"{first} has shape (3, 5); the model needs {tuple(tensors[first].shape)}" in message
    assert f"{second} is missing; the model needs {tuple(tensors[second].shape)}" in message
    assert f"{DELTA}extra has shape (7,); the model has no such weight" in message
    assert [path.name for path in tmp_path.iterdir()] == ["bad.safetensors"]


def test_a_delta_file_without_settings_needs_a_preset(base: Path, delta: Path, tmp_path: Path) -> None:
    save_file(load_file(delta), tmp_path / "delta.safetensors")
    with pytest.raises(ValueError, match="name it with --preset"):
        convert.join(base, tmp_path / "delta.safetensors", tmp_path / "out")
    with pytest.raises(ValueError, match="unknown preset '8b'; known are 7b, 7b-light, tiny"):
        convert.join(base, tmp_path / "delta.safetensors", tmp_path / "out", preset="8b")
    with pytest.raises(ValueError, match=r"the model needs"):
        convert.join(base, tmp_path / "delta.safetensors", tmp_path / "out", preset="tiny")


def test_nothing_is_overwritten_unasked(base: Path, delta: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ValueError, match="out exists; --overwrite replaces it"):
        convert.join(base, delta, out)
    with pytest.raises(ValueError, match="is no model directory"):
        convert.join(base, delta, out, overwrite=True)
    (out / "config.json").write_text("{}")
    (out / "old.safetensors").write_text("old")
    convert.join(base, delta, out, overwrite=True)
    assert not (out / "old.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(ValueError, match="exists; --overwrite"):
        convert.split(out, out / "config.json")


def test_a_failure_leaves_nothing(base: Path, delta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert, "_save", full)
    with pytest.raises(OSError, match="No space left"):
        convert.join(base, delta, tmp_path / "out")
    with pytest.raises(OSError, match="No space left"):
        convert.save_delta(load_file(delta), load_config(base, **SETTINGS), tmp_path / "delta.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_one_shard_at_a_time_is_read_and_reported(base: Path, delta: Path, tmp_path: Path) -> None:
    steps: list[convert.Step] = []
    held: list[int] = []
    written = convert._save

    def save(state: dict[str, torch.Tensor], path: Path) -> None:
        held.append(sum(tensor.nbytes for tensor in state.values()))
        written(state, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convert, "_save", save)
        convert.join(base, delta, tmp_path / "out", tick=steps.append)
    total = sum(held)
    assert [step.done_bytes for step in steps] == [sum(held[: i + 1]) for i in range(5)]
    assert {step.total_bytes for step in steps} == {total}


def test_a_model_without_a_delta_encoder_has_none_to_split(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none of its weights is called model\.delta_encoder\."):
        convert.split(base, tmp_path / "delta.safetensors")


def test_a_missing_shard_is_named(base: Path, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text((base / INDEX).read_text())
    with pytest.raises(ValueError, match=r"lacks model-00001-of-00004\.safetensors, model-00002-of-00004"):
        shards(tmp_path)


@pytest.mark.parametrize("preset", ["7b", "7b-light"])
def test_every_weight_of_the_published_model_finds_its_place(preset: str) -> None:
    """At full size, by name: what the files hold, what the reference needs and what vLLM's prefixes know."""
    settings = {key: getattr(PRESETS[preset].delta, name) for key, name in DELTA_KEYS.items()}
    config = load_config_of_the_published_file(settings)
    with torch.device("meta"):
        ours = set(CoPEModel(config).state_dict())
    published = {published_name(name) for name in ours}
    assert "model.vision_tower.vision_tower.vision_model.encoder.layers.25.mlp.fc1.weight" in published
    assert "model.mm_projector.2.bias" in published
    assert "model.layers.27.mlp.up_proj.weight" in published
    assert {cope_name(name, config) for name in published} == {cope_name(name, config) for name in ours} == ours
    unused = "model.vision_tower.vision_tower.vision_model."
    for name in (
        f"{unused}encoder.layers.26.mlp.fc1.weight",
        f"{unused}head.probe",
        f"{unused}embeddings.position_ids",
    ):
        assert cope_name(name, config) is None
    assert all(name.startswith(tuple(vllm_prefixes())) for name in published | ours)


def load_config_of_the_published_file(settings: dict[str, object]) -> object:
    from llava import CONFIG

    from cope_model.llava import LlavaQwenConfig

    full = {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152064, "mm_hidden_size": 1152,
    }  # fmt: skip
    return LlavaQwenConfig.from_dict({**CONFIG, **full, **settings})
