"""What a load test does: read from TOML, checked, and spread out into points that are measured one by one."""

from __future__ import annotations

import itertools
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from cope_loadtest.arrivals import Load
from cope_loadtest.client import Patience
from cope_loadtest.corpus.spec import ClipSpec
from cope_loadtest.outcomes import OK, OUTCOMES
from cope_loadtest.tables import ScenarioError, build, fits

Cache = Literal["cold", "warm"]
Transport = Literal["data", "url", "upload", "file"]
CACHES: tuple[Cache, ...] = get_args(Cache)
TRANSPORTS: tuple[Transport, ...] = get_args(Transport)
_BUNDLED = Path(__file__).parent / "scenarios"
_QUESTIONS = ("What moves?", "In which direction does the camera move?", "Does it come closer?", "What turns?")
# Values in words; those of other names stand behind their name.
_WORDS = {
    **dict.fromkeys(("request", "cache", "transport", "arrival", "codec"), "{}"),
    "rate": "{:g}/s",
    "seconds": "{:g} s",
}
_LOAD = tuple(one.name for one in fields(Load))
_CLIP = tuple(one.name for one in fields(ClipSpec))


@dataclass(frozen=True, slots=True)
class RequestSpec:
    """A kind of request.

    Attributes:
        kind: `video` or `text`.
        options: what stands beside the `url` of the video part, such as `keyframes_per_gop` or `frames`.
        weight: share of this kind where a point has several.
        max_tokens: longest answer.
        ignore_eos: ask for exactly `max_tokens` (an extension that vLLM knows).
        questions: one of them goes with each clip, always the same.
        prompt_words: words of random text before the question; for `text`.
    """

    kind: Literal["video", "text"] = "video"
    options: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    max_tokens: int = 16
    ignore_eos: bool = False
    questions: tuple[str, ...] = _QUESTIONS
    prompt_words: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("video", "text"):
            raise ValueError(f"kind must be video or text, not {self.kind!r}")
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise ValueError(f"weight must be above 0, not {self.weight!r}")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, not {self.max_tokens!r}")
        if not self.questions:
            raise ValueError("questions must not be empty")
        if self.prompt_words < 0:
            raise ValueError(f"prompt_words must not be negative, not {self.prompt_words!r}")
        if self.kind == "text" and self.options:
            raise ValueError("options are for video")

    @property
    def dense(self) -> bool:
        """Whether it asks for plain RGB frames."""
        return "frames" in self.options


@dataclass(frozen=True, slots=True)
class Slo:
    """What an answer must keep for it to count as good, and how many must.

    Attributes:
        ttft_s, tpot_s, e2el_s: most seconds, from the moment at which the request was due; None is no limit.
        share: of all measured requests that must be good.
    """

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2el_s: float | None = None
    share: float = 0.95

    def __post_init__(self) -> None:
        for name in ("ttft_s", "tpot_s", "e2el_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, not {value!r}")
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, not {self.share!r}")

    @property
    def limits(self) -> dict[str, float]:
        """The limits that are set, by name."""
        names = ("ttft_s", "tpot_s", "e2el_s")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, slots=True)
class Sweep:
    """Values of the load that are tried in order until the server no longer keeps up, and then between the last two.

    Attributes:
        over: `rate` or `concurrency`.
        values: increasing.
        knee_steps: further points between the last value that was sustained and the first that was not.
        knee_factor: without an SLO, p95 of TTFT above so many times its value at the lowest load counts as not kept up.
        min_throughput: answers that come at less than this share of the requests' pace do not keep up (open loops).
    """

    over: Literal["rate", "concurrency"]
    values: tuple[float, ...]
    knee_steps: int = 0
    knee_factor: float = 3.0
    min_throughput: float = 0.9

    def __post_init__(self) -> None:
        if self.over not in ("rate", "concurrency"):
            raise ValueError(f"over must be rate or concurrency, not {self.over!r}")
        if not self.values or list(self.values) != sorted(set(self.values)):
            raise ValueError("values must be a list that increases")
        if self.over == "concurrency" and any(value != int(value) for value in self.values):
            raise ValueError("values of concurrency must be whole numbers")
        if self.knee_steps < 0:
            raise ValueError(f"knee_steps must not be negative, not {self.knee_steps!r}")
        if not self.knee_factor > 1:
            raise ValueError(f"knee_factor must be above 1, not {self.knee_factor!r}")
        if not 0 < self.min_throughput <= 1:
            raise ValueError(f"min_throughput must be above 0 and at most 1, not {self.min_throughput!r}")


