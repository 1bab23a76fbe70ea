"""Both stages begin with a published LLaVA-Video checkpoint, and what they write is a model that serves and splits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from llava import SIDE, write_llava
from safetensors.torch import load_file, save_file

import cope_codec
from cope_codec import VideoOptions
from cope_model import convert
from cope_model.llava import load_config
from cope_model.presets import PRESETS
from cope_model.reference import CoPEModel, Reference
from cope_model.weights import DELTA, cope_name
from cope_server.cli import main
from cope_training import answering, directories, network, primitives, qa
from cope_training.answering import Pair
from cope_training.batches import Batch, instruction_of, pack, tokens_of
from cope_training.stages import without_long
from cope_training.views import View, show


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llava(tmp_path_factory.mktemp("base"), whole_tower=True)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def train(stage: str, model: Path, data: Path, cache: Path, out: Path, *more: str) -> Path:
    words = ["train", stage, "--model", str(model), "--data", str(data), "--cache", str(cache), "--out", str(out)]
    words += ["--steps", "2", "--batch", "2", "--warmup", "1", "--workers", "1", "--precision", "no"]
    assert main([*words, *more]) == 0
    return out / "model"


def test_both_stages_and_out_and_in_again(base: Path, data: Path, cache: Path, tmp_path: Path) -> None:
    first = train("pretrain", base, data, cache, tmp_path / "one", "--delta-preset", "tiny")
    frozen = [word for part in ("vision", "projector", "language") for word in ("--part-lr", f"{part}=0")]
    second = train("finetune", first, data, cache, tmp_path / "two", *frozen)
    delta = convert.split(second, tmp_path / "delta.safetensors")
    joined = convert.join(base, delta, tmp_path / "joined")

    written, again = Reference.load(second), Reference.load(joined)
    one, other = written.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert written.model.config.to_dict() == again.model.config.to_dict()
    for name in ("tokenizer.json", "chat_template.jinja", "preprocessor_config.json", "generation_config.json"):
        assert (second / name).read_bytes() == (joined / name).read_bytes()
    drawn = directories.load(base, missing_delta=True, delta_preset="tiny").state_dict()
    before = load_file(first / "model.safetensors")
    for name, tensor in one.items():  # stage 1 and stage 2 changed the delta-encoder, and only that
        assert torch.equal(tensor, before[name]) != name.startswith(DELTA)
        assert torch.equal(before[name], drawn[name]) != name.startswith(DELTA)

    clip = next(clip for clip in qa.read([data]))
    content = [
        {"type": "video", "video": list(cope_codec.open(clip.path, keyframes_per_gop=2).gops(SIDE)), "seconds": 7.4},
        {"type": "text", "text": "What moves?"},
    ]
    answer = written.generate([{"role": "user", "content": content}], 4)
    assert len(answer.token_ids) > 0
    assert answer == again.generate([{"role": "user", "content": content}], 4)


def test_stage_two_alone_gives_a_base_its_delta_encoder(base: Path, data: Path, cache: Path, tmp_path: Path) -> None:
    model = train("finetune", base, data, cache, tmp_path, "--delta-preset", "tiny", "--part-lr", "vision=0")
    trained = Reference.load(model).model
    drawn = directories.load(base, missing_delta=True, delta_preset="tiny")
    assert trained.config.delta == drawn.config.delta
    assert trained.config.delta.width == PRESETS["tiny"].delta.width
    changed = {
        name for name, tensor in trained.state_dict().items() if not torch.equal(drawn.state_dict()[name], tensor)
    }
    for part in ("delta_encoder", "multi_modal_projector", "language_model"):
        assert any(part in name for name in changed)
    assert not any("vision_tower" in name for name in changed)


def test_what_is_drawn_hangs_on_the_seed_and_the_preset(base: Path) -> None:
    one, same, other = (
        directories.load(base, missing_delta=True, delta_preset="tiny", seed=seed).state_dict() for seed in (1, 1, 2)
    )
    changed = {name for name in one if not torch.equal(one[name], other[name])}
    assert changed and all(name.startswith(DELTA) for name in changed)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert all(tensor.isfinite().all() for tensor in one.values())
    light = directories.load(base, missing_delta=True, delta_preset="7b-light")
    assert light.config.delta_width == PRESETS["7b-light"].delta.width
    # Published weights come as the reference reads them.
    read = Reference.load(base, delta_width=128, delta_layers=2, delta_trunk_width=12, delta_heads=4)
    assert all(torch.equal(one[name], w) for name, w in read.model.state_dict().items() if not name.startswith(DELTA))


def test_a_base_that_says_the_shape_needs_no_preset(tmp_path: Path) -> None:
    said = {"delta_width": 64, "delta_layers": 1, "delta_heads": 4, "delta_trunk_width": 8}
    model = directories.load(write_llava(tmp_path, **said), missing_delta=True)
    assert {key: getattr(model.config, key) for key in said} == said


def test_the_papers_widths_are_drawn_unless_told_otherwise(base: Path) -> None:
    settings = directories._config(base, False, None).delta
    assert (settings.width, settings.layers, settings.heads) == (1152, 4, 9)
    assert load_config(base).delta.width != 1152


@pytest.fixture(scope="module")
def told(base: Path, data: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CoPEModel, Pair]:
    """A model directory of the base, its model, and a clip whose own vectors are used."""
    model = directories.load(base, missing_delta=True, delta_preset="tiny")
    directory = tmp_path_factory.mktemp("told") / "model"
    directories.save(model, base, directory)
    clip = next(clip for clip in qa.read([data]) if cope_codec.open(clip.path).plan.mode == "native")
    found = primitives.build(cache, [clip.path], [clip.name], options=VideoOptions(), side=SIDE, workers=1)
    video = found.videos[0]
    assert video is not None
    return directory, model.eval(), (clip, video)


def test_questions_come_with_the_times_that_the_reference_tells(base: Path, told: tuple[Path, CoPEModel, Pair]) -> None:
    directory, model, (clip, video) = told
    prompts = directories.prompts(base, model.config)
    gops = [show(gop, View(2)) for gop in video.gops()]
    questions = clip.questions[:2]
    tokens = tokens_of(gops, model.config.geometry)
    tree = pack(prompts, questions, tokens, instruction_of(prompts, video, gops))
    opened = cope_codec.open(clip.path, keyframes_per_gop=2)
    part = {"type": "video", "video": list(opened.gops(SIDE)), "seconds": opened.length_s}
    token = model.config.video_token_id
    for loaded in (Reference.load(directory), Reference.load(base)):
        theirs = loaded.model.config.video_token_id
        for segment, question in zip((1, 3), questions, strict=True):
            message = {"role": "user", "content": [part, {"type": "text", "text": question.text}]}
            expected = [token if id_ == theirs else id_ for id_ in loaded.generate([message], 0).prompt_token_ids]
            seen = [id_ for id_, owner in zip(tree.ids, tree.segments, strict=True) if owner in (0, segment)]
            assert seen == expected
            words = loaded.tokenizer.decode([id_ for id_ in seen if id_ != token])
            assert f"The video lasts for {opened.length_s:.2f} seconds, and 8 frames" in words


def test_evaluation_tells_the_times_too(told: tuple[Path, CoPEModel, Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    directory, model, (clip, video) = told
    prompts = directories.prompts(directory, model.config)
    asked = replace(clip, questions=tuple(question for question in clip.questions if question.options)[:1])
    seen: list[list[int]] = []
    real = network.target_logits

    def watched(model: CoPEModel, batch: Batch) -> torch.Tensor:
        seen.append(batch.ids[0].tolist())
        return real(model, batch)

    monkeypatch.setattr(network, "target_logits", watched)
    answering.answer(model, prompts, [(asked, video)], View(1), batch=1, description="test")
    gops = [show(gop, View(1)) for gop in video.gops()]
    instruction = instruction_of(prompts, video, gops)
    assert instruction is not None
    root = prompts.root(tokens_of(gops, model.config.geometry), asked.questions[0].text, instruction)
    assert seen[0][: len(root)] == root


def test_a_video_whose_times_do_not_fit_is_left_out(told: tuple[Path, CoPEModel, Pair]) -> None:
    directory, model, (_, video) = told
    prompts, geometry = directories.prompts(directory, model.config), model.config.geometry
    tokens = geometry.tokens(1, 7)
    words = len(prompts.told(prompts.instruction(video.seconds, video.timestamps_s[0])))
    found = primitives.Cache((video, replace(video, layouts=((0,),), timestamps_s=((0.0,),))), ())
    context = tokens + words + 512
    assert without_long(found, geometry, 1, context, prompts).videos == found.videos
    assert without_long(found, geometry, 1, context - 1, prompts).videos == (None, found.videos[1])
    assert without_long(found, geometry, 1, context - 1).videos == found.videos


def test_frozen_parts_stay_in_bfloat16_and_checkpointing_changes_no_loss(
    data: Path, cache: Path, tmp_path: Path
) -> None:
    (tmp_path / "base").mkdir()
    base = write_llava(tmp_path / "base", torch_dtype="bfloat16")
    for path in base.glob("*.safetensors"):
        save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path)
    stored = {name: tensor for path in base.glob("*.safetensors") for name, tensor in load_file(path).items()}
    recipe = ["--delta-preset", "tiny", "--part-lr", "vision=0", "--part-lr", "language=0", "--precision", "bf16"]
    recipe += ["--zeroed", "0", "--without", "0", "--save-every", "1"]
    model = train("finetune", base, data, cache, tmp_path / "plain", *recipe)
    again = train("finetune", base, data, cache, tmp_path / "again", *recipe, "--gradient-checkpointing")
    config, written = load_config(base), load_file(model / "model.safetensors")
    frozen = ("model.vision_tower.", "model.language_model.", "lm_head.")
    for theirs, tensor in stored.items():
        name = cope_name(theirs, config)
        assert name is not None
        assert written[name].dtype == (torch.bfloat16 if name.startswith(frozen) else torch.float32)
        assert torch.equal(written[name], tensor.to(written[name].dtype)) == name.startswith(frozen)
    states = [torch.load(folder.parent / "state.pt", weights_only=True) for folder in (model, again)]
    assert not any(name.removeprefix("model.").startswith(frozen) for name in states[0]["objective"])
    assert states[1]["losses"] == pytest.approx(states[0]["losses"], rel=2e-3)
    Reference.load(model)


def test_mistakes_are_named(base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"has no delta-encoder: none of its weights is called model\.delta_encoder"):
        directories.load(base)
    words = ["train", "pretrain", "--data", str(data), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main([*words, "--model", str(base), "--delta-preset", "8b"]) == 2
    assert "unknown preset '8b'; known are 7b, 7b-light, tiny" in capsys.readouterr().err
    model = directories.load(base, missing_delta=True, delta_preset="tiny")
    directories.save(model, base, tmp_path / "model")
    with pytest.raises(ValueError, match=r"delta_preset: .* has a delta-encoder, none is drawn"):
        directories.load(tmp_path / "model", missing_delta=True, delta_preset="tiny")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["delta_trunk_width"] = 16
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"residual\.trunk\..* has shape .*; the model needs"):
        directories.load(tmp_path / "model")
