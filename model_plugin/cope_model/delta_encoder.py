"""The delta-encoder: motion vectors and residuals of a P-frame to a handful of tokens (paper Sec. 3.2, App. B).

Plain PyTorch, shared by the vLLM model, the reference and the training.

Where the paper contradicts itself, and how the presets resolve it:

- Size. It says "under 15M parameters", but the widths it states (d = 1152, 4 layers, twice, and a ResNet-18) give
  about 141M. Preset `7b` follows the widths, `7b-light` the size.
- Stride. A ResNet-18 ends at stride 32, but its patches are said to lie on the grid H/16 x W/16 of the motion patches.
  `trunk_stride=16` (default) keeps the last stage at stride 1; 32 is the plain ResNet-18.

What it leaves open, and what we chose:

- Positions: a transformer without them could not tell where something moves. Both branches add a learnable embedding
  per patch.
- Motion patches: a 16 x 16 px patch holds 16 * 16 * 2 = 512 numbers, but vectors are constant over cells of 4 x 4 px:
  only 4 * 4 * 2 = 32 of them are distinct. We feed those: a linear layer over all 512 would only tie its weights.
- Normalisation of motion: per-frame min-max (the paper's words, `motion_norm="minmax"`) makes right equal up and slow
  equal fast, since both components share one minimum and maximum. The default divides by a fixed bound.
- Normalisation in the trunk: GroupNorm, which does not depend on the batch; `trunk_norm="batch"` is ResNet-18's own.
"""

# P P-frames, S side of the model's square input (px), C = S / cell motion cells a side, G patches a side,
# d width inside, D width of the vision encoder, Q queries per branch, n cells a side of one patch.

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cope_model.presets import DeltaSettings

_SUBPEL = 16  # motion counts sixteenths of a model pixel


def normalize_motion(motion: Tensor, settings: DeltaSettings) -> Tensor:
    """Motion in -1..1: float32 (P, C, C, 2) from int16 sixteenths of a model pixel.

    `fixed` divides by the bound and clamps, so sign and magnitude survive. `minmax` maps each frame's minimum to -1 and
    its maximum to 1, over both components; a frame of one single value becomes 0.
    """
    motion = motion.float()
    if settings.motion_norm == "fixed":
        return (motion / (_SUBPEL * settings.bound_px)).clamp(-1.0, 1.0)
    low = motion.amin((1, 2, 3), keepdim=True)
    high = motion.amax((1, 2, 3), keepdim=True)
    span = high - low
    return torch.where(span > 0, (motion - low) / span.clamp(min=1.0) * 2 - 1, torch.zeros_like(motion))


def motion_patches(motion: Tensor, cells: int) -> Tensor:
    """Cut (P, C, C, 2) into patches of `cells` x `cells` cells: (P, G * G, cells * cells * 2), row by row."""
    p, c, _, _ = motion.shape
    g = c // cells
    split = motion.reshape(p, g, cells, g, cells, 2).transpose(2, 3)
    return split.reshape(p, g * g, cells * cells * 2)


class TransformerLayer(nn.Module):
    """PreNorm self-attention and a GELU MLP of four times the width: (P, L, d) -> (P, keep or L, d)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor, keep: int | None = None) -> Tensor:
        """One layer; with `keep`, only the outputs of the first so many positions, which still attend to all."""
        p, length, d = x.shape
        normed = self.attention_norm(x)
        if keep is None:
            keep = length
            qkv = self.qkv(normed)
            q, k, v = qkv.view(p, length, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        else:
            weight, bias = self.qkv.weight, self.qkv.bias
            q = F.linear(normed[:, :keep], weight[:d], bias[:d]).view(p, keep, self.heads, -1).transpose(1, 2)
            kv = F.linear(normed, weight[d:], bias[d:])
            k, v = kv.view(p, length, 2, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v)
        x = x[:, :keep] + self.out(attended.transpose(1, 2).reshape(p, keep, d))
        out: Tensor = x + self.fc2(F.gelu(self.fc1(self.mlp_norm(x))))
        return out


class QueryTransformer(nn.Module):
    """Learnable queries that read a sequence of patches: (P, G * G, d) -> (P, Q, d)."""

    def __init__(self, patches: int, width: int, layers: int, heads: int, queries: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(queries, width) * 0.02)
        self.positions = nn.Parameter(torch.randn(patches, width) * 0.02)
        self.layers = nn.ModuleList(TransformerLayer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, patches: Tensor) -> Tensor:
        """The queries' outputs."""
        queries = self.queries.expand(patches.shape[0], -1, -1)
        x = torch.cat([queries, patches + self.positions], 1)
        # Nobody reads what the last layer makes of the patches: it is five sixths of that layer's work.
        last = len(self.layers) - 1
        for number, layer in enumerate(self.layers):
            x = layer(x, self.queries.shape[0] if number == last else None)
        out: Tensor = self.norm(x)
        return out


