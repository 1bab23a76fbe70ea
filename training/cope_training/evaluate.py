"""`cope train eval`: a model on held-out questions, with ablations, baselines, retrieval and the way over HTTP."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from cope_codec.options import VideoOptions
from cope_model.reference import CoPEModel
from cope_training import answering, directories, over_http, retrieval, rows, scores, stages
from cope_training.answering import Pair
from cope_training.scores import Answered
from cope_training.views import Deltas, View

_DELTAS: dict[str, Deltas] = {
    "delta_zeroed": "zeroed",
    "i_only": "none",
    "motion_tokens_only": "motion",
    "residual_tokens_only": "residual",
}
_BESIDE = 7  # columns that fit into a terminal
_WITH_AND_WITHOUT: dict[str, Deltas] = {"i_and_delta": "on", "i_only": "none"}


class Evaluation:
    """A model and held-out clips.

    Args:
        directory: of the model.
        data: annotation files or folders.
        cache: of primitives.
        limit: questions per type at most.
        rows_limit: the same, of all that is measured beside the model as it is; None is `limit`.
        batch: clips at once.
        workers: processes that extract.

    Raises:
        ValueError: the model or the data cannot be used.
    """

    def __init__(
        self,
        directory: Path,
        data: Sequence[Path],
        cache: Path,
        *,
        limit: int | None,
        rows_limit: int | None = None,
        batch: int,
        workers: int,
    ) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = directories.load(directory).to(self.device).eval()
        self._cache, self._batch, self._workers = cache, batch, workers
        config = self.model.config
        self._side = config.geometry.side
        self._prompts = directories.prompts(directory, config)
        self.pairs = self._open(data, limit)
        self.row_pairs = limited(self.pairs, limit if rows_limit is None else rows_limit)

    def _open(self, data: Sequence[Path], limit: int | None) -> list[Pair]:
        options = VideoOptions()
        clips, found = stages.open_data(data, self._cache, side=self._side, options=options, workers=self._workers)
        pairs = [
            (replace(clip, questions=tuple(q for q in clip.questions if q.options)), video)
            for clip, video in zip(clips, found.videos, strict=True)
            if video is not None
        ]
        kept = limited(pairs, limit)
        if not kept:
            raise ValueError("no held-out question has options to choose from")
        return kept

    def answer(
        self, view: View, description: str, *, pairs: Sequence[Pair] | None = None, model: CoPEModel | None = None
    ) -> list[Answered]:
        """Answer questions under a view, those of the rows unless others are given; see `answering.answer`."""
        return answering.answer(
            model or self.model,
            self._prompts,
            self.row_pairs if pairs is None else pairs,
            view,
            batch=self._batch,
            description=description,
        )

    def native(self) -> list[Pair]:
        """Clips whose own vectors are used."""
        return [pair for pair in self.row_pairs if pair[1].mode == "native" and pair[1].codec == "h264"]

    def reencoded(self, mode: Literal["transcode", "paper"]) -> list[Pair]:
        """The clips of `native`, with primitives of another mode."""
        clips = [clip for clip, _ in self.native()]
        if not clips:
            return []
        options = VideoOptions(mode=mode)
        found = stages.open_videos(clips, self._cache, side=self._side, options=options, workers=self._workers)
        return [(clip, video) for clip, video in zip(clips, found.videos, strict=True) if video is not None]


def limited(pairs: Sequence[Pair], limit: int | None) -> list[Pair]:
    """The first `limit` questions of every type; clips without any are left out."""
    seen: Counter[str] = Counter()
    out = []
    for clip, video in pairs:
        kept = []
        for question in clip.questions:
            if limit is None or seen[question.type] < limit:
                seen[question.type] += 1
                kept.append(question)
        if kept:
            out.append((replace(clip, questions=tuple(kept)), video))
    return out


def evaluate(
    evaluation: Evaluation,
    wanted: Sequence[str],
    *,
    no_pretrain: Path | None = None,
    pretrained: Path | None = None,
    server: str | None = None,
) -> dict[str, Any]:
    """Measure a model.

    Args:
        evaluation: the model and its questions.
        wanted: rows of `rows.ROWS`.
        no_pretrain: a model that was trained without stage 1, to compare with.
        pretrained: folder of a stage 1 run.
        server: base address of a server with the same model.

    Returns:
        Fields by name; accuracies are percent, group means weigh each type the same.
    """
    view = View(keyframes=1)
    measured: dict[View, dict[str, dict[str, Any]]] = {}

    def types_under(shown: View, description: str) -> dict[str, dict[str, Any]]:
        # Some fields need the same answers, each of which takes minutes without a GPU.
        if shown not in measured:
            measured[shown] = scores.by_type(evaluation.answer(shown, description))
        return measured[shown]

    types = scores.by_type(evaluation.answer(view, "1 keyframe", pairs=evaluation.pairs))
    if evaluation.row_pairs == evaluation.pairs:
        measured[view] = types
    report: dict[str, Any] = {**_groups(types), "by_type": types, "chance": scores.by_group(types, "chance")}
    report["exact"] = scores.by_group(types, "exact")
    for name in rows.ABLATIONS:
        if name in wanted:
            report[name] = _both(types_under(replace(view, deltas=_DELTAS[name]), name))
    if "delta_zeroed" in report:
        report["margins"] = scores.margins(types, report["delta_zeroed"]["by_type"])
    if "by_keyframes" in wanted:
        report["by_keyframes"] = {
            str(count): {
                name: scores.by_group(types_under(View(count, deltas), f"{count} keyframes, {name}"))
                for name, deltas in _WITH_AND_WITHOUT.items()
            }
            for count in rows.KEYFRAMES
        }
    for name in rows.MODES:
        if name in wanted:
            chosen = evaluation.native() if name == "native" else evaluation.reencoded(name)
            report[name] = _both(scores.by_type(evaluation.answer(view, name, pairs=chosen))) if chosen else None
    if no_pretrain is not None:
        other = directories.load(no_pretrain).to(evaluation.device).eval()
        report["no_pretrain"] = _both(scores.by_type(evaluation.answer(view, "no pre-training", model=other)))
    if pretrained is not None:
        model = directories.load(pretrained / stages.MODEL).to(evaluation.device).eval()
        predictor = stages.load_next_frame(model, pretrained / stages.NEXT_FRAME).to(evaluation.device).eval()
        videos = [video for _, video in evaluation.row_pairs]
        report["retrieval"] = retrieval.measure(predictor, videos, device=evaluation.device)
    if server is not None:
        report["server"] = _both(
            scores.by_type(over_http.answer(server, evaluation.row_pairs, {"keyframes_per_gop": 1}))
        )
    return report


def _groups(types: dict[str, dict[str, Any]]) -> dict[str, float | None]:
    means = scores.by_group(types)
    return {f"{group}_acc": means[group] for group in ("motion", "appearance", "binding")}


def _both(types: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Group means, each type's accuracy, and how many questions each rests on."""
    by_type = {name: row["acc"] for name, row in types.items()}
    return {**_groups(types), "by_type": by_type, "questions": {name: row["questions"] for name, row in types.items()}}


