"""A scaled-down LLaVA-Video checkpoint with the names, the shards, the flat config and the tokenizer of lmms-lab's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SIDE = 128
# Every key that LLaVA-NeXT's training leaves in a published config.json and that means something for inference.
CONFIG: dict[str, Any] = {
    "add_faster_video": False,
    "add_time_instruction": True,
    "architectures": ["LlavaQwenForCausalLM"],
    "attention_dropout": 0.0,
    "force_sample": True,
    "hidden_act": "silu",
    "hidden_size": 192,
    "image_aspect_ratio": "anyres_max_9",
    "image_grid_pinpoints": [[128, 128], [128, 256], [256, 128]],
    "image_token_index": 151646,
    "initializer_range": 0.02,
    "intermediate_size": 320,
    "max_position_embeddings": 32768,
    "max_window_layers": 3,
    "mm_hidden_size": 128,
    "mm_newline_position": "grid",
    "mm_patch_merge_type": "spatial_unpad",
    "mm_projector_lr": None,
    "mm_projector_type": "mlp2x_gelu",
    "mm_resampler_type": None,
    "mm_spatial_pool_mode": "bilinear",
    "mm_spatial_pool_stride": 2,
    "mm_tunable_parts": "mm_vision_tower,mm_mlp_adapter,mm_language_model",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "google/siglip-so400m-patch14-384",
    "model_type": "llava_qwen",
    "num_attention_heads": 6,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "pos_skipping_range": 4096,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "tokenizer_model_max_length": 32768,
    "tokenizer_padding_side": "right",
    "torch_dtype": "float32",
    "transformers_version": "4.40.0.dev0",
    "use_cache": True,
    "use_mm_proj": True,
    "use_sliding_window": False,
    "vision_tower_pretrained": None,
    "vocab_size": 2112,
}
# 9 x 9 patches: odd, like the real 27 x 27, so that both kinds of pooling differ.
VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": 14,
    "vision_use_head": False,
}
QWEN2_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SHARDS = 4


def published_name(name: str) -> str:
    """The name that lmms-lab's files give one of our weights."""
    for ours, theirs in {
        "model.vision_tower.": "model.vision_tower.vision_tower.",
        "model.multi_modal_projector.linear_1.": "model.mm_projector.0.",
        "model.multi_modal_projector.linear_2.": "model.mm_projector.2.",
        "model.language_model.": "model.",
    }.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def write_llava(directory: Path, *, whole_tower: bool = False, **changes: Any) -> Path:
    """Write the checkpoint.

    Args:
        directory: where to; must exist.
        whole_tower: keep the last layer and the head of the vision encoder, which LLaVA deletes.
        changes: keys of config.json.
    """
    import torch
    from random_model import random_weights
    from safetensors.torch import save_file

    from cope_model.llava import load_config
    from cope_model.reference import CoPEModel
    from cope_model.weights import DELTA

    (directory / "config.json").write_text(json.dumps({**CONFIG, "vision_config": VISION, **changes}))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": 2045, "repetition_penalty": 1.0}))
    write_qwen2_tokenizer(directory)
    with torch.device("meta"):
        model = CoPEModel(load_config(directory))
    state = {
        published_name(name): tensor for name, tensor in random_weights(model, 7).items() if not name.startswith(DELTA)
    }
    if whole_tower:
        layers = "model.vision_tower.vision_tower.vision_model.encoder.layers."
        last = {name: tensor for name, tensor in state.items() if name.startswith(layers + "1.")}
        state |= {name.replace("layers.1.", "layers.2."): tensor.neg() for name, tensor in last.items()}
        state["model.vision_tower.vision_tower.vision_model.head.probe"] = torch.ones(1, 1, 128)
        state["model.vision_tower.vision_tower.vision_model.embeddings.position_ids"] = torch.arange(81)[None]
    names = sorted(state)
    weight_map = {}
    for shard in range(SHARDS):
        file = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        part = {name: state[name] for name in names[shard::SHARDS]}
        save_file(part, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def write_qwen2_tokenizer(directory: Path) -> None:
    """Our small vocabulary in the shape of Qwen2's tokenizer: three special tokens behind it, no placeholders."""
    from cope_model.tokenizer import SPECIAL_TOKENS, train_tokenizer

    model = json.loads(train_tokenizer().to_str())["model"]
    plain = sorted((i, token) for token, i in model["vocab"].items() if token not in SPECIAL_TOKENS)
    vocabulary = {token: number for number, (_, token) in enumerate(plain)}
    added = [
        {"id": len(vocabulary) + i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for i, token in enumerate(SPECIAL)
    ]  # fmt: skip
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "model": {**model, "vocab": vocabulary},
    }
    (directory / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(entry["id"]): {key: value for key, value in entry.items() if key != "id"} for entry in added
        },
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": None,
        "chat_template": QWEN2_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 32768,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
