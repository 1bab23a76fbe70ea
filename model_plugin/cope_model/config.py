"""Configuration of a CoPE video model in transformers' terms: SigLIP, Qwen2 and what joins them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from transformers import PretrainedConfig, Qwen2Config, SiglipVisionConfig

from cope_model.presets import DELTA_KEYS, PRESETS, DeltaSettings, Geometry, PoolMode

_DEFAULT = PRESETS["7b"]


class CoPEConfig(PretrainedConfig):  # type: ignore[misc]
    """What `config.json` of a `cope_videolm` directory holds; the defaults are the `7b` preset's.

    Attributes:
        vision_config: SigLIP vision encoder; its `image_size` is the side of the model's square input, pixels.
        text_config: Qwen2 language model.
        image_token_id: placeholder token of an image.
        video_token_id: placeholder token of a video.
        vision_feature_layer: hidden state of the vision encoder that is read, -1 or -2 (see `Preset`).
        spatial_pool_stride: patches pooled into one token, per side.
        spatial_pool_mode: `bilinear` (LLaVA-Video) or `average`.
        add_time_instruction: put a sentence with the video's length and its slots' times after each video.
        delta_*, motion_*: see `DeltaSettings`.

    Raises:
        ValueError: a value is out of range or contradicts another.
    """

    model_type: ClassVar[str] = "cope_videolm"
    sub_configs: ClassVar[dict[str, Any]] = {"vision_config": SiglipVisionConfig, "text_config": Qwen2Config}
    # What stands for an item in the text of a prompt; `image_token_id` and `video_token_id` are what it becomes.
    placeholders: ClassVar[Mapping[str, str]] = MappingProxyType({"image": "<image>", "video": "<video>"})

    def __init__(
        self,
        vision_config: dict[str, Any] | SiglipVisionConfig | None = None,
        text_config: dict[str, Any] | Qwen2Config | None = None,
        image_token_id: int | None = None,
        video_token_id: int | None = None,
        vision_feature_layer: int = -2,
        spatial_pool_stride: int = 2,
        spatial_pool_mode: PoolMode = "bilinear",
        add_time_instruction: bool = False,
        delta_width: int = _DEFAULT.delta.width,
        delta_layers: int = _DEFAULT.delta.layers,
        delta_heads: int = _DEFAULT.delta.heads,
        delta_queries: int = _DEFAULT.delta.queries,
        delta_trunk_width: int = _DEFAULT.delta.trunk_width,
        delta_trunk_stride: int = 16,
        delta_trunk_norm: str = "group",
        motion_patch_px: int = 16,
        motion_cell_px: int = 4,
        motion_norm: str = "fixed",
        motion_bound_px: float | None = None,
        **kwargs: Any,
    ) -> None:
        if vision_config is None:
            vision_config = dict(_DEFAULT.vision)
        if text_config is None:
            text_config = dict(_DEFAULT.text)
        self.vision_config = SiglipVisionConfig(**vision_config) if isinstance(vision_config, dict) else vision_config
        self.text_config = Qwen2Config(**text_config) if isinstance(text_config, dict) else text_config
        self.image_token_id = image_token_id
        self.video_token_id = video_token_id
        self.vision_feature_layer = vision_feature_layer
        self.spatial_pool_stride = spatial_pool_stride
        self.spatial_pool_mode = spatial_pool_mode
        self.add_time_instruction = add_time_instruction
        self.delta_width = delta_width
        self.delta_layers = delta_layers
        self.delta_heads = delta_heads
        self.delta_queries = delta_queries
        self.delta_trunk_width = delta_trunk_width
        self.delta_trunk_stride = delta_trunk_stride
        self.delta_trunk_norm = delta_trunk_norm
        self.motion_patch_px = motion_patch_px
        self.motion_cell_px = motion_cell_px
        self.motion_norm = motion_norm
        self.motion_bound_px = motion_bound_px
        kwargs.setdefault("architectures", ["CoPEForConditionalGeneration"])
        kwargs.setdefault("tie_word_embeddings", self.text_config.tie_word_embeddings)
        super().__init__(**kwargs)
        self._check()

    def _check(self) -> None:
        """Refuse what no model can be built from, with the name of the setting."""
        _ = self.geometry
        _ = self.delta
        if self.vision_feature_layer not in (-1, -2):
            raise ValueError(f"vision_feature_layer must be -1 or -2, not {self.vision_feature_layer!r}")
        if self.motion_cell_px != 4:
            # The codec worker hands out one vector per 4 x 4 model pixels (cope_codec.primitives.CELL_PX).
            raise ValueError(f"motion_cell_px must be 4, not {self.motion_cell_px!r}")
        vocabulary = self.text_config.vocab_size
        for name in ("image_token_id", "video_token_id"):
            token = getattr(self, name)
            if token is not None and not 0 <= token < vocabulary:
                raise ValueError(f"{name} ({token!r}) must lie within the vocabulary of {vocabulary} tokens")
        if self.image_token_id is not None and self.image_token_id == self.video_token_id:
            raise ValueError(f"image_token_id and video_token_id must differ, both are {self.image_token_id}")

    @property
    def geometry(self) -> Geometry:
        """Tokens per slot."""
        return Geometry(
            side=self.vision_config.image_size,
            patch=self.vision_config.patch_size,
            pool_stride=self.spatial_pool_stride,
            queries=self.delta_queries,
            pool_mode=self.spatial_pool_mode,
        )

    @property
    def vision_layers_used(self) -> int:
        """Layers of the vision encoder up to the hidden state that is read; checkpoints may leave the others out."""
        return int(self.vision_config.num_hidden_layers) + 1 + self.vision_feature_layer

    @property
    def delta(self) -> DeltaSettings:
        """Shape of the delta-encoder."""
        return DeltaSettings(
            side=self.vision_config.image_size,
            output_width=self.vision_config.hidden_size,
            **{name: getattr(self, key) for key, name in DELTA_KEYS.items()},
        )
