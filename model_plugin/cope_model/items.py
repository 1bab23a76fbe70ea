"""Videos as vLLM's multimodal items: one item per video when parsed; the processor makes one per GOP of it."""

# K keyframes, P P-frames, T = K + P slots, S side of the model's square input (px).

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard

from vllm.exceptions import VLLMValidationError
from vllm.multimodal.media import MediaWithBytes
from vllm.multimodal.parse import ModalityDataItems, MultiModalDataParser

from cope_model import loader
from cope_model.presets import Geometry

# cope_codec is imported inside functions: this module is loaded before vLLM forks its workers, which need no codec and
# trip over one of its libraries (see `cope_model._answer_for_llvmlite`).
if TYPE_CHECKING:
    from cope_codec import GopPrimitives

# None stands for a video that the client names by uuid and does not send again.
Item: TypeAlias = "tuple[GopPrimitives, ...] | None"


class GopItems(ModalityDataItems[Sequence[Item], Item]):  # type: ignore[misc]
    """GOPs of primitives, grouped into items.

    Args:
        data: the items.
        seconds: length of the whole video that an item is of, or None where nobody said; None is all of them.
        salts: whose caches an item may be found in; None is everybody's, and None for all is everybody's for all.
    """

    def __init__(
        self,
        data: Sequence[Item],
        seconds: Sequence[float | None] | None = None,
        salts: Sequence[str | None] | None = None,
    ) -> None:
        super().__init__(data, "video")
        self.seconds: Sequence[float | None] = [None] * len(data) if seconds is None else seconds
        self.salts: Sequence[str | None] = [None] * len(data) if salts is None else salts

    def get_count(self) -> int:
        """How many items."""
        return len(self.data)

    def get(self, index: int) -> Item:
        """One item."""
        item: Item = self.data[index]
        return item

    def get_item_for_hash(self, index: int) -> object:
        """The keys of an item's GOPs: they stand for its packets, its options and the model's side."""
        item = self.data[index]
        return None if item is None else [gop.key for gop in item]

    def get_processor_data(self) -> Mapping[str, object]:
        """What `_call_hf_processor` gets."""
        return {"videos": list(self.data)}

    def get_passthrough_data(self) -> Mapping[str, object]:
        """Nothing bypasses the processor."""
        return {}


class GopDataParser(MultiModalDataParser):  # type: ignore[misc]
    """vLLM's parser, with videos as GOPs of primitives.

    Args:
        geometry: the model's; primitives of another side are refused.
        most_tokens: tokens of the largest item that memory is reserved for; a larger GOP is split.
        kwargs: vLLM's own.
    """

    def __init__(self, geometry: Geometry, most_tokens: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.geometry = geometry
        self.most_tokens = most_tokens

    def _parse_video_data(self, data: Any) -> GopItems | None:
        """Accept what the loader returns, what `cope_codec` returns, paths and bytes of files, and own items again."""
        if data is None:
            return None
        if not isinstance(data, list) or _is_gops(data):
            data = [data]
        parsed = [self._parse_video(video) for video in data]
        salts = [_salt(video) for video in data]
        return GopItems([item for item, _ in parsed], [seconds for _, seconds in parsed], salts)

    def _parse_video(self, video: Any) -> tuple[Item, float | None]:
        """A video's GOPs, and its length in seconds if it is more than bare primitives."""
        from cope_codec import GopPrimitives, Video
        from cope_codec.errors import CodecError

        side = self.geometry.side
        seconds = None
        if video is None:
            return None, None
        video = _unwrapped(video)
        try:
            if isinstance(video, bytes | str | Path):
                video = loader.load(video)
            if isinstance(video, loader.VideoGops):
                seconds = video.known.length_s
                video = video.extracted(side)
            elif isinstance(video, Video):
                seconds = video.length_s
                video = loader.extract(video, side)
        except CodecError as error:
            raise VLLMValidationError(str(error), parameter="video") from error
        if isinstance(video, GopPrimitives):
            video = (video,)
        if not _is_gops(video):
            raise VLLMValidationError(
                f"a video must come as codec primitives, not as {type(video).__name__}; is the 'cope' video loader in "
                "use? (preprocessor_config.json: video_processor_type, or --media-io-kwargs: video_backend)",
                parameter="video",
            )
        for gop in video:
            if gop.model_side != side:
                raise VLLMValidationError(
                    f"primitives were extracted for a model of {gop.model_side} px, this one reads {side} px",
                    parameter="video",
                )
        return tuple(piece for gop in video for piece in split_gop(gop, self.geometry, self.most_tokens)), seconds


def split_gop(gop: GopPrimitives, geometry: Geometry, most_tokens: int) -> list[GopPrimitives]:
    """Cut a GOP before some of its keyframes so that no piece has more tokens than vLLM reserves memory for.

    Options allow GOPs of 64 keyframes (13,440 tokens at full size). A keyframe with its P-frames is never cut, even if
    it alone exceeds the bound. Each piece is a GOP of its own, with the same tokens as before.
    """
    kinds = gop.layout.tolist()
    if geometry.tokens(kinds.count(0), kinds.count(1)) <= most_tokens:
        return [gop]
    runs = [slot for slot, kind in enumerate(kinds) if kind == 0]
    cuts = [0]
    for start, end in zip(runs, [*runs[1:], len(kinds)], strict=True):
        slots = kinds[cuts[-1] : end]
        if start > cuts[-1] and geometry.tokens(slots.count(0), slots.count(1)) > most_tokens:
            cuts.append(start)
    pieces = []
    for first, last in zip(cuts, [*cuts[1:], len(kinds)], strict=True):
        k = slice(kinds[:first].count(0), kinds[:last].count(0))
        p = slice(kinds[:first].count(1), kinds[:last].count(1))
        pieces.append(
            dataclasses.replace(
                gop,
                key=f"{gop.key}:{first}-{last}",
                layout=gop.layout[first:last],
                timestamps_s=gop.timestamps_s[first:last],
                keyframes=gop.keyframes[k],
                motion=gop.motion[p],
                residual=gop.residual[p],
                vectors=gop.vectors[p],
            )
        )
    return pieces


def _unwrapped(video: Any) -> Any:
    """What the loader returned, without what vLLM puts around it."""
    if isinstance(video, MediaWithBytes):
        video = video.media
    if isinstance(video, tuple) and len(video) == 2 and isinstance(video[1], Mapping):
        video = video[0]  # the loader's metadata
    return video


def _salt(video: Any) -> str | None:
    """Whose caches a video may be found in."""
    loaded = _unwrapped(video)
    return loaded.salt if isinstance(loaded, loader.VideoGops) else None


def _is_gops(value: object) -> TypeGuard[Sequence[GopPrimitives]]:
    from cope_codec import GopPrimitives

    return isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(gop, GopPrimitives) for gop in value)
