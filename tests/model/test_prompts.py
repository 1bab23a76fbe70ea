"""Placeholders and time instructions in a prompt's tokens."""

from __future__ import annotations

from cope_model.prompts import insert_instructions, mark_placeholders, time_instruction

IMAGE, VIDEO = 900, 901
WRITTEN = {IMAGE: [3, 1], VIDEO: [1, 3]}  # as LLaVA-Video's: <|im_end|><|endoftext|> and the other way round


def encode(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def test_the_words_are_llava_nexts() -> None:
    assert time_instruction(20.0, [0.0, 1.0100000001, 19.966]) == (
        "The video lasts for 20.00 seconds, and 3 frames are uniformly sampled from it. These frames are located at "
        "0.00s,1.01s,19.97s.Please answer the following questions related to this video."
    )


def test_placeholders_are_read_from_left_to_right() -> None:
    assert mark_placeholders([7, 1, 3, 8, 3, 1], WRITTEN) == [7, VIDEO, 8, IMAGE]
    assert mark_placeholders([1, 3, 3, 1, 1, 3], WRITTEN) == [VIDEO, IMAGE, VIDEO]
    # A video alone in its message, then the message's end; an image likewise.
    assert mark_placeholders([1, 3, 3, 7], WRITTEN) == [VIDEO, 3, 7]
    assert mark_placeholders([3, 1, 3, 7], WRITTEN) == [IMAGE, 3, 7]


def test_single_special_tokens_stay() -> None:
    assert mark_placeholders([3, 7, 1, 7, 3], WRITTEN) == [3, 7, 1, 7, 3]
    assert mark_placeholders([], WRITTEN) == []


def test_an_instruction_goes_between_the_line_end_and_the_question() -> None:
    prompt = [5, VIDEO, *encode("\nWhy?")]
    assert insert_instructions(prompt, VIDEO, ["T"], encode) == [5, VIDEO, *encode("\nT\nWhy?")]


def test_a_missing_line_end_is_added() -> None:
    assert insert_instructions([VIDEO, *encode("Why?")], VIDEO, ["T"], encode) == [VIDEO, *encode("\nT\nWhy?")]
    assert insert_instructions([VIDEO], VIDEO, ["T"], encode) == [VIDEO, *encode("\nT\n")]


def test_each_video_gets_its_own() -> None:
    prompt = [VIDEO, *encode("\n"), VIDEO, *encode("\nWhy?")]
    out = insert_instructions(prompt, VIDEO, ["A", "B"], encode)
    assert out == [VIDEO, *encode("\nA\n"), VIDEO, *encode("\nB\nWhy?")]
