"""Reads a long MP4's packet times from its sample tables, so that few GOPs cost no pass over the whole file."""

# N samples of the video track, in decode order; FFmpeg gives them as packets.

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import av
import av.container
import av.error
import numpy as np
import numpy.typing as npt

from cope_codec.boxes import UnusualError, boxes, movie, only, reader
from cope_codec.container import Source, describe, open_container, video_stream
from cope_codec.errors import CodecError
from cope_codec.index import DIGEST_BYTES, PacketIndex, assemble, digest, refuse_longer
from cope_codec.limits import Limits

LEAST_PACKETS = 4000  # a shorter file is read whole in the time that the checks here would take
_PROBES = 500  # places at which FFmpeg's own index is compared
_EDGE_PACKETS = 32  # read from the start, to see where FFmpeg's clock begins
_LATEST = 2**60  # ticks
_MOST_LED_UP = 1000  # packets from where a seek lands to the one wanted


@dataclass(frozen=True, slots=True)
class _Tables:
    """A track's samples, times from 0 in ticks: int64 or bool (N,)."""

    dts: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]  # presentation minus decode time, but for a constant
    durations: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    keyframe: npt.NDArray[np.bool_]


def read_tables(
    source: Source, limits: Limits, *, stream: int | None = None
) -> tuple[PacketIndex, av.container.InputContainer] | None:
    """Index a long MP4 without reading its packets.

    FFmpeg's demuxer holds the tables as well, but tells no presentation times before it has read the packets. So they
    are read here, and compared with FFmpeg's index at many places; `hash_packets` compares every packet that is used.

    Args:
        source: a path, or the bytes of a whole file.
        limits: what is too large.
        stream: which of the video streams, as in `video_stream`.

    Returns:
        What `read_index` returns, but without `digests`; None where that function has to be asked: another container,
        fewer than `LEAST_PACKETS`, fragments, several edits, hidden frames, tables that FFmpeg understands otherwise.

    Raises:
        CodecError: as `read_index`.
        OSError: a path that cannot be read.
    """
    try:
        tracks = _video_tracks(source, limits)
    except UnusualError:
        return None
    container = open_container(source, limits)
    try:
        return _index(source, container, tracks, stream, limits), container
    except CodecError:
        container.close()
        raise
    except (UnusualError, av.error.FFmpegError):
        container.close()
        return None


def hash_packets(
    container: av.container.InputContainer, index: PacketIndex, ranges: Sequence[tuple[int, int]]
) -> PacketIndex | None:
    """Read some of the packets of an index made by `read_tables`.

    Args:
        container: the same file, open, wherever it stands.
        index: without digests.
        ranges: positions (first, last) in decode order, both included; each begins with a keyframe.

    Returns:
        The index with these packets' digests, or None if one of them is not what the tables say.
    """
    digests = np.zeros((len(index.pts), DIGEST_BYTES), np.uint8)
    end = -1
    try:
        for first, last in sorted(ranges):
            if last > end:
                for number, packet in _verified(container, index, max(first, end + 1), last):
                    digests[number] = np.frombuffer(digest(packet), np.uint8)
                end = last
    except (UnusualError, av.error.FFmpegError):
        return None
    return replace(index, digests=digests)


def _verified(
    container: av.container.InputContainer, index: PacketIndex, first: int, last: int
) -> Iterator[tuple[int, av.Packet[av.VideoStream]]]:
    """The packets from `first` to `last`; raises `UnusualError` where one differs from the index."""
    stream = container.streams[index.info.stream]
    assert isinstance(stream, av.VideoStream)
    container.seek(int(index.pts[first]), stream=stream, backward=True)
    number, led_up = first, 0
    for packet in container.demux(stream):
        if packet.size == 0:
            break
        if number == first and packet.pts != index.pts[first] and led_up < _MOST_LED_UP:
            led_up += 1
            continue
        if (
            packet.pts != index.pts[number]
            or packet.is_keyframe != bool(index.keyframe[number])
            or packet.is_discard
            or packet.is_corrupt
        ):
            raise UnusualError
        yield number, packet
        number += 1
        if number > last:
            return
    raise UnusualError


