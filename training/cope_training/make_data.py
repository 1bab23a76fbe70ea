"""Writes a synthetic data set: encoded clips of many kinds and qualities, and questions about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cope_codec import samples
from cope_training import jobs, qa
from cope_training.files import read_json, write_json, write_whole
from cope_training.render import Renderer
from cope_training.stories import KINDS, SECONDS, invent

_FORMAT = 5  # raise when the same seed begins to give other clips or questions
_BLOCK = 32  # clips that are made together; what a killed run loses
_SIZES = ((128, 128), (128, 128), (160, 160), (192, 144))
_RATES = (10, 12, 15, 20)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a data set is made of.

    Attributes:
        clips: how many.
        seed: other seeds give other clips.
        held_out: textures, wordings and random numbers that training sets never have.
        kinds: of stories that take turns (`stories.KINDS`), separated by commas; a kind that is there twice comes twice
            as often. Empty for all by their usual shares.
        format: of the generator.
    """

    clips: int
    seed: int
    held_out: bool
    kinds: str = ""
    format: int = _FORMAT

    def __post_init__(self) -> None:
        if self.clips < 1:
            raise ValueError(f"clips must be at least 1, not {self.clips}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, not {self.seed}")
        if unknown := [kind for kind in self.round if kind not in KINDS]:
            raise ValueError(f"kinds: no story is called {unknown[0]!r}: there are {', '.join(KINDS)}")

    @property
    def round(self) -> tuple[str, ...]:
        """The kinds, one by one."""
        return tuple(self.kinds.split(",")) if self.kinds else ()


@dataclass(frozen=True, slots=True)
class _Block:
    folder: Path
    recipe: Recipe
    number: int

    @property
    def done(self) -> Path:
        """The file that says that the block's clips are there."""
        return self.folder / "blocks" / f"{self.number:05d}.json"


def encode_clip(
    seed: int, number: int, held_out: bool, kinds: Sequence[str] = ()
) -> tuple[str, bytes, list[dict[str, Any]]]:
    """Make one clip.

    Returns:
        Its file name, its bytes and its records; the same for the same arguments.
    """
    story = invent(seed, number, held_out=held_out, kinds=kinds)
    random = np.random.default_rng([seed, int(held_out), number, 4])
    width, height = _SIZES[int(random.integers(len(_SIZES)))]
    fps = _RATES[int(random.integers(len(_RATES)))]
    codec = random.choice(["libx264", "mpeg4", "libx265"], p=[0.5, 0.4, 0.1])
    gop, b_frames = int(random.integers(2 * fps, 12 * fps)), int(random.integers(0, 4))
    container, options, quantiser = "mp4", {}, None
    if codec == "libx264":
        options = {"crf": str(int(random.integers(18, 30))), "preset": str(random.choice(["superfast", "veryfast"]))}
    elif codec == "mpeg4":
        container = str(random.choice(["mp4", "avi"]))
        b_frames = 0 if container == "avi" else min(b_frames, 2)
        quantiser = int(random.integers(2, 9))
    else:
        # libx265 reads its number of threads and frames from a string of its own.
        inner = f"log-level=none:pools=none:frame-threads=1:bframes={b_frames}:keyint={gop}"
        options = {"preset": "ultrafast", "crf": str(int(random.integers(20, 30))), "x265-params": inner}
    data = samples.encode(
        Renderer(story.scene, width, height).pictures(SECONDS, fps),
        codec=str(codec),
        container=container,
        fps=fps,
        gop=gop,
        b_frames=b_frames,
        quantiser=quantiser,
        options=options,
    )
    name = f"clips/{number // 1000:03d}/{number:06d}-{story.kind}.{container}"
    rows = qa.records(name, story.questions)
    for row in rows:
        row |= {"clip": story.kind, "codec": {"libx264": "h264", "libx265": "hevc"}.get(str(codec), str(codec))}
    return name, data, rows


def _make(block: _Block) -> int:
    """Make the clips of a block; returns how many."""
    rows: list[dict[str, Any]] = []
    recipe = block.recipe
    numbers = range(block.number * _BLOCK, min((block.number + 1) * _BLOCK, recipe.clips))
    for number in numbers:
        name, data, own = encode_clip(recipe.seed, number, recipe.held_out, recipe.round)
        path = block.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
        rows += own
    write_json(block.done, rows)
    return len(numbers)


def make(folder: Path, recipe: Recipe, workers: int) -> Path:
    """Write a data set, or what a run before this one has not yet written.

    Args:
        folder: where to; made if missing.
        recipe: what to write.
        workers: processes.

    Returns:
        The annotation file.

    Raises:
        ValueError: the folder holds a data set of another recipe.
    """
    (folder / "blocks").mkdir(parents=True, exist_ok=True)
    recipe_file = folder / "recipe.json"
    if recipe_file.exists():
        found = read_json(recipe_file)
        for name, value in asdict(recipe).items():
            if found.get(name, "") != value:
                raise ValueError(f"{folder} holds a data set with {name} {found.get(name)}, not {value}")
    else:
        write_json(recipe_file, asdict(recipe), indent=2)
    blocks = [_Block(folder, recipe, number) for number in range(-(-recipe.clips // _BLOCK))]
    missing = [block for block in blocks if not block.done.exists()]
    for _ in jobs.run(_make, missing, workers, "clips", unit="clips", per_job=_BLOCK):
        pass
    path = folder / qa.FILE_NAME
    qa.write(path, [row for block in blocks for row in read_json(block.done)])
    return path
