"""Codec primitives of a video: keyframes, motion and residuals, as its codec wrote them. Needs no torch.

import cope_codec

for gop in cope_codec.open("clip.mp4", fps=1):
    print(gop.timestamps_s, gop.keyframes.shape, gop.motion.shape, gop.residual.shape)
"""

from cope_codec.container import StreamInfo
from cope_codec.errors import CODES, CodecError
from cope_codec.feed import VideoFeed
from cope_codec.index import PacketIndex
from cope_codec.motion import MOTION_VECTOR, FrameVectors, iter_vectors, read_vectors
from cope_codec.options import VideoOptions
from cope_codec.plan import GopPlan, Slot, VideoPlan
from cope_codec.primitives import CELL_PX, I_SLOT, P_SLOT, GopPrimitives
from cope_codec.video import MODEL_SIDE, Video, open
from cope_codec.warp import residual_after_warp, warp

__all__ = [
    "CELL_PX",
    "CODES",
    "I_SLOT",
    "MODEL_SIDE",
    "MOTION_VECTOR",
    "P_SLOT",
    "CodecError",
    "FrameVectors",
    "GopPlan",
    "GopPrimitives",
    "PacketIndex",
    "Slot",
    "StreamInfo",
    "Video",
    "VideoFeed",
    "VideoOptions",
    "VideoPlan",
    "iter_vectors",
    "open",
    "read_vectors",
    "residual_after_warp",
    "warp",
]
