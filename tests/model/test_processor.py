"""The multimodal processor: token counts at full size, one item per GOP, caches, uuids, order."""

# K keyframes, P P-frames, S side of the model's square input (px).

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import clip
from llava import write_llava
from model.gops import make_gop
from PIL import Image
from vllm.config import ModelConfig
from vllm.exceptions import VLLMValidationError
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.cache.base import MultiModalProcessorOnlyCache
from vllm.multimodal.media import MediaWithBytes

import cope_codec
import cope_model
from cope_codec import GopPrimitives
from cope_model import loader
from cope_model.checkpoint import write_shape
from cope_model.processing import CoPEMultiModalProcessor

IMAGE, VIDEO = 3, 4


def make_processor(directory: Path) -> CoPEMultiModalProcessor:
    cope_model.register()
    processor = MULTIMODAL_REGISTRY.create_processor(ModelConfig(model=str(directory), max_model_len=32768))
    assert isinstance(processor, CoPEMultiModalProcessor)
    return processor


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> CoPEMultiModalProcessor:
    """Full size: the 7b preset without weights."""
    return make_processor(write_shape("7b", tmp_path_factory.mktemp("shape")))


@pytest.fixture(scope="module")
def tiny(tiny_dir: Path) -> CoPEMultiModalProcessor:
    return make_processor(tiny_dir)


def process(processor: CoPEMultiModalProcessor, prompt: list[int], data: dict[str, Any], **kwargs: Any) -> Any:
    items = processor.info.parse_mm_data(data)
    return processor(prompt, items, **kwargs)


def spans(result: Any, modality: str) -> list[tuple[int, int]]:
    return [(span.offset, span.length) for span in result["mm_placeholders"][modality]]


@pytest.mark.parametrize(
    ("layout", "tokens"), [("IPPPPPPP", 280), ("IPPPIPPP", 480), ("IPIPIPIP", 880), ("IIIIIIII", 1680), ("I", 210)]
)
def test_tokens_of_a_gop_are_the_papers(big: CoPEMultiModalProcessor, layout: str, tokens: int) -> None:
    result = process(big, [9, VIDEO, 9], {"video": [(make_gop(layout, side=384),)]})
    assert result["prompt_token_ids"] == [9] + [VIDEO] * tokens + [9]
    assert spans(result, "video") == [(1, tokens)]


def test_sixty_four_dense_frames_are_eight_items_and_13440_tokens(big: CoPEMultiModalProcessor) -> None:
    gop = make_gop("IIIIIIII", side=384)
    result = process(big, [VIDEO], {"video": [(gop,) * 8]})
    assert spans(result, "video") == [(1680 * i, 1680) for i in range(8)]
    assert len(result["prompt_token_ids"]) == 13_440


def test_the_largest_item_covers_eight_dense_frames_and_is_what_profiling_sees(big: CoPEMultiModalProcessor) -> None:
    limits = big.info.get_mm_max_tokens_per_item(32768, {"image": 1, "video": 1})
    assert limits == {"image": 210, "video": 1760}
    profiled = big.get_dummy_mm_inputs({"image": 1, "video": 1})
    assert spans(profiled, "image") == [(0, 210)]
    assert spans(profiled, "video") == [(210, 1760)]


def test_one_item_per_gop_with_primitives_as_they_are(tiny: CoPEMultiModalProcessor) -> None:
    gops = (make_gop("IPP", seed=1), make_gop("IPIP", seed=2), make_gop("I", seed=3))
    result = process(tiny, [7, VIDEO, 8], {"video": [gops]})
    assert spans(result, "video") == [(1, 92), (93, 164), (257, 72)]
    assert result["prompt_token_ids"] == [7] + [VIDEO] * (92 + 164 + 72) + [8]
    for gop, item in zip(gops, result["mm_kwargs"]["video"], strict=True):
        fields = item.get_data()
        for name, array in (
            ("gop_layout", gop.layout),
            ("gop_keyframes", gop.keyframes),
            ("gop_motion", gop.model_motion()),
            ("gop_residual", gop.residual),
        ):
            assert torch.equal(fields[name], torch.tensor(array)), name
        assert [fields[name].dtype for name in ("gop_keyframes", "gop_motion", "gop_residual")] == [
            torch.uint8,
            torch.int16,
            torch.int16,
        ]


