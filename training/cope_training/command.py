"""`cope train`: synthetic data, the training stages, evaluation."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `cope train` and its subcommands."""
    commands = parser.add_subparsers(dest="stage", metavar="STAGE", required=True)
    _add_make_data(commands.add_parser("make-data", help="draw and encode clips with questions"))
    _add_vision(commands.add_parser("vision", help="stage 0: a small model's vision encoder, on drawn pictures"))
    _add_pretrain(commands.add_parser("pretrain", help="stage 1: the delta-encoder against the frozen vision encoder"))
    _add_finetune(commands.add_parser("finetune", help="stage 2: end to end on questions about videos"))
    _add_eval(commands.add_parser("eval", help="accuracies, baselines and ablations on held-out questions"))


def run(arguments: argparse.Namespace) -> int:
    """Run a stage."""
    if arguments.workers is None:
        from cope_training import jobs

        arguments.workers = jobs.cores()
    if arguments.workers < 1:
        raise ValueError(f"workers must be at least 1, not {arguments.workers}")
    stages = {
        "make-data": _make_data,
        "vision": _vision,
        "pretrain": _pretrain,
        "finetune": _finetune,
        "eval": _eval,
    }
    stages[arguments.stage](arguments)
    return 0


def _workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=int, metavar="W", help="processes that make data (default: all cores)")


def _add_make_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; a killed run goes on where it stopped")
    parser.add_argument("--clips", type=int, default=15000, metavar="N", help="how many (default 15000)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="other seeds give other clips (default 0)")
    parser.add_argument(
        "--held-out", action="store_true", help="textures, wordings and scenes that training sets never have"
    )
    parser.add_argument(
        "--kinds", default="", metavar="KIND,...", help="stories that take turns, instead of all by their usual shares"
    )
    _workers(parser)


def _add_loop(parser: argparse.ArgumentParser, *, steps: int, lr: float, batch: int, warmup: int) -> None:
    group = parser.add_argument_group("training")
    group.add_argument("--steps", type=int, default=steps, help=f"optimiser steps (default {steps})")
    group.add_argument("--batch", type=int, default=batch, help=f"samples per step and process (default {batch})")
    group.add_argument("--accumulate", type=int, default=1, help="batches per step (default 1)")
    group.add_argument("--lr", type=float, default=lr, help=f"peak learning rate (default {lr:g})")
    group.add_argument("--warmup", type=int, default=warmup, help=f"warm-up steps (default {warmup})")
    group.add_argument("--weight-decay", type=float, default=0.05, help="of matrices (default 0.05)")
    group.add_argument("--clip", type=float, default=1.0, help="largest norm of the gradient (default 1)")
    group.add_argument("--precision", choices=("auto", "no", "bf16"), default="auto", help="default auto")
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--save-every", type=int, default=100, help="steps between states to resume from (default 100)")
    group.add_argument("--log-every", type=int, default=10, help="steps between logged points (default 10)")
    group.add_argument("--loaders", type=int, default=0, help="processes that make batches (default: this one)")
    _workers(parser)


def _settings(arguments: argparse.Namespace) -> Any:
    from dataclasses import fields

    from cope_training.loop import Settings

    return Settings(**{field.name: getattr(arguments, field.name) for field in fields(Settings)})


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        required=True,
        help="folders with annotations.json, or LLaVA-Video's JSON",
    )
    parser.add_argument("--cache", type=Path, help="folder for extracted primitives (default: beside the first data)")
    parser.add_argument("--fps", type=float, default=1.0, help="slots per second (default 1)")
    parser.add_argument("--mode", choices=("auto", "native", "transcode", "paper"), default="auto", help="default auto")
    parser.add_argument("--max-gops", type=int, default=64, help="sample longer videos to this many GOPs (default 64)")


def _options(arguments: argparse.Namespace) -> Any:
    from cope_codec import VideoOptions

    return VideoOptions(fps=arguments.fps, mode=arguments.mode, max_gops=arguments.max_gops)


def _cache(arguments: argparse.Namespace) -> Path:
    first: Path = arguments.data[0]
    home = first if first.is_dir() else first.parent
    return Path(arguments.cache or home / "cache")


def _add_vision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--preset", default="tiny", help="shape of the model (default tiny)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; the model will be OUT/model")
    _add_loop(parser, steps=600, lr=1e-3, batch=32, warmup=50)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", type=Path, required=True, help="CoPE directory or LLaVA-Video checkpoint to begin with"
    )
    parser.add_argument(
        "--delta-preset",
        metavar="PRESET",
        help="shape of the delta-encoder that is drawn if the model has none: 7b, 7b-light, tiny (default: what its "
        "config.json says, or 7b)",
    )


