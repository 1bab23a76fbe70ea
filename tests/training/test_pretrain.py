import numpy as np
import torch
from small_model import SIDE, randomised, small_preset

from cope_model.checkpoint import make_config
from cope_model.reference import CoPEModel
from cope_training.pretrain import NextFrame, Pairs


def pairs(count: int) -> Pairs:
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (2, count, SIDE, SIDE, 3), np.uint8)
    motion = random.integers(-99, 99, (count, SIDE // 4, SIDE // 4, 2), np.int16)
    residual = random.integers(-255, 256, (count, SIDE, SIDE, 3), np.int16)
    before, after = map(torch.from_numpy, pictures)
    return Pairs(before, after, torch.from_numpy(motion), torch.from_numpy(residual))


def objective() -> NextFrame:
    model = CoPEModel(make_config(small_preset()))
    randomised(model, 1)
    out = NextFrame(model, layers=1)
    randomised(out, 2)
    return out


def test_the_loss_is_the_papers_written_out() -> None:
    """Eq. 7-10 in the order of the paper, with the transformers' layers applied by hand."""
    predictor, batch = objective(), pairs(2)
    loss, numbers = predictor(batch)
    tower = predictor._tower[0]
    pixels = [(picture.permute(0, 3, 1, 2).float() / 127.5 - 1) for picture in (batch.before, batch.after)]
    with torch.no_grad():
        x_before, x_after = tower(pixels[0]), tower(pixels[1])
        delta = predictor.delta(batch.motion, batch.residual)
        motion_tokens, residual_tokens = delta[:, :2], delta[:, 2:]
        x = torch.cat([x_before, motion_tokens + predictor.reference.kind], 1)
        x_warped = predictor.reference.layers[0](x)[:, :64]
        x = torch.cat([x_warped, residual_tokens + predictor.warped.kind], 1)
        x_hat = predictor.warped.layers[0](x)[:, :64]
        by_hand = sum(float((x_hat[n, i] - x_after[n, i]).square().mean()) for n in range(2) for i in range(64)) / 128
    assert abs(float(loss.detach()) - by_hand) < 1e-5 * by_hand
    copied = float((x_before - x_after).square().mean())
    assert abs(float(numbers["of_copying"]) - by_hand / copied) < 1e-4 * by_hand / copied


def test_only_the_delta_encoder_and_the_two_transformers_learn() -> None:
    predictor = objective()
    loss, _ = predictor(pairs(1))
    loss.backward()
    assert all(parameter.grad is not None for parameter in predictor.delta.parameters())
    assert all(parameter.grad is None for parameter in predictor._tower[0].parameters())
    assert not any(name.startswith("_tower") or "vision" in name for name in predictor.state_dict())
