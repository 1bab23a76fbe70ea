"""The model in vLLM: SigLIP and the delta-encoder as towers, Qwen2 as the language model."""

# N frames, K keyframes, P P-frames, S side of the model's square input (px), C = S / 4 motion cells a side, L tokens,
# d text width.

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.logger import init_logger
from vllm.model_executor.models.interfaces import (
    MultiModalEmbeddings,
    SupportsLoRA,
    SupportsMultiModal,
    SupportsPP,
)
from vllm.model_executor.models.module_mapping import MultiModelKeys
from vllm.model_executor.models.siglip import SiglipVisionModel
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    WeightsMapper,
    init_vllm_registered_model,
    maybe_prefix,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.sequence import IntermediateTensors

from cope_model.config import CoPEConfig
from cope_model.delta_encoder import DeltaEncoder
from cope_model.frames import normalize_keyframes, pool_frames
from cope_model.interleave import close_groups, interleave_gops
from cope_model.llava import LlavaQwenConfig
from cope_model.processing import CoPEDummyInputsBuilder, CoPEMultiModalProcessor, CoPEProcessingInfo
from cope_model.projector import Projector
from cope_model.weights import USELESS, vllm_prefixes

logger = init_logger(__name__)

# Frames per call of a tower. It bounds the memory of activations, which would otherwise grow with the batch: 64 dense
# frames of 384 px are one request.
_KEYFRAMES_PER_CALL = 16
_DELTAS_PER_CALL = 32