def _add_pretrain(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; the model will be OUT/model")
    _add_data(parser)
    parser.add_argument("--no-flips", action="store_true", help="do not mirror frames at random")
    parser.add_argument(
        "--objective",
        choices=("next-frame", "decode"),
        default="next-frame",
        help="predict the vision encoder's tokens (the paper's, default), or tell where motion and residuals are",
    )
    _add_loop(parser, steps=400, lr=5e-4, batch=64, warmup=50)


def _add_finetune(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; the model will be OUT/model")
    _add_data(parser)
    group = parser.add_argument_group("samples")
    group.add_argument(
        "--keyframes",
        default="4",
        metavar="K,...",
        help="keyframes per GOP to choose from, repeated ones more often (default 4)",
    )
    group.add_argument("--questions", type=int, default=8, help="at most that many of a clip at once (default 8)")
    group.add_argument("--zeroed", type=float, default=0.12, help="share of clips without delta-tokens (default 0.12)")
    group.add_argument("--without", type=float, default=0.05, help="share of clips without P slots (default 0.05)")
    group.add_argument(
        "--groups",
        default="",
        metavar="G,...",
        help="ask only these groups or types of questions; TYPE+: only about one of several things (default all)",
    )
    group.add_argument("--no-flips", action="store_true", help="do not mirror clips and their answers at random")
    group.add_argument(
        "--no-rewording",
        action="store_true",
        help="ask in the data's words, not in other wordings of the same questions",
    )
    group.add_argument(
        "--no-balance", action="store_true", help="every answer weighs the same, not every question type"
    )
    group.add_argument(
        "--layers",
        type=int,
        metavar="N",
        help="deepen the language model to N layers first, a multiple of its own; new ones begin by adding nothing",
    )
    group.add_argument("--focus", action="store_true", help="what is still answered wrong weighs more")
    group.add_argument(
        "--decode",
        type=float,
        default=0.0,
        metavar="X",
        help="weight of telling from delta-tokens where motion and residuals are (default 0)",
    )
    group.add_argument(
        "--part-lr",
        action="append",
        default=[],
        metavar="PART=X",
        help="share of the learning rate of vision, projector, delta or language; 0 freezes it (default 1 each)",
    )
    group.add_argument(
        "--gradient-checkpointing",
        action="store_true",
        help="compute activations again on the way back: a third more time, far less memory for long videos",
    )
    group.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16", "float16"),
        default="auto",
        help="of the weights that are written (default auto: as they were trained, frozen ones as they were stored)",
    )
    _add_loop(parser, steps=3000, lr=1e-3, batch=32, warmup=150)


def _add_eval(parser: argparse.ArgumentParser) -> None:
    from cope_training.rows import ROWS

    parser.add_argument("model", type=Path, metavar="MODEL", help="model directory")
    parser.add_argument("data", type=Path, nargs="+", metavar="DATA", help="held-out data")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--cache", type=Path, help="folder for extracted primitives (default: beside the first data)")
    parser.add_argument("--limit", type=int, help="questions per type at most (default all)")
    parser.add_argument(
        "--rows-limit", type=int, metavar="N", help="the same of all rows but the model's own (default: --limit)"
    )
    parser.add_argument(
        "--rows",
        default="all",
        metavar="R,...",
        help=f"what else to measure: all, none, {', '.join(ROWS)}",
    )
    parser.add_argument("--no-pretrain", type=Path, metavar="MODEL", help="a model trained without stage 1")
    parser.add_argument("--pretrained", type=Path, metavar="RUN", help="stage 1's folder, for next-frame retrieval")
    parser.add_argument("--server", metavar="URL", help="ask a running server too, for the headline rows")
    parser.add_argument("--batch", type=int, default=16, help="clips at once (default 16)")
    _workers(parser)


def _make_data(arguments: argparse.Namespace) -> None:
    from cope_training import jobs, make_data

    recipe = make_data.Recipe(arguments.clips, arguments.seed, arguments.held_out, arguments.kinds)
    path = make_data.make(arguments.out, recipe, arguments.workers)
    jobs.stderr.print(f"wrote {path}", soft_wrap=True)


def _vision(arguments: argparse.Namespace) -> None:
    from cope_training import stages

    stages.train_vision(arguments.preset, arguments.out, _settings(arguments))


def _from_data(arguments: argparse.Namespace) -> tuple[Path, list[Path], Path, Path, Any]:
    """What both stages on videos begin with: model, data, cache, folder of the run, how to train."""
    return arguments.model, arguments.data, _cache(arguments), arguments.out, _settings(arguments)


def _pretrain(arguments: argparse.Namespace) -> None:
    from cope_training import stages

    stages.pretrain(
        *_from_data(arguments),
        options=_options(arguments),
        flips=not arguments.no_flips,
        workers=arguments.workers,
        objective_name=arguments.objective,
        delta_preset=arguments.delta_preset,
    )


def _finetune(arguments: argparse.Namespace) -> None:
    from cope_training import stages
    from cope_training.batches import Mixture

    mixture = Mixture(
        keyframes=tuple(_numbers("keyframes", arguments.keyframes)),
        questions=arguments.questions,
        zeroed=arguments.zeroed,
        without=arguments.without,
        flips=not arguments.no_flips,
        reword=not arguments.no_rewording,
        balance=not arguments.no_balance,
        groups=tuple(name for name in arguments.groups.split(",") if name),
    )
    stages.tune(
        *_from_data(arguments),
        options=_options(arguments),
        mixture=mixture,
        scales=dict(_share(text) for text in arguments.part_lr),
        workers=arguments.workers,
        layers=arguments.layers,
        focus=arguments.focus,
        decode=arguments.decode,
        gradient_checkpointing=arguments.gradient_checkpointing,
        dtype=arguments.dtype,
        delta_preset=arguments.delta_preset,
    )


def _eval(arguments: argparse.Namespace) -> None:
    from cope_training import evaluate

    evaluate.command(
        arguments.model,
        arguments.data,
        _cache(arguments),
        rows_text=arguments.rows,
        limit=arguments.limit,
        rows_limit=arguments.rows_limit,
        batch=arguments.batch,
        workers=arguments.workers,
        no_pretrain=arguments.no_pretrain,
        pretrained=arguments.pretrained,
        server=arguments.server,
        as_json=arguments.json,
    )


def _numbers(name: str, text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(f"{name} must be whole numbers with commas between, not {text!r}") from None


def _share(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise ValueError(f"part-lr must look like vision=0.1, not {text!r}") from None
