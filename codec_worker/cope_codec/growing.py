"""Demuxes a file that is still being written, once and as far as it goes."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path
from typing import IO

from cope_codec.container import open_input
from cope_codec.errors import CodecError
from cope_codec.index import PacketIndex, PacketLog
from cope_codec.limits import Limits

# Without its index at the end of the file, FFmpeg takes other frames of these for keyframes.
_INDEXED_AT_THE_END = frozenset({"avi"})


class _Pipe(io.RawIOBase):
    """What has been written of a file so far, as a stream whose reader waits for more."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._size = self._position = 0
        self._ended = self._idle = False
        self._changed = threading.Condition()  # on a lock that may be taken twice: a finaliser can run anywhere

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes, at most `size`; waits while there are none; nothing once the pipe has ended."""
        with self._changed:
            while self._position == self._size and not self._ended:
                self._idle = True
                self._changed.notify_all()
                self._changed.wait()
            self._idle = False
            if self._ended:
                return b""
            data = os.pread(self._fd, min(size, self._size - self._position), self._position)
            self._position += len(data)
            return data

    def grow(self, size: int) -> None:
        """The file has `size` bytes now; returns when the reader wants more than that, or has left."""
        with self._changed:
            self._size = size
            self._idle &= self._position == size
            self._changed.notify_all()
            while not (self._idle or self._ended):
                self._changed.wait()

    def end(self) -> None:
        """No more bytes come, or are wanted."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()


class GrowingIndex:
    """The packets of a file that grows, each demuxed and hashed once, by a thread that waits for what is to come.

    While nobody is in `grow`, the thread stands still. It ends with `close`, or at the first thing it cannot read.

    Args:
        file: a named file, open for reading; stays the caller's, who must not close it before this.
        stream: which of the video streams, as in `cope_codec.container.video_stream`.
        limits: where to stop.
    """

    def __init__(self, file: IO[bytes], stream: int | None, limits: Limits) -> None:
        self._path, self._pipe = Path(file.name), _Pipe(file.fileno())
        self._stream, self._limits = stream, limits
        self._log: PacketLog | None = None
        self._error: Exception | None = None
        # A daemon: an interpreter that ends waits for all others before it runs finalisers.
        self._thread = threading.Thread(target=self._read, name="cope-feed", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread; may be called again."""
        self._pipe.end()
        if self._thread is not threading.current_thread():  # a finaliser may run in any thread
            self._thread.join()

    def grow(self, size: int) -> int:
        """Read on, until the file has been read up to `size` bytes.

        Returns:
            How many packets are known.

        Raises:
            CodecError: `video_too_large`. What else is wrong shows in that there are no more packets: only the end of
                the file tells whether it can be read in another way.
        """
        self._pipe.grow(size)
        if self._error is not None and not (
            isinstance(self._error, CodecError) and self._error.code != "video_too_large"
        ):
            raise self._error
        return 0 if self._log is None else len(self._log)

    def elapsed_s(self) -> float:
        """About how much time these packets span, seconds; cheap, where `index` is not."""
        return 0.0 if self._log is None else self._log.elapsed_s()

    def index(self) -> PacketIndex:
        """The packets known.

        Raises:
            CodecError: `no_frames`.
        """
        if self._log is None:
            raise CodecError("no_frames", "the video has not begun")
        return self._log.index()

    def _read(self) -> None:
        try:
            with open_input(self._pipe, "", self._limits) as container:
                if container.format.name in _INDEXED_AT_THE_END:
                    return
                log = PacketLog(self._path, container, self._stream, self._limits)
                self._log = log
                log.read()
        except Exception as error:  # noqa: BLE001 - raised where the caller can see it
            self._error = error
        finally:
            self._pipe.end()
