"""What else a Python user could take, each in a process and, where they clash with us, an environment of its own."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType

# name: what it does, and what it does not, for those who read the figures
PEERS = {
    "mv-extractor": "every frame as a full-size BGR array, with its raw vectors; no slots, no windows, no residuals",
    "mv-extractor, no pictures": "every frame's raw vectors; no slots, no windows, no residuals",
    "lmms-video-utils": "all frames to RGB in memory, then again for vectors; of 1 frame a second, patches that change "
    "most, packed in canvases; no exact residuals",
}
# lmms-video-utils holds all frames of a file as full-size RGB.
MOST_LMMS_BYTES = 4 * 1024**3
_SCRIPT = Path(__file__).with_name("peer_script.py")


class PeerError(ValueError):
    """A peer's Python cannot be started, or a peer could not do a job."""


class PeerProcess:
    """A Python that has some of the peers; a context manager.

    Args:
        python: the interpreter; None is this one.

    Raises:
        PeerError: it does not start.
    """

    def __init__(self, python: str | Path | None = None) -> None:
        command = [str(python or sys.executable), "-W", "ignore", str(_SCRIPT)]
        try:
            self._process = subprocess.Popen(  # noqa: S603 - the user's own interpreter
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        except OSError as error:
            raise PeerError(f"{command[0]} cannot be started: {error.strerror}") from error
        try:
            self.versions: dict[str, str | None] = self._answer()["peers"]  # type: ignore[assignment]
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.kill()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def time(self, peer: str, path: Path, seconds: float) -> float:
        """Have one job done.

        Args:
            peer: one of `PEERS`.
            path: the file.
            seconds: its length.

        Returns:
            How long the job took within the process, seconds.

        Raises:
            PeerError: with what the peer said.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"peer": peer, "path": str(path), "seconds": seconds}) + "\n")
            self._process.stdin.flush()
        answer = self._answer()
        if "error" in answer:
            raise PeerError(f"{peer}: {answer['error']}")
        return float(answer["s"])  # type: ignore[arg-type]

    def _answer(self) -> dict[str, object]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise PeerError(f"the peer's process ended with {self._process.wait()}")
        answer: dict[str, object] = json.loads(line)
        return answer


class Peer:
    """One peer, ready to be timed.

    Attributes:
        name: one of `PEERS`.
        process: where it runs.
    """

    def __init__(self, name: str, process: PeerProcess) -> None:
        self.name, self.process = name, process

    def time(self, path: Path, seconds: float) -> float:
        """How long its job on a file of this length takes, seconds; raises `PeerError`."""
        return self.process.time(self.name, path, seconds)

    def refuses(self, width: int, height: int, frames: int) -> str | None:
        """Why this peer cannot be given such a file, or None."""
        if self.name == "lmms-video-utils" and width * height * 3 * frames > MOST_LMMS_BYTES:
            return f"it would hold {width * height * 3 * frames / 1e9:.1f} GB of frames"
        return None


def available(process: PeerProcess) -> list[Peer]:
    """The peers that a process has.

    Raises:
        PeerError: it has none.
    """
    found = [Peer(name, process) for name in PEERS if process.versions.get(name)]
    if not found:
        raise PeerError(
            "none of the peers is installed there: pip install 'cope-serve[bench]', best in an environment of its own, "
            "and name its Python with --peer-python"
        )
    return found
