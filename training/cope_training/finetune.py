"""Stage 2: the whole model, end to end, on interleaved tokens with several questions per clip."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cope_model.reference import CoPEModel
from cope_training import network
from cope_training.batches import Batch
from cope_training.decoding import Decoding
from cope_training.loop import Group
from cope_training.questions import KINDS, WORD_KINDS

_LEAST = 0.05  # what a kind weighs that is always answered right, of one that never is
_WINDOW = 64  # answers that a kind's share of wrong ones is taken over, about


class Answering(nn.Module):
    """Cross-entropy of the answers' tokens, whatever an answer's length; `Batch.weight` says what each weighs.

    Args:
        model: to train.
        focus: let answers of one word weigh by how often their kind (`questions.kind_of`) is still answered wrong.
            Otherwise a kind that is not yet understood is one of many, most of which have nothing left to learn.
        decode: weight of `decoding.Decoding`'s two errors in the loss.
    """

    _words: Tensor  # bool (KINDS,), which kinds are answered by a word
    missed: Tensor  # (KINDS,), share of wrong answers lately; a buffer, so that a resumed run goes on with it

    def __init__(self, model: CoPEModel, *, focus: bool = False, decode: float = 0.0) -> None:
        super().__init__()
        if decode < 0:
            raise ValueError(f"decode must not be negative, not {decode}")
        self.model = model
        self._decode = decode
        if decode:
            self.decoding = Decoding(model.config.delta)
        self._focus = focus
        if focus:
            self.register_buffer("missed", torch.ones(KINDS))
            self.register_buffer("_words", torch.tensor(WORD_KINDS), persistent=False)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss, and the share of answers that are right token by token."""
        deltas = network.delta_tokens(self.model, batch) if self._decode else None
        logits = network.target_logits(self.model, batch, deltas)
        losses = F.cross_entropy(logits, batch.token, reduction="none")
        answers = int(batch.owner.max()) + 1
        counts = torch.zeros(answers, device=logits.device).index_add_(0, batch.owner, torch.ones_like(losses))
        sums = torch.zeros(answers, device=logits.device).index_add_(0, batch.owner, losses)
        with torch.no_grad():
            wrong = (logits.argmax(-1) != batch.token).float()
            missed = torch.zeros(answers, device=logits.device).index_add_(0, batch.owner, wrong)
            wrong = (missed > 0).float()
            weight = self._focused(batch, wrong) if self._focus else batch.weight
        loss, numbers = (weight * sums / counts).mean(), {"exact": 1 - wrong.mean()}
        if deltas is not None:
            rows = network.needed(batch)
            motion, residual = self.decoding(deltas, batch.motion[rows], batch.residual[rows])
            loss = loss + self._decode * (motion + residual)
            numbers |= {"motion_lost": motion.detach(), "residual_lost": residual.detach()}
        return loss, numbers

    def _focused(self, batch: Batch, wrong: Tensor) -> Tensor:
        """What each answer weighs: sentences and foreign answers as before, the others as much together as before."""
        seen = torch.zeros_like(self.missed).index_add_(0, batch.kind, torch.ones_like(wrong))
        now = torch.zeros_like(self.missed).index_add_(0, batch.kind, wrong) / seen.clamp(min=1)
        self.missed += (now - self.missed) * (1 - (1 - 1 / _WINDOW) ** seen)
        words = self._words[batch.kind]
        factor = torch.where(words, _LEAST + self.missed[batch.kind], 1.0)
        before, after = (batch.weight * words).sum(), (batch.weight * factor * words).sum()
        return batch.weight * torch.where(words, factor * before / after.clamp(min=1e-6), 1.0)


def choose(model: CoPEModel, scales: Mapping[str, float]) -> list[Group]:
    """Parameter groups by part; a part with scale 0 is frozen.

    Args:
        model: the model; `requires_grad` is set.
        scales: share of the learning rate by name of the part (`network.PARTS`); 1 where not named.

    Raises:
        ValueError: an unknown part, a negative scale, or all parts frozen.
    """
    for name, scale in scales.items():
        if name not in network.PARTS:
            raise ValueError(f"no part is called {name!r}: there are {', '.join(network.PARTS)}")
        if scale < 0:
            raise ValueError(f"the share of the learning rate of {name} must not be negative, not {scale}")
    groups = []
    for name in network.PARTS:
        scale = scales.get(name, 1.0)
        parameters = network.part(model, name)
        for parameter in parameters:
            parameter.requires_grad_(scale > 0)
        if scale > 0:
            groups.append(Group(parameters, scale))
    if not groups:
        raise ValueError("all parts are frozen: there is nothing to train")
    return groups
