from __future__ import annotations

import numpy as np
import pytest
from clips import clip

import cope_codec


@pytest.mark.parametrize("mode", ["native", "transcode"])
@pytest.mark.parametrize("matrix", ["YCgCo", "bt2020c", "chroma-derived-nc"])
def test_colours_that_the_scaler_does_not_know_are_read_as_unspecified(matrix: str, mode: str) -> None:
    """Found by fuzzing: FFmpeg raised, and any stream can say this of itself."""
    how = {"width": 96, "height": 64}
    odd = clip(2, options=(("x264-params", f"threads=1:colormatrix={matrix}"),), **how)  # type: ignore[arg-type]
    (gop,) = cope_codec.open(odd, mode=mode).gops(32)
    (plain,) = cope_codec.open(clip(2, **how), mode=mode).gops(32)  # type: ignore[arg-type]
    np.testing.assert_array_equal(gop.keyframes, plain.keyframes)
    assert gop.missing == 0
