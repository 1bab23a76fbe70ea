"""Shapes of the models that we ship or know, and the token account that follows from them; pure Python."""

# S = side of the model's square input, g = SigLIP patches a side, G = pooled patches a side.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

MotionNorm = Literal["fixed", "minmax"]
TrunkNorm = Literal["group", "batch"]
PoolMode = Literal["bilinear", "average"]


@dataclass(frozen=True, slots=True)
class Geometry:
    """What turns slots into tokens: all that planning a request needs to know of a model.

    Attributes:
        side: S, side of the square picture that the vision encoder reads, pixels.
        patch: side of one vision patch, pixels.
        pool_stride: patches pooled into one token, per side (paper: 2).
        queries: learnable queries of each delta branch, i.e. motion tokens and residual tokens per P-frame (paper: 4).
        pool_mode: `bilinear` samples the patches' grid and keeps a remainder, `average` takes means and drops it.
    """

    side: int
    patch: int
    pool_stride: int = 2
    queries: int = 4
    pool_mode: PoolMode = "bilinear"

    def __post_init__(self) -> None:
        for name in ("side", "patch", "pool_stride", "queries"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive whole number, not {value!r}")
        if self.patch > self.side:
            raise ValueError(f"patch ({self.patch}) cannot exceed side ({self.side})")
        if self.pool_mode not in ("bilinear", "average"):
            raise ValueError(f"spatial_pool_mode must be 'bilinear' or 'average', not {self.pool_mode!r}")
        if self.pool_stride > self.grid:
            raise ValueError(
                f"spatial_pool_stride ({self.pool_stride}) cannot exceed the {self.grid} patches of a side"
            )

    @property
    def grid(self) -> int:
        """g, vision patches a side; a remainder of the picture is cut off (384 / 14 = 27)."""
        return self.side // self.patch

    @property
    def pooled(self) -> int:
        """G, pooled patches a side: 27 / 2 is 14 when bilinear and 13 when averaged, as in LLaVA-Video."""
        return self.grid // self.pool_stride if self.pool_mode == "average" else -(-self.grid // self.pool_stride)

    @property
    def i_tokens(self) -> int:
        """Tokens of one keyframe: G x G, and one newline per pooled row (paper: 196 + 14 = 210)."""
        return self.pooled * (self.pooled + 1)

    @property
    def p_tokens(self) -> int:
        """Tokens of one P-frame: both groups of queries, and one newline after each (paper: 8 + 2 = 10)."""
        return 2 * self.queries + 2

    def tokens(self, i_frames: int, p_frames: int) -> int:
        """Prompt tokens of that many keyframes and P-frames."""
        return self.i_tokens * i_frames + self.p_tokens * p_frames


@dataclass(frozen=True, slots=True)
class DeltaSettings:
    """Shape of the delta-encoder (paper Sec. 3.2, App. B); `delta_encoder.py` says what the paper leaves open.

    Attributes:
        side: S, side of the residual, pixels.
        output_width: width of the tokens that leave the encoder, i.e. the vision encoder's.
        width: d, width inside both transformers; a linear layer leads to `output_width` where they differ.
        layers: transformer layers of each branch.
        heads: attention heads of each branch.
        queries: learnable queries of each branch.
        trunk_width: channels of the residual trunk's first stage (ResNet-18: 64).
        trunk_stride: model pixels per residual patch: 16 (the paper's grid) or 32 (a plain ResNet-18).
        trunk_norm: normalisation in the trunk, `group` or `batch`.
        motion_patch_px: side of a motion patch, model pixels.
        motion_cell_px: side of a motion cell, model pixels; all pixels of a cell share one vector.
        motion_norm: `fixed` divides by `motion_bound_px`; `minmax` stretches every frame to -1..1 (the paper's words).
        motion_bound_px: displacement per slot that becomes 1, model pixels; None is a quarter of the side.
    """

    side: int
    output_width: int
    width: int
    layers: int
    heads: int
    queries: int = 4
    trunk_width: int = 64
    trunk_stride: int = 16
    trunk_norm: TrunkNorm = "group"
    motion_patch_px: int = 16
    motion_cell_px: int = 4
    motion_norm: MotionNorm = "fixed"
    motion_bound_px: float | None = None

    def __post_init__(self) -> None:
        for name in ("side", "output_width", "width", "layers", "heads", "queries", "trunk_width",
                     "motion_patch_px", "motion_cell_px"):  # fmt: skip
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"delta-encoder: {name} must be a positive whole number, not {value!r}")
        if self.width % self.heads:
            raise ValueError(f"delta-encoder: width ({self.width}) must be divisible by heads ({self.heads})")
        if self.trunk_stride not in (16, 32):
            raise ValueError(f"delta-encoder: trunk_stride must be 16 or 32, not {self.trunk_stride!r}")
        if self.trunk_norm not in ("group", "batch"):
            raise ValueError(f"delta-encoder: trunk_norm must be 'group' or 'batch', not {self.trunk_norm!r}")
        if self.motion_norm not in ("fixed", "minmax"):
            raise ValueError(f"delta-encoder: motion_norm must be 'fixed' or 'minmax', not {self.motion_norm!r}")
        if self.motion_bound_px is not None and not self.motion_bound_px > 0:
            raise ValueError(f"delta-encoder: motion_bound_px must be above 0, not {self.motion_bound_px!r}")
        if self.motion_patch_px % self.motion_cell_px:
            raise ValueError(
                f"delta-encoder: motion_patch_px ({self.motion_patch_px}) must be a multiple of "
                f"motion_cell_px ({self.motion_cell_px})"
            )
        for name in ("motion_patch_px", "trunk_stride"):
            if self.side % getattr(self, name):
                raise ValueError(
                    f"delta-encoder: the image side ({self.side}) must be a multiple of {name} ({getattr(self, name)})"
                )

    @property
    def bound_px(self) -> float:
        """Displacement per slot that is normalised to 1, model pixels."""
        return self.side / 4 if self.motion_bound_px is None else float(self.motion_bound_px)