def command(
    directory: Path,
    data: Sequence[Path],
    cache: Path,
    *,
    rows_text: str,
    limit: int | None,
    rows_limit: int | None,
    batch: int,
    workers: int,
    no_pretrain: Path | None,
    pretrained: Path | None,
    server: str | None,
    as_json: bool,
) -> None:
    """Evaluate and print; see `evaluate`.

    Raises:
        ValueError: `limit`, `rows_limit` or `batch` is below 1, or what `Evaluation` refuses.
    """
    for name, value in (("limit", limit), ("rows-limit", rows_limit), ("batch", batch)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    wanted = rows.chosen(rows_text)
    evaluation = Evaluation(directory, data, cache, limit=limit, rows_limit=rows_limit, batch=batch, workers=workers)
    report = evaluate(evaluation, wanted, no_pretrain=no_pretrain, pretrained=pretrained, server=server)
    console = Console()
    if as_json:
        console.print_json(json.dumps(report))
    else:
        console.print(*tables(report))


def tables(report: dict[str, Any]) -> list[Table]:
    """The report by question type: the model as it is, and what is beside it. Each fits into 80 columns."""
    own = ("questions", "acc", "exact", "chance", "majority", "object_unknown")
    types = report["by_type"]
    out = [_table("percent; one keyframe per GOP", types, own, types)]
    beside = [name for name in (*rows.ABLATIONS, "no_pretrain", *rows.MODES, "server") if report.get(name)]
    others = {name: {one: report[one]["by_type"].get(name) for one in beside} for name in types}
    for start in range(0, len(beside), _BESIDE):
        columns = beside[start : start + _BESIDE]
        out.append(_table("accuracy beside it, in percent", types, columns, others))
    return out


def _table(
    caption: str, types: dict[str, dict[str, Any]], columns: Sequence[str], values: dict[str, dict[str, Any]]
) -> Table:
    """Types below the names of their groups, and each one's values by column."""
    out = Table(box=SIMPLE_HEAD, caption=caption, padding=(0, 0))
    out.add_column("type", no_wrap=True)
    for column in columns:
        out.add_column(column.replace("_", " "), justify="right", overflow="fold")
    for group in dict.fromkeys(row["group"] for row in types.values()):
        out.add_section()
        out.add_row(f"[bold]{group}[/]")
        for name in (name for name, row in types.items() if row["group"] == group):
            cells = (values[name][column] for column in columns)
            out.add_row(name, *("" if cell is None else f"{cell:.0f}" for cell in cells))
    return out
