"""The training loop of all stages: accelerate, AdamW, cosine with warm-up, TensorBoard, and resuming after a kill."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs, parse_flag_from_env
from torch import nn
from torch.utils.data import DataLoader, Dataset

from cope_training import jobs

Precision = Literal["auto", "no", "bf16"]
_STATE = "state.pt"
# All processes wait while the first extracts primitives, which may take hours; torch's 10 minutes would end them. One
# that fails does not make the others wait: the launcher ends them.
_TIMEOUT = timedelta(days=1)


class Movable(Protocol):
    """A batch."""

    def to(self, device: torch.device) -> Any:
        """The same on another device."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How a stage trains.

    Attributes:
        steps: optimiser steps.
        batch: samples per step and process, before accumulation.
        accumulate: batches whose gradients make one step.
        lr: peak learning rate.
        warmup: steps from 0 to the peak.
        weight_decay: of matrices; norms and biases have none.
        clip: largest norm of the gradient.
        precision: `bf16` autocast, `no`, or `auto`: bf16 where the device computes in it.
        seed: of everything that is drawn.
        save_every: steps between states to resume from.
        log_every: steps between points in TensorBoard.
        loaders: processes that make batches; 0 makes them in this one.
    """

    steps: int
    batch: int = 32
    accumulate: int = 1
    lr: float = 1e-3
    warmup: int = 150
    weight_decay: float = 0.05
    clip: float = 1.0
    precision: Precision = "auto"
    seed: int = 0
    save_every: int = 100
    log_every: int = 10
    loaders: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("warmup", "weight_decay", "loaders", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")
        for name in ("lr", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")

    def rate(self, step: int) -> float:
        """Learning rate of a step, as a share of the peak: linear to 1, then a half cosine to 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / max(self.steps - self.warmup, 1)))

    def defining(self) -> dict[str, Any]:
        """Those that must not change between a run and its continuation."""
        ignored = ("save_every", "log_every", "loaders")
        return {name: value for name, value in asdict(self).items() if name not in ignored}


@dataclass(frozen=True, slots=True)
class Group:
    """Parameters with a learning rate of their own.

    Attributes:
        parameters: to train.
        scale: share of the peak learning rate.
    """

    parameters: Sequence[nn.Parameter]
    scale: float = 1.0


def bf16_pays(device: torch.device) -> bool:
    """Whether a device computes in bfloat16, instead of only imitating it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def make_accelerator(settings: Settings) -> Accelerator:
    """Accelerate's view of the machine: one device or several, and the precision."""
    # Whichever of accelerate's states comes first makes the process group. This one does not read the launcher's --cpu,
    # without which processes on CPU would not know of each other.
    device = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=_TIMEOUT).device
    wanted = settings.precision
    if wanted == "auto":
        wanted = "bf16" if bf16_pays(device) else "no"
    # A batch without P slots leaves the delta-encoder without a gradient.
    several = DistributedDataParallelKwargs(find_unused_parameters=True)
    return Accelerator(
        mixed_precision=wanted, gradient_accumulation_steps=settings.accumulate, kwargs_handlers=[several]
    )


def train(
    accelerator: Accelerator,
    objective: nn.Module,
    groups: Sequence[Group],
    batches: Dataset[Any],
    settings: Settings,
    folder: Path,
    description: str,
    *,
    defining: Mapping[str, Any] | None = None,
    stop_at: int | None = None,
) -> list[float]:
    """Train, or go on where a killed run stopped.

    Args:
        accelerator: from `make_accelerator`.
        objective: takes a batch and returns (loss, numbers to log by name).
        groups: what to train; everything else stays as it is.
        batches: item n is batch n, the same in every run.
        settings: how.
        folder: for the state, the log and TensorBoard's files; made if missing.
        description: shown before the progress bar.
        defining: what else must not change between a run and its continuation: JSON's values by name.
        stop_at: end early after this many steps, as a kill would; for tests.

    Returns:
        The loss of every step from the very first one.

    Raises:
        ValueError: the folder holds a run that something else defines, or the loss is no longer a number.
    """
    run = _plain({**settings.defining(), "processes": accelerator.num_processes, **(defining or {})})
    folder.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.AdamW(_decay(groups, settings), lr=settings.lr, betas=(0.9, 0.98))
    scales = [group["scale"] for group in optimizer.param_groups]
    losses = _resume(folder, objective, optimizer, run, tell=accelerator.is_main_process)
    start = len(losses)
    if start >= settings.steps:
        return losses
    objective, optimizer = accelerator.prepare(objective, optimizer)
    objective.train()
    last = min(settings.steps, stop_at or settings.steps)
    stream = _stream(batches, start * settings.accumulate, last * settings.accumulate, settings.loaders)
    trained = [parameter for group in groups for parameter in group.parameters]
    main = accelerator.is_main_process
    with _Log(folder, start, main) as log, jobs.bar("steps", shown=main) as progress:
        task = progress.add_task(description, total=settings.steps, completed=start, note="")
        for step in range(start, last):
            began = time.perf_counter()
            for group, scale in zip(optimizer.param_groups, scales, strict=True):
                group["lr"] = settings.lr * settings.rate(step) * scale
            sums: dict[str, float] = {"loss": 0.0}
            for _ in range(settings.accumulate):
                batch = next(stream).to(accelerator.device)
                with accelerator.accumulate(objective):
                    loss, numbers = objective(batch)
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(trained, settings.clip)
                    optimizer.step()
                    optimizer.zero_grad()
                for name, value in {"loss": loss, **numbers}.items():
                    mean = accelerator.reduce(value.detach().float(), "mean")
                    sums[name] = sums.get(name, 0.0) + float(mean) / settings.accumulate
            if not math.isfinite(sums["loss"]):
                raise ValueError(f"the loss of step {step} is {sums['loss']}: try a lower lr (now {settings.lr:g})")
            losses.append(sums["loss"])
            samples = settings.batch * settings.accumulate * accelerator.num_processes
            rate = samples / (time.perf_counter() - began)
            log.add(step, {**sums, "lr": settings.lr * settings.rate(step), "samples_per_s": rate}, settings.log_every)
            note = f"loss {sums['loss']:.4f}  lr {settings.lr * settings.rate(step):.1e}  {rate:.1f} samples/s"
            progress.update(task, completed=step + 1, note=note)
            if (step + 1) % settings.save_every == 0 or step + 1 == settings.steps:
                accelerator.wait_for_everyone()
                if main:
                    _save(folder, accelerator.unwrap_model(objective), optimizer, run, losses)
    return losses


