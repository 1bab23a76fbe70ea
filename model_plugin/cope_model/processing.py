"""vLLM's multimodal processor: a video becomes one item per GOP, a `<video>` the GOPs' placeholders.

Per GOP, because vLLM's caches (processed inputs, encoder outputs, prefix blocks) work per item: a video that grows, or
is asked about again, costs only what is new; and with chunked prefill the engine encodes and prefills GOP by GOP.
"""

# T slots, K keyframes, P P-frames, S side of the model's square input (px), C = S / 4 motion cells a side.

from __future__ import annotations

import dataclasses
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import MultiModalDataItems
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
)
from vllm.multimodal.processing.inputs import ProcessorInputs

from cope_model import isolation
from cope_model.config import CoPEConfig
from cope_model.images import to_square
from cope_model.items import GopDataParser, GopItems, Item
from cope_model.presets import Geometry
from cope_model.prompts import insert_instructions, mark_placeholders, time_instruction

if TYPE_CHECKING:
    from cope_codec import GopPrimitives  # at run time only inside functions: see `cope_model.items`

# The largest item, which vLLM reserves memory for: eight dense frames, and P-frames so that profiling runs the
# delta-encoder too. Larger GOPs are split.
_LARGEST_ITEM = "IP" * 8
_KNOWN_UUIDS = 4096

# Primitives are read-only, since requests share them. torch warns that a tensor cannot be; nothing here writes to one.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)


@dataclasses.dataclass(frozen=True, slots=True)
class _Known:
    """What outlives a video's arrays: an id per GOP, and the sentence about its times."""

    ids: tuple[str | None, ...]
    instruction: str