# CoPEConfig's names of these settings; side, output_width come from the vision configuration.
DELTA_KEYS: Mapping[str, str] = MappingProxyType(
    {
        "delta_width": "width",
        "delta_layers": "layers",
        "delta_heads": "heads",
        "delta_queries": "queries",
        "delta_trunk_width": "trunk_width",
        "delta_trunk_stride": "trunk_stride",
        "delta_trunk_norm": "trunk_norm",
        "motion_patch_px": "motion_patch_px",
        "motion_cell_px": "motion_cell_px",
        "motion_norm": "motion_norm",
        "motion_bound_px": "motion_bound_px",
    }
)


@dataclass(frozen=True)
class Preset:
    """A whole model's shape.

    Attributes:
        name: what users call it.
        geometry: tokens per slot.
        delta: the delta-encoder.
        vision: keyword arguments of transformers' `SiglipVisionConfig`.
        text: keyword arguments of transformers' `Qwen2Config`.
        vision_feature_layer: which hidden state of the vision encoder is read: -2 leaves the last layer out, as
            LLaVA-Video does; -1 reads the last layer before its norm.
    """

    name: str
    geometry: Geometry
    delta: DeltaSettings
    vision: Mapping[str, Any] = field(repr=False)
    text: Mapping[str, Any] = field(repr=False)
    vision_feature_layer: int = -2

    def __post_init__(self) -> None:
        object.__setattr__(self, "vision", MappingProxyType(dict(self.vision)))
        object.__setattr__(self, "text", MappingProxyType(dict(self.text)))

    def config_kwargs(self) -> dict[str, Any]:
        """Keyword arguments of `CoPEConfig`, without the token ids."""
        return {
            "vision_config": dict(self.vision),
            "text_config": dict(self.text),
            "vision_feature_layer": self.vision_feature_layer,
            "spatial_pool_stride": self.geometry.pool_stride,
            "spatial_pool_mode": self.geometry.pool_mode,
            **{key: getattr(self.delta, name) for key, name in DELTA_KEYS.items()},
        }


