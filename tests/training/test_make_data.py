import json
from pathlib import Path

import pytest

import cope_codec
from cope_training import make_data, qa


def test_a_clip_is_the_same_bytes_every_time() -> None:
    for number in range(6):
        assert make_data.encode_clip(2, number, False) == make_data.encode_clip(2, number, False)
    assert make_data.encode_clip(2, 0, False)[1] != make_data.encode_clip(2, 0, True)[1]


def test_records_are_in_llava_videos_format(data: Path) -> None:
    rows = json.loads((data / "annotations.json").read_text())
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        human, gpt = row["conversations"]
        assert (human["from"], gpt["from"]) == ("human", "gpt")
        assert human["value"].startswith("<image>\n")
        # Sentences have no options: they are trained on and never scored.
        assert gpt["value"] in row["options"] or (row["type"] in ("describe", "happens") and not row["options"])
        assert (data / row["video"]).is_file()
    clips = qa.read([data])
    assert len(clips) == 24
    assert sum(len(clip.questions) for clip in clips) == len(rows)


def test_clips_are_real_files_of_several_codecs_with_eight_slots(data: Path) -> None:
    codecs = set()
    for clip in qa.read([data]):
        video = cope_codec.open(clip.path)
        codecs.add(video.info.codec)
        assert [len(gop.slots) for gop in video.plan.gops] == [8]
    assert {"h264", "mpeg4"} <= codecs


def test_a_killed_run_goes_on_and_another_recipe_is_refused(tmp_path: Path) -> None:
    recipe = make_data.Recipe(clips=34, seed=1, held_out=True)
    make_data.make(tmp_path, recipe, workers=1)
    whole = (tmp_path / "annotations.json").read_bytes()
    # As a kill would leave it: one block is there, the other is not.
    (tmp_path / "blocks" / "00001.json").unlink()
    (tmp_path / "annotations.json").unlink()
    first = next((tmp_path / "clips").rglob("000000-*"))
    before = first.stat().st_mtime_ns
    make_data.make(tmp_path, recipe, workers=1)
    assert (tmp_path / "annotations.json").read_bytes() == whole
    assert first.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="seed 1, not 2"):
        make_data.make(tmp_path, make_data.Recipe(clips=34, seed=2, held_out=True), workers=1)


def test_only_the_kinds_that_are_asked_for_are_made(tmp_path: Path) -> None:
    recipe = make_data.Recipe(clips=6, seed=1, held_out=False, kinds="appear,who,appear")
    make_data.make(tmp_path, recipe, workers=1)
    made = [row["clip"] for row in json.loads((tmp_path / "annotations.json").read_text()) if row["id"].endswith("-0")]
    assert made == ["appear", "who", "appear"] * 2
    with pytest.raises(ValueError, match="kinds appear,who,appear, not who"):
        make_data.make(tmp_path, make_data.Recipe(6, 1, False, "who"), workers=1)
    with pytest.raises(ValueError, match="no story is called 'jump': there are move, pan"):
        make_data.Recipe(6, 1, False, "who,jump")


def test_annotations_from_elsewhere_are_read_and_bad_ones_named(tmp_path: Path) -> None:
    turns = [
        {"from": "human", "value": "<image>\nWho is it?"},
        {"from": "gpt", "value": "A cat."},
        {"from": "human", "value": "What does it do?"},
        {"from": "gpt", "value": "It sleeps."},
    ]
    path = tmp_path / "llava.json"
    path.write_text(json.dumps([{"id": "1", "video": "a/b.mp4", "conversations": turns, "type": "open"}]))
    (clip,) = qa.read([path])
    assert clip.path == tmp_path / "a/b.mp4"
    assert [(q.text, q.answer, q.type) for q in clip.questions] == [
        ("Who is it?", "A cat.", ""),
        ("What does it do?", "It sleeps.", ""),
    ]
    path.write_text("[]")
    with pytest.raises(ValueError, match="no question"):
        qa.read([path])


TURNS = [{"from": "human", "value": "<image>\nWho is it?"}, {"from": "gpt", "value": "A cat."}]
BAD_RECORDS: list[tuple[object, str]] = [
    ("a cat", "not an object"),
    ({"conversations": TURNS}, "no name of a video in video"),
    ({"video": 7, "conversations": TURNS}, "no name of a video in video"),
    ({"video": "a.mp4"}, "no list of turns in conversations"),
    ({"video": "a.mp4", "conversations": ["Who?", "A cat."]}, "no list of turns in conversations"),
    ({"video": "a.mp4", "conversations": TURNS[:1]}, "no question with an answer"),
    ({"video": "a.mp4", "conversations": TURNS[::-1]}, "from 'gpt' where one from human belongs"),
    (
        {"video": "a.mp4", "conversations": [TURNS[0], {"from": "gpt", "value": None}]},
        "gpt in conversations has no text",
    ),
    ({"video": "a.mp4", "conversations": TURNS, "type": "colour", "options": [1, 2]}, "options is no list of texts"),
]


def test_bad_records_are_left_out_and_named_and_none_left_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "llava.json"
    path.write_text(json.dumps([row for row, _ in BAD_RECORDS] + [{"video": "b.mp4", "conversations": TURNS}]))
    skipped: list[tuple[str, str]] = []
    (clip,) = qa.read([path], lambda *bad: skipped.append(bad))
    assert clip.name == "b.mp4"
    assert [name for name, _ in skipped] == [f"{path}: record {number}" for number in range(len(BAD_RECORDS))]
    for (_, reason), (_, expected) in zip(skipped, BAD_RECORDS, strict=True):
        assert expected in reason
    with pytest.raises(ValueError, match="record 0: not an object"):
        qa.read([path])
    path.write_text(json.dumps([row for row, _ in BAD_RECORDS]))
    with pytest.raises(ValueError, match=r"no question in .*; the first of 9 bad records, .* record 0: not an object"):
        qa.read([path], lambda *bad: None)


def test_data_that_is_named_twice_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(data)
    for again in (data, data / "annotations.json", data / ".." / data.name, tmp_path / "link"):
        with pytest.raises(ValueError, match=r"data names .* twice"):
            qa.read([data, again])
