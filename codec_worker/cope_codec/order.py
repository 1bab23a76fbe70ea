"""Display order of H.264, H.265 and MPEG-1/2 packets that carry no timestamps, from the counts in their headers.

Two things that H.264 allows and encoders hardly use are not followed: order counts of type 1, whose packets stay in
decode order, and memory command 5, which starts the counts again without an IDR. No encoder at hand makes either, so
there is nothing to test them with.
"""

from __future__ import annotations

from dataclasses import dataclass

_START = b"\0\0\1"
_HEADER_BYTES = 96  # of a slice: what is read lies in the first few
# FFmpeg's dts2pts filter does the same, but numbers frames behind a second IDR wrongly and knows no H.265.


class _Bits:
    """Reads a NAL unit bit by bit, without its emulation prevention bytes."""

    def __init__(self, data: bytes) -> None:
        clean = data.replace(b"\0\0\3", b"\0\0")
        self._value, self._left = int.from_bytes(clean, "big"), 8 * len(clean)

    def u(self, count: int) -> int:
        """The next `count` bits, unsigned."""
        self._left -= count
        if self._left < 0:
            raise ValueError("the header ends early")
        return (self._value >> self._left) & ((1 << count) - 1)

    def ue(self) -> int:
        """The next Exp-Golomb number, unsigned."""
        zeros = 0
        while not self.u(1):
            zeros += 1
            if zeros > 32:
                raise ValueError("no Exp-Golomb number")
        return (1 << zeros) - 1 + self.u(zeros)


@dataclass(frozen=True, slots=True)
class _Sps:
    lsb_bits: int  # 0: the stream has no B-frames to reorder, or orders them in a way that is not followed here
    frame_num_bits: int
    frames_only: bool
    planes: bool


@dataclass(frozen=True, slots=True)
class _Pps:
    sps: int
    extra_bits: int
    output_flag: bool


class OrderParser:
    """Follows one annex-B stream, packet by packet in decode order.

    Args:
        codec: `h264`, `hevc`, `mpeg1video` or `mpeg2video`; other codecs get no order.
        extradata: parameter sets that came out of band, annex B.
    """

    def __init__(self, codec: str, extradata: bytes) -> None:
        self._read = {
            "h264": self._h264_nal,
            "hevc": self._hevc_nal,
            "mpeg1video": self._mpeg_unit,
            "mpeg2video": self._mpeg_unit,
        }.get(codec)
        self._sps: dict[int, _Sps] = {}
        self._pps: dict[int, _Pps] = {}
        self._previous = 0  # picture order count of the last picture that others are counted from
        self._sequence = 0
        self.next(extradata)

    def next(self, packet: bytes) -> tuple[int, int] | None:
        """Where the packet's frame is shown.

        Returns:
            (sequence, count): frames are shown in this order; None where the headers do not tell.
        """
        if self._read is None:
            return None
        start = packet.find(_START)
        while start >= 0:
            following = packet.find(_START, start + 3)
            end = following if following >= 0 else len(packet)
            nal = packet[start + 3 : min(end, start + 3 + 4096)]
            start = following
            try:
                found = self._read(nal)
            except (ValueError, KeyError, IndexError):
                return None  # damaged, or its parameter sets are missing
            if found is not None:
                return found
        return None

    def _h264_nal(self, nal: bytes) -> tuple[int, int] | None:
        kind = nal[0] & 31
        if kind == 7:
            number, sps = _h264_sps(_Bits(nal[1:]))
            self._sps[number] = sps
        elif kind == 8:
            bits = _Bits(nal[1:_HEADER_BYTES])
            self._pps[bits.ue()] = _Pps(bits.ue(), 0, False)
        elif kind in (1, 5):
            bits = _Bits(nal[1:_HEADER_BYTES])
            bits.ue()  # first macroblock
            bits.ue()  # slice type
            sps = self._sps[self._pps[bits.ue()].sps]
            if not sps.lsb_bits:
                raise ValueError("not ordered by lsb")
            bits.u(2 * sps.planes + sps.frame_num_bits)
            if not sps.frames_only and bits.u(1):
                bits.u(1)  # which field
            if kind == 5:
                bits.ue()  # IDR number
            return self._count(bits.u(sps.lsb_bits), sps.lsb_bits, kind == 5, bool(nal[0] & 0x60))
        return None

    def _hevc_nal(self, nal: bytes) -> tuple[int, int] | None:
        kind, layer, temporal = (nal[0] >> 1) & 63, (nal[0] & 1) << 5 | nal[1] >> 3, nal[1] & 7
        if layer:
            return None
        if kind == 33:
            number, sps = _hevc_sps(_Bits(nal[2:]))
            self._sps[number] = sps
        elif kind == 34:
            bits = _Bits(nal[2:_HEADER_BYTES])
            number, of = bits.ue(), bits.ue()
            bits.u(1)  # dependent slices
            output_flag = bool(bits.u(1))
            self._pps[number] = _Pps(of, bits.u(3), output_flag)
        elif kind < 32:
            bits = _Bits(nal[2:_HEADER_BYTES])
            bits.u(1)  # first slice of the picture
            if 16 <= kind <= 23:
                bits.u(1)
            pps = self._pps[bits.ue()]
            sps = self._sps[pps.sps]
            bits.u(pps.extra_bits)
            bits.ue()  # slice type
            bits.u(pps.output_flag + 2 * sps.planes)
            idr = kind in (19, 20)
            lsb = 0 if idr else bits.u(sps.lsb_bits)
            # Sub-layer non-references and leading pictures are never counted from.
            counted_from = temporal == 1 and not (kind < 16 and kind % 2 == 0) and not 6 <= kind <= 9
            return self._count(lsb, sps.lsb_bits, idr or 16 <= kind <= 18, counted_from)
        return None

    def _mpeg_unit(self, unit: bytes) -> tuple[int, int] | None:
        if unit[0] == 0xB8:  # a group of pictures begins: counts start again
            self._sequence += 1
        elif unit[0] == 0:
            return self._sequence, unit[1] << 2 | unit[2] >> 6
        return None

    def _count(self, lsb: int, bits: int, restart: bool, counted_from: bool) -> tuple[int, int]:
        """The full count from its low bits: the value nearest to the previous one."""
        if restart:
            self._sequence += 1
            self._previous = 0
            count = lsb
        else:
            span = 1 << bits
            count = self._previous - self._previous % span + lsb
            if count - self._previous >= span // 2:
                count -= span
            elif self._previous - count >= span // 2:
                count += span
        if counted_from:
            self._previous = count
        return self._sequence, count


