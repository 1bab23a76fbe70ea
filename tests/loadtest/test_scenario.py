"""Scenarios are read, checked by name, and spread out; every request gets the right clip."""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path

import pytest

from cope_loadtest.assign import Assignment
from cope_loadtest.scenario import ScenarioError, at, bundled, find, load_scenario, read_scenario

MINIMAL = "[load]\nrequests = 4\n[requests.codec]\noptions = { keyframes_per_gop = 1 }\n"


def read(text: str):  # type: ignore[no-untyped-def]
    return read_scenario(tomllib.loads(text), "test")


def test_the_bundled_scenarios_can_be_read() -> None:
    names = set(bundled())
    assert names == {"smoke", "ttft-vs-length", "codec-vs-dense", "cold-vs-warm", "overload", "mixed", "crosscheck"}
    for path in bundled().values():
        scenario = load_scenario(path)
        assert scenario.description
        Assignment(scenario, 0)


def test_codec_vs_dense_is_the_papers_table() -> None:
    scenario = load_scenario(find("codec-vs-dense"))
    places = [tuple(point.place.values()) for point in scenario.points]
    kinds = ["dense-64", "codec-4", "codec-2", "codec-1"]
    assert places == [(cache, users, kind) for cache in ("cold", "warm") for users in (1, 8) for kind in kinds]
    assert scenario.requests["dense-64"].options == {"frames": 64}
    assert {request.max_tokens for request in scenario.requests.values()} == {64}
    assert all(
        point.clip.seconds == 64 and point.load.concurrency == point.place["concurrency"] for point in scenario.points
    )


def test_a_matrix_changes_load_and_corpus() -> None:
    scenario = read(MINIMAL + "[matrix]\nseconds = [2, 4]\nconcurrency = [1, 3]\ncodec = ['mpeg4']\n")
    assert [(p.clip.seconds, p.load.concurrency, p.clip.codec) for p in scenario.points] == [
        (2, 1, "mpeg4"),
        (2, 3, "mpeg4"),
        (4, 1, "mpeg4"),
        (4, 3, "mpeg4"),
    ]
    assert scenario.points[1].label == "2 s, 3 users, mpeg4"
    assert read(MINIMAL).points[0].label == "all requests"