@dataclass(frozen=True, slots=True)
class Point:
    """One combination of everything that varies.

    Attributes:
        place: what distinguishes it from the others, such as {"request": "dense", "cache": "cold", "concurrency": 8}.
        requests: the kinds that are sent, by name.
        cache: `cold`: every request has a clip that was never sent before; `warm`: few clips, sent before the clock
            starts.
        transport: how clips reach the server.
        load: how requests arrive.
        clip: how clips are made.
    """

    place: Mapping[str, Any]
    requests: Mapping[str, RequestSpec]
    cache: Cache
    transport: Transport
    load: Load
    clip: ClipSpec

    @property
    def label(self) -> str:
        """For people: the distinguishing values."""
        return ", ".join(describe(name, value) for name, value in self.place.items()) or "all requests"

    @property
    def cell(self) -> tuple[tuple[str, Any], ...]:
        """The place without the kind of request: points of one cell see the same clips and questions."""
        return tuple((name, value) for name, value in self.place.items() if name != "request")

    @property
    def has_video(self) -> bool:
        """Whether any of its requests carries a clip."""
        return any(request.kind == "video" for request in self.requests.values())


@dataclass(frozen=True, slots=True)
class Scenario:
    """A whole load test.

    Attributes:
        name, description: for reports.
        requests: kinds of requests, by name.
        points: what is measured, in this order.
        rounds: each point is measured in so many pieces, in turns with the others: what changes on the machine
            meanwhile then touches all of them.
        sweep: tried at every point, or None.
        slo: what answers must keep.
        expected: outcomes beside `ok` that are no failure here.
        patience: when to give up on a request.
        warm_clips: clips of a warm point.
        folder: the user's own clips, instead of drawn ones.
    """

    name: str
    description: str
    requests: Mapping[str, RequestSpec]
    points: tuple[Point, ...]
    rounds: int = 1
    sweep: Sweep | None = None
    slo: Slo = field(default_factory=Slo)
    expected: tuple[str, ...] = ()
    patience: Patience = field(default_factory=Patience)
    warm_clips: int = 2
    folder: Path | None = None


def describe(name: str, value: Any) -> str:
    """A value of a place in words: 8 users, 4/s, cold."""
    if name == "concurrency":
        return "1 user" if value == 1 else f"{value} users"
    return _WORDS[name].format(value) if name in _WORDS else f"{name} {value}"


def bundled() -> dict[str, Path]:
    """The scenarios that come with the package, by name."""
    return {path.stem: path for path in sorted(_BUNDLED.glob("*.toml"))}


def find(name: str) -> Path:
    """A scenario by its bundled name or its path.

    Raises:
        ScenarioError: neither.
    """
    known = bundled()
    if name in known:
        return known[name]
    if Path(name).is_file():
        return Path(name)
    raise ScenarioError(f"no scenario {name!r}: give a file, or one of {', '.join(known)}")


