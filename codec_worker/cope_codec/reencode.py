"""Motion vectors for codecs that export none: re-encodes frames to MPEG-4 Part 2 in memory, as the paper does."""

from __future__ import annotations

from fractions import Fraction

import av
from av.codec.context import Flags2
from av.video.codeccontext import VideoCodecContext
from av.video.reformatter import VideoReformatter

from cope_codec.options import ENCODED_FPS

# Paper, Sec. 3.1: 30 FPS, one I-frame in 240, no B-frames. The quantiser is not stated there (docs/measurements.md).
PAPER_GOP = 240
_QUANTISER = 5
# The model's input side, but not below this: 16-pixel macroblocks of a 128-pixel picture see almost no motion.
MIN_SIDE = 384
_LONGEST_GOP = 600  # the encoder's own limit for the distance of I-frames
_NO_SCENE_CUTS = {"sc_threshold": "1000000000"}


def encoded_side(side: int) -> int:
    """Side of the square picture that is encoded for a model input of `side`, pixels."""
    return max(side, MIN_SIDE)


class Reencoder:
    """An MPEG-4 encoder and a decoder back to back; frames in, frames with motion vectors out.

    Args:
        side: side of the encoded square picture, pixels.
        gop: None for one GOP, as long as the run; or frames from one I-frame to the next, and none at scene cuts.
    """

    def __init__(self, side: int, gop: int | None = None) -> None:
        self._side = side
        self._reformatter = VideoReformatter()
        self._count = 0
        encoder = av.CodecContext.create("mpeg4", "w")
        assert isinstance(encoder, VideoCodecContext)
        encoder.width = encoder.height = side
        encoder.pix_fmt = "yuv420p"
        encoder.time_base = Fraction(1, ENCODED_FPS)
        encoder.framerate = Fraction(ENCODED_FPS)
        encoder.gop_size = gop or _LONGEST_GOP
        if gop is not None:
            encoder.options = dict(_NO_SCENE_CUTS)
        encoder.max_b_frames = 0
        encoder.thread_count = 1
        # PyAV ignores global_quality for this encoder.
        encoder.qmin = encoder.qmax = _QUANTISER
        self._encoder = encoder
        decoder = av.CodecContext.create("mpeg4", "r")
        assert isinstance(decoder, VideoCodecContext)
        decoder.flags2 |= Flags2.export_mvs
        decoder.thread_count = 1
        self._decoder = decoder

    def push(self, frame: av.VideoFrame) -> av.VideoFrame:
        """Encode one frame and decode it again.

        Without B-frames both codecs answer each frame at once, so vectors belong to the frame just pushed.

        Returns:
            The re-encoded frame, carrying vectors relative to the frame pushed before.
        """
        picture = self._reformatter.reformat(
            frame, self._side, self._side, "yuv420p", interpolation="BILINEAR", threads=1
        )
        picture.pts = self._count
        picture.time_base = Fraction(1, ENCODED_FPS)
        picture.pict_type = 0  # else the encoder would copy the source's I-frames
        self._count += 1
        decoded = [shown for packet in self._encoder.encode(picture) for shown in self._decoder.decode(packet)]
        if len(decoded) != 1:
            raise RuntimeError(f"MPEG-4 answered frame {self._count} with {len(decoded)} frames instead of one")
        (out,) = decoded
        # MPEG-4 would announce neither: the colours come out as they went in.
        out.colorspace, out.color_range = picture.colorspace, picture.color_range
        return out
