"""A whole model with random weights, made where it is to run: no file is read and nothing is held twice."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cope_model.config import CoPEConfig
from cope_model.reference import CoPEModel

_BIAS_STD = 0.02


def shape_of(config: CoPEConfig, dtype: torch.dtype = torch.float32) -> CoPEModel:
    """The model on torch's `meta` device: all modules and shapes, no memory."""
    with torch.device("meta"):
        return CoPEModel(config).to(dtype).eval().requires_grad_(False)


def parameter_bytes(module: nn.Module) -> int:
    """Bytes of a module's weights."""
    return sum(parameter.nbytes for parameter in module.parameters())


def random_model(
    config: CoPEConfig,
    device: torch.device,
    dtype: torch.dtype,
    *,
    seed: int = 0,
    tick: Callable[[int], None] = lambda nbytes: None,
) -> CoPEModel:
    """The reference's model with random weights, in evaluation mode and without gradients.

    Matrices are drawn with a variance of 1 / inputs and norms are 1, so that numbers stay of one size through all
    layers: zeros or tiny values would let a GPU run faster than real weights do.

    Args:
        config: its shape.
        device: where it is made.
        dtype: of its weights.
        seed: of the weights; another device draws others from it.
        tick: called after each tensor with its bytes.

    Raises:
        RuntimeError: the device's memory does not suffice, or a module has a buffer whose value is not known here.
    """
    model = shape_of(config, dtype).to_empty(device=device)
    if config.text_config.tie_word_embeddings:
        model.lm_head.weight = model.model.language_model.embed_tokens.weight
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _draw(name, parameter, generator)
            tick(parameter.nbytes)
        _restore_buffers(model, device)
    return model


def _draw(name: str, parameter: Tensor, generator: torch.Generator) -> None:
    if parameter.ndim > 1:
        parameter.normal_(0.0, (parameter.numel() / parameter.shape[0]) ** -0.5, generator=generator)
    elif name.endswith(".weight"):
        parameter.fill_(1.0)
    else:
        parameter.normal_(0.0, _BIAS_STD, generator=generator)


def _restore_buffers(model: CoPEModel, device: torch.device) -> None:
    """What `meta` has lost besides weights: transformers computes two buffers when it builds a model."""
    language_model = model.model.language_model
    # Made anew and not cast: positions are turned into angles in float32, whatever the weights are.
    language_model.rotary_emb = type(language_model.rotary_emb)(model.config.text_config).to(device)
    embeddings = model.model.vision_tower.vision_model.embeddings
    embeddings.position_ids.copy_(torch.arange(embeddings.num_positions))
    known = {id(buffer) for module in (language_model.rotary_emb, embeddings) for buffer in module.buffers()}
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.reset_running_stats()
            known |= {id(buffer) for buffer in module.buffers()}
    unknown = [name for name, buffer in model.named_buffers() if id(buffer) not in known]
    if unknown:
        raise RuntimeError(f"no value is known for {', '.join(unknown)}")
