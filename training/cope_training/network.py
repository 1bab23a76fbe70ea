"""The model on batches of packed questions: the reference's own parts, put together for many clips at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cope_model.interleave import close_groups, interleave_gops
from cope_model.reference import CoPEModel
from cope_training.batches import Batch

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


def visual_tokens(model: CoPEModel, batch: Batch) -> Tensor:
    """All clips' visual tokens, in order: (tokens, d)."""
    body = model.model
    # Tokens that will be zero need not be computed.
    needed = batch.kept.any(1)
    deltas = body.delta_encoder(batch.motion[needed], batch.residual[needed])
    queries = deltas.shape[1] // 2
    projected = body.multi_modal_projector(deltas) * batch.kept[needed].repeat_interleave(queries, 1)[..., None]
    embedded = projected.new_zeros(len(needed), *projected.shape[1:]).index_put((needed,), projected)
    keyframes = model.embed_keyframes(batch.keyframes)
    # Autocast gives each part its own type.
    deltas = close_groups(embedded.to(keyframes.dtype), body.image_newline)
    return torch.cat(interleave_gops(batch.layouts, keyframes, deltas))


def target_logits(model: CoPEModel, batch: Batch) -> Tensor:
    """Logits where a target must be predicted: float32 (n, vocabulary)."""
    language = model.model.language_model
    embeddings = language.embed_tokens(batch.ids)
    embeddings = embeddings.masked_scatter(batch.visual[..., None], visual_tokens(model, batch).to(embeddings.dtype))
    hidden = language(
        inputs_embeds=embeddings,
        attention_mask={"full_attention": batch.mask},
        position_ids=batch.positions,
        use_cache=False,
    ).last_hidden_state
    logits: Tensor = model.lm_head(hidden[batch.row, batch.at])
    return logits.float()
