"""Measurements of the package on itself: against plain decoding, against its peers, on many cores, on a long file."""

from cope_codec.bench.conditions import conditions
from cope_codec.bench.files import counts_for_quality, decode_all, extract_all, generated, residual_ratio, time_file
from cope_codec.bench.peers import PEERS, Peer, PeerError, PeerProcess, available
from cope_codec.bench.sampled import long_file, time_sampled
from cope_codec.bench.scaling import scaling_clip, time_scaling

__all__ = [
    "PEERS",
    "Peer",
    "PeerError",
    "PeerProcess",
    "available",
    "conditions",
    "counts_for_quality",
    "decode_all",
    "extract_all",
    "generated",
    "long_file",
    "residual_ratio",
    "scaling_clip",
    "time_file",
    "time_sampled",
    "time_scaling",
]
