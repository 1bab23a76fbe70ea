from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from cope_training import network
from cope_training.finetune import Answering
from cope_training.questions import Question, kind_of

SENTENCE = kind_of(Question("describe", "", "red left"))
EASY, HARD = (
    kind_of(Question("side", "", "left", among=("left",))),
    kind_of(Question("side", "", "left", among=("left", "right"))),
)


@dataclass
class Answers:
    """A batch as far as the loss looks at it: one token per answer; `right` says which the model gets right."""

    kind: Tensor
    right: Tensor

    @property
    def token(self) -> Tensor:
        return torch.zeros_like(self.kind)

    @property
    def owner(self) -> Tensor:
        return torch.arange(len(self.kind))

    @property
    def weight(self) -> Tensor:
        return torch.ones(len(self.kind))


@pytest.fixture(autouse=True)
def _chosen_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    def logits(model: nn.Module, batch: Answers, deltas: Tensor | None = None) -> Tensor:
        right = batch.right[:, None].float()
        return torch.cat([2 * right, 2 * (1 - right)], 1).requires_grad_()

    monkeypatch.setattr(network, "target_logits", logits)


def shares(objective: Answering, batch: Answers) -> Tensor:
    """How much of the loss each answer makes: weight times its own loss."""
    logits: list[Tensor] = []
    made = network.target_logits

    def keep(model: nn.Module, asked: Answers, deltas: Tensor | None = None) -> Tensor:
        logits.append(made(model, asked))
        return logits[-1]

    network.target_logits = keep  # type: ignore[assignment]
    try:
        loss, _ = objective(batch)
    finally:
        network.target_logits = made
    gradient = torch.autograd.grad(loss, logits[0])[0].abs().sum(1)
    alone = torch.softmax(logits[0], 1)[:, 1] * 2
    return (gradient / alone).detach() * len(batch.kind)


def test_what_is_still_wrong_weighs_more() -> None:
    objective = Answering(SimpleNamespace(), focus=True)  # type: ignore[arg-type]
    batch = Answers(torch.tensor([EASY] * 4 + [HARD] * 4), torch.tensor([1] * 4 + [0] * 4))
    first = shares(objective, batch)
    for _ in range(100):
        last = shares(objective, batch)
    assert first[0] > 0.9 * first[4]
    assert last[0] < 0.1 * last[4]
    assert last.sum() == pytest.approx(8, rel=1e-3)  # words weigh as much together as they would otherwise


def test_sentences_and_foreign_answers_keep_their_weight() -> None:
    objective = Answering(SimpleNamespace(), focus=True)  # type: ignore[arg-type]
    foreign = kind_of(Question("", "What?", "That."))
    batch = Answers(torch.tensor([SENTENCE, foreign, EASY, HARD]), torch.tensor([1, 1, 1, 0]))
    for _ in range(50):
        weights = shares(objective, batch)
    assert weights[:2].tolist() == pytest.approx([1, 1])
    assert weights[2] < weights[3]


def test_without_focus_all_weigh_what_the_batch_says() -> None:
    objective = Answering(SimpleNamespace())  # type: ignore[arg-type]
    batch = Answers(torch.tensor([EASY, HARD]), torch.tensor([1, 0]))
    for _ in range(20):
        weights = shares(objective, batch)
    assert weights.tolist() == pytest.approx([1, 1])
    assert "missed" not in objective.state_dict()


def test_what_is_known_of_kinds_is_part_of_the_state() -> None:
    """A resumed run goes on with the same weights."""
    objective = Answering(SimpleNamespace(), focus=True)  # type: ignore[arg-type]
    shares(objective, Answers(torch.tensor([EASY] * 4), torch.tensor([1] * 4)))
    assert 0.9 < objective.state_dict()["missed"][EASY] < 1
    assert objective.state_dict()["missed"][HARD] == 1
