"""LLaVA-Video checkpoints as published: vLLM answers as the plain PyTorch reference does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llava import SIDE, write_llava
from model.engines import Engine, engine_environment
from model.gops import make_gop
from PIL import Image

from cope_model.presets import geometry_from_config
from cope_model.reference import Reference

TOKENS = 12
QUESTION = {"type": "text", "text": "What happens in the video?"}


@pytest.fixture(scope="module", autouse=True)
def _environment() -> Iterator[None]:
    with engine_environment():
        yield


@pytest.fixture(scope="module")
def llava_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A LoRA adapter in PEFT's format for the published names, and the change of each weight that it stands for."""
    from safetensors.torch import save_file

    directory = tmp_path_factory.mktemp("lora")
    random = torch.Generator().manual_seed(1)
    state, deltas = {}, {}
    for layer in range(3):
        for module, width in (("self_attn.q_proj", 192), ("self_attn.v_proj", 64), ("mlp.down_proj", 192)):
            reads = 320 if module == "mlp.down_proj" else 192
            name = f"model.layers.{layer}.{module}"
            a = 0.1 * torch.randn(8, reads, generator=random)
            b = 0.1 * torch.randn(width, 8, generator=random)
            state[f"base_model.model.{name}.lora_A.weight"] = a
            state[f"base_model.model.{name}.lora_B.weight"] = b
            deltas[f"model.language_model.layers.{layer}.{module}.weight"] = 2 * b @ a
    save_file(state, directory / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj", "down_proj"],
        "bias": "none", "task_type": "CAUSAL_LM",
    }  # fmt: skip
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory, deltas


@pytest.fixture(scope="module")
def bilinear(llava_dir: Path) -> Engine:
    return Engine(llava_dir, TOKENS, enable_lora=True, max_lora_rank=8)


@pytest.fixture(scope="module")
def average(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """A file that says `llava`, keeps the whole vision tower and no time instruction, overridden."""
    directory = write_llava(
        tmp_path_factory.mktemp("average"), whole_tower=True, model_type="llava", add_time_instruction=False
    )
    return Engine(directory, TOKENS, {"mm_spatial_pool_mode": "average"})


def video(*layouts: str, seed: int = 0) -> dict[str, Any]:
    gops = [make_gop(layout, side=SIDE, seed=seed + i, index=i) for i, layout in enumerate(layouts)]
    return {"type": "video", "video": gops}


def image() -> dict[str, Any]:
    noise = np.random.default_rng(0).integers(0, 256, (90, 160, 3), np.uint8)
    return {"type": "image", "image": Image.fromarray(noise)}


CASES = {
    "text": [QUESTION],
    "dense": [video("I" * 8, "I" * 8, "III"), QUESTION],
    "codec": [video("IPPPIPPP", "IPPPPPPP"), QUESTION],
    "image": [image(), QUESTION],
    "image and videos": [video("IIII"), image(), video("IPP", seed=9), QUESTION],
}


@pytest.mark.parametrize("name", CASES)
def test_bilinear_equals_the_reference(bilinear: Engine, name: str) -> None:
    bilinear.check(CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_average_equals_the_reference(average: Engine, name: str) -> None:
    average.check(CASES[name])


def test_the_time_instruction_stands_between_the_video_and_the_question(bilinear: Engine) -> None:
    answer = bilinear.answer([video("III", "IP"), QUESTION])
    ids = answer.prompt_token_ids
    config = bilinear.reference.model.config
    visual = ids.count(config.video_token_id)
    assert visual == 4 * config.geometry.i_tokens + config.geometry.p_tokens == 4 * 30 + 10
    last = len(ids) - ids[::-1].index(config.video_token_id)
    assert bilinear.reference.tokenizer.decode(ids[last:]).startswith(
        "\nThe video lasts for 9.00 seconds, and 5 frames are uniformly sampled from it. These frames are located at "
        "0.00s,1.00s,2.00s,8.00s,9.00s.Please answer the following questions related to this video.\n"
        "What happens in the video?<|im_end|>"
    )


def test_a_grown_video_reuses_its_first_gops_in_spite_of_the_instruction(bilinear: Engine) -> None:
    gops = [make_gop("IIII", side=SIDE, seed=70 + i, index=i) for i in range(3)]
    bilinear.check([{"type": "video", "video": gops[:2]}, QUESTION])
    grown = bilinear.check([{"type": "video", "video": gops}, QUESTION])
    assert grown.num_cached_tokens >= 2 * 4 * 30


def test_average_pools_to_fewer_tokens(average: Engine) -> None:
    answer = average.answer([video("II"), QUESTION])
    assert answer.prompt_token_ids.count(average.reference.model.config.video_token_id) == 2 * 20


def test_lora_changes_the_language_model_as_the_merged_weights_do(
    bilinear: Engine, adapter: tuple[Path, dict[str, torch.Tensor]]
) -> None:
    from vllm.lora.request import LoRARequest

    directory, deltas = adapter
    parts = [video("II"), QUESTION]
    plain = bilinear.expected(parts)
    state = bilinear.reference.model.state_dict()
    try:
        for name, delta in deltas.items():
            state[name] += delta
        assert bilinear.expected(parts).token_ids != plain.token_ids
        bilinear.check(parts, lora_request=LoRARequest("test", 1, str(directory)))
    finally:
        for name, delta in deltas.items():
            state[name] -= delta


def test_config_json_gives_the_geometry(llava_dir: Path, average: Engine) -> None:
    published = json.loads((llava_dir / "config.json").read_text())
    assert geometry_from_config(published).i_tokens == 30
    overridden = {**published, "model_type": "llava", "mm_spatial_pool_mode": "average"}
    assert geometry_from_config(overridden) == average.reference.model.config.geometry


def quantise(directory: Path) -> None:
    """The language model in int8, weights per channel and activations per token, as llm-compressor writes it."""
    from safetensors.torch import load_file, save_file

    index = json.loads((directory / "model.safetensors.index.json").read_text())
    for path in directory.glob("*.safetensors"):
        state = load_file(path)
        for name, weight in list(state.items()):
            if name.startswith("model.layers.") and name.endswith("proj.weight"):
                scale = weight.abs().amax(1, keepdim=True) / 127
                state[name] = (weight / scale).round().to(torch.int8)
                state[f"{name}_scale"] = scale
                index["weight_map"][f"{name}_scale"] = path.name
        save_file(state, path, metadata={"format": "pt"})
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads((directory / "config.json").read_text())
    eight_bits = {"num_bits": 8, "type": "int", "symmetric": True}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {**eight_bits, "strategy": "channel", "dynamic": False},
                "input_activations": {**eight_bits, "strategy": "token", "dynamic": True},
            }
        },
    }
    (directory / "config.json").write_text(json.dumps(config))