def _index(
    source: Source,
    container: av.container.InputContainer,
    tracks: dict[int, memoryview],
    number: int | None,
    limits: Limits,
) -> PacketIndex:
    stream = video_stream(container, number)
    info = describe(source, container, stream, limits)
    refuse_longer((container.duration or 0) / av.time_base, stream.frames, limits)
    if stream.id not in tracks:
        raise UnusualError
    tables = _sample_tables(tracks[stream.id])
    count = len(tables.dts)
    refuse_longer(float((tables.dts[-1] - tables.dts[0]) * info.time_base), count, limits)
    entries = stream.index_entries
    if len(entries) != count:
        raise UnusualError  # an edit list hides or repeats frames
    start = entries[0].timestamp - int(tables.dts[0])
    edges = min(_EDGE_PACKETS, count)
    ends = (*range(edges), *range(count - edges, count))
    for place in {*ends, *np.linspace(0, count - 1, _PROBES).astype(int).tolist()}:
        entry = entries[place]
        told = (entry.timestamp - start, entry.size, entry.is_keyframe, entry.is_discard)
        if told != (int(tables.dts[place]), int(tables.sizes[place]), bool(tables.keyframe[place]), False):
            raise UnusualError
    if container.size and entries[count - 1].pos + entries[count - 1].size > container.size:
        raise UnusualError  # cut off: how much is there, a pass will tell
    edge = list(islice((packet for packet in container.demux(stream) if packet.size), edges))
    if len(edge) < edges or edge[0].pts is None:
        raise UnusualError
    if max(abs(start), abs(edge[0].pts)) > _LATEST:
        raise UnusualError  # sums of such times do not fit their type
    dts = tables.dts + start
    pts = dts + tables.offsets
    pts += edge[0].pts - int(pts[0])
    for place, packet in enumerate(edge):
        if (packet.dts, packet.duration) != (int(dts[place]), int(tables.durations[place])):
            raise UnusualError
    index = assemble(
        info,
        limits,
        pts,
        dts,
        tables.durations,
        keyframe=tables.keyframe,
        shown=np.ones(count, bool),
        digests=np.zeros((count, DIGEST_BYTES), np.uint8),
        extradata=bytes(stream.codec_context.extradata or b""),
    )
    if not index.keyframe[0]:
        raise UnusualError
    last_keyframe = int(np.flatnonzero(index.keyframe)[-1])
    closing = [(last_keyframe, count - 1)] if count - last_keyframe <= _MOST_LED_UP else []
    for first, last in [(0, len(edge) - 1), *closing]:
        for _ in _verified(container, index, first, last):
            pass
    return index


def _video_tracks(source: Source, limits: Limits) -> dict[int, memoryview]:
    """Body of each video track's box, by track id."""
    with reader(source) as file:
        index = movie(file)
    try:
        tracks: dict[int, memoryview] = {}
        most = 0
        for kind, body in boxes(index):
            if kind == b"mvex":
                raise UnusualError  # fragments: the tables are not all of it
            if kind != b"trak" or bytes(only(body, b"mdia", b"hdlr")[8:12]) != b"vide":
                continue
            header = only(body, b"tkhd")
            (track_id,) = struct.unpack_from(">I", header, 20 if header[0] else 12)
            tracks[track_id] = body
            sizes = only(body, b"mdia", b"minf", b"stbl", b"stsz")
            most = max(most, struct.unpack_from(">I", sizes, 8)[0])
    except (struct.error, IndexError) as error:
        raise UnusualError from error
    if not LEAST_PACKETS <= most <= limits.max_packets:
        raise UnusualError
    return tracks


def _sample_tables(track: memoryview) -> _Tables:
    for kind, body in boxes(track):
        # An edit before the one that shows the video delays it; what more of them do, FFmpeg knows.
        if kind == b"edts" and int.from_bytes(only(body, b"elst")[4:8], "big") > 2:
            raise UnusualError
    table = dict(boxes(only(track, b"mdia", b"minf", b"stbl")))
    # Sample groups can mark keyframes, and several descriptions change the codec on the way.
    if b"sbgp" in table or not {b"stsd", b"stts", b"stsz"} <= table.keys() or _count(table[b"stsd"]) != 1:
        raise UnusualError
    sizes_box = table[b"stsz"]
    one_size, count = (int(value) for value in np.frombuffer(sizes_box, ">u4", 2, 4))
    if count < 1:
        raise UnusualError
    sizes = np.full(count, one_size, np.int64) if one_size else _column(sizes_box, ">u4", 1, count, at=12)[:, 0]
    durations = _runs(table[b"stts"], count)
    if durations.min() < 1:
        raise UnusualError  # FFmpeg mends such clocks in its own way
    offsets = _runs(table[b"ctts"], count) if b"ctts" in table else np.zeros(count, np.int64)
    keyframe = np.ones(count, bool)
    if b"stss" in table:
        places = _column(table[b"stss"], ">u4", 1, _count(table[b"stss"]))[:, 0] - 1
        if not len(places) or places.min() < 0 or places.max() >= count:
            raise UnusualError
        keyframe[:] = False
        keyframe[places] = True
    dts = np.cumsum(durations) - durations
    return _Tables(dts, offsets, durations, sizes, keyframe)


def _count(box: memoryview) -> int:
    """Entries that a table announces."""
    return int.from_bytes(box[4:8], "big")


def _column(box: memoryview, kind: str, columns: int, count: int, at: int = 8) -> npt.NDArray[np.int64]:
    """A table's entries: int64 (count, columns)."""
    if len(box) < at + 4 * columns * count:
        raise UnusualError
    return np.frombuffer(box, kind, columns * count, at).astype(np.int64).reshape(count, columns)


def _runs(box: memoryview, count: int) -> npt.NDArray[np.int64]:
    """A table of (how many samples, signed value), written out: int64 (count,)."""
    entries = _column(box, ">i4", 2, _count(box))
    if len(entries) == 0 or entries[:, 0].min() < 0 or entries[:, 0].sum() != count:
        raise UnusualError
    return np.repeat(entries[:, 1], entries[:, 0])
