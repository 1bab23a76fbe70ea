"""What the first token costs: a model of full size with random weights, from pixels and primitives to 64 tokens."""

from cope_model.prefill.latency import measure
from cope_model.prefill.rows import GENERATED_TOKENS, PAPER, ROWS, TEXT_TOKENS, Row

__all__ = ["GENERATED_TOKENS", "PAPER", "ROWS", "TEXT_TOKENS", "Row", "measure"]
