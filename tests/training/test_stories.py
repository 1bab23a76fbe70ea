from collections import Counter, defaultdict

import numpy as np
import pytest

from cope_training.question_types import TYPES
from cope_training.render import Renderer
from cope_training.scenes import COLOURS, DIRECTIONS
from cope_training.stories import KINDS, SECONDS, invent, schedule

# What can happen in a kind of story, by the name of the deck that deals it.
EVENTS = {
    "move": {"direction": DIRECTIONS, "speed": ("slow", "fast"), "when": ("early", "late")},
    "pan": {"direction": DIRECTIONS},
    "zoom": {"zoom": ("in", "out")},
    "turn": {"turn": ("clockwise", "counterclockwise")},
    "spin": {"spin": ("clockwise", "counterclockwise")},
    "growth": {"growth": ("grows", "shrinks")},
    "legs": {"legs": [("left", "up"), ("down", "left"), ("right", "down")]},
    "appear": {"appear": ("appears", "disappears")},
    "twins": {"which": ("left", "right")},
    "named": {"direction0": (*DIRECTIONS, "nowhere"), "direction1": (*DIRECTIONS, "nowhere")},
}


@pytest.mark.parametrize("kind", EVENTS)
def test_the_first_picture_is_the_same_whatever_happens_then(kind: str) -> None:
    for name, answers in EVENTS[kind].items():
        stories = [invent(3, 7, kinds=(kind,), forced={name: answer}) for answer in answers]
        firsts = [Renderer(story.scene, 64, 64).draw(0.0)[0] for story in stories]
        laters = [[Renderer(story.scene, 64, 64).draw(t)[0] for t in (SECONDS / 2, SECONDS)] for story in stories]
        assert all(np.array_equal(first, firsts[0]) for first in firsts), name
        assert not all(np.array_equal(later, laters[0]) for later in laters), name


@pytest.mark.parametrize(("kind", "type_"), [("who", "who_moves"), ("order", "order")])
def test_nothing_at_the_start_tells_who_will_move(kind: str, type_: str) -> None:
    """A rule learnt from size, place and shape of the things at the start does no better than choosing blindly."""
    hits, blind = 0, 0.0
    told: dict[str, Counter[bool]] = defaultdict(Counter)
    rows = []
    for number in range(3000):
        story = invent(11, number, kinds=(kind,))
        answer = next(question.answer for question in story.questions if question.type == type_)
        by_radius = sorted(story.scene.things, key=lambda thing: thing.radius)
        for rank, thing in enumerate(by_radius):
            lone = sum((other.x < 64) == (thing.x < 64) for other in story.scene.things) == 1
            feature = f"{len(by_radius)} {rank} {thing.x < 64} {thing.y < 64} {lone} {story.scene.things.index(thing)}"
            rows.append((number, feature, thing.colour == answer))
    for number, feature, moves in rows:
        if number < 2000:
            told[feature][moves] += 1
    for number in range(2000, 3000):
        own = [(feature, moves) for n, feature, moves in rows if n == number]
        scores = [told[feature][True] / max(sum(told[feature].values()), 1) for feature, _ in own]
        hits += own[int(np.argmax(scores))][1]
        blind += 1 / len(own)
    assert hits < blind + 60  # of 1000; three and a half standard deviations


def test_answers_are_balanced_within_their_type() -> None:
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for number in range(60 * len(schedule(True))):
        for question in invent(4, number, held_out=True).questions:
            # Sentences are one question each, and balanced as their words are.
            answers[question.type][question.answer] += 1
    assert set(answers) == set(TYPES) - {
        "corner",
        "contents",
        "moving_corner",
        "before",
    }  # `naming` adds these in training
    for name, counts in answers.items():
        if not TYPES[name].options:
            continue
        assert set(counts) == set(TYPES[name].options)
        assert max(counts.values()) <= 1.2 * sum(counts.values()) / len(counts), (name, counts)


def test_questions_offer_their_answer_and_name_what_is_there() -> None:
    for number in range(300):
        story = invent(9, number)
        colours = {thing.colour for thing in story.scene.things}
        assert story.questions
        for question in story.questions:
            assert question.answer in question.options or not TYPES[question.type].options
            assert not question.among or question.answer in question.among
            named = {word.strip("?.,:") for word in question.text.split()} & set(COLOURS)
            assert named <= colours, question.text


def test_held_out_wordings_and_textures_are_never_seen_in_training() -> None:
    for kind in TYPES.values():
        assert not {*kind.training, *kind.more} & {*kind.held_out}
        assert kind.training and kind.held_out
    families = [{invent(1, n, held_out=held_out).scene.family for n in range(80)} for held_out in (False, True)]
    assert not families[0] & families[1]


def test_the_same_seed_invents_the_same_clip_and_another_seed_another() -> None:
    assert invent(1, 17) == invent(1, 17)
    assert invent(1, 17).scene != invent(2, 17).scene
    assert {invent(1, n).kind for n in range(len(schedule(False)))} == set(KINDS)