def test_two_videos_and_an_image_stay_in_their_places(tiny: CoPEMultiModalProcessor) -> None:
    first = (make_gop("IP", seed=1), make_gop("I", seed=2))
    second = (make_gop("IPP", seed=3),)
    image = Image.new("RGB", (30, 20), (10, 20, 30))
    result = process(tiny, [5, VIDEO, 6, IMAGE, VIDEO, 7], {"image": [image], "video": [first, second]})
    assert result["prompt_token_ids"] == [5] + [VIDEO] * 154 + [6] + [IMAGE] * 72 + [VIDEO] * 92 + [7]
    assert spans(result, "video") == [(1, 82), (83, 72), (228, 92)]
    assert spans(result, "image") == [(156, 72)]
    pixels = result["mm_kwargs"]["image"][0].get_data()["image_keyframes"]
    assert pixels.shape == (1, 128, 128, 3)
    assert pixels[0, 64, 64].tolist() == [10, 20, 30]


def test_a_gop_that_is_too_large_becomes_several_items_with_the_same_tokens(tiny: CoPEMultiModalProcessor) -> None:
    gop = make_gop("I" * 10 + "IPP" * 2)  # 12 x 72 + 4 x 10 = 904 tokens; an item has at most 8 x 72 + 8 x 10 = 656
    whole = process(tiny, [VIDEO], {"video": [(gop,)]})
    assert spans(whole, "video") == [(0, 648), (648, 256)]  # 9 I, then I IPP IPP
    items = [item.get_data() for item in whole["mm_kwargs"]["video"]]
    assert [item["gop_layout"].tolist() for item in items] == [[0] * 9, [0, 0, 1, 1, 0, 1, 1]]
    for name, array in (("gop_keyframes", gop.keyframes), ("gop_residual", gop.residual)):
        assert torch.equal(torch.cat([item[name] for item in items]), torch.tensor(array)), name


def test_hashes_follow_the_gops_keys(tiny: CoPEMultiModalProcessor) -> None:
    def hashes(*gops: GopPrimitives) -> Sequence[str]:
        result: Sequence[str] = process(tiny, [VIDEO], {"video": [gops]})["mm_hashes"]["video"]
        return result

    a, b = make_gop("IP", seed=1, key="a"), make_gop("IP", seed=2, key="b")
    grown = hashes(a, b)
    assert list(hashes(a)) == list(grown[:1])
    assert grown[0] != grown[1]
    assert list(hashes(make_gop("IP", seed=9, key="a"))) == list(grown[:1])  # the key alone counts