def _h264_sps(bits: _Bits) -> tuple[int, _Sps]:
    profile = bits.u(8)
    bits.u(16)
    number = bits.ue()
    planes = False
    if profile in (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135):
        chroma = bits.ue()
        planes = chroma == 3 and bool(bits.u(1))
        bits.ue()
        bits.ue()
        bits.u(1)
        if bits.u(1):
            for matrix in range(12 if chroma == 3 else 8):
                if bits.u(1):
                    _skip_scaling_list(bits, 16 if matrix < 6 else 64)
    frame_num_bits = bits.ue() + 4
    kind = bits.ue()
    lsb_bits = 0
    if kind == 0:
        lsb_bits = bits.ue() + 4
    elif kind == 1:
        return number, _Sps(0, frame_num_bits, True, planes)
    bits.ue()
    bits.u(1)
    bits.ue()
    bits.ue()
    return number, _Sps(lsb_bits, frame_num_bits, bool(bits.u(1)), planes)


def _skip_scaling_list(bits: _Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            code = bits.ue()
            following = (last + ((code + 1) // 2 if code % 2 else -(code // 2))) % 256
        last = following or last


def _hevc_sps(bits: _Bits) -> tuple[int, _Sps]:
    bits.u(4)
    layers = bits.u(3)
    bits.u(1 + 88 + 8)  # general profile, tier and level
    present = [(bits.u(1), bits.u(1)) for _ in range(layers)]
    if layers:
        bits.u(2 * (8 - layers))
    for profile, level in present:
        bits.u(88 * profile + 8 * level)
    number = bits.ue()
    planes = bits.ue() == 3 and bool(bits.u(1))
    bits.ue()
    bits.ue()
    if bits.u(1):
        for _ in range(4):
            bits.ue()  # conformance window
    bits.ue()
    bits.ue()
    return number, _Sps(bits.ue() + 4, 0, True, planes)
