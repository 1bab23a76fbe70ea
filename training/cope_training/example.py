"""A held-out clip with a question about its motion, for the demo and for trying a model by hand."""

from __future__ import annotations

from dataclasses import dataclass

from cope_codec import samples
from cope_training.question_types import TYPES
from cope_training.questions import Question
from cope_training.render import Renderer
from cope_training.stories import KINDS, SECONDS, invent

SIDE = 480  # pixels
FPS = 25


@dataclass(frozen=True, slots=True)
class Example:
    """A clip and what can be asked about it.

    Attributes:
        data: an MP4 file, H.264 with B-frames, `SIDE` pixels square.
        question: whose answer no keyframe shows.
    """

    data: bytes
    question: Question


def draw(kind: str, seed: int) -> Example:
    """Draw and encode a clip; the same arguments give the same.

    Args:
        kind: one of `stories.KINDS`.
        seed: other seeds give other scenes; texture, wording and random numbers are never those of training.

    Raises:
        ValueError: no such kind, or a negative seed.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, not {seed}")
    story = invent(0, seed, held_out=True, kinds=(kind,))
    question = next(question for question in story.questions if TYPES[question.type].group != "appearance")
    pictures = Renderer(story.scene, SIDE, SIDE).pictures(SECONDS, FPS)
    return Example(samples.encode(pictures, fps=FPS, gop=10 * FPS, options={"crf": "20"}), question)
