"""Invents clips: what the first picture shows, what then happens, and what can be asked about it.

A clip's start and its events are drawn from separate streams of random numbers: whatever happens, the first picture is
the same. That makes questions of the groups `motion` and `binding` unanswerable from it. In `who` and `order` the deal
decides which thing has which colour and which one moves, together, so that no colour is likelier to be the answer.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from cope_training.naming import named_questions
from cope_training.question_types import NOWHERE, TYPES
from cope_training.questions import Question, wording
from cope_training.scenes import COLOURS, DIRECTIONS, REFERENCE_PX, SHAPES, Leg, Scene, Thing
from cope_training.telling import what_happens, what_is_there
from cope_training.textures import HELD_OUT_FAMILIES, TRAINING_FAMILIES

T = TypeVar("T")
SECONDS = 7.4  # eight slots at one per second; the last one needs a frame after 7 s
_MIDDLE = REFERENCE_PX / 2
_CELLS = ((38.0, 38.0), (90.0, 38.0), (38.0, 90.0), (90.0, 90.0))
_SLOW, _FAST = (8.0, 10.0), (20.0, 26.0)  # reference pixels per second


@dataclass
class Deck:
    """Deals answers so that each comes equally often, in an order that says nothing.

    Attributes:
        seed: of the data set.
        kind: of the story; every kind has decks of its own.
        number: how manieth story of its kind this is.
        forced: answers set from outside, by the deck's name.
        dealt: what was dealt, by name.
    """

    seed: int
    kind: str
    number: int
    forced: Mapping[str, object] = field(default_factory=dict)
    dealt: dict[str, object] = field(default_factory=dict)

    def deal(self, name: str, options: Sequence[T]) -> T:
        """The option that is this story's turn: of every `len(options)` stories each gets one."""
        if name in self.forced:
            return self.forced[name]  # type: ignore[return-value]
        round_, place = divmod(self.number, len(options))
        random = np.random.default_rng([self.seed, zlib.crc32(f"{self.kind}.{name}".encode()), round_])
        chosen = options[int(random.permutation(len(options))[place])]
        self.dealt[name] = chosen
        return chosen


@dataclass(frozen=True, slots=True)
class Story:
    """A clip to be drawn.

    Attributes:
        kind: key of `KINDS`.
        scene: what is seen.
        questions: what can be asked, with answers.
        dealt: the answers that were dealt, by deck; `invent(..., forced=...)` can set others.
    """

    kind: str
    scene: Scene
    questions: tuple[Question, ...]
    dealt: Mapping[str, object]


