"""The stages of a training run: each reads a model directory and data, trains, and writes a model directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator, PartialState
from safetensors.torch import save_file

from cope_codec import I_SLOT, P_SLOT
from cope_codec.options import VideoOptions
from cope_model.presets import Geometry
from cope_model.reference import CoPEModel
from cope_training import directories, finetune, identity, jobs, loop, network, primitives, qa
from cope_training.batches import Mixture, QuestionBatches
from cope_training.decoding import LR_SCALE, Decoded
from cope_training.files import read_json
from cope_training.growth import deepen
from cope_training.packing import Prompts
from cope_training.pretrain import NextFrame, PairBatches
from cope_training.qa import Clip
from cope_training.views import layout_of
from cope_training.vision import Labelling, PictureBatches

MODEL = "model"  # the directory of a stage's result, within its folder
Objective = Literal["next-frame", "decode"]
NEXT_FRAME = "next_frame.safetensors"
_TEXT_TOKENS = 512  # of a context, kept for questions and answers


def open_data(
    data: Sequence[Path], cache: Path, *, side: int, options: VideoOptions, workers: int
) -> tuple[list[Clip], primitives.Cache]:
    """Read annotations and the primitives of their videos; says which records and videos cannot be used.

    Raises:
        ValueError: no question, or not one usable video.
    """
    bad: list[tuple[str, str]] = []
    clips = qa.read(data, lambda name, reason: bad.append((name, reason)))
    _name(bad, f"bad records skipped: {len(bad)}; questions left: {sum(len(clip.questions) for clip in clips)}")
    return clips, open_videos(clips, cache, side=side, options=options, workers=workers)


def open_videos(
    clips: Sequence[Clip], cache: Path, *, side: int, options: VideoOptions, workers: int
) -> primitives.Cache:
    """Read the primitives of clips' videos; says which cannot be used.

    Raises:
        ValueError: not one of them can.
    """
    found = primitives.build(
        cache, [clip.path for clip in clips], [clip.name for clip in clips], options=options, side=side, workers=workers
    )
    _name(found.skipped, f"skipped {len(found.skipped)} of {len(clips)} videos")
    return found


def without_long(
    found: primitives.Cache, geometry: Geometry, keyframes: int, context: int, prompts: Prompts | None = None
) -> primitives.Cache:
    """Leave out videos that a model's context cannot hold; says which.

    Args:
        found: all videos.
        geometry: the model's token account.
        keyframes: the most per GOP that a video is shown with.
        context: positions of the language model.
        prompts: the model's, if it is told the times of a video.

    Raises:
        ValueError: none is left.
    """
    most = context - _TEXT_TOKENS
    videos: list[primitives.CachedVideo | None] = []
    long: list[tuple[str, str]] = []
    for video in found.videos:
        layouts = [layout_of(layout, keyframes) for layout in video.layouts] if video else []
        tokens = sum(geometry.tokens(layout.count(I_SLOT), layout.count(P_SLOT)) for layout in layouts)
        words = f"{tokens} visual tokens"
        if video and prompts is not None:
            told = prompts.instruction(video.seconds, [time for gop in video.timestamps_s for time in gop])
            of_times = len(prompts.told(told))
            tokens, words = tokens + of_times, f"{words} and {of_times} of their times" if of_times else words
        if video and tokens > most:
            long.append((video.name, f"{words} are too many for a context of {context}; see --max-gops"))
        videos.append(video if tokens <= most else None)
    _name(long, f"skipped {len(long)} of {len(videos)} videos")
    if all(video is None for video in videos):
        raise ValueError(f"none of the {len(videos)} videos fits into the model's context; {long[0][0]}: {long[0][1]}")
    return primitives.Cache(tuple(videos), (*found.skipped, *long))


def _name(skipped: Sequence[tuple[str, str]], summary: str) -> None:
    if not PartialState().is_main_process:  # every process finds the same
        return
    for name, reason in skipped:
        jobs.stderr.print(f"skipped {name}: {reason}", markup=False, highlight=False, soft_wrap=True)
    if skipped:
        jobs.stderr.print(summary, highlight=False, soft_wrap=True)


def train_vision(preset: str, out: Path, settings: loop.Settings, *, stop_at: int | None = None) -> list[float]:
    """Stage 0: a preset's vision encoder, from nothing.

    Args:
        preset: name of the model's shape; the weights of all other parts are drawn.
        out: folder of the run.
        settings: how to train.
        stop_at: see `loop.train`.

    Returns:
        The loss of every step.
    """
    accelerator = loop.make_accelerator(settings)
    model = directories.fresh(preset, settings.seed)
    vision = model.config.vision_config
    torch.manual_seed(settings.seed + 1)
    objective = Labelling(model)
    batches = PictureBatches(
        vision.image_size,
        vision.patch_size,
        size=settings.batch,
        seed=settings.seed,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    groups = [loop.Group(list(objective.parameters()))]
    defining = {"stage": "vision", "preset": preset}
    losses = loop.train(
        accelerator, objective, groups, batches, settings, out, "vision", defining=defining, stop_at=stop_at
    )
    if accelerator.is_main_process and len(losses) == settings.steps:
        directories.save(model, preset, out / MODEL, facts={"vision": asdict(settings)})
    accelerator.wait_for_everyone()
    return losses


def pretrain(
    source: Path,
    data: Sequence[Path],
    cache: Path,
    out: Path,
    settings: loop.Settings,
    *,
    options: VideoOptions,
    flips: bool,
    workers: int,
    objective_name: Objective = "next-frame",
    delta_preset: str | None = None,
    stop_at: int | None = None,
) -> list[float]:
    """Stage 1: the delta-encoder alone.

    Args:
        source: model directory or published checkpoint; a delta-encoder that it lacks is drawn.
        data, cache, options, workers: see `open_data`.
        out: folder of the run.
        settings: how to train.
        flips: mirror frames at random.
        objective_name: `next-frame`, against the frozen vision encoder as in the paper, or `decode`, see `decoding`.
        delta_preset: see `directories.load`.
        stop_at: see `loop.train`.

    Returns:
        The loss of every step.
    """
    accelerator = loop.make_accelerator(settings)
    kept = _kept(accelerator, [name for name in network.PARTS if name != "delta"])
    model = directories.load(source, missing_delta=True, delta_preset=delta_preset, seed=settings.seed, kept=kept)
    begun = identity.of_model(model)
    with accelerator.main_process_first():
        clips, found = open_data(data, cache, side=model.config.geometry.side, options=options, workers=workers)
    model.model.vision_tower.to(accelerator.device)  # the language model takes no part: it need not fit
    torch.manual_seed(settings.seed + 2)
    objective = NextFrame(model) if objective_name == "next-frame" else Decoded(model)
    batches = PairBatches(
        found.videos,
        size=settings.batch,
        seed=settings.seed,
        flips=flips,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    groups = [loop.Group(list(objective.parameters()))]
    if isinstance(objective, Decoded):
        groups = [
            loop.Group(list(objective.delta.parameters())),
            loop.Group(list(objective.decoding.parameters()), LR_SCALE),
        ]
    defining = {
        "stage": "pretrain",
        "objective": objective_name,
        "model": begun,
        "data": identity.of_data(clips, found.videos),
        "flips": flips,
        **asdict(options),
    }
    losses = loop.train(
        accelerator, objective, groups, batches, settings, out, "pretrain", defining=defining, stop_at=stop_at
    )
    if accelerator.is_main_process and len(losses) == settings.steps:
        name = "pretrain" if isinstance(objective, NextFrame) else "decode"
        facts = {**_facts(source), name: {**asdict(settings), "skipped": len(found.skipped)}}
        directories.save(model, source, out / MODEL, facts=facts)
        if isinstance(objective, NextFrame):
            state = objective.state_dict()
            own = {name: tensor.cpu() for name, tensor in state.items() if not name.startswith("delta.")}
            save_file(own, out / NEXT_FRAME)
    accelerator.wait_for_everyone()
    return losses


def tune(
    source: Path,
    data: Sequence[Path],
    cache: Path,
    out: Path,
    settings: loop.Settings,
    *,
    options: VideoOptions,
    mixture: Mixture,
    scales: Mapping[str, float],
    workers: int,
    layers: int | None = None,
    focus: bool = False,
    decode: float = 0.0,
    gradient_checkpointing: bool = False,
    dtype: str = "auto",
    delta_preset: str | None = None,
    stop_at: int | None = None,
) -> list[float]:
    """Stage 2: end to end on questions.

    Args:
        source: model directory or published checkpoint; a delta-encoder that it lacks is drawn.
        data, cache, options, workers: see `open_data`.
        out: folder of the run.
        settings: how to train.
        mixture: how clips are shown.
        scales: share of the learning rate by part of the model; 0 freezes it.
        layers: make the language model that deep first (`growth.deepen`).
        focus, decode: see `finetune.Answering`.
        gradient_checkpointing: compute activations again instead of keeping them (`network.save_memory`).
        dtype: of the weights that are written, see `directories.save`.
        delta_preset: see `directories.load`.
        stop_at: see `loop.train`.

    Returns:
        The loss of every step.
    """
    accelerator = loop.make_accelerator(settings)
    kept = _kept(accelerator, [name for name in network.PARTS if scales.get(name, 1.0) == 0])
    model = directories.load(source, missing_delta=True, delta_preset=delta_preset, seed=settings.seed, kept=kept)
    begun = identity.of_model(model)
    if layers is not None:
        deepen(model, layers, settings.seed)
    if gradient_checkpointing:
        network.save_memory(model)
    config = model.config
    video_token = directories.video_token(config)
    with accelerator.main_process_first():
        clips, found = open_data(data, cache, side=config.geometry.side, options=options, workers=workers)
    context = config.text_config.max_position_embeddings
    prompts = directories.prompts(source, config)
    found = without_long(found, config.geometry, max(mixture.keyframes), context, prompts)
    batches = QuestionBatches(
        clips,
        found.videos,
        prompts=prompts,
        geometry=config.geometry,
        video_token=video_token,
        mixture=mixture,
        size=settings.batch,
        seed=settings.seed,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    groups = finetune.choose(model, scales)
    torch.manual_seed(settings.seed + 3)
    objective = finetune.Answering(model, focus=focus, decode=decode)
    if decode:
        groups.append(loop.Group(list(objective.decoding.parameters()), LR_SCALE))
    defining = {
        "stage": "finetune",
        "model": begun,
        "data": identity.of_data(clips, found.videos),
        **asdict(options),
        **asdict(mixture),
        "part_lr": {name: scales.get(name, 1.0) for name in network.PARTS},
        "layers": config.text_config.num_hidden_layers,
        "focus": focus,
        "decode": decode,
    }
    losses = loop.train(
        accelerator, objective, groups, batches, settings, out, "finetune", defining=defining, stop_at=stop_at
    )
    if accelerator.is_main_process and len(losses) == settings.steps:
        before = _facts(source)
        run = {
            **asdict(settings),
            "mixture": asdict(mixture),
            "scales": dict(scales),
            "layers": config.text_config.num_hidden_layers,
            "focus": focus,
            "decode": decode,
            "gradient_checkpointing": gradient_checkpointing,
            "clips": len(clips),
            "skipped": len(found.skipped),
        }
        facts = {**before, "finetune": [*before.get("finetune", []), run]}  # a model may be tuned several times
        directories.save(model, source, out / MODEL, dtype=dtype, facts=facts)
    accelerator.wait_for_everyone()
    return losses


def _kept(accelerator: Accelerator, frozen: Sequence[str]) -> Sequence[str]:
    """Frozen parts need no more bits than bfloat16 if the run computes in it."""
    return frozen if accelerator.mixed_precision == "bf16" else ()


def load_next_frame(model: CoPEModel, path: Path) -> NextFrame:
    """The predictor that stage 1 left, around a model's delta-encoder.

    Raises:
        OSError: there is no such file.
    """
    from safetensors.torch import load_file

    if not path.is_file():
        raise FileNotFoundError(2, "stage 1 has left no predictor", str(path))
    objective = NextFrame(model)
    state = {f"delta.{name}": tensor for name, tensor in objective.delta.state_dict().items()}
    objective.load_state_dict({**state, **load_file(path)})
    return objective


def _facts(source: Path) -> dict[str, Any]:
    """How the model that a stage begins with was made."""
    path = source / "training.json"
    return dict(read_json(path)) if path.is_file() else {}
