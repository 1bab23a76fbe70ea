"""`cope bench prefill`: its way through the model gives the reference's answer, and its account is the model's."""

# I keyframes, P P-frames.

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from model.gops import make_gop
from random_model import random_weights
from requirements import require
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from cope_model.checkpoint import make_config
from cope_model.config import CoPEConfig
from cope_model.delta_encoder import QueryTransformer
from cope_model.prefill import ROWS, Row, latency, measure
from cope_model.prefill.compiled import KINDS, compiled
from cope_model.prefill.floors import Account, Roof, Work
from cope_model.prefill.pipeline import PARTS, Pipeline, assemble, encode_deltas, encode_keyframes
from cope_model.prefill.rows import TEXT_TOKENS, Inputs, random_inputs
from cope_model.prefill.weights import parameter_bytes, random_model, shape_of
from cope_model.presets import PRESETS
from cope_model.reference import CoPEModel
from cope_server import cli

CPU = torch.device("cpu")
SMALL = (Row(None, 1), Row(2, 1))
STEPS = 5


def tiny() -> CoPEConfig:
    return make_config(PRESETS["tiny"])


def with_telling_weights(model: CoPEModel) -> CoPEModel:
    """Weights with which the answer depends visibly on every part."""
    model.load_state_dict(random_weights(model, 3))
    return model.eval()


def gop_of(row: Row, number: int) -> Any:
    return make_gop("".join("IP"[kind] for kind in row.layouts[number]), seed=number, index=number)


@torch.inference_mode()
def reference_logits(model: CoPEModel, row: Row, text: Tensor) -> list[Tensor]:
    """Logits of the first tokens as the reference computes them: GOPs, then text, then one token after the other."""
    embed = model.model.language_model.embed_tokens
    visual = model.embed_gops([gop_of(row, number) for number in range(row.gops)])
    embeddings = torch.cat([visual, embed(text)[0]])[None]
    cache = DynamicCache(config=model.config.text_config)
    found = []
    for _ in range(STEPS):
        found.append(model(embeddings, cache)[:, -1])
        embeddings = embed(found[-1].argmax(-1, keepdim=True))
    return found


@pytest.mark.parametrize("row", [Row(None, 3), Row(4, 2), Row(1, 3)], ids=lambda row: row.name)
def test_the_batched_and_cached_way_gives_the_references_logits(row: Row) -> None:
    """24 dense frames take two calls of the vision encoder."""
    text = torch.arange(100, 100 + TEXT_TOKENS)[None]
    expected = reference_logits(with_telling_weights(CoPEModel(tiny())), row, text)

    model = with_telling_weights(random_model(tiny(), CPU, torch.float32))
    pipeline = Pipeline(model, (row, Row(None, 3)), generated=STEPS)
    gops = [gop_of(row, number) for number in range(row.gops)]
    inputs = Inputs(
        torch.cat([torch.tensor(gop.keyframes) for gop in gops]),
        torch.cat([torch.tensor(gop.model_motion()) for gop in gops]),
        torch.cat([torch.tensor(gop.residual) for gop in gops]),
        text,
    )
    sequence = pipeline.sequences[row]
    features = encode_keyframes(model, inputs.keyframes)
    embeddings = assemble(model, row, features, encode_deltas(model, inputs), text)
    for _ in range(2):  # the second time over a cache that is full of the first
        with torch.inference_mode():
            sequence.prefill(embeddings)
            for number, logits in enumerate(expected):
                torch.testing.assert_close(sequence.logits, logits, atol=1e-4, rtol=1e-4)
                assert sequence.token.item() == logits.argmax()
                if number < STEPS - 1:
                    sequence.step()
    assert len({int(logits.argmax()) for logits in expected}) > 1


