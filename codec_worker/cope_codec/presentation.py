"""What a container says of a stream, beside its packets and headers, that changes how its pictures look.

The same packets in another container, or with another header, can be turned, or have other colours. Keys must tell
them apart, before a frame is decoded.
"""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import av
import av.container

from cope_codec.boxes import UnusualError, boxes, movie, only, reader
from cope_codec.shared import SharedFile

_HEADER_BYTES = 1 << 20
_TRACKS, _CLUSTER = bytes.fromhex("1654ae6b"), bytes.fromhex("1f43b675")  # Matroska's elements
_MATRIX = struct.Struct(">9i")


def presentation(
    source: str | Path | bytes | SharedFile, container: av.container.InputContainer, stream: av.VideoStream
) -> str:
    """Colour range and matrix, the tag that decoders go by, and what turns the picture, in one line of text.

    FFmpeg tells the rotation of a decoded frame only. Of the containers that can hold one, MP4's matrices are read
    here; of Matroska's header all is taken from the description of the tracks on.
    """
    context = stream.codec_context
    said = (
        context.color_range,
        context.colorspace,
        context.codec_tag,
        context.bits_per_coded_sample,
        _turn(source, container.format.name, stream.id),
    )
    return "|".join(str(part) for part in said)


def _turn(source: str | Path | bytes | SharedFile, container: str, track_id: int) -> str:
    if "mp4" not in container and "matroska" not in container:
        return ""
    with reader(source) as file:
        try:
            if "mp4" in container:
                return _matrices(movie(file, whole=False), track_id)
            head = file.read(_HEADER_BYTES) or b""
            if (start := head.find(_TRACKS)) >= 0:
                end = head.find(_CLUSTER, start)
                return hashlib.blake2b(head[start : None if end < 0 else end], digest_size=16).hexdigest()
        except (UnusualError, struct.error, IndexError):
            pass
        # FFmpeg found its way through something that we do not: whatever it is, it is in the file.
        file.seek(0)
        whole = hashlib.blake2b(digest_size=16)
        while piece := file.read(_HEADER_BYTES):
            whole.update(piece)
        return whole.hexdigest()


def _matrices(body: memoryview, track_id: int) -> str:
    """The matrices of the whole movie and of one of its tracks, which FFmpeg multiplies."""
    of_movie = of_track = None
    try:
        for kind, box in boxes(body):
            if kind == b"mvhd":
                of_movie = _MATRIX.unpack_from(box, 48 if box[0] else 36)
            elif kind == b"trak":
                header = only(box, b"tkhd")
                (number,) = struct.unpack_from(">I", header, 20 if header[0] else 12)
                if number == track_id:
                    of_track = _MATRIX.unpack_from(header, 52 if header[0] else 40)
    except UnusualError:
        if of_movie is None or of_track is None:
            raise  # else the file ends in a box behind them, as one does that is still on its way
    return f"{of_movie}/{of_track}"