def load_scenario(path: Path, overrides: Mapping[str, Any] | None = None) -> Scenario:
    """Read a scenario.

    Args:
        path: a TOML file.
        overrides: values by their path in the file, such as {"load.duration_s": 5.0}; they come before the file's.

    Raises:
        ScenarioError: something in it cannot be used; the message names it.
        OSError: the file cannot be read.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{path}: {error}") from None
    for place, value in (overrides or {}).items():
        _override(table, place, value)
    for place, value in (overrides or {}).items():
        _settle(table, place, value, overrides or {})
    scenario = read_scenario(table, path.stem, path.parent)
    for place in overrides or {}:
        _check_use(scenario, place)
    return scenario


def read_scenario(table: Mapping[str, Any], name: str, base: Path | None = None) -> Scenario:
    """Check a scenario's table and spread it out.

    Args:
        table: as in the TOML file.
        name: used if the table gives none.
        base: folder that a relative `corpus.folder` starts from.

    Raises:
        ScenarioError: something in it cannot be used; the message names it.
    """
    _known(
        table,
        "name description cache transport rounds expected load patience corpus requests matrix sweep slo".split(),
    )
    corpus = dict(_table(table, "corpus"))
    warm_clips = _number(corpus.pop("warm_clips", 2), "corpus.warm_clips")
    folder = corpus.pop("folder", None)
    if folder is not None and not isinstance(folder, str):
        raise ScenarioError(f"corpus.folder must be text, not {folder!r}")
    requests = {
        key: build(RequestSpec, _table(_table(table, "requests"), key, "requests."), f"requests.{key}")
        for key in _table(table, "requests")
    }
    if not requests:
        raise ScenarioError("requests: at least one kind of request is needed, such as [requests.codec]")
    base_point = Point(
        place={},
        requests=requests,
        cache=_one_of(table.get("cache", "warm"), CACHES, "cache"),
        transport=_one_of(table.get("transport", "data"), TRANSPORTS, "transport"),
        load=build(Load, _table(table, "load"), "load"),
        clip=build(ClipSpec, corpus, "corpus"),
    )
    sweep = build(Sweep, _table(table, "sweep"), "sweep") if "sweep" in table else None
    points = tuple(_spread(base_point, _table(table, "matrix")))
    rounds = _number(table.get("rounds", 1), "rounds")
    for point in points:
        _check(point, sweep, rounds)
    expected = table.get("expected", [])
    if not fits(expected, tuple[str, ...]) or not set(expected) <= set(OUTCOMES) - {OK}:
        raise ScenarioError(f"expected must be a list of outcomes beside ok ({', '.join(OUTCOMES)}), not {expected!r}")
    return Scenario(
        name=str(table.get("name", name)),
        description=str(table.get("description", "")),
        requests=requests,
        points=points,
        rounds=rounds,
        sweep=sweep,
        slo=build(Slo, _table(table, "slo"), "slo"),
        expected=tuple(expected),
        patience=build(Patience, _table(table, "patience"), "patience"),
        warm_clips=warm_clips,
        folder=None if folder is None else (base or Path()) / Path(folder).expanduser(),
    )


def _spread(point: Point, matrix: Mapping[str, Any]) -> list[Point]:
    for name, values in matrix.items():
        if not isinstance(values, list) or not values:
            raise ScenarioError(f"matrix.{name} must be a list of values, not {values!r}")
    return [_placed(point, dict(zip(matrix, values, strict=True))) for values in itertools.product(*matrix.values())]


def _placed(point: Point, place: Mapping[str, Any]) -> Point:
    load: dict[str, Any] = {}
    clip: dict[str, Any] = {}
    for name, value in place.items():
        if name == "request":
            if value not in point.requests:
                raise ScenarioError(f"matrix.request: {value!r} is none of {', '.join(point.requests)}")
            point = replace(point, requests={value: point.requests[value]})
        elif name == "cache":
            point = replace(point, cache=_one_of(value, CACHES, "matrix.cache"))
        elif name == "transport":
            point = replace(point, transport=_one_of(value, TRANSPORTS, "matrix.transport"))
        elif name in _LOAD:
            load[name] = value
        elif name in _CLIP:
            clip[name] = value
        else:
            known = ("request", "cache", "transport", *_LOAD, *_CLIP)
            raise ScenarioError(f"matrix.{name} is unknown; known are {', '.join(known)}")
    return replace(
        point,
        place=dict(place),
        load=build(Load, _with(point.load, load), "matrix"),
        clip=build(ClipSpec, _with(point.clip, clip), "matrix"),
    )


def _with(made: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    """A dataclass's values as a table, changed; what is None is left out, as it would be in a file."""
    values = {one.name: getattr(made, one.name) for one in fields(made)}
    return {name: value for name, value in {**values, **changes}.items() if value is not None}