def test_a_sweep_replaces_its_value() -> None:
    scenario = read(
        "[load]\narrival = 'poisson'\nduration_s = 3\n[requests.a]\n[sweep]\nover = 'rate'\nvalues = [1, 2.5]\n"
    )
    assert scenario.sweep is not None
    point = at(scenario.points[0], scenario.sweep, 2.5)
    assert point.load.rate == 2.5 and point.label == "2.5/s"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[load]\nrequests = 1\n", "requests: at least one kind"),
        (MINIMAL + "[loads]\n", "loads is unknown"),
        (MINIMAL.replace("requests = 4", "request = 4"), "load.request is unknown"),
        (MINIMAL.replace("requests = 4", "requests = 'x'"), "load.requests must be a whole number, not 'x'"),
        (MINIMAL.replace("requests = 4", "requests = true"), "load.requests must be a whole number, not True"),
        (MINIMAL.replace("requests = 4", "requests = -1"), "load: requests must be at least 1"),
        (MINIMAL.replace("requests = 4", ""), "load: requests or duration_s is needed"),
        (MINIMAL + "[corpus]\ncodec = 'divx'\n", "corpus: codec must be one of"),
        (MINIMAL + "[corpus]\nwidth = 33\n", "corpus: width must be even"),
        (MINIMAL + "[corpus]\ncodec = 'vp9'\n", "corpus: b_frames must be 0 for codec vp9"),
        (MINIMAL + "[corpus]\nmotion = ['spin']\n", "corpus: motion must be a list of"),
        (MINIMAL + "[corpus]\nmotion = 'pan'\n", "corpus.motion must be a list of text, not 'pan'"),
        (MINIMAL + "[corpus]\nwarm_clips = 0\n", "corpus.warm_clips must be a whole number of at least 1"),
        ("cache = 'hot'\n" + MINIMAL, "cache must be one of cold, warm"),
        ("transport = 'pigeon'\n" + MINIMAL, "transport must be one of"),
        ("expected = ['ok']\n" + MINIMAL, "expected must be a list of outcomes beside ok"),
        ("rounds = 0\n" + MINIMAL, "rounds must be a whole number of at least 1"),
        (MINIMAL + "[matrix]\nrequest = ['dense']\n", "matrix.request: 'dense' is none of codec"),
        (MINIMAL + "[matrix]\ncolour = ['red']\n", "matrix.colour is unknown"),
        (MINIMAL + "[matrix]\nseconds = 8\n", "matrix.seconds must be a list"),
        (MINIMAL + "[matrix]\nseconds = ['x']\n", "matrix.seconds must be a number"),
        (MINIMAL + "[sweep]\nover = 'rate'\nvalues = [1]\n", "sweep.over: rate does not go with load.arrival 'closed'"),
        (MINIMAL + "[sweep]\nover = 'concurrency'\nvalues = [2, 1]\n", "sweep: values must be a list that increases"),
        (MINIMAL + "[sweep]\nover = 'concurrency'\nvalues = [1.5]\n", "sweep: values of concurrency must be whole"),
        (
            MINIMAL + "[matrix]\nconcurrency=[1]\n[sweep]\nover = 'concurrency'\nvalues = [1]\n",
            "sweep.over: concurrency is in the matrix, too",
        ),
        (MINIMAL + "[slo]\nshare = 1.5\n", "slo: share must be above 0"),
        (MINIMAL + "[slo]\nttft_s = 0\n", "slo: ttft_s must be above 0"),
        (MINIMAL + "[patience]\nstall_s = 0\n", "patience: stall_s must be above 0"),
        (
            "cache = 'cold'\n" + MINIMAL.replace("requests = 4", "duration_s = 4"),
            "load.requests is needed where cache is cold",
        ),
        (
            "[load]\nrequests = 1\n[requests.a]\nkind = 'text'\noptions = { fps = 1 }\n",
            "requests.a: options are for video",
        ),
        ("[load]\nrequests = 1\n[requests.a]\nweight = 0\n", "requests.a: weight must be above 0"),
        ("rounds = 4\n[load]\nduration_s = 4\nramp_s = 2\n[requests.a]\n", "rounds: a part of the load: ramp_s"),
    ],
)
def test_what_is_wrong_is_named(text: str, message: str) -> None:
    with pytest.raises(ScenarioError) as error:
        read(text)
    assert message in str(error.value)


def test_files_that_are_no_scenarios(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="no scenario 'nothing': give a file, or one of codec-vs-dense"):
        find("nothing")
    path = tmp_path / "bad.toml"
    path.write_text("[load\n")
    with pytest.raises(ScenarioError, match=r"bad\.toml: "):
        load_scenario(path)