def test_replayed_steps_give_the_tokens_of_steps() -> None:
    require("GPU", torch.cuda.is_available(), "CUDA graphs need a GPU")
    cuda = torch.device("cuda", 0)
    model = random_model(tiny(), cuda, torch.float32)
    model.load_state_dict(random_weights(model.cpu(), 3))
    row = Row(1, 2)
    pipeline = Pipeline(model.to(cuda), (row,), generated=12)
    sequence = pipeline.sequences[row]
    found: list[list[Tensor]] = []
    for graphed in (False, True):
        if graphed:
            assert pipeline.capture(row) is None
            assert sequence.graphed
        pipeline.run(row)
        found.append([])
        with torch.inference_mode():
            sequence.prefill(torch.ones(1, row.prompt_tokens(tiny().geometry), 192, device=cuda))
            for _ in range(11):
                sequence.step()
                found[-1].append(sequence.logits.clone())
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)


def test_a_step_that_cannot_be_recorded_stays_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(pool: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    pipeline = Pipeline(random_model(tiny(), CPU, torch.float32), SMALL, generated=3)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(pipeline.sequences[SMALL[1]], "capture", fail)
    assert pipeline.capture(SMALL[1]) == "operation not permitted when stream is capturing"
    assert not pipeline.sequences[SMALL[1]].graphed
    assert pipeline.run(SMALL[1]).e2el_s > 0


def test_a_sequence_refuses_another_length() -> None:
    pipeline = Pipeline(random_model(tiny(), CPU, torch.float32), SMALL, generated=4)
    with pytest.raises(ValueError, match="made for 608 tokens, not 3"):
        pipeline.sequences[SMALL[0]].prefill(torch.zeros(1, 3, 192))
    with pytest.raises(ValueError, match=r"9000 \+ 4 tokens exceed the cache of 640"):
        pipeline.decoder.sequence(9000, 4)


def test_the_queries_last_layer_is_the_whole_layer_cut_off() -> None:
    torch.manual_seed(0)
    transformer = QueryTransformer(patches=20, width=48, layers=3, heads=4, queries=4).eval()
    patches = torch.randn(3, 20, 48)
    with torch.inference_mode():
        x = torch.cat([transformer.queries.expand(3, -1, -1), patches + transformer.positions], 1)
        for layer in transformer.layers:
            x = layer(x)
        torch.testing.assert_close(transformer(patches), transformer.norm(x[:, :4]), atol=1e-5, rtol=1e-5)


def test_random_weights_restore_what_meta_has_lost() -> None:
    config = tiny()
    config.delta_trunk_norm = "batch"
    built, made = CoPEModel(config), random_model(config, CPU, torch.bfloat16)
    found = dict(made.named_buffers())
    expected = dict(built.named_buffers())
    assert found.keys() == expected.keys()
    assert any("running_var" in name for name in found)
    for name, buffer in expected.items():
        # Angles of positions stay in float32.
        assert torch.equal(found[name].float(), buffer.float()), name
    assert found["model.language_model.rotary_emb.inv_freq"].dtype == torch.float32
    assert {parameter.dtype for parameter in made.parameters()} == {torch.bfloat16}
    assert all(parameter.isfinite().all() and parameter.abs().max() > 0 for parameter in made.parameters())
    again = random_model(config, CPU, torch.bfloat16)
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), again.parameters(), strict=True))


def test_a_buffer_that_nobody_knows_is_no_silent_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    class Surprising(CoPEModel):
        def __init__(self, config: CoPEConfig) -> None:
            super().__init__(config)
            self.register_buffer("surprise", torch.ones(1))

    monkeypatch.setattr("cope_model.prefill.weights.CoPEModel", Surprising)
    with pytest.raises(RuntimeError, match="no value is known for surprise"):
        random_model(tiny(), CPU, torch.float32)


def test_seven_billion_parameters_need_about_sixteen_gigabytes() -> None:
    account = Account(make_config(PRESETS["7b"]), torch.bfloat16, 64)
    assert account.weights_bytes == pytest.approx(16.3e9, rel=0.01)
    assert 16.3e9 < account.memory_bytes(ROWS) < 22e9  # a consumer GPU of 24 GB


