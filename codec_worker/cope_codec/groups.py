"""Cuts a video's GOPs into contiguous groups that take about as long to decode, for workers to share."""

from __future__ import annotations

from collections.abc import Sequence

from cope_codec.plan import GopPlan


def decoded_packets(gops: Sequence[GopPlan]) -> int:
    """Packets that decoding these GOPs, in time order and in one go, takes."""
    return sum(_cost(before, gop) for before, gop in zip((None, *gops), gops, strict=False))


def _cost(before: GopPlan | None, gop: GopPlan) -> int:
    """Packets that one more GOP adds to what has been decoded; without one before it, it starts at its keyframe."""
    first = gop.first_packet if before is None else max(gop.first_packet, before.last_packet + 1)
    return max(0, gop.last_packet + 1 - first)


def split(
    gops: Sequence[GopPlan], groups: int, most_gops: int, most_packets: int | None = None
) -> list[Sequence[GopPlan]]:
    """Cut GOPs into at least so many groups where that shortens the longest of them.

    A group that starts between two stream keyframes decodes again what leads up to its first slot, so GOPs that share
    much decoding stay together: the cut is the one whose longest group decodes the fewest packets.

    Args:
        gops: in time order.
        groups: how many can run at a time.
        most_gops: of one group, which bounds its result.
        most_packets: that a group should decode, which bounds its time; GOPs that share much decoding may need more.
    """
    total = decoded_packets(gops)
    wanted = max(groups, -(-len(gops) // most_gops), -(-total // most_packets) if most_packets else 1)
    low = max((_cost(None, gop) for gop in gops), default=0)
    high = max(low, total)
    while low < high:
        bound = (low + high) // 2
        if len(_fill(gops, bound, most_gops)) <= wanted:
            high = bound
        else:
            low = bound + 1
    return _fill(gops, high, most_gops)


def _fill(gops: Sequence[GopPlan], bound: int, most_gops: int) -> list[Sequence[GopPlan]]:
    """As few groups as possible, none of which decodes more than `bound` packets."""
    out: list[Sequence[GopPlan]] = []
    start = cost = 0
    for number, gop in enumerate(gops):
        added = _cost(gops[number - 1] if number > start else None, gop)
        if number > start and (cost + added > bound or number - start == most_gops):
            out.append(gops[start:number])
            start, cost = number, 0
            added = _cost(None, gop)
        cost += added
    if len(gops) > start:
        out.append(gops[start:])
    return out
