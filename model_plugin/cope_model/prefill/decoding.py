"""The language model for one sequence: prefill of the whole prompt, then a token per step from a fixed KV cache."""

# L prompt tokens, M length of the cache, h key-value heads, g query heads per key-value head, e width of a head,
# d text width.

from __future__ import annotations

import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cope_model.reference import CoPEModel

_logger = logging.getLogger(__name__)
_ATTENTION = "cope_fixed_cache"
_SPLIT = 128  # cached tokens whose values are summed in one product: one token alone would keep few cores busy
_WARM_UPS = 3  # steps before a capture, as CUDA graphs need them


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: fused kernels for a prompt, grouped products for a single token.

    PyTorch's fused kernels take no mask together with grouped heads, and without a mask none takes a cache that is
    longer than what it holds. Repeating keys for all query heads would read them g times.

    Args:
        module: the attention layer.
        query: (1, h * g, tokens, e).
        key: (1, h, tokens or M, e).
        value: as `key`.
        attention_mask: None for a prompt, which is causal; for a token float (M,), 0 where it may look and else -inf.
        scaling: factor of the scores.
        kwargs: what other implementations take.

    Returns:
        (1, tokens, h * g, e), and no weights.
    """
    if attention_mask is None:
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True)
        return out.transpose(1, 2).contiguous(), None
    heads, cached, width = key.shape[1:]
    grouped = query.reshape(heads, -1, width) * scaling  # (h, g, e)
    scores = torch.matmul(grouped, key[0].transpose(1, 2))  # (h, g, M)
    weights = (scores.float() + attention_mask).softmax(-1).to(query.dtype)
    split = weights.view(heads, -1, cached // _SPLIT, _SPLIT).transpose(1, 2)  # (h, M / split, g, split)
    sums = torch.matmul(split, value[0].view(heads, cached // _SPLIT, _SPLIT, width))
    return sums.float().sum(1).to(query.dtype).reshape(1, 1, -1, width), None


class _Cache:
    """Keys and values of every layer; transformers' own static cache would hand on a mask of another form."""

    def __init__(self, storage: Tensor, position: Tensor) -> None:
        self._storage = storage  # (layers, 2, 1, h, M, e)
        self._position = position  # (1,), of the token that a step adds

    def update(self, key: Tensor, value: Tensor, layer: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store what is new; returns what it attends to: itself for a prompt, the whole cache for a token."""
        keys, values = self._storage[layer]
        length = key.shape[2]
        if length > 1:
            keys[:, :, :length] = key
            values[:, :, :length] = value
            return key, value
        keys.index_copy_(2, self._position, key)
        values.index_copy_(2, self._position, value)
        return keys, values


class Sequence:
    """A prompt of fixed length and the tokens that follow it. `Decoder.sequence` makes it.

    Attributes:
        token: int64 (1, 1), the greedy token of the last call, on the device.
        logits: (1, vocabulary), where it came from.
        graphed: whether steps are replays of a CUDA graph.
    """

    def __init__(self, model: CoPEModel, storage: Tensor, prompt: int) -> None:
        device = storage.device
        self._language_model = model.model.language_model
        self._head = model.lm_head
        self._prompt = prompt
        self._position = torch.zeros(1, dtype=torch.int64, device=device)
        self._places = torch.arange(storage.shape[4], device=device)
        self._nothing_hidden = torch.zeros(storage.shape[4], device=device)
        self._cache = _Cache(storage, self._position)
        self._graph: torch.cuda.CUDAGraph | None = None
        self.token = torch.zeros(1, 1, dtype=torch.int64, device=device)
        self.logits = torch.zeros(1, model.config.text_config.vocab_size, dtype=storage.dtype, device=device)

    @property
    def graphed(self) -> bool:
        """Whether steps are replayed."""
        return self._graph is not None

    def prefill(self, embeddings: Tensor) -> None:
        """Begin anew with a prompt of (1, L, d); logits are computed of its last token only.

        Raises:
            ValueError: it is not of the length that the sequence was made for.
        """
        if embeddings.shape[1] != self._prompt:
            raise ValueError(f"this sequence is made for {self._prompt} tokens, not {embeddings.shape[1]}")
        hidden = self._run(embeddings, self._places[None, : self._prompt], None)
        self._choose(hidden[:, -1])
        self._position.fill_(self._prompt)

    def step(self) -> None:
        """Feed the last token, choose the next."""
        if self._graph is None:
            self._step()
        else:
            self._graph.replay()

    def capture(self, pool: Any = None) -> None:
        """Record a step as a CUDA graph, after which `step` costs one launch instead of hundreds.

        Args:
            pool: memory pool that several graphs share, of which one runs at a time.

        Raises:
            RuntimeError: something in the step cannot be recorded.
        """
        self._position.fill_(self._prompt)
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UPS):
                self._step()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            self._step()
        self._graph = graph

    def _step(self) -> None:
        mask = self._nothing_hidden.masked_fill(self._places > self._position, float("-inf"))
        embedding = self._language_model.embed_tokens(self.token)
        self._choose(self._run(embedding, self._position[None], mask)[:, 0])
        self._position += 1

    def _run(self, embeddings: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        out: Tensor = self._language_model(
            inputs_embeds=embeddings,
            position_ids=positions,
            attention_mask={"full_attention": mask},
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        return out

    def _choose(self, hidden: Tensor) -> None:
        # In place: a graph's outputs have to stay where they were recorded.
        self.logits.copy_(self._head(hidden))
        self.token.copy_(self.logits.argmax(-1, keepdim=True))


class Decoder:
    """Sequences over one KV cache, of which one is in use at a time.

    Takes the model over: its language model attends through `attend` from then on.

    Raises:
        ValueError: its language model has layers that do not attend to everything before.
    """

    def __init__(self, model: CoPEModel, longest: int) -> None:
        text = model.config.text_config
        if set(text.layer_types) != {"full_attention"}:
            raise ValueError(f"layer_types must all be full_attention, not {sorted(set(text.layer_types))}")
        ALL_ATTENTION_FUNCTIONS.register(_ATTENTION, attend)
        model.model.language_model.set_attn_implementation(_ATTENTION)
        weight = model.lm_head.weight
        self._model = model
        # Zeros: what a mask hides is multiplied by 0, and must not be NaN.
        self._storage = torch.zeros(cache_shape(model, longest), dtype=weight.dtype, device=weight.device)
        self._pool: Any = None

    def sequence(self, prompt: int, generated: int) -> Sequence:
        """A sequence of so many prompt tokens and so many more.

        Raises:
            ValueError: they are more than the decoder was made for.
        """
        length = _rounded(prompt + generated)
        if length > self._storage.shape[4]:
            raise ValueError(f"{prompt} + {generated} tokens exceed the cache of {self._storage.shape[4]}")
        return Sequence(self._model, self._storage[..., :length, :], prompt)

    def capture(self, sequence: Sequence) -> str | None:
        """Make steps of a sequence CUDA graphs; returns why it could not be done, and leaves it as it was then."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        try:
            sequence.capture(self._pool)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            torch.cuda.synchronize()
            _logger.warning("decoding without CUDA graphs: %s", error)
            return str(error)
        return None


def cache_shape(model: CoPEModel, longest: int) -> tuple[int, int, int, int, int, int]:
    """Shape of a KV cache for so many tokens: (layers, keys and values, 1, h, M, e)."""
    text = model.config.text_config
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return (text.num_hidden_layers, 2, 1, text.num_key_value_heads, _rounded(longest), width)


def _rounded(length: int) -> int:
    return -(-length // _SPLIT) * _SPLIT