@dataclass
class _Draft:
    """A story in the making; `start` draws what the first picture shows, `events` what happens then."""

    deck: Deck
    start: np.random.Generator
    events: np.random.Generator
    held_out: bool
    things: list[Thing] = field(default_factory=list)
    camera: dict[str, object] = field(default_factory=dict)
    questions: list[Question] = field(default_factory=list)

    def ask(
        self, type_: str, answer: str, *, options: Sequence[str] = (), among: Sequence[str] = (), **fields: str
    ) -> None:
        """Add a question in one of its wordings."""
        text = wording(_template(type_, self.held_out, self.events), fields)
        self.questions.append(Question(type_, text, answer, tuple(options) or TYPES[type_].options, tuple(among)))

    def thing(self, colour: str, x: float, y: float, radius: float | None = None, shape: str | None = None) -> Thing:
        """A thing at rest whose other traits are drawn."""
        random = self.start
        r = random.uniform(16, 24)
        s = SHAPES[int(random.integers(len(SHAPES)))]
        return Thing(
            colour=colour,
            shape=shape or s,
            radius=radius or r,
            x=x,
            y=y,
            angle=random.uniform(0, 2 * math.pi),
            hue_shift=random.uniform(-10, 10),
            texture_at=(random.uniform(0, 256), random.uniform(0, 256)),
        )

    def single(self, reach: float = 0.0) -> Thing:
        """One thing, on one side of the picture, and the questions about its looks.

        Args:
            reach: how much of its way to the border it keeps free, 0 (anywhere) to 1 (in the middle).
        """
        side = self.deck.deal("side", ("left", "right"))
        colour = self.deck.deal("colour", tuple(COLOURS))
        shape = self.deck.deal("shape", SHAPES)
        off = self.start.uniform(10, 34 - 20 * reach)
        thing = self.thing(
            colour, _MIDDLE + (off if side == "right" else -off), self.start.uniform(34, 94), shape=shape
        )
        self.things.append(thing)
        self.ask("colour", colour, among=(colour,), the="the object")
        self.ask("shape", shape, among=(shape,), the="the object")
        self.ask("side", side, among=(side,), the="the object")
        return thing

    def several(self, count: int, *, star: tuple[int, str] | None = None, stay: bool = True) -> list[Thing]:
        """Two or three things of different colours in different quarters, and questions about the first one's looks.

        Args:
            count: how many.
            star: which of them has which colour; the first has the deck's if None.
            stay: all of them are there from start to end, so that they can be compared.
        """
        position, colour = star or (0, self.deck.deal("colour", tuple(COLOURS)))
        rest = [other for other in COLOURS if other != colour]
        colours = [rest[i] for i in self.start.permutation(len(rest))[: count - 1]]
        colours.insert(position, colour)
        first = colours[0]
        side = self.deck.deal("side", ("left", "right"))
        cells = [_CELLS[i] for i in self.start.permutation(4)]
        # The first on its side, the second on the other, so that both can be told by their place.
        own = next(cell for cell in cells if (cell[0] < _MIDDLE) == (side == "left"))
        other = next(cell for cell in cells if (cell[0] < _MIDDLE) != (side == "left"))
        places = [own, other, *(cell for cell in cells if cell not in (own, other))]
        large = self.deck.deal("larger", (True, False))
        sizes = (self.start.uniform(21, 24), self.start.uniform(14, 17))
        radii = [sizes[0], sizes[1]] if large else [sizes[1], sizes[0]]
        shape = self.deck.deal("shape", SHAPES)
        things = [
            self.thing(
                colour,
                place[0] + self.start.uniform(-7, 7),
                place[1] + self.start.uniform(-7, 7),
                radius=radii[n] if count == 2 else None,
                shape=shape if n == 0 else None,
            )
            for n, (colour, place) in enumerate(zip(colours, places, strict=False))
        ]
        self.things += [things[i] for i in self.start.permutation(count)]
        self.ask("side", side, among=("left", "right"), the=f"the {first} object")
        self.ask("shape", shape, among=[t.shape for t in things], the=f"the {first} object")
        if count == 2 and stay:
            self.ask("colour", first, among=colours, the=f"the object that starts on the {side}")
            self.ask("colour", first, among=colours, the=f"the {'larger' if large else 'smaller'} object")
        return things

    def move(self, thing: Thing, **changes: object) -> None:
        """Give a thing its motion."""
        at = next(n for n, own in enumerate(self.things) if own == thing)
        self.things[at] = replace(thing, **changes)  # type: ignore[arg-type]

    def leg(self, direction: str, start_s: float, end_s: float, speed: tuple[float, float] = (9.0, 16.0)) -> Leg:
        """Straight motion at a speed drawn from a range, reference pixels per second."""
        x, y = DIRECTIONS[direction]
        v = self.events.uniform(*speed)
        return Leg(start_s, end_s, x * v, y * v)

    def sign(self, name: str, plus: str, minus: str) -> tuple[str, int]:
        """Deal one of two opposite answers."""
        answer = self.deck.deal(name, (plus, minus))
        return answer, 1 if answer == plus else -1


def _move(draft: _Draft) -> None:
    thing = draft.single()
    direction = draft.deck.deal("direction", tuple(DIRECTIONS))
    speed = draft.deck.deal("speed", ("slow", "fast"))
    when = draft.deck.deal("when", ("early", "late"))
    start = draft.events.uniform(0.1, 0.5) if when == "early" else draft.events.uniform(3.9, 4.3)
    length = draft.events.uniform(2.6, 3.0)
    draft.move(thing, legs=(draft.leg(direction, start, start + length, _SLOW if speed == "slow" else _FAST),))
    draft.ask("direction", direction)
    draft.ask("speed", speed)
    draft.ask("when", when)


def _camera(draft: _Draft) -> None:
    """One to three things that belong to the world which the camera looks at."""
    count = draft.deck.deal("count", (1, 2, 3))
    if count == 1:
        draft.single()
    else:
        draft.several(count)
    draft.ask("count", TYPES["count"].options[count - 1])


def _pan(draft: _Draft) -> None:
    _camera(draft)
    direction = draft.deck.deal("direction", tuple(DIRECTIONS))
    x, y = DIRECTIONS[direction]
    speed = draft.events.uniform(6, 24)
    draft.camera["pan"] = (x * speed, y * speed)
    draft.ask("pan", direction)


