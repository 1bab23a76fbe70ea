"""Arithmetic and memory traffic that a request cannot do without, and how fast this device does either."""

# N frames, L prompt tokens, S side of the model's square input (px), D vision width, d text width.

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cope_model.config import CoPEConfig
from cope_model.prefill.decoding import cache_shape
from cope_model.prefill.pipeline import FRAMES_PER_CALL, Part
from cope_model.prefill.rows import Row, random_inputs
from cope_model.prefill.weights import parameter_bytes, shape_of

_ROOF_RUNS = 5
_MATRIX = {"cuda": 8192, "cpu": 1024}  # rows of the product that shows a device's arithmetic
_COPY_BYTES = {"cuda": 1 << 30, "cpu": 1 << 27}  # far beyond any cache


@dataclass(frozen=True, slots=True)
class Work:
    """What a part has to do.

    Attributes:
        flops: floating-point operations, a multiply-add counted as two. Matrix products, convolutions and attention
            only; causal attention counts what lies below the diagonal.
        bytes: its weights read once, its inputs read once, its outputs written once; for decoding once per token.
    """

    flops: float
    bytes: float


@dataclass(frozen=True, slots=True)
class Roof:
    """What the device reaches in a large product and a large copy, measured in the same run.

    Attributes:
        flops_per_s: of a square matrix product in the model's dtype.
        bytes_per_s: read and written, of a copy within the device.
        transfer_bytes_per_s: of a copy from pinned host memory; None where the host is the device.
    """

    flops_per_s: float
    bytes_per_s: float
    transfer_bytes_per_s: float | None

    def floor_s(self, part: Part, work: Work) -> float:
        """Seconds under which no implementation gets."""
        if part == "transfer":
            return 0.0 if self.transfer_bytes_per_s is None else work.bytes / self.transfer_bytes_per_s
        return max(work.flops / self.flops_per_s, work.bytes / self.bytes_per_s)