def test_int8_weights_and_activations_of_the_language_model(tmp_path: Path) -> None:
    directory = write_llava(tmp_path)
    reference = Reference.load(directory)
    quantise(directory)
    # On CPUs with AMX, vLLM's int8 kernel takes no float32.
    dtype = torch.bfloat16 if torch.cpu._is_amx_tile_supported() else torch.float32
    engine = Engine(directory, TOKENS, reference=reference, dtype=str(dtype).removeprefix("torch."))
    parts = {
        "self_attn.qkv_proj": ("q", "k", "v"), "self_attn.o_proj": ("o",), "mlp.gate_up_proj": ("gate", "up"),
        "mlp.down_proj": ("down",),
    }  # fmt: skip
    random = torch.Generator().manual_seed(0)
    inputs = {width: torch.randn(32, width, generator=random) for width in (192, 320)}

    def through(model: torch.nn.Module) -> dict[str, tuple[str, torch.Tensor]]:
        found = {}
        for layer, block in enumerate(model.language_model.model.layers):
            for name in parts:
                linear = block.get_submodule(name)
                out = linear(inputs[320 if name == "mlp.down_proj" else 192].to(dtype))[0].float()
                found[f"{layer}.{name}"] = (type(linear.scheme).__name__, out.detach())
        return found

    for name, (scheme, found) in engine.llm.apply_model(through)[0].items():
        layer, module = name.split(".", 1)
        block, prefix = reference.model.model.language_model.layers[int(layer)], module.split(".")[0]
        linears = [block.get_submodule(f"{prefix}.{part}_proj") for part in parts[module]]
        expected = torch.cat([linear(inputs[linear.in_features]) for linear in linears], -1)
        assert scheme == "CompressedTensorsW8A8Int8"
        assert float((found - expected).norm() / expected.norm()) < 0.05, name
    answer = engine.answer([video("IIPP"), QUESTION])
    assert len(answer.outputs[0].token_ids) == TOKENS


def test_a_joined_directory_equals_the_reference_on_codec_input(
    llava_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """With weights of a delta-encoder, which the published files lack, P-slots count."""
    from random_model import random_weights

    from cope_model import convert
    from cope_model.llava import load_config
    from cope_model.reference import CoPEModel
    from cope_model.weights import DELTA

    folder = tmp_path_factory.mktemp("joined")
    config = load_config(llava_dir, delta_width=64, delta_layers=1, delta_heads=4, delta_trunk_width=8)
    state = random_weights(CoPEModel(config), 5)
    convert.save_delta({name: w for name, w in state.items() if name.startswith(DELTA)}, config, folder / "delta")
    engine = Engine(convert.join(llava_dir, folder / "delta", folder / "cope"), TOKENS)
    moved = engine.check([video("IPPP", "IPIP"), QUESTION])
    still = engine.check([video("IPPP", "IPIP", seed=2), QUESTION])
    assert list(moved.outputs[0].token_ids) != list(still.outputs[0].token_ids)
