"""What evaluation measures beside the model as it is: a name, a view of the clips, and the field it fills."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

ABLATIONS = ("delta_zeroed", "i_only", "motion_tokens_only", "residual_tokens_only")
KEYFRAMES = (1, 2, 4)
MODES: tuple[Literal["native", "transcode", "paper"], ...] = ("native", "transcode", "paper")
ROWS: Mapping[str, str] = MappingProxyType(
    {
        "delta_zeroed": "all delta-tokens are zero",
        "i_only": "P slots are left out",
        "motion_tokens_only": "residual tokens are zero",
        "residual_tokens_only": "motion tokens are zero",
        "by_keyframes": "1, 2 and 4 keyframes per GOP, with and without P slots",
        "native": "clips whose own vectors are used",
        "transcode": "the same clips with vectors of a re-encoded copy, pictures of the source",
        "paper": "the same clips, re-encoded as in the paper: 30 frames per second, pictures too",
    }
)


def chosen(text: str) -> tuple[str, ...]:
    """Rows from a command line.

    Raises:
        ValueError: an unknown row.
    """
    if text == "all":
        return tuple(ROWS)
    if text == "none":
        return ()
    names = tuple(text.split(","))
    for name in names:
        if name not in ROWS:
            raise ValueError(f"no row is called {name!r}: there are {', '.join(ROWS)}")
    return names
