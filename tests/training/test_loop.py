import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cope_training import loop
from cope_training.loop import Settings


class Numbers(torch.utils.data.Dataset[Tensor]):
    def __getitem__(self, number: int) -> Tensor:
        return torch.randn(4, 3, generator=torch.Generator().manual_seed(number))


class Fit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.line = nn.Linear(3, 1)

    def forward(self, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss = (self.line(batch)[:, 0] - batch.sum(1) - 1).square().mean()
        return loss, {"double": 2 * loss.detach()}


def run(
    folder: Path, settings: Settings, stop_at: int | None = None, defining: dict[str, Any] | None = None
) -> tuple[list[float], Fit]:
    fit = Fit()
    groups = [loop.Group(list(fit.parameters()))]
    accelerator = loop.make_accelerator(settings)
    losses = loop.train(
        accelerator, fit, groups, Numbers(), settings, folder, "fit", defining=defining, stop_at=stop_at
    )
    return losses, fit


SETTINGS = Settings(steps=40, batch=4, lr=0.1, warmup=5, precision="no", save_every=6, log_every=1)


def test_a_killed_run_goes_on_with_the_same_losses_and_weights(tmp_path: Path) -> None:
    whole, fit = run(tmp_path / "whole", SETTINGS)
    run(tmp_path / "killed", SETTINGS, stop_at=22)  # the last state is of step 18
    resumed, same = run(tmp_path / "killed", SETTINGS)
    assert resumed == pytest.approx(whole, rel=1e-6)
    assert torch.allclose(fit.line.weight, same.line.weight)
    rows = [json.loads(line) for line in (tmp_path / "killed" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(40))
    assert rows[7]["double"] == pytest.approx(2 * whole[7], rel=1e-4)
    assert whole[-1] < whole[0] / 10


def test_a_folder_with_another_run_is_refused(tmp_path: Path) -> None:
    run(tmp_path, SETTINGS, stop_at=6)
    with pytest.raises(ValueError, match=r"holds a run with lr 0.1, not 0.2"):
        run(tmp_path, Settings(**{**SETTINGS.defining(), "lr": 0.2}))


def test_a_run_with_other_data_or_questions_is_refused(tmp_path: Path) -> None:
    asked = {"data": "7 questions", "groups": ("motion", "colour+"), "part_lr": {"vision": 0.0}, "layers": None}
    run(tmp_path, SETTINGS, stop_at=6, defining=asked)
    with pytest.raises(ValueError, match=r"holds a run with data 7 questions, not 8 questions: remove it"):
        run(tmp_path, SETTINGS, defining={**asked, "data": "8 questions"})
    with pytest.raises(ValueError, match=r"with groups \['motion', 'colour\+'\], not \['motion'\]"):
        run(tmp_path, SETTINGS, defining={**asked, "groups": ("motion",)})
    with pytest.raises(ValueError, match=r"with part_lr \{'vision': 0.0\}, not \{'vision': 0.1\}"):
        run(tmp_path, SETTINGS, defining={**asked, "part_lr": {"vision": 0.1}})
    assert len(run(tmp_path, SETTINGS, defining=asked)[0]) == SETTINGS.steps


def test_a_state_of_an_older_version_is_resumed_with_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, _ = run(tmp_path / "whole", SETTINGS)
    folder = tmp_path / "old"
    run(folder, SETTINGS, stop_at=12)
    state = torch.load(folder / "state.pt", weights_only=True)
    del state["run"]
    torch.save({**state, "settings": SETTINGS.defining()}, folder / "state.pt")
    capsys.readouterr()
    with pytest.raises(ValueError, match="holds a run with seed 0, not 1"):
        run(folder, Settings(**{**SETTINGS.defining(), "seed": 1}))
    resumed, _ = run(folder, SETTINGS, defining={"data": "7 questions"})
    assert resumed == pytest.approx(whole, rel=1e-6)
    assert "an older version, which does not tell processes, data: going on" in capsys.readouterr().err


def test_accumulated_batches_make_the_step_of_one_large_batch(tmp_path: Path) -> None:
    settings = Settings(steps=1, batch=4, accumulate=3, lr=0.1, warmup=0, precision="no", weight_decay=0, clip=100)
    losses, fit = run(tmp_path, settings)
    large = Fit()
    loss, _ = large(torch.cat([Numbers()[n] for n in range(3)]))
    loss.backward()
    torch.optim.AdamW(large.parameters(), lr=0.1, betas=(0.9, 0.98), weight_decay=0).step()
    assert losses == pytest.approx([loss.item()])
    torch.testing.assert_close(fit.line.weight, large.line.weight)


def test_the_learning_rate_warms_up_and_then_follows_a_cosine() -> None:
    settings = Settings(steps=110, warmup=10)
    assert settings.rate(0) == 0.1
    assert settings.rate(9) == 1.0
    assert settings.rate(60) == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))
    assert settings.rate(109) < 0.001


@pytest.mark.parametrize("name", ["steps", "batch", "accumulate", "lr", "clip"])
def test_settings_without_sense_are_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        Settings(**{"steps": 10, name: 0})


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="try a lower lr"):
        run(tmp_path, Settings(steps=60, lr=1e30, warmup=0, precision="no", clip=1e30))
