"""Reads tables of a TOML file into dataclasses; what is wrong is named by its path in the file."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

Made = TypeVar("Made")


class ScenarioError(ValueError):
    """A scenario that cannot be run; the message begins with the path of what is wrong."""


def build(kind: type[Made], values: Mapping[str, Any], path: str) -> Made:
    """Make a dataclass of a table.

    Args:
        kind: the dataclass, whose constructor refuses bad values with a `ValueError`.
        values: the table.
        path: its place in the file, for messages.

    Raises:
        ScenarioError: a name is unknown, a value is of another type, or the constructor refuses it.
    """
    hints = typing.get_type_hints(kind)
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]  # a dataclass, by contract
    for name, value in values.items():
        if name not in known:
            raise ScenarioError(f"{path}.{name} is unknown; known are {', '.join(known)}")
        if not fits(value, hints[name]):
            raise ScenarioError(f"{path}.{name} must be {_words(hints[name])}, not {value!r}")
    try:
        return kind(**{name: _plain(value, hints[name]) for name, value in values.items()})
    except ScenarioError:
        raise
    except (ValueError, TypeError) as error:
        raise ScenarioError(f"{path}: {error}") from None


def fits(value: Any, hint: Any) -> bool:
    """Whether a TOML value is of a field's type; a whole number is also a number, and a list also a tuple."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in typing.get_args(hint))
    if origin is typing.Literal:
        return isinstance(value, str)  # the constructor says which
    if origin is tuple:
        return isinstance(value, list | tuple) and all(fits(one, typing.get_args(hint)[0]) for one in value)
    if origin is not None:
        return isinstance(value, origin)
    if hint is Any:
        return True
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float) if hint is float else isinstance(value, hint)


def _plain(value: Any, hint: Any) -> Any:
    return tuple(value) if isinstance(value, list) and "tuple" in str(hint) else value


def _words(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_words(one) for one in typing.get_args(hint) if one is not type(None))
    if origin is tuple:
        return f"a list of {names.get(typing.get_args(hint)[0], 'values')}"
    if origin is typing.Literal:
        return "text"
    return names.get(hint, "a table")
