"""Puts a finished run of `cope_tiny.sh` into the package as the bundled model, with a model card of its figures.

python training/runs/bundle.py OUT
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from pathlib import Path
from typing import Any

from safetensors import safe_open

_HERE = Path(__file__).parent
_TARGET = _HERE.parents[1] / "model_plugin" / "cope_model" / "data" / "cope-tiny"
_LARGEST = 24_000_000  # bytes of weights that a package may hold
_COLUMNS = {
    "delta_zeroed": "delta-tokens zeroed",
    "i_only": "keyframe only",
    "motion_tokens_only": "motion tokens only",
    "residual_tokens_only": "residual tokens only",
}


def by_type(report: dict[str, Any]) -> str:
    """Accuracies of every question type as a Markdown table."""
    headings = [
        "group",
        "question type",
        "n",
        "accuracy",
        "95% interval",
        "chance",
        "object unknown",
        *_COLUMNS.values(),
    ]
    lines = ["| " + " | ".join(headings) + " |", "|---|---|" + "---:|" * (len(headings) - 2)]
    for name, row in report["by_type"].items():
        unknown = "" if row["object_unknown"] is None else f"{row['object_unknown']:.0f}"
        cells = [row["group"], f"`{name}`", str(row["questions"]), f"**{row['acc']:.1f}**"]
        cells += ["{:.0f} to {:.0f}".format(*row["ci95"]), f"{row['chance']:.0f}"]
        cells += [unknown, *(f"{report[column]['by_type'][name]:.0f}" for column in _COLUMNS)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def by_keyframes(report: dict[str, Any]) -> str:
    """Group means with and without delta-tokens, for every number of keyframes, as a Markdown table."""
    lines = ["| keyframes per GOP | shown | motion | appearance | binding |", "|---:|---|---:|---:|---:|"]
    for count, both in report["by_keyframes"].items():
        for name, means in both.items():
            shown = {"i_and_delta": "keyframes and delta-tokens", "i_only": "keyframes only"}[name]
            figures = " | ".join(f"{means[group]:.1f}" for group in ("motion", "appearance", "binding"))
            lines.append(f"| {count} | {shown} | {figures} |")
    return "\n".join(lines)


def card(report: dict[str, Any], facts: dict[str, Any], parameters: int, layers: int) -> str:
    """The model card."""
    runs: list[tuple[str, Any]] = [(name, facts[name]) for name in ("vision", "pretrain") if name in facts]
    tuned = [(f"finetune, part {number}", run) for number, run in enumerate(facts["finetune"], 1)]
    # The delta-encoder is trained against the primitives after the part on pictures alone, see `cope_tiny.sh`.
    if "decode" in facts:
        tuned.insert(min(2, len(tuned)), ("decode", facts["decode"]))
    runs += tuned
    stages = "\n".join(
        f"- **{name}**: {run['steps']:,} steps of {run['batch']}, learning rate {run['lr']:g}{_asked(run)}"
        for name, run in runs
    )
    figures = {name: f"{report[name]:.1f}" for name in ("motion_acc", "appearance_acc", "binding_acc")}
    return (
        (_HERE / "model_card.md")
        .read_text(encoding="utf-8")
        .format(
            parameters=parameters,
            layers=layers,
            clips=facts["finetune"][-1]["clips"],
            stages=stages,
            chances=", ".join(f"{report['chance'][name]:.0f}" for name in ("motion", "appearance", "binding")),
            by_type=by_type(report),
            by_keyframes=by_keyframes(report),
            **figures,
        )
    )


def _asked(run: dict[str, Any]) -> str:
    """Which questions a part of stage 2 asked, if not all."""
    groups = run.get("mixture", {}).get("groups")
    return f"; only {', '.join(f'`{name}`' for name in groups)}" if groups else ""


def bundle(out: Path, target: Path = _TARGET) -> None:
    """Copy the model and its figures, and write the card.

    Raises:
        ValueError: the weights are too large to ship.
    """
    model = out / "finetune-last" / "model"
    weights = model / "model.safetensors"
    if weights.stat().st_size > _LARGEST:
        raise ValueError(f"{weights} has {weights.stat().st_size:,} bytes; at most {_LARGEST:,} are shipped")
    report = json.loads((out / "eval.json").read_text(encoding="utf-8"))
    facts = json.loads((model / "training.json").read_text(encoding="utf-8"))
    with safe_open(weights, "pt") as opened:
        sizes = [opened.get_slice(name).get_shape() for name in opened.keys()]
    parameters = sum(math.prod(shape) for shape in sizes)
    layers = json.loads((model / "config.json").read_text(encoding="utf-8"))["text_config"]["num_hidden_layers"]
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(model, target)
    (target / "eval.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (target / "README.md").write_text(card(report, facts, parameters, layers), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="the run's folder")
    bundle(parser.parse_args().out)
