"""The way from the vision encoder's width into the language model's: LLaVA's two-layer GELU projector."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Projector(nn.Module):
    """Linear, GELU, linear, token by token: (..., D) -> (..., d_text). I and P tokens share it."""

    def __init__(self, vision_width: int, text_width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(vision_width, text_width)
        self.linear_2 = nn.Linear(text_width, text_width)

    def forward(self, x: Tensor) -> Tensor:
        """Project every token."""
        out: Tensor = self.linear_2(F.gelu(self.linear_1(x)))
        return out
