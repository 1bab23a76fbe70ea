"""One of several processes that fine-tune together, for tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch


def settings(**changes: Any) -> Any:
    """Three steps of four clips in all."""
    from cope_training.loop import Settings

    return Settings(**{"steps": 3, "batch": 4, "warmup": 1, "lr": 1e-3, "precision": "no", "log_every": 1, **changes})


def tune(model: Path, data: Path, cache: Path, out: Path, how: Any, *, dtype: str = "float32") -> list[float]:
    """Fine-tune on one question per clip: the mean over clips is then the mean over processes."""
    from cope_codec import VideoOptions
    from cope_training import stages
    from cope_training.batches import Mixture

    mixture = Mixture(keyframes=(1,), questions=1)
    options = VideoOptions()
    return stages.tune(
        model, [data], cache, out, how, options=options, mixture=mixture, scales={}, workers=1, dtype=dtype
    )


def tune_as(rank: int, world: int, port: int, model: Path, data: Path, cache: Path, out: Path) -> None:
    """The same as a process that `accelerate launch --cpu` has started; writes `rank-N.pt` with losses and weights."""
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo", ACCELERATE_USE_CPU="true")
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    from cope_training import directories

    kept = []
    load = directories.load

    def keep(*given: Any, **more: Any) -> Any:
        kept.append(load(*given, **more))
        return kept[-1]

    directories.load = keep
    losses = tune(model, data, cache, out, settings(batch=4 // world))
    torch.save({"losses": losses, "weights": kept[0].state_dict()}, out / f"rank-{rank}.pt")
    torch.distributed.destroy_process_group()