@MULTIMODAL_REGISTRY.register_processor(
    CoPEMultiModalProcessor, info=CoPEProcessingInfo, dummy_inputs=CoPEDummyInputsBuilder
)
class CoPEForConditionalGeneration(nn.Module, SupportsMultiModal, SupportsLoRA, SupportsPP):  # type: ignore[misc]
    """A video language model that reads keyframes, motion vectors and residuals (paper Sec. 3)."""

    config_class: ClassVar[type[CoPEConfig]] = CoPEConfig
    hf_to_vllm_mapper = WeightsMapper(orig_to_new_regex={USELESS: None}, orig_to_new_prefix=vllm_prefixes())
    # What vLLM's Qwen2 packs into one layer: LoRA adapters and quantised checkpoints name the parts.
    packed_modules_mapping: ClassVar[dict[str, list[str]]] = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """What stands for an item in a prompt that a chat template without content parts renders."""
        if modality not in cls.config_class.placeholders:
            raise ValueError(f"only image and video are supported, not {modality}")
        return cls.config_class.placeholders[modality]

    def get_mm_mapping(self) -> MultiModelKeys:
        """Which modules are the language model: the only ones that LoRA adapters are applied to."""
        return MultiModelKeys.from_string_field(
            language_model="language_model",
            connector="multi_modal_projector",
            tower_model=["vision_tower", "delta_encoder"],
        )

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config: CoPEConfig = vllm_config.model_config.hf_config
        vision, text = config.vision_config, config.text_config
        self.config = config
        with self._mark_tower_model(vllm_config, {"image", "video"}):  # type: ignore[operator]
            self.vision_tower = SiglipVisionModel(
                vision,
                quant_config=None,
                # -2 leaves out the last layer, and both leave out the norm behind it.
                num_hidden_layers_override=config.vision_layers_used,
                require_post_norm=False,
                prefix=maybe_prefix(prefix, "vision_tower"),
            )
            self.multi_modal_projector = Projector(vision.hidden_size, text.hidden_size)
            self.delta_encoder = DeltaEncoder(config.delta)
            self.image_newline = nn.Parameter(torch.zeros(text.hidden_size))
        with self._mark_language_model(vllm_config):  # type: ignore[operator]
            self.language_model = init_vllm_registered_model(
                vllm_config=vllm_config,
                hf_config=text,
                prefix=maybe_prefix(prefix, "language_model"),
                architectures=["Qwen2ForCausalLM"],
            )
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors

    def embed_keyframes(self, keyframes: Tensor) -> Tensor:
        """uint8 (N, S, S, 3) RGB to (N, i_tokens, d)."""

        def encode(frames: Tensor) -> Tensor:
            features = self.vision_tower(normalize_keyframes(frames, self.image_newline.dtype))
            return pool_frames(
                self.multi_modal_projector(features),
                self.image_newline,
                self.config.spatial_pool_stride,
                self.config.spatial_pool_mode,
            )

        return _in_calls(encode, _KEYFRAMES_PER_CALL, keyframes)

    def embed_deltas(self, motion: Tensor, residual: Tensor) -> Tensor:
        """int16 (P, C, C, 2) sixteenths of a model pixel and int16 (P, S, S, 3) to (P, p_tokens, d)."""

        def encode(motion: Tensor, residual: Tensor) -> Tensor:
            return close_groups(self.multi_modal_projector(self.delta_encoder(motion, residual)), self.image_newline)

        return _in_calls(encode, _DELTAS_PER_CALL, motion, residual)

    def embed_multimodal(self, **kwargs: object) -> MultiModalEmbeddings:
        """Embeddings of images and GOPs, in the order of the items: one (tokens, d) each.

        Args:
            kwargs: what the processor made of them, per item: `image_keyframes` uint8 (1, S, S, 3);
                `gop_layout` uint8 (T,), `gop_keyframes` uint8 (K, S, S, 3), `gop_motion` int16 (P, C, C, 2),
                `gop_residual` int16 (P, S, S, 3). Items of one shape come stacked, others as lists.
        """
        embeddings: list[Tensor] = []
        if (images := _per_item(kwargs, "image_keyframes")) is not None:
            embeddings += self.embed_keyframes(torch.cat(images)).unbind()
        if (layouts := _per_item(kwargs, "gop_layout")) is not None:
            keyframes, motion, residual = (
                torch.cat(_per_item(kwargs, name) or []) for name in ("gop_keyframes", "gop_motion", "gop_residual")
            )
            embeddings += interleave_gops(
                [layout.tolist() for layout in layouts],
                self.embed_keyframes(keyframes),
                self.embed_deltas(motion, residual),
            )
        return embeddings

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: object,
    ) -> Tensor | IntermediateTensors:
        """Hidden states (L, d) of a step's tokens."""
        if intermediate_tensors is not None:
            inputs_embeds = None
        return self.language_model.model(input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Logits (L, vocabulary)."""
        logits: Tensor | None = self.language_model.compute_logits(hidden_states)
        return logits

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load a checkpoint with our names or LLaVA-Video's.

        The latter has no delta-encoder: it is zeroed then, so that P-slots say nothing, and dense input works.
        """
        loaded: set[str] = AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)
        delta = {f"delta_encoder.{name}" for name, _ in self.delta_encoder.named_parameters()}
        if not delta & loaded:
            logger.warning("The checkpoint has no delta-encoder: P-slots carry nothing. Ask for dense frames.")
            for parameter in self.delta_encoder.parameters():
                parameter.data.zero_()
            loaded |= delta
        return loaded


class LlavaQwenForCausalLM(CoPEForConditionalGeneration):
    """LLaVA-Video as lmms-lab publishes it: the same model under other names, with Qwen2's tokenizer."""

    config_class: ClassVar[type[CoPEConfig]] = LlavaQwenConfig


def _per_item(kwargs: dict[str, Any], name: str) -> list[Tensor] | None:
    """A field's tensors, one per item, whether vLLM has stacked them or not."""
    value: Tensor | Sequence[Tensor] | None = kwargs.get(name)
    return None if value is None else list(value)


def _in_calls(encode: Callable[..., Tensor], size: int, *tensors: Tensor) -> Tensor:
    """Encode along the first axis, at most `size` entries per call; an empty batch is one call."""
    if len(tensors[0]) <= size:
        return encode(*tensors)
    return torch.cat(
        [encode(*pieces) for pieces in zip(*(torch.split(tensor, size) for tensor in tensors), strict=True)]
    )