def at(point: Point, sweep: Sweep, value: float) -> Point:
    """A point at one value of a sweep."""
    exact: float = int(value) if sweep.over == "concurrency" else value
    return replace(point, place={**point.place, sweep.over: exact}, load=replace(point.load, **{sweep.over: exact}))  # type: ignore[arg-type]  # a number either way


def _check(point: Point, sweep: Sweep | None, rounds: int) -> None:
    try:
        point.load.part(0, rounds)
    except ValueError as error:
        raise ScenarioError(f"rounds: a part of the load: {error}") from None
    if sweep is not None:
        if (sweep.over == "concurrency") != (point.load.arrival == "closed"):
            raise ScenarioError(
                f"sweep.over: {sweep.over} does not go with load.arrival {point.load.arrival!r}: rate is for open "
                "loops, concurrency for closed ones"
            )
        if sweep.over in point.place:
            raise ScenarioError(f"sweep.over: {sweep.over} is in the matrix, too")
        for value in sweep.values:
            at(point, sweep, value)
    if point.cache == "cold" and point.has_video and point.load.requests is None:
        raise ScenarioError("load.requests is needed where cache is cold: every request takes a clip of its own")


def _override(table: dict[str, Any], place: str, value: Any) -> None:
    *tables, name = place.split(".")
    inner = table
    for key in tables:
        inner = inner.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ScenarioError(f"{place}: {key} is no table")
    inner[name] = value


def _settle(table: dict[str, Any], place: str, value: Any, overrides: Mapping[str, Any]) -> None:
    """A value from outside is the only one of what the file would vary: its matrix or sweep must not undo it."""
    group, _, name = place.rpartition(".")
    if group not in ("", "load", "corpus"):
        return
    said = {"matrix", f"matrix.{name}", "sweep", "sweep.over", "sweep.values"} & set(overrides)
    matrix, sweep = table.get("matrix"), table.get("sweep")
    if isinstance(matrix, dict) and name in matrix and not said:
        matrix[name] = [value]
    if isinstance(sweep, dict) and sweep.get("over") == name and not said:
        sweep["values"] = [value]


def _check_use(scenario: Scenario, place: str) -> None:
    """Refuse a value from outside that would change nothing."""
    closed = [point.load.arrival == "closed" for point in scenario.points]
    if place == "load.rate" and all(closed):
        raise ScenarioError("load.rate means nothing where load.arrival is closed: its users take load.concurrency")
    if place == "load.concurrency" and not any(closed):
        raise ScenarioError("load.concurrency means nothing where load.arrival is not closed: it takes load.rate")


def _known(table: Mapping[str, Any], names: list[str]) -> None:
    for name in table:
        if name not in names:
            raise ScenarioError(f"{name} is unknown; known are {', '.join(names)}")


def _table(table: Mapping[str, Any], name: str, path: str = "") -> Mapping[str, Any]:
    inner = table.get(name, {})
    if not isinstance(inner, dict):
        raise ScenarioError(f"{path}{name} must be a table, not {inner!r}")
    return inner


def _number(value: Any, path: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ScenarioError(f"{path} must be a whole number of at least 1, not {value!r}")
    return value


def _one_of(value: Any, known: tuple[Any, ...], path: str) -> Any:
    if value not in known:
        raise ScenarioError(f"{path} must be one of {', '.join(known)}, not {value!r}")
    return value
