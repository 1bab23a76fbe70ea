"""`cope bench prefill`: the rows of the paper's latency table, measured in turns, each beside its floor."""

from __future__ import annotations

import os
import platform
import resource
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

import torch
import transformers

from cope_model.checkpoint import make_config
from cope_model.prefill.compiled import compiled
from cope_model.prefill.floors import Account, Roof, measure_roof
from cope_model.prefill.pipeline import PARTS, UNTIL_FIRST_TOKEN, Pipeline, Times
from cope_model.prefill.rows import GENERATED_TOKENS, GOPS, PAPER, ROWS, TEXT_TOKENS, Row
from cope_model.prefill.weights import random_model
from cope_model.presets import PRESETS

# On a GPU the second request shows what the first has put into caches: kernels, handles, memory.
_WARM_UPS = {"cuda": 2, "cpu": 1}
_GIB = 2**30
Tick = Callable[[str, float], None]


def measure(
    preset: str,
    *,
    device: str,
    dtype: torch.dtype | None = None,
    repeats: int = 10,
    rows: Sequence[Row] = ROWS,
    generated: int = GENERATED_TOKENS,
    graphs: bool = True,
    compile_layers: bool = False,
    tick: Tick = lambda what, part: None,
) -> dict[str, Any]:
    """Build the preset's model with random weights and time its rows in turns, so that all drift alike.

    Args:
        preset: a key of `PRESETS`.
        device: `cpu`, `cuda` or `cuda:N`.
        dtype: of weights and activations; None is bfloat16 on a GPU and float32 on a CPU.
        repeats: timed requests per row; warm-ups go before them.
        rows: which; the first is what the others are compared with.
        generated: tokens per request.
        graphs: decode by CUDA graphs, on a GPU.
        compile_layers: let torch.compile fuse what it can. Where it fails, the run goes on without and says so.
        tick: called with what is being done and which part of the whole that was, 0 to 1.

    Returns:
        `conditions`, `weights_bytes` and `rows`; docs/prefill.md describes the fields.

    Raises:
        ValueError: an argument is out of range, the device is not there, or its memory does not suffice.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset: unknown preset {preset!r}; known are {', '.join(PRESETS)}")
    for name, value, lowest in (("repeats", repeats, 1), ("generated", generated, 2), ("rows", len(rows), 1)):
        if value < lowest:
            raise ValueError(f"{name} must be at least {lowest}, not {value}")
    place = find_device(device)
    if dtype is None:
        dtype = torch.bfloat16 if place.type == "cuda" else torch.float32
    rows = tuple(rows)
    config = make_config(PRESETS[preset])
    account = Account(config, dtype, generated)
    needed = account.memory_bytes(rows)
    needs = f"preset {preset} in {str(dtype).removeprefix('torch.')} needs about {needed / _GIB:.1f} GiB on {place}"
    free = free_bytes(place)
    if free is not None and needed > free:
        raise ValueError(f"{needs}, where {free / _GIB:.1f} GiB are free")
    try:
        return _measure(preset, config, account, place, dtype, repeats, rows, generated, graphs, compile_layers, tick)
    except RuntimeError as error:
        # On a CPU it is a plain RuntimeError of the allocator.
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise ValueError(f"out of memory: {needs}; {str(error).splitlines()[0]}") from error
        raise


def _measure(
    preset: str,
    config: Any,
    account: Account,
    device: torch.device,
    dtype: torch.dtype,
    repeats: int,
    rows: tuple[Row, ...],
    generated: int,
    graphs: bool,
    compile_layers: bool,
    tick: Tick,
) -> dict[str, Any]:
    graphs = graphs and device.type == "cuda"
    steps = 2 + len(rows) * (_WARM_UPS[device.type] + graphs + repeats)  # weights and roof count as one each
    tick("speed of the device", 0.0)
    roof = measure_roof(device, dtype)
    tick("random weights", 1 / steps)
    total = account.weights_bytes
    model = random_model(config, device, dtype, tick=lambda nbytes: tick("random weights", nbytes / total / steps))
    notes: list[str] = []
    times: dict[Row, list[Times]] = {row: [] for row in rows}
    peaks: dict[Row, int | None] = {}
    with ExitStack() as stack:
        pipeline = Pipeline(model, rows, generated)
        if compile_layers and (reason := _try_compile(stack, pipeline, rows[-1], tick)):
            notes.append(f"torch.compile failed, layers run eagerly: {reason}")
            compile_layers = False
        for row in rows:
            peaks[row] = _warm_up(pipeline, row, lambda: tick("warm-up", 1 / steps))
            if graphs:
                reason = pipeline.capture(row)
                tick("CUDA graphs", 1 / steps)
                if reason:
                    notes.append(f"{row.name}: decoding without a CUDA graph: {reason}")
        for _ in range(repeats):
            for row in rows:
                times[row].append(pipeline.run(row))
                tick("measuring", 1 / steps)
    return {
        "preset": preset,
        "generated_tokens": generated,
        "text_tokens": TEXT_TOKENS,
        "repeats": repeats,
        "weights_bytes": account.weights_bytes,
        "conditions": {
            **conditions(device, dtype),
            "cuda_graphs": all(sequence.graphed for sequence in pipeline.sequences.values()),
            "compiled": compile_layers,
            "roof": {
                "flops_per_s": roof.flops_per_s,
                "bytes_per_s": roof.bytes_per_s,
                "transfer_bytes_per_s": roof.transfer_bytes_per_s,
            },
        },
        "notes": notes,
        "rows": [_report(row, times[row], times[rows[0]], account, roof, config, peaks[row], rows) for row in rows],
    }


def _try_compile(stack: ExitStack, pipeline: Pipeline, row: Row, tick: Tick) -> str | None:
    """Compile layers until the stack ends, if one request gets through; else the reason, and none is compiled."""
    tick("compiling", 0.0)
    trial = stack.enter_context(ExitStack())
    trial.enter_context(compiled(pipeline.model))
    try:
        pipeline.run(row)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, OSError) as error:  # whatever a compiler that is missing or broken causes
        trial.close()
        return str(error).strip().splitlines()[0]
    return None


def _warm_up(pipeline: Pipeline, row: Row, tick: Callable[[], None]) -> int | None:
    """Run a row without counting; returns the most memory that it held on a GPU, bytes."""
    on_gpu = pipeline.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(pipeline.device)
    for _ in range(_WARM_UPS[pipeline.device.type]):
        pipeline.run(row)
        tick()
    return torch.cuda.max_memory_allocated(pipeline.device) if on_gpu else None


def _report(
    row: Row,
    times: list[Times],
    dense: list[Times],
    account: Account,
    roof: Roof,
    config: Any,
    peak: int | None,
    rows: tuple[Row, ...],
) -> dict[str, Any]:
    work = account.work(row)
    floors = {part: roof.floor_s(part, work[part]) for part in PARTS}
    dense_work = account.work(rows[0])
    dense_ttft = sum(roof.floor_s(part, dense_work[part]) for part in UNTIL_FIRST_TOKEN)
    dense_e2el = dense_ttft + roof.floor_s("decode", dense_work["decode"])
    ttft_floor = sum(floors[part] for part in UNTIL_FIRST_TOKEN)
    first = row is rows[0]
    report: dict[str, Any] = {
        "sampling": row.name,
        "keyframes_per_gop": row.keyframes_per_gop,
        "i_frames": row.i_frames,
        "p_frames": row.p_frames,
        "prompt_tokens": row.prompt_tokens(config.geometry),
        "parts": {
            part: {
                **_spread([one.parts[part] for one in times], "s"),
                "flops": work[part].flops,
                "bytes": work[part].bytes,
                "floor_s": floors[part],
            }
            for part in PARTS
        },
        **_spread([one.ttft_s for one in times], "ttft_s"),
        **_spread([one.e2el_s for one in times], "e2el_s"),
        "delta_share": statistics.median(one.parts["delta"] / one.ttft_s for one in times),
        "floor": {
            "ttft_s": ttft_floor,
            "e2el_s": ttft_floor + floors["decode"],
            "ttft_cut": None if first else 1 - ttft_floor / dense_ttft,
            "e2el_cut": None if first else 1 - (ttft_floor + floors["decode"]) / dense_e2el,
        },
        "peak_bytes": peak if peak is not None else _resident_bytes(),
    }
    for cut, clock in (("ttft_cut", "ttft_s"), ("e2el_cut", "e2el_s")):
        # Each request beside the dense one of its own round.
        own = [1 - getattr(one, clock) / getattr(base, clock) for one, base in zip(times, dense, strict=True)]
        report |= dict.fromkeys((cut, f"{cut}_min", f"{cut}_max")) if first else _spread(own, cut)
    paper = PAPER.get(row.keyframes_per_gop) if row.gops == GOPS else None
    report["paper"] = paper and {name: getattr(paper, name) for name in ("ttft_s", "e2el_s", "ttft_cut", "e2el_cut")}
    return report


def _spread(values: list[float], name: str) -> dict[str, float]:
    return {name: statistics.median(values), f"{name}_min": min(values), f"{name}_max": max(values)}


def find_device(name: str) -> torch.device:
    """torch's device of that name.

    Raises:
        ValueError: it is neither a CPU nor a GPU that torch sees.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device must be cpu, cuda or cuda:N, not {name!r}") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            built = "is a build without CUDA" if torch.version.cuda is None else "finds no usable GPU or driver"
            raise ValueError(f"device: there is no CUDA device; torch {torch.__version__} {built}")
        if device.index is not None and device.index >= torch.cuda.device_count():
            raise ValueError(f"device: {name} is not there; torch sees {torch.cuda.device_count()} GPUs")
        # With its number: much of torch refuses a GPU without one.
        device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        torch.cuda.set_device(device)
    elif device.type != "cpu":
        raise ValueError(f"device must be cpu, cuda or cuda:N, not {name!r}")
    return device


def free_bytes(device: torch.device) -> int | None:
    """Memory that can be had on a device; None if the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            kilobytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    return int(kilobytes) * 1024


def conditions(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What figures mean nothing without."""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else _cpu_name(),
        "device_bytes": torch.cuda.get_device_properties(device).total_memory if on_gpu else None,
        "cuda": torch.version.cuda if on_gpu else None,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "load_1min": round(os.getloadavg()[0], 2),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def _resident_bytes() -> int:
    """The most memory that this process has held, in all rows so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
