"""The text side of media in a prompt: placeholders as token ids, and the sentence that tells a video's times."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence


def time_instruction(seconds: float, timestamps_s: Sequence[float]) -> str:
    """LLaVA-Video's words about a video, in which its training put them, the missing space included.

    Args:
        seconds: length of the whole video.
        timestamps_s: true times of its frames or slots, seconds from the video's first frame.
    """
    places = ",".join(f"{time:.2f}s" for time in timestamps_s)
    return (
        f"The video lasts for {seconds:.2f} seconds, and {len(timestamps_s)} frames are uniformly sampled from it. "
        f"These frames are located at {places}.Please answer the following questions related to this video."
    )


def mark_placeholders(prompt: Sequence[int], placeholders: Mapping[int, Sequence[int]]) -> list[int]:
    """Write each placeholder as one token.

    Args:
        prompt: token ids as the tokenizer made them.
        placeholders: ids that a placeholder's text becomes, by the id that shall stand for it. Where the tokenizer
            knows the placeholder itself, both are the same.
    """
    marked: list[int] = []
    at = 0
    while at < len(prompt):
        for token, ids in placeholders.items():
            if list(prompt[at : at + len(ids)]) == list(ids):
                marked.append(token)
                at += len(ids)
                break
        else:
            marked.append(prompt[at])
            at += 1
    return marked


def insert_instructions(
    prompt: Sequence[int], token: int, instructions: Iterable[str], encode: Callable[[str], list[int]]
) -> list[int]:
    """Put a line of text after each placeholder: `<video>`, line end, instruction, line end, question.

    It depends on the video, so no chat template can hold it; and it stands behind the video's tokens, so that two
    questions about one video, and a video that grows, still share them as a prefix.

    Args:
        prompt: token ids with one `token` per video.
        token: the placeholder.
        instructions: one per placeholder.
        encode: a text to token ids, without any that begin or end a text.
    """
    line_end = encode("\n")
    following = iter(instructions)
    out: list[int] = []
    at = 0
    while at < len(prompt):
        out.append(prompt[at])
        at += 1
        if out[-1] == token:
            # The line end that the template or vLLM has put behind the placeholder already counts.
            at += len(line_end) if list(prompt[at : at + len(line_end)]) == line_end else 0
            out += line_end
            out += encode(next(following) + "\n")
    return out