def _zoom(draft: _Draft) -> None:
    _camera(draft)
    answer, sign = draft.sign("zoom", "in", "out")
    draft.camera["zoom"] = sign * draft.events.uniform(0.05, 0.13)
    draft.ask("zoom", answer)


def _turn(draft: _Draft) -> None:
    _camera(draft)
    answer, sign = draft.sign("turn", "clockwise", "counterclockwise")
    draft.camera["roll"] = sign * draft.events.uniform(0.10, 0.35)
    draft.ask("turn", answer)


def _spin(draft: _Draft) -> None:
    thing = draft.single(reach=0.5)
    answer, sign = draft.sign("spin", "clockwise", "counterclockwise")
    large = replace(thing, radius=draft.start.uniform(26, 36))
    draft.things[0] = replace(large, spin=sign * draft.events.uniform(0.35, 0.75))
    draft.ask("spin", answer)


def _growth(draft: _Draft) -> None:
    thing = draft.single(reach=0.5)
    answer, sign = draft.sign("growth", "grows", "shrinks")
    draft.move(thing, growth=sign * draft.events.uniform(0.07, 0.11))
    draft.ask("growth", answer)


def _legs(draft: _Draft) -> None:
    thing = draft.single(reach=0.3)
    first, last = draft.deck.deal("legs", [(a, b) for a in DIRECTIONS for b in DIRECTIONS if a != b])
    turn = draft.events.uniform(3.2, 3.8)
    legs = (draft.leg(first, 0.1, turn), draft.leg(last, turn, SECONDS))
    draft.move(thing, legs=legs)
    draft.ask("first_direction", first)
    draft.ask("last_direction", last)


def _appear(draft: _Draft) -> None:
    count = draft.deck.deal("count", (2, 3))
    things = draft.several(count, stay=False)
    answer = draft.deck.deal("appear", ("appears", "disappears"))
    at = draft.events.uniform(1.2, 6.2)
    # The colour deck's thing stays. In both cases the first picture shows `count - 1` others beside it.
    changed = things[-1]
    draft.things.remove(changed)
    stays = things[:-1]
    if answer == "appears":
        draft.things.append(replace(changed, from_s=at))
    else:
        gone = stays[int(draft.events.integers(len(stays)))]
        draft.move(gone, until_s=at)
    draft.ask("appear", answer)


def _twins(draft: _Draft) -> None:
    colour = draft.deck.deal("colour", tuple(COLOURS))
    answer = draft.deck.deal("which", ("left", "right"))
    one = draft.thing(colour, 36 + draft.start.uniform(-8, 8), draft.start.uniform(34, 94))
    two = replace(one, x=92 + draft.start.uniform(-8, 8), y=draft.start.uniform(34, 94))
    draft.things += [one, two]
    start = draft.events.uniform(0.1, 3.0)
    direction = tuple(DIRECTIONS)[int(draft.events.integers(4))]
    leg = draft.leg(direction, start, start + draft.events.uniform(3.0, 4.0))
    draft.move(one if answer == "left" else two, legs=(leg,))
    draft.ask("which_moves", answer, among=("left", "right"))
    draft.ask("colour", colour, among=(colour,), the="the object on the left")


def _stars(count: int) -> list[tuple[int, str]]:
    """Every thing in every colour: dealing the mover and its colour at once balances the answer.

    It tells nothing about the first picture: whichever thing is chosen, its colour and the others' are uniform.
    """
    return [(n, colour) for n in range(count) for colour in COLOURS]


def _who(draft: _Draft) -> None:
    count, position, colour = draft.deck.deal("who", [(count, *star) for count in (2, 3) for star in _stars(count)])
    things = draft.several(count, star=(position, colour))
    start = draft.events.uniform(0.1, 3.0)
    direction = draft.deck.deal("direction", tuple(DIRECTIONS))
    who = things[position]
    leg = draft.leg(direction, start, start + draft.events.uniform(3.0, 4.0))
    draft.move(who, legs=(leg,))
    draft.ask("who_moves", who.colour, among=[t.colour for t in things])
    draft.ask("direction", direction)


