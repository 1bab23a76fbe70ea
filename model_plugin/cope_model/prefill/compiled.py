"""torch.compile for the layers in which it fuses chains of small operations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

# Layers that are many of one kind, and are told apart by their weights alone: each kind is compiled once per shape.
# Qwen2's whole layer is none of them, for it knows its own number.
KINDS = ("Qwen2RMSNorm", "Qwen2MLP", "SiglipEncoderLayer", "TransformerLayer")
_SHAPES = 32  # per kind: rows and their batches


@contextmanager
def compiled(model: nn.Module) -> Iterator[None]:
    """Let torch compile these layers at their next call, until the block ends."""
    layers = [layer for layer in model.modules() if type(layer).__name__ in KINDS]
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, _SHAPES)
    for layer in layers:
        layer.compile(dynamic=False)
    try:
        yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None
        torch._dynamo.config.recompile_limit = limit
        torch._dynamo.reset()