def test_rows_are_the_papers() -> None:
    tokens = [row.prompt_tokens(PRESETS["7b"].geometry) - TEXT_TOKENS for row in ROWS]
    assert tokens == [13_440, 7_040, 3_840, 2_240]
    assert [(row.i_frames, row.p_frames) for row in ROWS] == [(64, 0), (32, 32), (16, 48), (8, 56)]
    assert [row.layouts[0] for row in ROWS[1:]] == [[0, 1] * 4, [0, 1, 1, 1] * 2, [0, 1, 1, 1, 1, 1, 1, 1]]
    with pytest.raises(ValueError, match="keyframes_per_gop must divide 8, not 3"):
        Row(3)


def test_the_account_of_a_row_is_what_torch_counts() -> None:
    """torch counts causal attention in full, and the logits of the one token that is asked for."""
    row, generated = Row(2, 2), 4
    config = tiny()
    model, work = shape_of(config), Account(config, torch.float32, generated).work(row)
    assert set(work) == set(PARTS)
    inputs = random_inputs(row, config).to(torch.device("meta"))
    found = {}
    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            features = encode_keyframes(model, inputs.keyframes)
        found["vision"] = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            deltas = encode_deltas(model, inputs)
        found["delta"] = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            embeddings = assemble(model, row, features, deltas, inputs.text)
        found["projector"] = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            causal = {"full_attention": None}
            hidden = model.model.language_model(inputs_embeds=embeddings, attention_mask=causal, use_cache=False)
            model.lm_head(hidden.last_hidden_state[:, -1:])
        length = embeddings.shape[1]
        above_the_diagonal = 4 * 192 * 4 * (length * (length - 1) // 2)
        found["prefill"] = counter.get_total_flops() - above_the_diagonal
    for part, flops in found.items():
        # Some versions of transformers make angles of positions by a product, which is no part of the account.
        assert work[part].flops == pytest.approx(flops, rel=1e-4), part
    # One token: as a prompt of one, with all cached keys.
    one = Account(config, torch.float32, 2).work(row)["decode"].flops
    linear = [part for part in model.model.language_model.modules() if isinstance(part, torch.nn.Linear)]
    weights = sum(part.weight.numel() for part in (*linear, model.lm_head))
    assert one == 2 * weights + 4 * 192 * 4 * (length + 1)
    assert work["vision"].bytes > parameter_bytes(model.model.vision_tower)
    assert Account(config, torch.float32, 4).work(Row(None))["delta"] == Work(0.0, 0)


def test_a_floor_is_the_slower_of_arithmetic_and_memory() -> None:
    roof = Roof(flops_per_s=100.0, bytes_per_s=10.0, transfer_bytes_per_s=None)
    assert roof.floor_s("vision", Work(500.0, 10.0)) == 5.0
    assert roof.floor_s("decode", Work(500.0, 80.0)) == 8.0
    assert roof.floor_s("transfer", Work(0.0, 80.0)) == 0.0


def test_the_report_adds_up() -> None:
    ticks: list[float] = []
    report = measure(
        "tiny", device="cpu", repeats=2, rows=SMALL, generated=3, tick=lambda what, part: ticks.append(part)
    )
    assert sum(ticks) == pytest.approx(1.0)
    dense, codec = report["rows"]
    assert (dense["sampling"], codec["sampling"]) == ("8 dense frames", "2 keyframes per GOP")
    assert (codec["i_frames"], codec["p_frames"], codec["prompt_tokens"]) == (2, 6, 2 * 72 + 6 * 10 + TEXT_TOKENS)
    for row in report["rows"]:
        assert set(row["parts"]) == set(PARTS)
        until_first = sum(part["s"] for name, part in row["parts"].items() if name != "decode")
        assert until_first == pytest.approx(row["ttft_s"], rel=0.5)
        assert row["ttft_s_min"] <= row["ttft_s"] <= row["ttft_s_max"] < row["e2el_s_max"]
        assert row["parts"]["prefill"]["s"] > 0.2 * row["parts"]["prefill"]["floor_s"] > 0
        assert row["peak_bytes"] > report["weights_bytes"]
    assert dense["ttft_cut"] is None
    # A quarter of the pictures: that shows through the noise of any machine.
    assert 0 < codec["ttft_cut_min"] <= codec["ttft_cut"] <= codec["ttft_cut_max"] < 1
    assert 0.3 < codec["floor"]["ttft_cut"] < 0.8
    assert report["conditions"]["cuda_graphs"] is False


def test_a_failing_compiler_is_a_note_and_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: torch.nn.Module, **how: Any) -> None:
        def call(*args: Any, **kwargs: Any) -> None:
            raise RuntimeError("no C++ compiler\nat all")

        self._compiled_call_impl = call

    monkeypatch.setattr(torch.nn.Module, "compile", broken)
    report = measure("tiny", device="cpu", repeats=1, rows=SMALL[1:], generated=2, compile_layers=True)
    assert report["notes"] == ["torch.compile failed, layers run eagerly: no C++ compiler"]
    assert report["conditions"]["compiled"] is False