def test_a_grown_video_processes_only_its_new_gop(
    tiny: CoPEMultiModalProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = MultiModalProcessorOnlyCache(tiny.info.ctx.model_config)
    processed: list[str] = []
    original = CoPEMultiModalProcessor._call_hf_processor

    def spy(self: CoPEMultiModalProcessor, hf_data: Any, hf_kwargs: Any) -> Any:
        processed.extend(gop.key for video in hf_data["videos"] for gop in video)
        return original(self, hf_data, hf_kwargs)

    monkeypatch.setattr(CoPEMultiModalProcessor, "_call_hf_processor", spy)
    gops = tuple(make_gop("IPP", seed=seed, key=f"gop {seed}") for seed in range(3))
    process(tiny, [VIDEO], {"video": [gops[:2]]}, cache=cache)
    assert processed == ["gop 0", "gop 1"]
    processed.clear()
    grown = process(tiny, [VIDEO, 9], {"video": [gops]}, cache=cache)
    assert processed == ["gop 2"]
    assert spans(grown, "video") == [(0, 92), (92, 92), (184, 92)]
    plain = process(tiny, [VIDEO, 9], {"video": [gops]})
    for cached, fresh in zip(grown["mm_kwargs"]["video"], plain["mm_kwargs"]["video"], strict=True):
        assert torch.equal(cached.get_data()["gop_residual"], fresh.get_data()["gop_residual"])


def test_a_uuid_becomes_one_id_per_gop_and_stands_for_the_video_later(tiny: CoPEMultiModalProcessor) -> None:
    cache = MultiModalProcessorOnlyCache(tiny.info.ctx.model_config)
    gops = (make_gop("IP", key="a"), make_gop("IPP", key="b"))
    sent = process(tiny, [VIDEO], {"video": [gops]}, mm_uuid_items={"video": ["film"]}, cache=cache)
    assert sent["mm_hashes"]["video"] == ["film/a", "film/b"]
    named = process(tiny, [1, VIDEO], {"video": [None]}, mm_uuid_items={"video": ["film"]}, cache=cache)
    assert named["mm_hashes"]["video"] == ["film/a", "film/b"]
    assert spans(named, "video") == [(1, 82), (83, 92)]


def test_a_uuid_that_somebody_else_used_does_not_bring_their_video(tiny: CoPEMultiModalProcessor) -> None:
    cache = MultiModalProcessorOnlyCache(tiny.info.ctx.model_config)
    theirs, ours = make_gop("IP", seed=1, key="theirs"), make_gop("IP", seed=2, key="ours")
    process(tiny, [VIDEO], {"video": [(theirs,)]}, mm_uuid_items={"video": ["x"]}, cache=cache)
    result = process(tiny, [VIDEO], {"video": [(ours,)]}, mm_uuid_items={"video": ["x"]}, cache=cache)
    pixels = result["mm_kwargs"]["video"][0].get_data()["gop_keyframes"]
    assert torch.equal(pixels, torch.tensor(ours.keyframes))


def test_an_unknown_uuid_is_refused(tiny: CoPEMultiModalProcessor) -> None:
    with pytest.raises(VLLMValidationError, match="no video with uuid 'nobody'"):
        process(tiny, [VIDEO], {"video": [None]}, mm_uuid_items={"video": ["nobody"]})


def test_one_uuid_of_two_videos(tiny: CoPEMultiModalProcessor) -> None:
    videos = [(make_gop("IP", key="a"),), (make_gop("I", key="b"), make_gop("I", key="c"))]
    result = process(tiny, [VIDEO, VIDEO], {"video": videos}, mm_uuid_items={"video": [None, "u"]})
    assert result["mm_hashes"]["video"][1:] == ["u/b", "u/c"]
    assert len(result["mm_hashes"]["video"][0]) == 64


@pytest.mark.parametrize("prompt", [[VIDEO, 9, VIDEO], [9], []])
def test_placeholders_in_text_are_refused(tiny: CoPEMultiModalProcessor, prompt: list[int]) -> None:
    with pytest.raises(VLLMValidationError, match="video placeholders for 1 videos; text must not contain <video>"):
        process(tiny, prompt, {"video": [(make_gop("IP"),)]})


def test_what_a_video_may_come_as(tiny: CoPEMultiModalProcessor, tmp_path: Path) -> None:
    content = clip(3)
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    video = cope_codec.open(content)
    gops = tuple(video.gops(128))
    loaded = loader.CoPEVideoLoader.load_bytes(content)
    eager = loader.CoPEVideoLoader.load_bytes(content, side=128)
    for form in (
        content,
        path,
        str(path),
        video,
        gops,
        list(gops),
        gops[0],
        loaded,
        eager,
        MediaWithBytes(loaded, b""),
    ):
        result = process(tiny, [VIDEO], {"video": [form]})
        assert spans(result, "video") == [(0, 72 + 2 * 10)]
        motion = result["mm_kwargs"]["video"][0].get_data()["gop_motion"]
        assert torch.equal(motion, torch.tensor(gops[0].model_motion()))


def test_what_a_video_may_not_come_as(tiny: CoPEMultiModalProcessor) -> None:
    with pytest.raises(VLLMValidationError, match="extracted for a model of 64 px, this one reads 128 px"):
        process(tiny, [VIDEO], {"video": [(make_gop("IP", side=64),)]})
    with pytest.raises(VLLMValidationError, match=r"not as ndarray; is the 'cope' video loader in use\?"):
        process(tiny, [VIDEO], {"video": [np.zeros((2, 8, 8, 3), np.uint8)]})
    with pytest.raises(VLLMValidationError, match="parameter=video"):
        process(tiny, [VIDEO], {"video": [b"no video"]})


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> CoPEMultiModalProcessor:
    """A LLaVA-Video checkpoint: placeholders of several tokens, and times behind each video."""
    return make_processor(write_llava(tmp_path_factory.mktemp("llava")))


def words(processor: CoPEMultiModalProcessor, result: Any) -> str:
    """The text of a prompt."""
    config = processor.info.get_hf_config()
    media = (config.image_token_id, config.video_token_id)
    text: str = processor.info.get_tokenizer().decode([t for t in result["prompt_token_ids"] if t not in media])
    return text


def written(processor: CoPEMultiModalProcessor, text: str) -> list[int]:
    return list(processor.info.get_tokenizer().encode(text, add_special_tokens=False))


LLAVA_VIDEO, LLAVA_IMAGE = "<|endoftext|><|im_end|>", "<|im_end|><|endoftext|>"


def test_llavas_placeholders_are_found_and_expanded(llava: CoPEMultiModalProcessor) -> None:
    prompt = written(llava, f"{LLAVA_IMAGE}\n{LLAVA_VIDEO}\nWhy?")
    data = {"image": [Image.new("RGB", (8, 8))], "video": [(make_gop("II"), make_gop("IP", index=1))]}
    result = process(llava, prompt, data)
    assert spans(result, "image") == [(0, 30)]
    assert spans(result, "video") == [(31, 60), (91, 40)]
    assert words(llava, result).endswith(
        "located at 0.00s,1.00s,8.00s,9.00s.Please answer the following questions related to this video.\nWhy?"
    )


def test_the_instruction_says_the_length_of_the_whole_video(llava: CoPEMultiModalProcessor) -> None:
    """Bytes and opened videos tell it; the times of a part of it are those of the whole."""
    prompt = written(llava, f"{LLAVA_VIDEO}\nWhy?")
    opened = cope_codec.open(clip(12), start_s=4.0, end_s=8.0)
    for video in (opened, loader.load(clip(12), options={"start_s": 4.0, "end_s": 8.0})):
        text = words(llava, process(llava, prompt, {"video": [video]}))
        assert "The video lasts for 12.00 seconds, and 4 frames are" in text
        assert f"located at {','.join(f'{slot.time_s:.2f}s' for slot in opened.plan.gops[0].slots)}.Please" in text
        assert opened.plan.gops[0].slots[0].time_s >= 4.0


def test_a_uuid_remembers_the_instruction(llava: CoPEMultiModalProcessor) -> None:
    cache = MultiModalProcessorOnlyCache(llava.info.ctx.model_config)
    prompt = written(llava, f"{LLAVA_VIDEO}\nWhy?")
    sent = process(llava, prompt, {"video": [clip(12)]}, mm_uuid_items={"video": ["film"]}, cache=cache)
    named = process(llava, prompt, {"video": [None]}, mm_uuid_items={"video": ["film"]}, cache=cache)
    assert named["prompt_token_ids"] == sent["prompt_token_ids"]
    assert "The video lasts for 12.00 seconds" in words(llava, named)


def test_placeholders_in_a_users_text_are_refused(llava: CoPEMultiModalProcessor) -> None:
    prompt = written(llava, f"{LLAVA_VIDEO}\nWhy{LLAVA_VIDEO}?")
    with pytest.raises(VLLMValidationError, match="the prompt has 2 video placeholders for 1 videos"):
        process(llava, prompt, {"video": [(make_gop("II"),)]})


def test_a_tokenizer_that_leaves_no_row_for_placeholders_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="token 2045 cannot stand for media"):
        make_processor(write_llava(tmp_path, vocab_size=2047))


@pytest.mark.parametrize(
    ("default", "asked", "mode"),
    [
        ({"frames": 4}, {}, "dense"),
        ({"frames": 4}, {"mode": "transcode"}, "transcode"),
        ({"frames": 4}, {"keyframes_per_gop": 2}, "native"),
        ({"keyframes_per_gop": 2}, {"frames": 4}, "dense"),
        ({"frames": 4}, {"start_s": 2.0}, "dense"),
    ],
)
def test_a_part_that_asks_for_the_other_kind_of_input_overrules_the_servers_default(
    default: dict[str, Any], asked: dict[str, Any], mode: str
) -> None:
    loaded, _ = loader.load_source(clip(12), options=asked, **default)
    assert loaded.plan.mode == mode
