"""One field of an interlaced frame, for pictures without combs."""

from __future__ import annotations

from fractions import Fraction

import av
import av.filter


class FieldPicker:
    """Takes the upper field of interlaced frames; the scaler that follows makes a whole picture of it.

    A field is a picture of one moment, and a frame's own: nothing depends on the frames around it, so a GOP decoded
    alone stays the GOP decoded among others. Filters that also look at the frames before and after (yadif, bwdif) gain
    little once the picture is scaled to the model's input (docs/measurements.md).
    """

    def __init__(self) -> None:
        self._shape: tuple[int, int, str] | None = None
        self._graph: av.filter.Graph | None = None

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        """The frame itself if it is progressive; else its upper field, half as high."""
        if not frame.interlaced_frame:
            return frame
        shape = frame.width, frame.height, frame.format.name
        if self._graph is None or shape != self._shape:
            self._graph, self._shape = _field_graph(frame), shape
        self._graph.push(frame)
        field = self._graph.pull()
        assert isinstance(field, av.VideoFrame)
        # The filter's own buffer has no say in how the picture is to be read.
        field.colorspace, field.color_range = frame.colorspace, frame.color_range
        return field


def _field_graph(frame: av.VideoFrame) -> av.filter.Graph:
    graph = av.filter.Graph()
    # Frames of raw streams have no time base, and times play no part here.
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1))
    field, sink = graph.add("field", "type=top"), graph.add("buffersink")
    source.link_to(field)
    field.link_to(sink)
    graph.configure()
    return graph