def test_compiled_layers_are_chosen_and_let_go() -> None:
    model = shape_of(tiny())
    layers = [layer for layer in model.modules() if type(layer).__name__ in KINDS]
    assert {type(layer).__name__ for layer in layers} == set(KINDS)
    with compiled(model):
        assert all(layer._compiled_call_impl is not None for layer in layers)
    assert all(layer._compiled_call_impl is None for layer in layers)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preset": "8b"}, "preset: unknown preset '8b'; known are 7b, 7b-light, tiny"),
        ({"device": "abacus"}, "device must be cpu, cuda or cuda:N, not 'abacus'"),
        ({"device": "meta"}, "device must be cpu, cuda or cuda:N, not 'meta'"),
        ({"repeats": 0}, "repeats must be at least 1, not 0"),
        ({"generated": 1}, "generated must be at least 2, not 1"),
        ({"rows": ()}, "rows must be at least 1, not 0"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure(**{"preset": "tiny", "device": "cpu", **change})


def test_a_missing_gpu_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["bench", "prefill", "--device", "cuda"]) == 2
    assert "cope: device: there is no CUDA device; torch" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_told_at_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["bench", "prefill", "--preset", "tiny", "--out", str(tmp_path / "none" / "report.json")]) == 2
    assert f"--out: there is no folder {tmp_path / 'none'}" in capsys.readouterr().err


def test_too_little_memory_is_told_before_it_is_taken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "free_bytes", lambda device: 3 * 2**30)
    assert cli.main(["bench", "prefill", "--preset", "7b"]) == 2
    said = capsys.readouterr().err
    assert "preset 7b in float32 needs about 35.8 GiB on cpu, where 3.0 GiB are free" in said


def test_running_out_of_memory_says_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:115] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(latency, "random_model", greedy)
    with pytest.raises(ValueError, match=r"out of memory: preset tiny in float32 needs about 0\.1 GiB on cpu; "):
        measure("tiny", device="cpu", repeats=1)


def test_the_command_prints_a_table_and_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reports: list[dict[str, Any]] = []

    def keeping(*args: Any, **kwargs: Any) -> dict[str, Any]:
        reports.append(measure(*args, **kwargs, rows=(Row(None), Row(1)), generated=2))
        return reports[-1]

    monkeypatch.setattr("cope_model.prefill.measure", keeping)
    monkeypatch.setenv("COLUMNS", "80")
    out = tmp_path / "report.json"
    words = ["bench", "prefill", "--preset", "tiny", "--device", "cpu", "--repeats", "1", "--out", str(out)]
    assert cli.main([*words, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == reports[0] == json.loads(out.read_text())
    assert [row["paper"]["ttft_cut"] for row in printed["rows"]] == [None, 0.862]
    assert printed["rows"][1]["ttft_cut"] > 0.5
    monkeypatch.setattr("cope_model.prefill.measure", lambda *args, **kwargs: printed)
    assert cli.main(words) == 0
    table = capsys.readouterr().out
    assert "64 dense frames" in table
    assert "86.2%" in table
    assert "…" not in table  # nothing is cut off
    assert "CUDA graphs off, torch.compile off" in table
