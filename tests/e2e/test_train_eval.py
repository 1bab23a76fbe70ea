"""`cope train eval --server` hears from the server what the reference says."""

from __future__ import annotations

from pathlib import Path

import pytest
from serving import Server

import cope_codec
from cope_codec import VideoOptions


def test_answers_over_http_are_the_references_words(server: Server, tmp_path: Path) -> None:
    from cope_model.reference import Reference
    from cope_model.tiny import bundled_model
    from cope_training import make_data, over_http, primitives, qa

    make_data.make(tmp_path, make_data.Recipe(clips=3, seed=1, held_out=True), workers=1)
    clips = qa.read([tmp_path])
    paths, names = [clip.path for clip in clips], [clip.name for clip in clips]
    found = primitives.build(tmp_path / "cache", paths, names, options=VideoOptions(), side=128, workers=1)
    pairs = [(clip, video) for clip, video in zip(clips, found.videos, strict=True) if video is not None]
    answered = over_http.answer(server.url, pairs, {"keyframes_per_gop": 1})
    reference = Reference.load(bundled_model())
    expected = []
    for clip in clips:
        part = {"type": "video", "video": list(cope_codec.open(clip.path, keyframes_per_gop=1).gops(128))}
        for question in clip.questions:
            message = {"role": "user", "content": [part, {"type": "text", "text": question.text}]}
            expected.append(reference.generate([message], 8).text.strip())
    assert [one.chosen for one in answered] == expected
    assert [one.right for one in answered] == [
        one.chosen == question.answer
        for one, question in zip(answered, (q for clip in clips for q in clip.questions), strict=True)
    ]


def test_a_server_that_is_not_there_is_named() -> None:
    from cope_training import over_http

    with pytest.raises(ValueError, match=r"no server with a model answers at http://127\.0\.0\.1:9"):
        over_http.answer("http://127.0.0.1:9", [], {})
