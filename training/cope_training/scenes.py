"""What can be seen in a synthetic clip: a textured world, things in it, how they and the camera move."""

from __future__ import annotations

from dataclasses import dataclass

REFERENCE_PX = 128  # places and speeds count pixels of a picture of this side, whatever size is drawn

# Hue in degrees: equal steps, so that chroma at half resolution cannot confuse them.
COLOURS = {"red": 0, "yellow": 60, "green": 120, "cyan": 180, "blue": 240, "purple": 300}
SHAPES = ("circle", "square", "triangle", "cross")
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


@dataclass(frozen=True, slots=True)
class Leg:
    """A stretch of straight motion.

    Attributes:
        start_s, end_s: when, seconds.
        vx, vy: velocity, reference pixels per second; y points down.
    """

    start_s: float
    end_s: float
    vx: float
    vy: float

    def shift(self, t: float) -> tuple[float, float]:
        """How far this leg has moved the thing by time `t`, reference pixels."""
        moving_s = min(max(t - self.start_s, 0.0), self.end_s - self.start_s)
        return self.vx * moving_s, self.vy * moving_s


@dataclass(frozen=True, slots=True)
class Thing:
    """A textured object of one colour.

    Attributes:
        colour, shape: keys of `COLOURS` and `SHAPES`.
        radius: of the circle around it, reference pixels.
        x, y: centre at the start, reference pixels.
        angle: turn at the start, radians.
        hue_shift: deviation from the colour's hue, degrees.
        texture_at: corner of its cut of the world's texture, texels.
        legs: its motion.
        spin: radians per second, clockwise as seen is positive.
        growth: natural logarithm of its size per second.
        from_s, until_s: when it can be seen.
    """

    colour: str
    shape: str
    radius: float
    x: float
    y: float
    angle: float = 0.0
    hue_shift: float = 0.0
    texture_at: tuple[float, float] = (0.0, 0.0)
    legs: tuple[Leg, ...] = ()
    spin: float = 0.0
    growth: float = 0.0
    from_s: float = 0.0
    until_s: float = 1e9

    def place(self, t: float) -> tuple[float, float]:
        """Centre at time `t`, reference pixels of the world."""
        shifts = [leg.shift(t) for leg in self.legs]
        return self.x + sum(dx for dx, _ in shifts), self.y + sum(dy for _, dy in shifts)


@dataclass(frozen=True, slots=True)
class Scene:
    """A world and a camera.

    Attributes:
        family, texture_seed: the world's texture (`textures.make`).
        tint: mean colour of the world, RGB 0..255.
        contrast: grey levels from the texture's darkest to its brightest texel.
        grain: spread of the camera's noise, grey levels.
        things: drawn in this order.
        pan: how fast the world moves through the picture, (x, y), reference pixels per second; y points down.
        zoom: natural logarithm of the picture's growth per second; positive comes closer.
        roll: how fast the world turns in the picture, radians per second, clockwise is positive.
    """

    family: str
    texture_seed: int
    tint: tuple[float, float, float]
    contrast: float
    grain: float
    things: tuple[Thing, ...]
    pan: tuple[float, float] = (0.0, 0.0)
    zoom: float = 0.0
    roll: float = 0.0
