from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from clips import clip

import cope_codec
from cope_codec import cache


def test_a_second_request_extracts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    store = cache.PrimitivesCache()
    video = cope_codec.open(clip(12), gop_slots=4)
    first = cache.extract(video, 128, store)
    assert (store.hits, store.misses) == (0, 3)
    monkeypatch.setattr("cope_codec.video.extract", lambda *_, **__: pytest.fail("extracted again"))
    again = cache.extract(cope_codec.open(clip(12), gop_slots=4), 128, store)
    assert all(ours is theirs for ours, theirs in zip(first, again, strict=True))


def test_a_longer_video_extracts_only_what_is_new() -> None:
    store = cache.PrimitivesCache()
    whole = clip(12, container="mpegts")
    part = cache.extract(cope_codec.open(whole[: len(whole) * 7 // 10], gop_slots=3), 128, store)
    misses = store.misses
    full = cache.extract(cope_codec.open(whole, gop_slots=3), 128, store)
    assert store.misses - misses == len(full) - (len(part) - 1)
    assert [gop.index for gop in full] == [0, 1, 2, 3]


def test_sides_do_not_mix() -> None:
    store = cache.PrimitivesCache()
    video = cope_codec.open(clip(4))
    assert cache.extract(video, 128, store)[0].model_side == 128
    assert cache.extract(video, 64, store)[0].model_side == 64


def test_memory_is_bounded_and_the_oldest_goes_first() -> None:
    gops = list(cope_codec.open(clip(12), gop_slots=3).gops(128))
    store = cache.PrimitivesCache(max_bytes=sum(gop.nbytes for gop in gops[:2]))
    store.put(gops[0])
    store.put(gops[1])
    assert store.get(gops[0].key) is gops[0]
    store.put(gops[2])
    assert store.get(gops[1].key) is None
    assert store.get(gops[0].key) is gops[0]
    assert store.nbytes <= store.max_bytes


def zeroed(data: bytes, first: float, last: float) -> bytes:
    """An mp4 with a part of its packets blanked."""
    begin, end = data.index(b"mdat") + 4, data.index(b"moov") - 4
    low, high = (begin + round(share * (end - begin)) for share in (first, last))
    return data[:low] + bytes(high - low) + data[high:]


def test_the_cache_does_not_change_what_a_damaged_video_gives() -> None:
    data = zeroed(clip(12, gop=60), 0.6, 1.0)
    video = cope_codec.open(data, gop_slots=4)
    cold = [gop.missing for gop in cache.extract(video, 128, cache.PrimitivesCache())]
    assert cold[0] == 0 and cold[-1] == 4
    store = cache.PrimitivesCache()
    for _ in range(2):
        assert [gop.missing for gop in cache.extract(cope_codec.open(data, gop_slots=4), 128, store)] == cold


def test_grey_pictures_are_not_kept() -> None:
    store = cache.PrimitivesCache()
    for _ in range(2):
        with pytest.raises(cope_codec.CodecError, match="cannot be decoded"):
            cache.extract(cope_codec.open(zeroed(clip(4), 0.0, 1.0)), 128, store)
    assert len(store) == 0


def test_what_is_too_large_is_not_kept() -> None:
    (gop,) = cope_codec.open(clip(4)).gops(128)
    store = cache.PrimitivesCache(max_bytes=1000)
    store.put(gop)
    assert len(store) == 0


def test_a_view_of_something_larger_is_kept_as_a_copy_and_an_array_of_its_own_as_it_is() -> None:
    (gop,) = cope_codec.open(clip(4)).gops(128)
    store = cache.PrimitivesCache()
    assert store.put(gop) is gop
    memory = np.concatenate([gop.residual, gop.residual])
    other = replace(gop, key="0" * 40, residual=memory[: len(gop.residual)])
    kept = store.put(other)
    assert kept is store.get(other.key) is store.put(other)
    assert not np.shares_memory(kept.residual, memory)
    np.testing.assert_array_equal(kept.residual, gop.residual)
    assert not kept.residual.flags.writeable
