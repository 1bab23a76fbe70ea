"""The model on batches of packed questions: the reference's own parts, put together for many clips at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cope_model.interleave import close_groups, interleave_gops
from cope_model.reference import CoPEModel
from cope_training.batches import Batch

_FRAMES_AGAIN = 8  # P-frames whose activations are computed again at once
PARTS = ("vision", "projector", "delta", "language")


def part(model: CoPEModel, name: str) -> list[nn.Parameter]:
    """Parameters of one of `PARTS`; the newline belongs to the projector and the head to the language model."""
    body = model.model
    if name == "vision":
        return list(body.vision_tower.parameters())
    if name == "projector":
        return [*body.multi_modal_projector.parameters(), body.image_newline]
    if name == "delta":
        return list(body.delta_encoder.parameters())
    if name == "language":
        return [*body.language_model.parameters(), *model.lm_head.parameters()]
    raise ValueError(f"no part is called {name!r}: there are {', '.join(PARTS)}")


def save_memory(model: CoPEModel) -> None:
    """Compute activations again on the way back instead of keeping them: layer by layer, P-frames in small groups."""
    body = model.model
    for stack in (body.language_model, body.vision_tower.vision_model):
        stack.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def needed(batch: Batch) -> Tensor:
    """Which P-frames' tokens must be computed: bool (P,); those that will be zero need not."""
    return batch.kept.any(1)


def delta_tokens(model: CoPEModel, batch: Batch) -> Tensor:
    """Tokens of the P-frames that are `needed`, as they leave the delta-encoder: (P, 2 * queries, D)."""
    rows, encoder = needed(batch), model.model.delta_encoder
    motion, residual = batch.motion[rows], batch.residual[rows]
    # In groups BatchNorm would see other batches, and twice.
    alone = encoder.settings.trunk_norm == "group" and len(motion) > 0
    tokens: Tensor
    if alone and model.training and model.model.language_model.is_gradient_checkpointing:
        groups = zip(torch.split(motion, _FRAMES_AGAIN), torch.split(residual, _FRAMES_AGAIN), strict=True)
        tokens = torch.cat([checkpoint(encoder, *group, use_reentrant=False) for group in groups])
    else:
        tokens = encoder(motion, residual)
    return tokens


def visual_tokens(model: CoPEModel, batch: Batch, deltas: Tensor) -> Tensor:
    """All clips' visual tokens, in order: (tokens, d)."""
    body, rows = model.model, needed(batch)
    queries = deltas.shape[1] // 2
    projected = body.multi_modal_projector(deltas) * batch.kept[rows].repeat_interleave(queries, 1)[..., None]
    embedded = projected.new_zeros(len(rows), *projected.shape[1:]).index_put((rows,), projected)
    keyframes = model.embed_keyframes(batch.keyframes)
    # Autocast gives each part its own type.
    deltas = close_groups(embedded.to(keyframes.dtype), body.image_newline)
    return torch.cat(interleave_gops(batch.layouts, keyframes, deltas))


def target_logits(model: CoPEModel, batch: Batch, deltas: Tensor | None = None) -> Tensor:
    """Logits where a target must be predicted: float32 (n, vocabulary).

    Args:
        model: the model.
        batch: clips and questions.
        deltas: of `delta_tokens`, if they are known.
    """
    deltas = delta_tokens(model, batch) if deltas is None else deltas
    language = model.model.language_model
    embeddings = language.embed_tokens(batch.ids)
    embeddings = embeddings.masked_scatter(
        batch.visual[..., None], visual_tokens(model, batch, deltas).to(embeddings.dtype)
    )
    hidden = language(
        inputs_embeds=embeddings,
        attention_mask={"full_attention": batch.mask},
        position_ids=batch.positions,
        use_cache=False,
    ).last_hidden_state
    logits: Tensor = model.lm_head(hidden[batch.row, batch.at])
    return logits.float()