class CoPEProcessingInfo(BaseProcessingInfo):  # type: ignore[misc]
    """What the engine wants to know before any video has come."""

    def get_hf_config(self) -> CoPEConfig:
        """The model's configuration."""
        config: CoPEConfig = self.ctx.get_hf_config(CoPEConfig)
        return config

    def get_data_parser(self) -> GopDataParser:
        """The parser for this model's side."""
        geometry = self.get_hf_config().geometry
        return GopDataParser(geometry, _most_tokens(geometry), expected_hidden_size=self._get_expected_hidden_size())

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Images and videos, as many as the context holds."""
        return {"image": None, "video": None}

    def get_supported_mm_processor_kwargs(self) -> dict[str, set[str]]:
        """None: there is no Hugging Face processor behind this one."""
        return {}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        """Tokens of an image and of the largest GOP."""
        geometry = self.get_hf_config().geometry
        return {"image": geometry.i_tokens, "video": _most_tokens(geometry)}


class CoPEDummyInputsBuilder(BaseDummyInputsBuilder[CoPEProcessingInfo]):  # type: ignore[misc]
    """Inputs for the profiling run."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """One placeholder per item."""
        placeholders = self.info.get_hf_config().placeholders
        return "".join(text * mm_counts.get(modality, 0) for modality, text in placeholders.items())

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any) -> dict[str, Any]:
        """Black images and the largest GOPs."""
        side = self.info.get_hf_config().geometry.side
        return {
            "image": [Image.new("RGB", (side, side))] * mm_counts.get("image", 0),
            "video": [(_black_gop(_LARGEST_ITEM, side),)] * mm_counts.get("video", 0),
        }


class CoPEMultiModalProcessor(BaseMultiModalProcessor[CoPEProcessingInfo]):  # type: ignore[misc]
    """From GOPs and images to the model's tensors and the prompt's placeholders."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # uuid of a video -> what is known of it, so that a client can name a video which it sent before.
        self._known: OrderedDict[str, _Known] = OrderedDict()
        config = self.info.get_hf_config()
        tokens = {"image": config.image_token_id, "video": config.video_token_id}
        written = {tokens[name]: self._encode(text) for name, text in config.placeholders.items()}
        # Nothing to do where the tokenizer knows the placeholders.
        self._placeholders = {token: ids for token, ids in written.items() if ids != [token]}
        for token in self._placeholders:
            if token < len(self.info.get_tokenizer()):
                raise ValueError(
                    f"token {token} cannot stand for media: the tokenizer uses it for text. The embedding has no row "
                    "left over; give the model's tokenizer <image> and <video> (cope convert join does)"
                )

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.info.get_tokenizer().encode(text, add_special_tokens=False)
        return ids

    def apply(self, inputs: ProcessorInputs, timing_ctx: Any) -> Any:
        """Check the prompt, split videos into GOPs, then do as vLLM does.

        Raises:
            VLLMValidationError: the prompt has more or fewer placeholders than there are media, or a video is named by
                a uuid that has not been seen.
        """
        config = self.info.get_hf_config()
        if self._placeholders:
            inputs = dataclasses.replace(inputs, prompt=mark_placeholders(inputs.prompt, self._placeholders))
        for modality, token in (("image", config.image_token_id), ("video", config.video_token_id)):
            items = inputs.mm_data_items.get(modality)
            if items is None:
                continue
            found = inputs.prompt.count(token)
            if found != len(items):
                # vLLM would fill the first ones and leave the others: text that contains a placeholder would take a
                # video's place.
                raise VLLMValidationError(
                    f"the prompt has {found} {modality} placeholders for {len(items)} {modality}s; text must not "
                    f"contain {config.placeholders[modality]}",
                    parameter="messages",
                )
        if isolation.required():
            inputs = _without_strange_names(inputs)
        if isinstance(inputs.mm_data_items.get("video"), GopItems):
            inputs = self._split(inputs, config)
        return super().apply(inputs, timing_ctx)

    def _split(self, inputs: ProcessorInputs, config: CoPEConfig) -> ProcessorInputs:
        """One placeholder, one item and one uuid per GOP instead of per video; times behind it if the model wants."""
        token = config.video_token_id
        assert token is not None
        parsed: GopItems = inputs.mm_data_items["video"]
        videos: Sequence[Item] = parsed.data
        given = (inputs.mm_uuid_items or {}).get("video") or [None] * len(videos)
        known = [self._know(*video) for video in zip(given, videos, parsed.seconds, parsed.salts, strict=True)]
        per_video = [video.ids for video in known]
        marked: Sequence[int] = inputs.prompt
        if config.add_time_instruction:
            marked = insert_instructions(marked, token, [video.instruction for video in known], self._encode)
        counts = iter(per_video)
        prompt: list[int] = []
        for entry in marked:
            prompt += [entry] * len(next(counts)) if entry == token else [entry]
        items = MultiModalDataItems(inputs.mm_data_items)
        items["video"] = GopItems(
            [
                (gop,) if gop is not None else None
                for video, ids in zip(videos, per_video, strict=True)
                for gop in (video if video is not None else [None] * len(ids))
            ]
        )
        uuids = dict(inputs.mm_uuid_items or {})
        uuids["video"] = [gop_id for ids in per_video for gop_id in ids]
        return dataclasses.replace(inputs, prompt=prompt, mm_data_items=items, mm_uuid_items=uuids)

    def _know(self, uuid: str | None, video: Item, seconds: float | None, salt: str | None) -> _Known:
        """Describe a video, or remember one that the client names by its uuid.

        An id per GOP: the video's salt or uuid and the GOP's own key, or None, which means vLLM's hash of the key. The
        key belongs to it, because a video can grow, and because a uuid that somebody else has used for another video
        must not bring that video back.
        """
        if video is None:
            if uuid is None:
                return _Known((), "")
            if uuid not in self._known:
                raise _unknown("video", uuid)
        else:
            times = [float(time) for gop in video for time in gop.timestamps_s]
            # Bare primitives do not tell how long the last frame is shown.
            instruction = time_instruction(times[-1] if seconds is None else seconds, times)
            space = uuid if salt is None else salt
            described = _Known(tuple(None if space is None else f"{space}/{gop.key}" for gop in video), instruction)
            if uuid is None:
                return described
            self._known[uuid] = described
            while len(self._known) > _KNOWN_UUIDS:
                self._known.popitem(last=False)
        self._known.move_to_end(uuid)
        return self._known[uuid]

    def _call_hf_processor(self, hf_data: Mapping[str, Any], hf_kwargs: Mapping[str, object]) -> BatchFeature:
        """Tensors of images and GOPs, integers as they are: the model normalises them on its device."""
        side = self.info.get_hf_config().geometry.side
        out: dict[str, list[torch.Tensor]] = {}
        if images := hf_data.get("images"):
            out["image_keyframes"] = [_tensor(to_square(image, side)[None]) for image in images]
        if videos := hf_data.get("videos"):
            gops = [gop for video in videos for gop in video]
            out["gop_layout"] = [_tensor(gop.layout) for gop in gops]
            out["gop_keyframes"] = [_tensor(gop.keyframes) for gop in gops]
            out["gop_motion"] = [_tensor(gop.model_motion()) for gop in gops]
            out["gop_residual"] = [_tensor(gop.residual) for gop in gops]
        return BatchFeature(out)

    def _get_mm_fields_config(
        self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        """Each tensor of `_call_hf_processor` belongs to one item."""
        video = MultiModalFieldConfig.batched("video")
        return {
            "image_keyframes": MultiModalFieldConfig.batched("image"),
            "gop_layout": MultiModalFieldConfig.batched("video", keep_on_cpu=True),
            "gop_keyframes": video,
            "gop_motion": video,
            "gop_residual": video,
        }

    def _get_prompt_updates(
        self, mm_items: MultiModalDataItems, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[PromptReplacement]:
        """A placeholder becomes as many as its frames have tokens."""
        config = self.info.get_hf_config()
        geometry = config.geometry

        def gop_placeholders(index: int) -> list[int | None]:
            layout = out_mm_kwargs["video"][index]["gop_layout"].data
            p_frames = int(layout.sum())
            return [config.video_token_id] * geometry.tokens(len(layout) - p_frames, p_frames)

        return [
            PromptReplacement(
                modality="image",
                target=[config.image_token_id],
                replacement=[config.image_token_id] * geometry.i_tokens,
            ),
            PromptReplacement(modality="video", target=[config.video_token_id], replacement=gop_placeholders),
        ]


def _without_strange_names(inputs: ProcessorInputs) -> ProcessorInputs:
    """Take away uuids that are not known to be of one API key alone: vLLM would hash them instead of the content.

    The chat route puts the key's salt before a uuid; other routes of vLLM's hand on what a client wrote.

    Raises:
        VLLMValidationError: something is named by such a uuid and not sent along.
    """
    uuids: dict[str, Any] = {}
    for modality, names in (inputs.mm_uuid_items or {}).items():
        items = inputs.mm_data_items.get(modality)
        sent = list(items.get_all_items_for_hash()) if items is not None else []
        uuids[modality] = []
        for index, name in enumerate(names):
            own = name is None or isolation.is_separate(name)
            if not own and (index >= len(sent) or sent[index] is None):
                raise _unknown(modality, name)
            uuids[modality].append(name if own else None)
    return dataclasses.replace(inputs, mm_uuid_items=uuids)


def _unknown(modality: str, uuid: str) -> VLLMValidationError:
    """Nothing of this name has been sent, or by others."""
    name = uuid.partition("/")[2] if isolation.is_separate(uuid) else uuid
    return VLLMValidationError(
        f"no {modality} with uuid {name!r} has been sent to this server; send it along", parameter="uuid"
    )


def _most_tokens(geometry: Geometry) -> int:
    """Tokens of the largest item."""
    return geometry.tokens(_LARGEST_ITEM.count("I"), _LARGEST_ITEM.count("P"))


def _tensor(array: npt.NDArray[Any]) -> torch.Tensor:
    """The array's memory as a tensor."""
    return torch.from_numpy(array)


def _black_gop(layout: str, side: int) -> GopPrimitives:
    """Primitives of black pictures that do not move."""
    from cope_codec import CELL_PX, GopPrimitives

    kinds = np.array([letter == "P" for letter in layout], np.uint8)
    p_frames = int(kinds.sum())
    cells = side // CELL_PX
    return GopPrimitives(
        key=f"black/{layout}/{side}",
        index=0,
        layout=kinds,
        timestamps_s=np.arange(len(layout), dtype=np.float64),
        keyframes=np.zeros((len(layout) - p_frames, side, side, 3), np.uint8),
        motion=np.zeros((p_frames, cells, cells, 2), np.int16),
        residual=np.zeros((p_frames, side, side, 3), np.int16),
        motion_width=side,
        motion_height=side,
        source_width=side,
        source_height=side,
        rotation=0,
        codec="none",
        mode="native",
        vectors=np.zeros(p_frames, np.int64),
    )