class Account:
    """Counts the work of rows; the modules themselves are counted, on torch's `meta` device."""

    def __init__(self, config: CoPEConfig, dtype: torch.dtype, generated: int) -> None:
        self._config = config
        self._generated = generated
        self._model = shape_of(config, dtype)
        self._size = dtype.itemsize
        side = config.geometry.side
        body = self._model.model
        self._vision_flops = _flops(body.vision_tower, torch.empty(1, 3, side, side, dtype=dtype, device="meta"))
        one = random_inputs(Row(1, 1), config).to(torch.device("meta"))
        self._delta_flops = _flops(body.delta_encoder, one.motion[:1], one.residual[:1])

    @property
    def weights_bytes(self) -> int:
        """Of the whole model."""
        return parameter_bytes(self._model)

    def work(self, row: Row) -> dict[Part, Work]:
        """The row's, by part."""
        config, body, size = self._config, self._model.model, self._size
        geometry = config.geometry
        vision_width, width = config.vision_config.hidden_size, config.text_config.hidden_size
        inputs_bytes = {"keyframes": row.i_frames * geometry.side**2 * 3, "p": row.p_frames * _p_frame_bytes(config)}
        patches = row.i_frames * geometry.grid**2
        deltas = row.p_frames * 2 * config.delta_queries
        prompt = row.prompt_tokens(geometry)
        projected = (patches + deltas) * size
        return {
            "transfer": Work(0.0, sum(inputs_bytes.values())),
            "vision": Work(
                self._vision_flops * row.i_frames,
                parameter_bytes(body.vision_tower) + inputs_bytes["keyframes"] + patches * vision_width * size,
            ),
            "delta": Work(
                self._delta_flops * row.p_frames,
                (parameter_bytes(body.delta_encoder) + inputs_bytes["p"] + deltas * vision_width * size)
                * bool(row.p_frames),
            ),
            "projector": Work(
                2.0 * _matrix_elements(body.multi_modal_projector) * (patches + deltas),
                parameter_bytes(body.multi_modal_projector) + projected * vision_width + prompt * width * size,
            ),
            "prefill": self._prefill(prompt),
            "decode": self._decode(prompt),
        }

    def memory_bytes(self, rows: tuple[Row, ...]) -> int:
        """About what the longest row takes: weights, KV cache, and activations of its widest part."""
        config, size = self._config, self._size
        text, vision = config.text_config, config.vision_config
        longest = max(row.prompt_tokens(config.geometry) for row in rows)
        cache: int = size * torch.Size(cache_shape(self._model, longest + self._generated)).numel()
        prefill: int = longest * (3 * text.intermediate_size + 6 * text.hidden_size) * size
        frames = min(FRAMES_PER_CALL, max(row.i_frames for row in rows)) * config.geometry.grid**2
        tower = frames * (2 * vision.intermediate_size + 6 * vision.hidden_size) * size
        pooling = frames * text.hidden_size * (4 + size)
        return int(self.weights_bytes + cache + max(prefill, tower, pooling))

    def _prefill(self, prompt: int) -> Work:
        model, width = self._model, self._config.text_config.hidden_size
        layers, head = _matrix_elements(model.model.language_model), model.lm_head.weight.numel()
        flops = 2.0 * layers * prompt + 2.0 * head + self._attention(prompt * (prompt + 1) / 2)
        return Work(flops, (layers + head) * self._size + prompt * width * self._size + self._cached(prompt))

    def _decode(self, prompt: int) -> Work:
        """One token less than are generated: prefill gives the first."""
        model = self._model
        weights = _matrix_elements(model.model.language_model) + model.lm_head.weight.numel()
        lengths = range(prompt + 1, prompt + self._generated)
        flops = sum(2.0 * weights + self._attention(length) for length in lengths)
        return Work(flops, sum(weights * self._size + self._cached(length) for length in lengths))

    def _attention(self, pairs: float) -> float:
        """FLOPs of scores and sums for so many pairs of a query and a key, in all heads and layers."""
        text, width = self._config.text_config, cache_shape(self._model, 1)[-1]
        return 4.0 * width * int(text.num_attention_heads) * int(text.num_hidden_layers) * pairs

    def _cached(self, tokens: int) -> int:
        """Bytes of the keys and values of so many tokens."""
        layers, pair, _, heads, _, width = cache_shape(self._model, 1)
        return layers * pair * heads * width * tokens * self._size


def measure_roof(device: torch.device, dtype: torch.dtype) -> Roof:
    """Time a large product and a large copy, best of some: what the arithmetic and the memory can give."""
    size, nbytes = _MATRIX[device.type], _COPY_BYTES[device.type]
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(left)
    product = _best(lambda: torch.matmul(left, right, out=out), device)
    source = torch.ones(nbytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = _best(lambda: target.copy_(source), device)
    transfer = None
    if device.type == "cuda":
        host = torch.ones(nbytes // 4, dtype=torch.uint8).pin_memory()
        transfer = host.nbytes / _best(lambda: target[: host.nbytes].copy_(host, non_blocking=True), device)
        del left, right, out, source, target
        torch.cuda.empty_cache()  # the model may need it in other pieces
    return Roof(2.0 * size**3 / product, 2.0 * nbytes / copy, transfer)


def _best(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of some calls, after one that does not count."""
    times = []
    with torch.inference_mode():
        for _ in range(_ROOF_RUNS + 1):
            _wait(device)
            start = time.perf_counter()
            call()
            _wait(device)
            times.append(time.perf_counter() - start)
    return min(times[1:])


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _flops(module: nn.Module, *inputs: torch.Tensor) -> float:
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        module(*inputs)
    return float(counter.get_total_flops())


def _matrix_elements(module: nn.Module) -> int:
    """Weights of its linear layers: each takes part in one multiply-add per token."""
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))


def _p_frame_bytes(config: CoPEConfig) -> int:
    """Motion and residual of a P-frame, as int16."""
    side = config.geometry.side
    return 2 * (2 * (side // config.motion_cell_px) ** 2 + 3 * side**2)