def _norm(kind: str, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.GroupNorm(math.gcd(32, channels), channels)


class BasicBlock(nn.Module):
    """ResNet's block of two 3 x 3 convolutions."""

    def __init__(self, channels_in: int, channels: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1 = _norm(norm, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = _norm(norm, channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), _norm(norm, channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """One block."""
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class ResidualTrunk(nn.Module):
    """ResNet-18 up to, not with, the global pooling: (P, 3, S, S) -> (P, 8 * width, G, G), G = S / stride."""

    def __init__(self, width: int, stride: int, norm: str) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 7, 2, 3, bias=False), _norm(norm, width), nn.ReLU())
        self.pool = nn.MaxPool2d(3, 2, 1)
        strides = (1, 2, 2, stride // 16)
        channels = [width, width, 2 * width, 4 * width, 8 * width]
        self.stages = nn.ModuleList(
            nn.Sequential(
                BasicBlock(channels[i], channels[i + 1], strides[i], norm),
                BasicBlock(channels[i + 1], channels[i + 1], 1, norm),
            )
            for i in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        """The last feature map."""
        x = self.pool(self.stem(x))
        for stage in self.stages:
            x = stage(x)
        return x


class MotionBranch(nn.Module):
    """Motion patches, a two-layer MLP shared by all of them, a transformer: (P, C, C, 2) -> (P, Q, d)."""

    def __init__(self, settings: DeltaSettings) -> None:
        super().__init__()
        self.cells = settings.motion_patch_px // settings.motion_cell_px
        grid = settings.side // settings.motion_patch_px
        self.fc1 = nn.Linear(self.cells * self.cells * 2, settings.width)
        self.fc2 = nn.Linear(settings.width, settings.width)
        self.transformer = QueryTransformer(
            grid * grid, settings.width, settings.layers, settings.heads, settings.queries
        )

    def forward(self, motion: Tensor) -> Tensor:
        """Tokens of normalised motion."""
        out: Tensor = self.transformer(self.fc2(F.gelu(self.fc1(motion_patches(motion, self.cells)))))
        return out


class ResidualBranch(nn.Module):
    """A convolutional trunk, then a transformer like the motion branch's: (P, S, S, 3) -> (P, Q, d)."""

    def __init__(self, settings: DeltaSettings) -> None:
        super().__init__()
        grid = settings.side // settings.trunk_stride
        self.trunk = ResidualTrunk(settings.trunk_width, settings.trunk_stride, settings.trunk_norm)
        self.project = nn.Linear(8 * settings.trunk_width, settings.width)
        self.transformer = QueryTransformer(
            grid * grid, settings.width, settings.layers, settings.heads, settings.queries
        )

    def forward(self, residual: Tensor) -> Tensor:
        """Tokens of a residual in -1..1."""
        # Contiguous: with channels last, oneDNN's backward pass corrupts memory where the trunk is 4 channels wide.
        features = self.trunk(residual.permute(0, 3, 1, 2).contiguous()).flatten(2).transpose(1, 2)
        out: Tensor = self.transformer(self.project(features))
        return out


class DeltaEncoder(nn.Module):
    """Motion and residual of P-frames to tokens as wide as the vision encoder's (paper Sec. 3.2)."""

    def __init__(self, settings: DeltaSettings) -> None:
        super().__init__()
        self.settings = settings
        self.motion = MotionBranch(settings)
        self.residual = ResidualBranch(settings)
        # The paper's d is the vision encoder's own width; a narrower inside needs a way back to it.
        self.output: nn.Module = nn.Identity()
        if settings.width != settings.output_width:
            self.output = nn.Linear(settings.width, settings.output_width)

    def forward(self, motion: Tensor, residual: Tensor) -> Tensor:
        """Encode P-frames; integers are normalised here, on the device that holds them.

        Args:
            motion: int16 (P, C, C, 2), (x, y) = source minus destination, sixteenths of a model pixel.
            residual: int16 (P, S, S, 3), RGB, slot minus warped previous slot, -255..255.

        Returns:
            (P, 2 * Q, D) in the weights' dtype: Q motion tokens, then Q residual tokens. P may be 0.

        Raises:
            ValueError: the arrays do not fit the settings or each other.
        """
        settings = self.settings
        p = motion.shape[0]
        cells = settings.side // settings.motion_cell_px
        if motion.shape != (p, cells, cells, 2) or residual.shape != (p, settings.side, settings.side, 3):
            raise ValueError(
                f"motion {tuple(motion.shape)} and residual {tuple(residual.shape)} do not fit a model side of "
                f"{settings.side} px: expected (P, {cells}, {cells}, 2) and (P, {settings.side}, {settings.side}, 3)"
            )
        weight = self.motion.fc1.weight
        if p == 0:
            return weight.new_zeros((0, 2 * settings.queries, settings.output_width))
        motion_tokens = self.motion(normalize_motion(motion, settings).to(weight.dtype))
        residual_tokens = self.residual((residual.float() / 255).to(weight.dtype))
        out: Tensor = self.output(torch.cat([motion_tokens, residual_tokens], 1))
        return out


def count_parameters(settings: DeltaSettings) -> int:
    """Parameters of a delta-encoder of this shape; allocates none of them."""
    with torch.device("meta"):
        encoder = DeltaEncoder(settings)
    return sum(parameter.numel() for parameter in encoder.parameters())
