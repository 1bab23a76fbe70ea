"""One request through the whole model, with the time of every part."""

# I keyframes, P P-frames, L prompt tokens, S side of the model's square input (px), g vision patches a side,
# Q queries per delta branch, D vision width, d text width.

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from cope_model.config import CoPEConfig
from cope_model.frames import normalize_keyframes, pool_frames
from cope_model.interleave import close_groups, interleave_gops
from cope_model.prefill.decoding import Decoder, Sequence
from cope_model.prefill.rows import GENERATED_TOKENS, Inputs, Row, random_inputs
from cope_model.reference import CoPEModel

Part = Literal["transfer", "vision", "delta", "projector", "prefill", "decode"]
PARTS: tuple[Part, ...] = get_args(Part)
UNTIL_FIRST_TOKEN = PARTS[:-1]
FRAMES_PER_CALL = 16  # pictures per call of the vision encoder: enough to fill a GPU, and a bound to its activations


@dataclass(frozen=True, slots=True)
class Times:
    """One request's clocks, seconds.

    Attributes:
        ttft_s: from inputs in host memory to the first token in host memory.
        e2el_s: to the last of `GENERATED_TOKENS`.
        parts: the same time by part: copying inputs to the device, vision encoder, delta-encoder (all P-frames in one
            batch), projector with pooling and interleaving, prefill with the first token's logits, decoding.
    """

    ttft_s: float
    e2el_s: float
    parts: dict[Part, float]


@torch.inference_mode()
def encode_keyframes(model: CoPEModel, keyframes: Tensor) -> list[Tensor]:
    """uint8 (I, S, S, 3) to features (n, g * g, D), at most `FRAMES_PER_CALL` frames per call."""
    tower = model.model.vision_tower
    dtype = model.lm_head.weight.dtype
    return [tower(normalize_keyframes(frames, dtype)) for frames in torch.split(keyframes, FRAMES_PER_CALL)]


@torch.inference_mode()
def encode_deltas(model: CoPEModel, inputs: Inputs) -> Tensor:
    """Motion and residual of all P-frames to (P, 2 * Q, D), in one call."""
    out: Tensor = model.model.delta_encoder(inputs.motion, inputs.residual)
    return out


@torch.inference_mode()
def assemble(model: CoPEModel, row: Row, features: list[Tensor], deltas: Tensor, text: Tensor) -> Tensor:
    """The prompt's embeddings, (1, L, d): visual tokens in time order, then text."""
    body, config = model.model, model.config
    stride, mode = config.spatial_pool_stride, config.spatial_pool_mode
    pooled = [pool_frames(body.multi_modal_projector(some), body.image_newline, stride, mode) for some in features]
    closed = close_groups(body.multi_modal_projector(deltas), body.image_newline)
    visual = interleave_gops(row.layouts, torch.cat(pooled), closed)
    return torch.cat([*visual, body.language_model.embed_tokens(text)[0]])[None]


class Pipeline:
    """A model and its sequences, one per row, ready to be timed again and again."""

    def __init__(self, model: CoPEModel, rows: tuple[Row, ...], generated: int = GENERATED_TOKENS) -> None:
        self.model = model
        self.generated = generated
        self.device = model.lm_head.weight.device
        self._pinned = self.device.type == "cuda"
        lengths = {row: row.prompt_tokens(model.config.geometry) for row in rows}
        self.decoder = Decoder(model, max(lengths.values()) + generated)
        self.sequences: dict[Row, Sequence] = {
            row: self.decoder.sequence(length, generated) for row, length in lengths.items()
        }
        self._inputs = {row: self._draw(row, model.config) for row in rows}

    def _draw(self, row: Row, config: CoPEConfig) -> Inputs:
        return random_inputs(row, config, pinned=self._pinned)

    @torch.inference_mode()
    def capture(self, row: Row) -> str | None:
        """Record the row's decoding as a CUDA graph; returns the reason if that fails."""
        return self.decoder.capture(self.sequences[row])

    @torch.inference_mode()
    def run(self, row: Row) -> Times:
        """One request, alone on the device."""
        model, sequence = self.model, self.sequences[row]
        self._wait()
        marks = _Marks(self.device)
        start = time.perf_counter()
        marks.add()
        inputs = self._inputs[row].to(self.device)
        marks.add()
        features = encode_keyframes(model, inputs.keyframes)
        marks.add()
        deltas = encode_deltas(model, inputs)
        marks.add()
        embeddings = assemble(model, row, features, deltas, inputs.text)
        marks.add()
        del features, deltas, inputs
        sequence.prefill(embeddings)
        marks.add()
        sequence.token.item()  # waits: a token counts when the host has it
        first = time.perf_counter()
        for _ in range(self.generated - 1):
            sequence.step()
            sequence.token.item()
        marks.add()
        last = time.perf_counter()
        self._wait()
        return Times(first - start, last - start, dict(zip(PARTS, marks.seconds(), strict=True)))

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)


class _Marks:
    """Moments on the device, taken without waiting for it."""

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._marks: list[Any] = []

    def add(self) -> None:
        """Note when the device gets here."""
        if self._on_cuda:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Between one mark and the next; the device must be done."""
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if self._on_cuda:
            return [start.elapsed_time(end) / 1e3 for start, end in pairs]
        return [float(end - start) for start, end in pairs]