def _decay(groups: Sequence[Group], settings: Settings) -> list[dict[str, Any]]:
    """Parameter groups of AdamW: matrices decay, the rest does not."""
    out = []
    for group in groups:
        matrices = [parameter for parameter in group.parameters if parameter.ndim > 1]
        rest = [parameter for parameter in group.parameters if parameter.ndim <= 1]
        for parameters, decay in ((matrices, settings.weight_decay), (rest, 0.0)):
            if parameters:
                out.append({"params": parameters, "weight_decay": decay, "scale": group.scale})
    return out


def _stream(batches: Dataset[Any], start: int, end: int, loaders: int) -> Iterator[Movable]:
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=range(start, end),
        num_workers=loaders,
        multiprocessing_context="spawn" if loaders else None,
        prefetch_factor=4 if loaders else None,
    )
    return iter(loader)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same as JSON gives it back, to compare with what was written."""
    return dict(json.loads(json.dumps(values)))


def _resume(
    folder: Path, objective: nn.Module, optimizer: torch.optim.Optimizer, run: Mapping[str, Any], *, tell: bool
) -> list[float]:
    path = folder / _STATE
    if not path.exists():
        return []
    state = torch.load(path, map_location="cpu", weights_only=True)
    before = state["run"] if "run" in state else state["settings"]  # older states know less of what defined them
    for name, value in run.items():
        if name in before and before[name] != value:
            raise ValueError(f"{folder} holds a run with {name} {before[name]}, not {value}: remove it to start anew")
    unknown = [name for name in run if name not in before]
    if unknown and tell:
        jobs.stderr.print(
            f"{folder} holds a run of an older version, which does not tell {', '.join(unknown)}: going on with those "
            "that are given now",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    another = f"{folder} holds a run of another model: remove it to start anew"
    try:
        missing, foreign = objective.load_state_dict(state["objective"], strict=False)
    except RuntimeError as error:  # other shapes
        raise ValueError(another) from error
    if foreign or not _frozen(objective).issuperset(missing):
        raise ValueError(another)
    optimizer.load_state_dict(state["optimizer"])
    return list(state["losses"])


def _frozen(objective: nn.Module) -> set[str]:
    """Names of weights that training leaves as they are."""
    return {name for name, parameter in objective.named_parameters() if not parameter.requires_grad}


def _save(folder: Path, objective: nn.Module, optimizer: Any, run: Mapping[str, Any], losses: Sequence[float]) -> None:
    """Write the state so that a kill at any moment leaves the old one or the new one."""
    frozen = _frozen(objective)
    state = {
        "run": dict(run),
        # Frozen weights are in the model that the run begins with: of 7B they would be 16 GB each time.
        "objective": {name: tensor for name, tensor in objective.state_dict().items() if name not in frozen},
        "optimizer": optimizer.state_dict(),
        "losses": list(losses),
    }
    writing = folder / f".{_STATE}"
    torch.save(state, writing)
    os.replace(writing, folder / _STATE)


class _Log:
    """Numbers per step, in `log.jsonl` and for TensorBoard; steps that a resumed run repeats are written once."""

    def __init__(self, folder: Path, start: int, active: bool) -> None:
        self._folder, self._start, self._active = folder, start, active
        self._sums: dict[str, float] = {}
        self._count = 0

    def __enter__(self) -> _Log:
        if self._active:
            from torch.utils.tensorboard import SummaryWriter

            path = self._folder / "log.jsonl"
            kept = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
            kept = [line for line in kept if json.loads(line)["step"] < self._start]
            self._file = path.open("w", encoding="utf-8")
            self._file.writelines(line + "\n" for line in kept)
            self._board: Any = SummaryWriter(str(self._folder / "tensorboard"), purge_step=self._start)
        return self

    def __exit__(self, *error: object) -> None:
        if self._active:
            self._file.close()
            self._board.close()

    def add(self, step: int, numbers: Mapping[str, float], every: int) -> None:
        """Add a step; means over `every` steps are written."""
        if not self._active:
            return
        for name, value in numbers.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1
        if (step + 1) % every:
            return
        means = {name: value / self._count for name, value in self._sums.items()}
        self._file.write(json.dumps({"step": step, **{name: round(value, 6) for name, value in means.items()}}) + "\n")
        self._file.flush()
        for name, value in means.items():
            self._board.add_scalar(name, value, step)
        self._sums, self._count = {}, 0