def test_overrides_come_first(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(MINIMAL + "[corpus]\nfolder = 'clips'\n")
    scenario = load_scenario(path, {"load.requests": 9, "slo.ttft_s": 0.5})
    assert scenario.points[0].load.requests == 9 and scenario.slo.ttft_s == 0.5
    assert scenario.name == "mine" and scenario.folder == tmp_path / "clips"
    with pytest.raises(ScenarioError, match=r"load\.requests\.x: requests is no table"):
        load_scenario(path, {"load.requests.x": 1})


COLD = (
    "rounds = 2\n[load]\nrequests = 5\nwarmup = 2\n[corpus]\nwarm_clips = 3\n[requests.a]\noptions={frames=4}\n"
    "[requests.b]\n[matrix]\ncache = ['cold', 'warm']\nconcurrency = [1, 2]\nrequest = ['a', 'b']\n"
)


def test_a_value_from_outside_is_not_varied() -> None:
    paper = load_scenario(find("codec-vs-dense"), {"load.concurrency": 4, "cache": "cold"})
    assert [(point.cache, point.load.concurrency) for point in paper.points] == [("cold", 4)] * 4
    assert paper.points[0].label == "cold, 4 users, dense-64"
    assert {point.clip.seconds for point in load_scenario(find("ttft-vs-length"), {"corpus.seconds": 8}).points} == {8}
    swept = load_scenario(find("overload"), {"load.rate": 3.0}).sweep
    assert swept is not None and swept.values == (3.0,)
    # What is said of the matrix or the sweep itself stays.
    both = load_scenario(find("codec-vs-dense"), {"load.concurrency": 4, "matrix.concurrency": [2, 3]})
    assert {point.load.concurrency for point in both.points} == {2, 3}
    several = load_scenario(find("overload"), {"load.rate": 3.0, "sweep.values": [1, 2]}).sweep
    assert several is not None and several.values == (1, 2)


def test_cold_requests_never_share_a_clip_and_kinds_do() -> None:
    scenario = read(COLD)
    assignment = Assignment(scenario, 7)
    used: dict[tuple[str, int], list[int]] = {}
    for index, point in enumerate(scenario.points):
        if point.cache == "warm":
            continue
        positions = [assignment.position(index, 0, 0, False, number) for number in range(5)]
        positions += [assignment.position(index, 0, run, True, number) for run in (0, 1) for number in range(2)]
        used[point.place["request"], point.place["concurrency"]] = positions
    for kind in "ab":
        every = used[kind, 1] + used[kind, 2]
        assert len(set(every)) == len(every) == 18  # nothing is ever sent twice in one form
    assert used["a", 1] == used["b", 1]  # the same questions about the same clips
    assert not set(used["a", 1]) & set(used["a", 2])
    assert all(0 <= position < len(assignment.wanted) for positions in used.values() for position in positions)


def test_warm_points_share_few_clips_and_send_each_before_the_clock() -> None:
    scenario = read(COLD)
    assignment = Assignment(scenario, 7)
    assert len(assignment.wanted) == 2 * (5 + 2 * 2) + 3
    for index, point in enumerate(scenario.points):
        if point.cache == "cold":
            assert assignment.warm_up(index) == 2
            continue
        warmed = {assignment.position(index, 0, 0, True, n) for n in range(assignment.warm_up(index))}
        asked = Counter(assignment.position(index, 0, 0, False, n) for n in range(6))
        assert warmed == set(asked) == {18, 19, 20} and set(asked.values()) == {2}


def test_a_mixed_warm_point_warms_every_kind() -> None:
    scenario = read("[load]\nrequests = 4\n[corpus]\nwarm_clips = 2\n[requests.a]\n[requests.b]\n")
    assignment = Assignment(scenario, 0)
    assert assignment.warm_up(0) == 4
    assert [assignment.position(0, 0, 0, True, n) for n in range(4)] == [0, 0, 1, 1]


def test_steps_of_a_sweep_have_clips_of_their_own() -> None:
    scenario = read(
        "cache = 'cold'\n[load]\nrequests = 3\nwarmup = 1\n[requests.a]\n"
        "[sweep]\nover = 'concurrency'\nvalues = [1, 4]\nknee_steps = 1\n"
    )
    assignment = Assignment(scenario, 0)
    positions = [assignment.position(0, step, 0, False, n) for step in range(3) for n in range(3)]
    positions += [assignment.position(0, step, step, True, 0) for step in range(3)]
    assert sorted(positions) == list(range(12)) == list(range(len(assignment.wanted)))


def test_other_seeds_give_other_clips() -> None:
    scenario = read(COLD)
    first, second, again = (Assignment(scenario, seed).wanted for seed in (1, 2, 1))
    assert first == again
    assert not set(first) & set(second)
    assert {one.motion for one in first} == {"zoom", "pan", "sprites", "noise"}
