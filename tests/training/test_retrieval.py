import numpy as np
import pytest
import torch
from small_model import SIDE, randomised, small_preset

from cope_model.checkpoint import make_config
from cope_model.reference import CoPEModel
from cope_training.pretrain import NextFrame
from cope_training.primitives import CachedVideo, Gop
from cope_training.retrieval import measure, rank


def predictor() -> NextFrame:
    model = CoPEModel(make_config(small_preset()))
    randomised(model, 1)
    out = NextFrame(model, layers=1)
    randomised(out, 2)
    return out.eval()


def test_ranks_count_the_other_frames_that_are_nearer() -> None:
    gallery = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])[:, None, None]
    query = torch.full((1, 1), 2.9)
    assert rank(query, gallery, match=3, own=2) == 1
    assert rank(query, gallery, match=4, own=2) == 2
    assert rank(query, gallery, match=1, own=0) == 4
    # The frame that the query came from is no candidate, however near.
    assert rank(gallery[2], gallery, match=3, own=2) == 1.5  # frame 1 is as near as frame 3


def gop(motion: list[int]) -> Gop:
    """A clip whose slots move by |dx| = dy sixteenths of a pixel; the pictures are all different."""
    slots = len(motion)
    pictures = np.random.default_rng(0).integers(0, 256, (slots, SIDE, SIDE, 3), np.uint8)
    field = np.zeros((slots, SIDE // 4, SIDE // 4, 2), np.int16)
    field[...] = np.array(motion, np.int16)[:, None, None, None]
    field[..., 0] *= -1
    return Gop((0, *[1] * (slots - 1)), pictures, field, tuple(map(float, range(slots))))


def test_slots_that_hardly_move_ask_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of a pixel, |dx| and |dy| together, is the least that counts."""
    monkeypatch.setattr(CachedVideo, "gops", lambda self: [gop([0, 1, 2, 3, 0, 40])])
    video = CachedVideo("clip", "h264", "native", None, 0, (), (), 6.0)  # type: ignore[arg-type]
    found = measure(predictor(), [video], device=torch.device("cpu"))
    assert found["queries"] == 3
    for name in ("delta_encoder", "vision_encoder"):
        recalls = [found[name][f"recall_{at}"] for at in (1, 2, 5)]  # type: ignore[index]
        assert recalls == sorted(recalls)
        assert recalls[-1] == 100.0  # of five candidates


def test_clips_in_which_nothing_moves_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CachedVideo, "gops", lambda self: [gop([0, 0, 1])])
    video = CachedVideo("clip", "h264", "native", None, 0, (), (), 6.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nothing moves"):
        measure(predictor(), [video], device=torch.device("cpu"))
