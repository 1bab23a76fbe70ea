"""The whole model in plain PyTorch and transformers: what the vLLM model is checked against, and what trains.

Slow and simple on purpose. State-dict names are those of the checkpoint, so a directory loads as it is.
"""

# N frames, S side of the model's square input (px), g patches a side, D vision width, d text width, L tokens.

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoTokenizer, DynamicCache, Qwen2Model, SiglipVisionModel

from cope_model.config import CoPEConfig
from cope_model.delta_encoder import DeltaEncoder
from cope_model.frames import normalize_keyframes, pool_frames
from cope_model.images import to_square
from cope_model.interleave import close_groups, interleave_gops
from cope_model.llava import LlavaQwenConfig, load_config
from cope_model.projector import Projector
from cope_model.prompts import mark_placeholders, time_instruction
from cope_model.weights import DELTA, cope_name, has_delta, mismatches, shards

if TYPE_CHECKING:  # a model can be built and timed where no codec is installed
    from cope_codec.primitives import GopPrimitives


class _VisionTower(nn.Module):
    """transformers' SigLIP below the name `vision_model`, which checkpoints carry and transformers 5 dropped."""

    def __init__(self, config: CoPEConfig) -> None:
        super().__init__()
        vision = copy.deepcopy(config.vision_config)
        vision.num_hidden_layers = config.vision_layers_used
        self.vision_model = SiglipVisionModel(vision)

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 3, S, S) to (N, g * g, D): the hidden state that the configuration names, before any final norm."""
        # Layer by layer past its own `forward`, which would apply the final norm; asking that for all hidden states
        # instead would keep 27 of them.
        tower = self.vision_model
        out: Tensor = tower.encoder(inputs_embeds=tower.embeddings(pixels)).last_hidden_state
        return out


class _Body(nn.Module):
    """Everything that a checkpoint keeps below `model.`."""

    def __init__(self, config: CoPEConfig) -> None:
        super().__init__()
        self.vision_tower = _VisionTower(config)
        self.multi_modal_projector = Projector(config.vision_config.hidden_size, config.text_config.hidden_size)
        self.delta_encoder = DeltaEncoder(config.delta)
        self.image_newline = nn.Parameter(torch.zeros(config.text_config.hidden_size))
        self.language_model = Qwen2Model(config.text_config)


class CoPEModel(nn.Module):
    """A CoPE video model: keyframes and P-frames to embeddings, embeddings to logits."""

    def __init__(self, config: CoPEConfig) -> None:
        super().__init__()
        self.config = config
        self.model = _Body(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        if config.text_config.tie_word_embeddings:
            self.lm_head.weight = self.model.language_model.embed_tokens.weight

    def embed_keyframes(self, keyframes: Tensor) -> Tensor:
        """uint8 (N, S, S, 3) RGB to (N, i_tokens, d)."""
        body = self.model
        pixels = normalize_keyframes(keyframes, body.image_newline.dtype)
        features = body.multi_modal_projector(body.vision_tower(pixels))
        return pool_frames(features, body.image_newline, self.config.spatial_pool_stride, self.config.spatial_pool_mode)

    def embed_deltas(self, motion: Tensor, residual: Tensor) -> Tensor:
        """int16 (P, C, C, 2) sixteenths of a model pixel and int16 (P, S, S, 3) to (P, p_tokens, d)."""
        body = self.model
        return close_groups(body.multi_modal_projector(body.delta_encoder(motion, residual)), body.image_newline)

    def embed_gops(self, gops: Sequence[GopPrimitives]) -> Tensor:
        """The visual tokens of a video: (tokens, d)."""
        keyframes = torch.cat([torch.tensor(gop.keyframes) for gop in gops])
        motion = torch.cat([torch.tensor(gop.model_motion()) for gop in gops])
        residual = torch.cat([torch.tensor(gop.residual) for gop in gops])
        layouts = [gop.layout.tolist() for gop in gops]
        return torch.cat(interleave_gops(layouts, self.embed_keyframes(keyframes), self.embed_deltas(motion, residual)))

    def forward(self, embeddings: Tensor, cache: DynamicCache | None = None) -> Tensor:
        """Logits (1, L, vocabulary) of embeddings (1, L, d) that follow what the cache already holds."""
        hidden = self.model.language_model(
            inputs_embeds=embeddings, past_key_values=cache, use_cache=cache is not None
        ).last_hidden_state
        out: Tensor = self.lm_head(hidden)
        return out


def read_weights(directory: Path, model: CoPEModel) -> dict[str, Tensor]:
    """A checkpoint's weights under the model's names, as they are stored.

    A delta-encoder may be missing as a whole, as it is in published LLaVA-Video files.

    Args:
        directory: a CoPE directory or a published LLaVA-Video one.
        model: made for it; its weights are not touched.

    Raises:
        ValueError: a weight is missing, of another shape or unknown; all of them are named.
    """
    state: dict[str, Tensor] = {}
    for path in shards(directory):
        for theirs, tensor in load_file(path).items():
            name = cope_name(theirs, model.config)
            if name is not None:
                state[name] = tensor
    needed = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if not has_delta(state):
        needed = {name: shape for name, shape in needed.items() if not name.startswith(DELTA)}
    wrong = mismatches({name: tensor.shape for name, tensor in state.items()}, needed, model.config)
    if wrong:
        raise ValueError(f"{directory} does not fit its config.json:\n  " + "\n  ".join(wrong))
    return state


@dataclass(frozen=True, slots=True)
class Generation:
    """What `Reference.generate` answers.

    Attributes:
        prompt_token_ids: the prompt with every placeholder expanded, as vLLM reports it.
        token_ids: greedy tokens, the end token included where it came.
        logprobs: natural log-probability of each of them.
        text: the tokens without special ones, decoded.
    """

    prompt_token_ids: list[int]
    token_ids: list[int]
    logprobs: list[float]
    text: str


class Reference:
    """A model directory, ready to answer."""

    def __init__(self, model: CoPEModel, tokenizer: Any) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer

    @classmethod
    def load(cls, directory: str | Path, dtype: torch.dtype = torch.float32, **overrides: Any) -> Reference:
        """Load a CoPE directory or a published LLaVA-Video one.

        Args:
            directory: the model.
            dtype: of the weights.
            overrides: keys of the configuration that win over `config.json`.

        Raises:
            ValueError: a weight is missing, of another shape or unknown. A delta-encoder may be missing as a whole; it
                is zeroed then, as in vLLM.
        """
        config = load_config(directory, **overrides)
        model = CoPEModel(config)
        state = read_weights(Path(directory), model)
        if not has_delta(state):
            state |= {name: torch.zeros_like(w) for name, w in model.state_dict().items() if name.startswith(DELTA)}
        model.load_state_dict(state, strict=False)
        return cls(model.to(dtype), AutoTokenizer.from_pretrained(directory, config=config))

    @torch.inference_mode()
    def generate(self, messages: Sequence[Mapping[str, Any]], max_tokens: int) -> Generation:
        """Answer greedily.

        Args:
            messages: chat messages. `content` is a string or a list of parts: `{"type": "text", "text": ...}`,
                `{"type": "video", "video": sequence of GopPrimitives}`, with `"seconds"`, the video's length, if the
                model is told times; `{"type": "image", "image": PIL image}`.
            max_tokens: tokens at most; the end token stops earlier.
        """
        config = self.model.config
        videos, images, template = _split_media(messages, config)
        encoded = self.tokenizer.apply_chat_template(
            template, add_generation_prompt=True, tokenize=True, return_dict=True
        )
        embed = self.model.model.language_model.embed_tokens
        prompt: list[int] = []
        pieces: list[Tensor] = []
        ids = {
            token: self.tokenizer.encode(config.placeholders[name], add_special_tokens=False)
            for name, token in (("image", config.image_token_id), ("video", config.video_token_id))
            if token is not None
        }
        for token in mark_placeholders(encoded["input_ids"], ids):
            if token == config.video_token_id:
                piece = self.model.embed_gops(videos.pop(0))
            elif token == config.image_token_id:
                square = to_square(images.pop(0), config.geometry.side)
                piece = self.model.embed_keyframes(torch.from_numpy(square)[None])[0]
            else:
                piece = embed(torch.tensor([token]))
            prompt += [token] * len(piece)
            pieces.append(piece)
        if videos or images:
            raise ValueError("the chat template has fewer placeholders than the messages have videos and images")

        cache = DynamicCache(config=config.text_config)
        embeddings = torch.cat(pieces)[None]
        tokens: list[int] = []
        logprobs: list[float] = []
        while len(tokens) < max_tokens:
            scores = self.model(embeddings, cache)[0, -1].float().log_softmax(-1)
            token = int(scores.argmax())
            tokens.append(token)
            logprobs.append(float(scores[token]))
            if token == self.tokenizer.eos_token_id:
                break
            embeddings = embed(torch.tensor([[token]]))
        return Generation(prompt, tokens, logprobs, self.tokenizer.decode(tokens, skip_special_tokens=True))


def _split_media(
    messages: Sequence[Mapping[str, Any]], config: CoPEConfig
) -> tuple[list[Sequence[GopPrimitives]], list[Any], list[dict[str, Any]]]:
    """Videos and images in order, and the messages as the chat template wants them."""
    videos: list[Sequence[GopPrimitives]] = []
    images: list[Any] = []
    template: list[dict[str, Any]] = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            videos += [part["video"] for part in content if part["type"] == "video"]
            images += [part["image"] for part in content if part["type"] == "image"]
            parts = _with_times(content) if config.add_time_instruction else list(content)
            content = _flat(parts, config) if isinstance(config, LlavaQwenConfig) else _template_parts(parts)
        template.append({"role": message["role"], "content": content})
    return videos, images, template


def _with_times(content: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The parts with a line about its times behind each video, as LLaVA-Video's training data have it."""
    parts: list[Mapping[str, Any]] = []
    for part in content:
        parts.append(part)
        if part["type"] == "video":
            times = [float(time) for gop in part["video"] for time in gop.timestamps_s]
            parts.append({"type": "times", "text": time_instruction(part.get("seconds", times[-1]), times)})
    return parts


def _template_parts(parts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Parts for our own chat template, which ends every placeholder with a line end."""
    ends = {"text": "", "times": "\n"}
    return [
        {"type": "text", "text": part["text"] + ends[part["type"]]} if part["type"] in ends else {"type": part["type"]}
        for part in parts
    ]


def _flat(parts: Sequence[Mapping[str, Any]], config: CoPEConfig) -> str:
    """One string, for Qwen2's own chat template: media first, kind by kind, as vLLM puts them."""
    media: dict[str, list[str]] = {}
    texts = [part["text"] for part in parts if part["type"] == "text"]
    for part in parts:
        if part["type"] == "times":
            media["video"].append(part["text"])
        elif part["type"] != "text":
            media.setdefault(part["type"], []).append(config.placeholders[part["type"]])
    return "\n".join([*(line for lines in media.values() for line in lines), *texts])
