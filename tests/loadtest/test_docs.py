"""docs/loadtest.md says what the code does."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from pathlib import Path

from cope_loadtest.arrivals import Load
from cope_loadtest.client import Patience
from cope_loadtest.corpus.spec import ClipSpec
from cope_loadtest.outcomes import OUTCOMES
from cope_loadtest.scenario import RequestSpec, Slo, Sweep, bundled, load_scenario, read_scenario
from cope_loadtest.summary import METRICS

PAGE = (Path(__file__).parents[2] / "docs" / "loadtest.md").read_text()


def test_outcomes_and_figures_are_listed() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", PAGE, re.MULTILINE))
    for name, meaning in OUTCOMES.items():
        assert rows[name] == meaning
    assert all(f"| `{name}` |" in PAGE for name in METRICS)


def test_every_bundled_scenario_is_listed() -> None:
    assert all(f"| `{name}` |" in PAGE for name in bundled())


def test_the_example_has_every_value_with_its_default_where_it_has_one() -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    table = tomllib.loads(example)
    read_scenario(table, "example")
    for kind, name in ((Load, "load"), (Patience, "patience"), (Slo, "slo"), (Sweep, "sweep")):
        assert set(table[name]) == {field.name for field in fields(kind)}
    assert set(table["corpus"]) == {field.name for field in fields(ClipSpec)} | {"warm_clips"}
    assert set(table["requests"]["codec"]) == {field.name for field in fields(RequestSpec)}
    for name, value in table["patience"].items():
        assert value == getattr(Patience(), name)
    for name, value in table["corpus"].items():
        if name != "warm_clips":
            assert value == (list(ClipSpec().motion) if name == "motion" else getattr(ClipSpec(), name))


def test_bundled_scenarios_say_what_they_ask_in_their_descriptions() -> None:
    assert len({load_scenario(path).description for path in bundled().values()}) == len(bundled())
