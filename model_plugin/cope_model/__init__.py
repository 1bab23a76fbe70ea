"""The vLLM plugin: a video language model that reads keyframes, motion vectors and residuals."""

from __future__ import annotations

import sys

__all__ = ["register"]


def register() -> None:
    """Make the model, its video loader and its media connector known to vLLM (entry point `vllm.general_plugins`).

    vLLM calls this in every process, more than once. Models are registered by name only: their code, and with it the
    device, is touched where a model is really loaded.
    """
    from transformers import AutoConfig
    from vllm import ModelRegistry

    from cope_model.config import CoPEConfig
    from cope_model.llava import LlavaFamilyConfig, LlavaQwenConfig

    _answer_for_llvmlite()
    for config in (CoPEConfig, LlavaQwenConfig, LlavaFamilyConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)
    for name in ("CoPEForConditionalGeneration", "LlavaQwenForCausalLM"):
        if name not in ModelRegistry.get_supported_archs():
            ModelRegistry.register_model(name, f"cope_model.model:{name}")
    # Importing is registering, by their decorators.
    from cope_model import connector, loader  # noqa: F401


def _answer_for_llvmlite() -> None:
    """Keep llvmlite (numba, which cope_codec uses) from stopping vLLM's CPU worker.

    When that worker starts, right after the plugins, it reads `__dict__` of everything in every loaded module.
    `llvmlite.binding.ffi.lib` has none and takes the name for a C function of LLVM's, and the worker dies. Functions
    that were looked up are kept in a table; an entry there is the answer that a look-up should have given.
    """
    ffi = sys.modules.get("llvmlite.binding.ffi")
    table = getattr(getattr(ffi, "lib", None), "_fntab", None)
    if isinstance(table, dict):
        table["__dict__"] = {}
