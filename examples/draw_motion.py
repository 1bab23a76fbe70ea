"""Draws the motion that a video's codec stored over one of its frames: `draw_motion.py clip.mp4 motion.png --at 4`.

Needs `pip install cope-serve[plot]`. Without a video it draws one itself.
"""

# H, W = picture size as displayed, pixels; C = cells a side.

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import cope_codec
from cope_codec import P_SLOT, GopPrimitives, samples

ARROWS = 16  # across the picture: enough to see the flow, few enough to see the picture
LEAST_PX = 1.0  # shorter motion is drawn as a dot


def motion_px(gop: GopPrimitives, slot: int) -> npt.NDArray[np.float64]:
    """How far each cell's content moved since the slot before.

    `gop.motion` is source minus destination in quarter pixels; here it is turned round, the way that things went.

    Returns:
        float64 (C, C, 2), (x, y), pixels of the picture as displayed.
    """
    p = int(np.count_nonzero(gop.layout[:slot]))  # the P slots before this one
    scale = np.array([gop.source_width / gop.motion_width, gop.source_height / gop.motion_height])
    moved: npt.NDArray[np.float64] = -gop.motion[p] / 4 * scale
    return moved


def colours(moved: npt.NDArray[np.float64]) -> Any:
    """One colour per direction, around the colour wheel; lightened, for pure blue is hard to see."""
    from matplotlib import colormaps

    pure = colormaps["hsv"]((np.arctan2(-moved[..., 1], moved[..., 0]) / (2 * np.pi)) % 1)
    return 0.7 * pure + 0.3


def draw(gop: GopPrimitives, slot: int, path: Path) -> None:
    """Draw one P slot's motion over its picture.

    Args:
        gop: any GOP.
        slot: a P slot of it.
        path: a PNG, or what its ending says.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import patheffects
    from matplotlib import pyplot as plt

    width, height = gop.source_width, gop.source_height
    moved = motion_px(gop, slot)
    step = max(1, len(moved) // ARROWS)
    picks = np.arange(step // 2, len(moved), step)
    moved = moved[np.ix_(picks, picks)].reshape(-1, 2)
    x, y = np.meshgrid((picks + 0.5) * width / gop.motion.shape[2], (picks + 0.5) * height / gop.motion.shape[1])
    x, y = x.ravel(), y.ravel()
    far = np.hypot(*moved.T) >= LEAST_PX

    figure = plt.figure(figsize=(9, 9 * height / width + 0.9), facecolor="white")
    inches = figure.get_size_inches()[1]
    picture = figure.add_axes((0, 0.9 / inches, 1, 1 - 0.9 / inches))
    picture.imshow(gop.frames()[slot], extent=(0, width, height, 0), aspect="auto", alpha=0.75)
    outline = [patheffects.withStroke(linewidth=3, foreground="black")]
    # From where the content was to where it is: arrow heads sit on what they describe.
    for at_x, at_y, (dx, dy), colour in zip(x[far], y[far], moved[far], colours(moved[far]), strict=True):
        picture.annotate(
            "",
            xy=(at_x, at_y),
            xytext=(at_x - dx, at_y - dy),
            arrowprops={"arrowstyle": "->,head_width=0.18,head_length=0.26", "color": colour, "lw": 1.5, "shrinkA": 0,
                        "shrinkB": 0, "path_effects": outline},
            annotation_clip=False,
        )  # fmt: skip
    picture.plot(x[~far], y[~far], ".", color="white", markersize=3, markeredgecolor="black", markeredgewidth=0.4)
    picture.set(xlim=(0, width), ylim=(height, 0))
    picture.axis("off")

    wheel = figure.add_axes((0.92, 0.1 / inches, 0.7 / 9, 0.7 / inches))
    turn = np.linspace(0, 2 * np.pi, 13)[:-1]
    around = np.stack([np.cos(turn), -np.sin(turn)], axis=-1)
    wheel.quiver(0 * turn, 0 * turn, around[:, 0], -around[:, 1], color=colours(around), scale=2.1, width=0.05)
    wheel.axis("off")
    before, now = gop.timestamps_s[slot - 1], gop.timestamps_s[slot]
    lengths = np.hypot(*moved[far].T) if far.any() else np.zeros(1)
    figure.text(
        0.01,
        0.45 / inches,
        f"Motion from {before:.2f} s to {now:.2f} s as {gop.codec} stored it ({gop.mode})\n"
        f"arrows at true length: median {np.median(lengths):.0f} px, longest {lengths.max():.0f} px of "
        f"{width} x {height}; dots: less than {LEAST_PX:.0f} px",
        fontsize=10.5,
        va="center",
        linespacing=1.5,
    )
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main() -> None:
    """Find the slot at the time asked for, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="[VIDEO] OUT.png")
    parser.add_argument("--at", type=float, default=6.0, help="time of the slot, seconds (default 6)")
    parser.add_argument("--fps", type=float, default=1.0, help="slots per second (default 1)")
    arguments = parser.parse_args()
    *given, out = arguments.files
    source = given[0] if given else samples.demo_clip()
    best: tuple[GopPrimitives, int] | None = None
    for gop in cope_codec.open(source, fps=arguments.fps):
        for slot in np.flatnonzero(gop.layout == P_SLOT):
            if best is None or abs(gop.timestamps_s[slot] - arguments.at) < abs(
                best[0].timestamps_s[best[1]] - arguments.at
            ):
                best = gop, int(slot)
    if best is None:
        parser.exit(1, f"{given[0] if given else 'the clip'} has no slot with motion: it is a single picture\n")
    draw(*best, out)
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
