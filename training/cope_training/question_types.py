"""Question types, their options and wordings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from cope_training.scenes import COLOURS, DIRECTIONS, SHAPES

Group = Literal["appearance", "motion", "binding"]
GROUPS: tuple[Group, ...] = ("appearance", "motion", "binding")
NOWHERE, NOTHING = "nowhere", "nothing"

_COLOURS, _DIRECTIONS = tuple(COLOURS), tuple(DIRECTIONS)
CORNERS = ("top left", "top right", "bottom left", "bottom right")


@dataclass(frozen=True, slots=True)
class QuestionType:
    """One kind of question.

    Attributes:
        group: `appearance` (the first picture answers it), `motion` (only what happens between keyframes does), or
            `binding` (motion of one of several things).
        options: all answers; a question may offer fewer. None are given where answers are sentences
            (`cope_training.telling`): those are trained on and never scored.
        training, held_out: wordings, disjoint, with fields in braces.
        more: wordings that training may put in place of those of the data (`questions.reword`).
    """

    group: Group
    options: tuple[str, ...]
    training: tuple[str, ...]
    held_out: tuple[str, ...]
    more: tuple[str, ...] = ()


TYPES: Mapping[str, QuestionType] = MappingProxyType(
    {
        "colour": QuestionType(
            "appearance",
            _COLOURS,
            (
                "What colour is {the}?",
                "Which colour does {the} have?",
                "Tell me the colour of {the}.",
                "{The} is of which colour?",
                "Name the colour of {the}.",
            ),
            ("What is the colour of {the}?", "Which colour is {the}?"),
            more=(
                "Of which colour is {the}?",
                "In which colour is {the}?",
                "Say what colour {the} is.",
                "Which colour do you see on {the}?",
                "{The} has which colour?",
            ),
        ),
        "count": QuestionType(
            "appearance",
            ("one", "two", "three"),
            (
                "How many objects are there?",
                "How many objects are in the video?",
                "Count the objects.",
                "What is the number of objects?",
                "How many objects can be seen?",
            ),
            ("How many objects do you see?", "How many objects does the video show?"),
            more=(
                "How many objects are in the picture?",
                "Say how many objects there are.",
                "How many objects does the picture show?",
                "What number of objects do you see?",
                "Tell me how many objects can be seen.",
            ),
        ),
        "side": QuestionType(
            "appearance",
            ("left", "right"),
            (
                "On which side is {the} at the start?",
                "At the start, on which side is {the}?",
                "Where is {the} at the start, left or right?",
                "Is {the} on the left or on the right at the start?",
                "Which side is {the} on at the start?",
            ),
            ("At the start, is {the} on the left or on the right?", "{The} is on which side at the start?"),
            more=(
                "Where does {the} start, on the left or on the right?",
                "Say on which side {the} is at the start.",
                "Left or right: where is {the} at the start?",
            ),
        ),
        "shape": QuestionType(
            "appearance",
            SHAPES,
            (
                "What shape is {the}?",
                "Which shape does {the} have?",
                "Tell me the shape of {the}.",
                "{The} is of which shape?",
                "Name the shape of {the}.",
            ),
            ("What is the shape of {the}?", "Which shape is {the}?"),
            more=(
                "Of which shape is {the}?",
                "In which shape is {the}?",
                "Say what shape {the} has.",
                "{The} has which shape?",
            ),
        ),
        "direction": QuestionType(
            "motion",
            _DIRECTIONS,
            (
                "Which way does the object move?",
                "In which direction does the object move?",
                "Where does the object move to?",
                "The object moves in which direction?",
                "Tell me which way the object moves.",
            ),
            ("In which direction is the object moving?", "Which direction does the object move in?"),
            more=(
                "What is the direction of the object?",
                "Say in which direction the object moves.",
                "Which way is the object moving?",
                "What direction does the object take?",
                "Where is the object moving to?",
                "Tell me the direction that the object moves in.",
            ),
        ),
        "speed": QuestionType(
            "motion",
            ("slow", "fast"),
            (
                "Does the object move slow or fast?",
                "How fast does the object move?",
                "Is the movement of the object slow or fast?",
                "What is the speed of the object?",
                "Is the object slow or fast?",
            ),
            ("What is the speed of the movement, slow or fast?", "How fast is the object?"),
            more=(
                "Does the object move fast or slow?",
                "At which speed does the object move?",
                "Say how fast the object moves.",
                "How fast is the movement?",
                "Slow or fast: how does the object move?",
                "Is it a fast or a slow movement?",
            ),
        ),
        "when": QuestionType(
            "motion",
            ("early", "late"),
            (
                "When does the object move, early or late?",
                "Does the object move early or late?",
                "Is the movement early or late in the video?",
                "When does the movement happen?",
                "When does the object move?",
            ),
            ("When in the video does the object move?", "Does the movement happen early or late?"),
            more=(
                "Early or late: when does the object move?",
                "Say when the object moves.",
                "Does the object move at an early or a late time?",
                "At what time of the video does the object move?",
                "Tell me if the movement is early or late.",
            ),
        ),
        "pan": QuestionType(
            "motion",
            _DIRECTIONS,
            (
                "Which way does the scene move?",
                "In which direction does the whole scene move?",
                "The scene moves in which direction?",
                "Where does the background move to?",
                "Which way does the background move?",
            ),
            ("In which direction does the background move?", "Which direction does the scene move in?"),
            more=(
                "What is the direction of the scene?",
                "Say which way the scene moves.",
                "Which way is the scene moving?",
                "Where is the background moving to?",
                "Tell me the direction of the background.",
            ),
        ),
        "zoom": QuestionType(
            "motion",
            ("in", "out"),
            (
                "Does the camera zoom in or out?",
                "Is the zoom in or out?",
                "Which way does the camera zoom?",
                "Tell me if the camera zooms in or out.",
                "How does the camera zoom?",
            ),
            ("Does it zoom in or out?", "Which way is the zoom of the camera?"),
            more=(
                "Is it a zoom in or a zoom out?",
                "Say how the camera zooms.",
                "Is the camera zooming in or out?",
                "In or out: which way does the camera zoom?",
                "What does the zoom do, in or out?",
            ),
        ),
        "turn": QuestionType(
            "motion",
            ("clockwise", "counterclockwise"),
            (
                "Which way does the picture turn?",
                "Does the picture turn clockwise or counterclockwise?",
                "In which sense does the picture turn?",
                "Is the turn clockwise or counterclockwise?",
                "How does the picture turn?",
            ),
            ("In which direction does the picture turn?", "Is it a turn clockwise or counterclockwise?"),
            more=(
                "Say which way the picture turns.",
                "Clockwise or counterclockwise: how does the picture turn?",
                "What is the direction of the turn?",
                "Tell me the sense in which the picture turns.",
                "Which way is the picture turning?",
            ),
        ),
        "spin": QuestionType(
            "motion",
            ("clockwise", "counterclockwise"),
            (
                "Which way does the object rotate?",
                "Does the object rotate clockwise or counterclockwise?",
                "In which sense does the object rotate?",
                "Is the rotation of the object clockwise or counterclockwise?",
                "How does the object rotate?",
            ),
            ("In which direction does the object rotate?", "The object rotates in which sense?"),
            more=(
                "Say which way the object rotates.",
                "Clockwise or counterclockwise: how does the object rotate?",
                "What is the direction of the rotation?",
                "Tell me the sense in which the object rotates.",
                "Which way is the object rotating?",
            ),
        ),
        "growth": QuestionType(
            "motion",
            ("grows", "shrinks"),
            (
                "Does the object grow or shrink?",
                "Does the size of the object grow or shrink?",
                "What happens to the size of the object?",
                "How does the size of the object change?",
                "Tell me if the object grows or shrinks.",
            ),
            ("How does the object change its size?", "Which is it, does the object grow or shrink?"),
            more=(
                "Say what the size of the object does.",
                "Is the object growing or shrinking?",
                "Does it grow or shrink?",
                "Which is it: the object grows or it shrinks?",
                "How is the size of the object changing?",
            ),
        ),
        "first_direction": QuestionType(
            "motion",
            _DIRECTIONS,
            (
                "Which way does the object move first?",
                "In which direction does the object move first?",
                "At first, which way does the object move?",
                "Where does the object move to first?",
                "What is the first direction of the object?",
            ),
            ("At first, in which direction does the object move?", "First, which way does the object move?"),
            more=(
                "First of all, which way does the object move?",
                "First of all, in which direction does the object move?",
                "Which direction does the object move in first?",
                "At first, where does the object move to?",
                "Say which way the object moves first.",
                "In its first movement, which way does the object go?",
            ),
        ),
        "last_direction": QuestionType(
            "motion",
            _DIRECTIONS,
            (
                "Which way does the object move last?",
                "In which direction does the object move last?",
                "At last, which way does the object move?",
                "Where does the object move to last?",
                "What is the last direction of the object?",
            ),
            ("At last, in which direction does the object move?", "Last, which way does the object move?"),
            more=(
                "Last of all, which way does the object move?",
                "Last of all, in which direction does the object move?",
                "Which direction does the object move in last?",
                "At last, where does the object move to?",
                "Say which way the object moves last.",
                "In its last movement, which way does the object go?",
            ),
        ),
        "appear": QuestionType(
            "motion",
            ("appears", "disappears"),
            (
                "Does an object appear or disappear?",
                "Is there an object that appears or one that disappears?",
                "What does one object do, appear or disappear?",
                "One object appears or disappears. Which is it?",
                "Tell me if an object appears or disappears.",
            ),
            ("Does one of the objects appear or disappear?", "Which is it: an object appears or disappears?"),
            more=(
                "Which is it: does an object appear or disappear?",
                "Does one object appear or disappear?",
                "Is it true that an object appears, or that one disappears?",
                "Say if one of the objects appears or disappears.",
                "What happens to one of the objects, does it appear or disappear?",
            ),
        ),
        "which_moves": QuestionType(
            "binding",
            ("left", "right"),
            (
                "Two objects look the same. Which one moves, the left or the right one?",
                "Which of the two objects moves, left or right?",
                "Does the left or the right object move?",
                "Which object moves, the left or the right one?",
                "One of the two objects moves. Which one, left or right?",
            ),
            ("Which of the two moves, the left or the right object?", "Which one of the objects moves, left or right?"),
            more=(
                "Say which object moves, left or right.",
                "Which object is moving, the left one or the right one?",
                "Of the two objects, which one moves?",
                "Left or right: which object moves?",
                "Is it the left or the right object that moves?",
            ),
        ),
        "who_moves": QuestionType(
            "binding",
            _COLOURS,
            (
                "What colour is the object that moves?",
                "Which colour does the moving object have?",
                "One object moves. What colour is it?",
                "Tell me the colour of the object that moves.",
                "The object that moves is of which colour?",
            ),
            ("What is the colour of the object that moves?", "Which colour is the moving object?"),
            more=(
                "Which colour is the object that is moving?",
                "Say what colour the moving object has.",
                "What is the moving object's colour?",
                "Which object moves? Name its colour.",
                "Of which colour is the object that moves?",
            ),
        ),
        "named_direction": QuestionType(
            "binding",
            (*_DIRECTIONS, NOWHERE),
            (
                "Which way does {the} move?",
                "In which direction does {the} move?",
                "Where does {the} move to?",
                "{The} moves in which direction?",
                "Tell me which way {the} moves.",
            ),
            ("In which direction is {the} moving?", "Which direction does {the} move in?"),
            more=(
                "Say which way {the} moves.",
                "Which way is {the} moving?",
                "What is the direction of {the}?",
                "Where is {the} moving to?",
                "Tell me the direction that {the} moves in.",
            ),
        ),
        "order": QuestionType(
            "binding",
            _COLOURS,
            (
                "Which object moves first, {a} or {b}?",
                "Which one moves first, {a} or {b}?",
                "What moves first, {a} or {b}?",
                "{A} and {b}: which one moves first?",
                "Who moves first, {a} or {b}?",
            ),
            ("Which moves first, {a} or {b}?", "{A} or {b}: which object moves first?"),
            more=(
                "Say which one moves first, {a} or {b}.",
                "Which is the first to move, {a} or {b}?",
                "Is it {a} or {b} that moves first?",
                "Of {a} and {b}, which one moves first?",
                "{A} or {b}: who moves first?",
            ),
        ),
        # Training alone asks for corners, four types (`cope_training.naming`): a place of its own for every thing.
        "corner": QuestionType(
            "appearance",
            CORNERS,
            (
                "In which corner is {the} at the start?",
                "Which corner is {the} in at the start?",
                "At the start, in which corner is {the}?",
                "Name the corner of {the} at the start.",
                "Tell me in which corner {the} starts.",
            ),
            ("In which corner do you see {the} at the start?", "At the start, which corner is {the} in?"),
        ),
        "contents": QuestionType(
            "appearance",
            (*_COLOURS, NOTHING),
            (
                "What is in {the} at the start?",
                "At the start, what is in {the}?",
                "Which object starts in {the}?",
                "Tell me what is in {the} at the start.",
                "What can be seen in {the} at the start?",
            ),
            ("At the start, what do you see in {the}?", "Which object is in {the} at the start?"),
        ),
        "moving_corner": QuestionType(
            "binding",
            CORNERS,
            (
                "In which corner does {the} start?",
                "Which corner does {the} start in?",
                "{The} starts in which corner?",
                "Name the corner that {the} starts in.",
                "Where does {the} start, in which corner?",
            ),
            ("From which corner does {the} start?", "Which is the corner of {the} at the start?"),
        ),
        "before": QuestionType(
            "binding",
            (*_COLOURS, NOTHING),
            (
                "What is there at the start where an object appears or disappears?",
                "Where an object appears or disappears, what is there at the start?",
                "One object appears or disappears. What is in its place at the start?",
                "At the start, what is in the place where an object appears or disappears?",
                "Tell me what is at the start where an object appears or disappears.",
            ),
            (
                "An object appears or disappears: what do you see in its place at the start?",
                "What do you see at the start where an object appears or disappears?",
            ),
        ),
        "describe": QuestionType(
            "appearance",
            (),
            (
                "What is there at the start?",
                "Which objects are there at the start?",
                "Describe the start of the video.",
                "What can be seen at the start?",
                "Tell me what is there at the start.",
            ),
            ("What does the video show at the start?", "Which objects can you see at the start?"),
        ),
        "happens": QuestionType(
            "binding",
            (),
            (
                "What happens?",
                "What happens in the video?",
                "Describe what happens.",
                "Tell me what happens in the video.",
                "What moves, and how?",
            ),
            ("What does happen in the video?", "Describe what happens in the video."),
        ),
    }
)