def _named(draft: _Draft) -> None:
    count = draft.deck.deal("count", (2, 3))
    things = draft.several(count)
    answers = [draft.deck.deal(f"direction{n}", (*DIRECTIONS, NOWHERE)) for n in range(count)]
    for thing, answer in zip(things, answers, strict=True):
        if answer != NOWHERE:
            start = draft.events.uniform(0.1, 2.0)
            draft.move(thing, legs=(draft.leg(answer, start, start + draft.events.uniform(3.0, 4.5)),))
    for thing, answer in list(zip(things, answers, strict=True))[:2]:
        draft.ask("named_direction", answer, among=answers, the=f"the {thing.colour} object")


def _order(draft: _Draft) -> None:
    first, colour = draft.deck.deal("first", _stars(2))
    things = draft.several(2, star=(first, colour))
    turn = draft.events.uniform(3.3, 3.9)
    for thing, early in ((things[first], True), (things[1 - first], False)):
        direction = tuple(DIRECTIONS)[int(draft.events.integers(4))]
        span = (draft.events.uniform(0.1, 0.5), turn - 0.3) if early else (turn + 0.3, draft.events.uniform(6.9, 7.3))
        draft.move(thing, legs=(draft.leg(direction, *span),))
    names = [thing.colour for thing in things]
    if draft.events.integers(2):
        names.reverse()
    a, b = (f"the {name} one" for name in names)
    draft.ask("order", things[first].colour, options=names, among=names, a=a, b=b)


# Kinds of story and their share; binding is harder to learn, so it comes twice as often.
KINDS: Mapping[str, tuple[Callable[[_Draft], None], int]] = {
    "move": (_move, 2),
    "pan": (_pan, 1),
    "zoom": (_zoom, 1),
    "turn": (_turn, 1),
    "spin": (_spin, 1),
    "growth": (_growth, 1),
    "legs": (_legs, 2),
    "appear": (_appear, 1),
    "twins": (_twins, 2),
    "who": (_who, 2),
    "named": (_named, 3),
    "order": (_order, 2),
}


def schedule(held_out: bool) -> tuple[str, ...]:
    """The kinds of one round of stories: by their share in training, each once in a held-out set."""
    return tuple(kind for kind, (_, share) in KINDS.items() for _ in range(1 if held_out else share))


def invent(
    seed: int,
    number: int,
    *,
    held_out: bool = False,
    kinds: Sequence[str] = (),
    forced: Mapping[str, object] | None = None,
) -> Story:
    """Invent a clip; the same arguments give the same clip.

    Args:
        seed: of the data set.
        number: of the clip, from 0.
        held_out: take textures and wordings that training never sees, and other random numbers.
        kinds: of one round of stories, instead of `schedule`.
        forced: answers to take instead of those dealt, by the name of their deck.
    """
    rounds = tuple(kinds) or schedule(held_out)
    round_, place = divmod(number, len(rounds))
    chosen = rounds[place]
    nth = round_ * rounds.count(chosen) + rounds[:place].count(chosen)
    stream = [seed, int(held_out), number]
    draft = _Draft(
        deck=Deck(2 * seed + held_out, chosen, nth, forced or {}),
        start=np.random.default_rng([*stream, 1]),
        events=np.random.default_rng([*stream, 2]),
        held_out=held_out,
    )
    families = HELD_OUT_FAMILIES if held_out else TRAINING_FAMILIES
    look = np.random.default_rng([*stream, 3])
    family = families[int(look.integers(len(families)))]
    texture_seed = int(look.integers(2**31))
    grey = look.uniform(75, 150)
    tint = tuple(float(grey + shift) for shift in look.uniform(-12, 12, 3))
    contrast, grain = float(look.uniform(70, 130)), float(look.choice([0.0, 1.0, 2.5]))
    KINDS[chosen][0](draft)
    scene = Scene(
        family=family,
        texture_seed=texture_seed,
        tint=(tint[0], tint[1], tint[2]),
        contrast=contrast,
        grain=grain,
        things=tuple(draft.things),
        **draft.camera,  # type: ignore[arg-type]
    )
    words = np.random.default_rng([*stream, 6])
    for type_, sentence in (("describe", what_is_there(scene)), ("happens", what_happens(scene))):
        draft.questions.append(Question(type_, _template(type_, held_out, words), sentence))
    if not held_out:
        draft.questions += named_questions(scene, draft.questions, np.random.default_rng([*stream, 7]))
    return Story(chosen, scene, tuple(draft.questions), dict(draft.deck.dealt))


def _template(type_: str, held_out: bool, random: np.random.Generator) -> str:
    templates = TYPES[type_].held_out if held_out else TYPES[type_].training
    return templates[int(random.integers(len(templates)))]