SIGLIP_SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
    "vision_use_head": False,
}
_QWEN2_7B = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "tie_word_embeddings": False,
}
LLAVA_FRAMES = 64  # RGB frames that LLaVA-Video takes of a video
_GEOMETRY_7B = Geometry(side=384, patch=14)

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            # The widths that the paper states.
            Preset(
                name="7b",
                geometry=_GEOMETRY_7B,
                delta=DeltaSettings(side=384, output_width=1152, width=1152, layers=4, heads=9),
                vision=SIGLIP_SO400M,
                text=_QWEN2_7B,
            ),
            # The size that the paper states ("under 15M parameters"): a narrow inside, then linear to 1152.
            # 9 heads do not divide 256, and ResNet-18 alone has 11.2M at width 64.
            Preset(
                name="7b-light",
                geometry=_GEOMETRY_7B,
                delta=DeltaSettings(side=384, output_width=1152, width=256, layers=4, heads=8, trunk_width=48),
                vision=SIGLIP_SO400M,
                text=_QWEN2_7B,
            ),
            # Trained and served on two CPU cores. Every layer of its vision encoder is used (feature layer -1), and
            # patches of 8 px pool to 8 x 8, so that places survive.
            Preset(
                name="tiny",
                geometry=Geometry(side=128, patch=8),
                delta=DeltaSettings(side=128, output_width=128, width=128, layers=2, heads=4, trunk_width=12),
                vision={
                    "hidden_size": 128,
                    "intermediate_size": 512,
                    "num_hidden_layers": 6,
                    "num_attention_heads": 4,
                    "image_size": 128,
                    "patch_size": 8,
                    "vision_use_head": False,
                },
                text={
                    "vocab_size": 2048,
                    "hidden_size": 192,
                    "intermediate_size": 512,
                    "num_hidden_layers": 4,
                    "num_attention_heads": 6,
                    "num_key_value_heads": 2,
                    "max_position_embeddings": 32768,
                    "rms_norm_eps": 1e-6,
                    "rope_theta": 1_000_000.0,
                    # Tied embeddings make an untrained model repeat its input, as if it had not seen the video.
                    "tie_word_embeddings": False,
                },
                vision_feature_layer=-1,
            ),
        )
    }
)


def geometry_from_config(config: Mapping[str, Any]) -> Geometry:
    """The token account of a model directory, from its `config.json`, without torch.

    Args:
        config: the parsed `config.json` of a `cope_videolm` model or of a published LLaVA-Video one.

    Raises:
        ValueError: it describes another kind of model, or lacks the vision encoder's shape.
    """
    vision: Any
    if is_llava_qwen(config):
        vision = llava_vision(config)
        stride, mode = config.get("mm_spatial_pool_stride"), config.get("mm_spatial_pool_mode")
    elif config.get("model_type") == "cope_videolm":
        vision = config.get("vision_config")
        stride, mode = config.get("spatial_pool_stride"), config.get("spatial_pool_mode")
    else:
        raise ValueError(f"not a cope_videolm or LLaVA-Video model: model_type is {config.get('model_type')!r}")
    if not isinstance(vision, Mapping) or "image_size" not in vision or "patch_size" not in vision:
        raise ValueError("config.json lacks vision_config.image_size or vision_config.patch_size")
    return Geometry(
        side=vision["image_size"],
        patch=vision["patch_size"],
        pool_stride=2 if stride is None else stride,
        queries=config.get("delta_queries", 4),
        pool_mode="bilinear" if mode is None else mode,
    )


def is_llava_qwen(config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is that of a LLaVA-Video checkpoint as lmms-lab publishes them.

    LLaVA-NeXT saves `llava_qwen`; of the published files some say `llava`, which many other models say too.
    """
    return config.get("model_type") == "llava_qwen" or (
        config.get("model_type") == "llava" and "LlavaQwenForCausalLM" in (config.get("architectures") or ())
    )


def llava_vision(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Shape of a LLaVA-Video checkpoint's vision encoder, as keyword arguments of `SiglipVisionConfig`.

    A published `config.json` holds nothing but the encoder's name. A `vision_config` is read where it says that it is
    SigLIP's: files that went through transformers' `LlavaConfig` carry CLIP's defaults there, which mean nothing.

    Raises:
        ValueError: the name is unknown and there is no such `vision_config`.
    """
    nested = config.get("vision_config")
    if isinstance(nested, Mapping) and nested.get("model_type") == "siglip_vision_model":
        return nested
    name = str(config.get("mm_vision_tower"))
    if name.rstrip("/").split("/")[-1] != "siglip-so400m-patch14-384":
        raise ValueError(
            f"mm_vision_tower: only siglip-so400m-patch14-384 is known by name, not {name!r}; describe another SigLIP "
            "in vision_config, with model_type siglip_vision_model"
        )
    return SIGLIP_SO400M
