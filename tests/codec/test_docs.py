"""What docs/codec.md shows, and the example, are run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from cope_codec import samples

ROOT = Path(__file__).parents[2]


def test_every_snippet_of_the_guide_runs(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(samples.demo_clip())
    text = (ROOT / "docs" / "codec.md").read_text()
    # Each snippet keeps the line numbers of the page, so that a failure says where it is.
    lines = [""] * (text.count("\n") + 1)
    found = list(re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    for snippet in found:
        first = text[: snippet.start(1)].count("\n")
        code = snippet.group(1).splitlines()
        lines[first : first + len(code)] = code
    assert len(found) >= 10
    (tmp_path / "codec_md.py").write_text("\n".join(lines))
    done = subprocess.run(
        [sys.executable, "-c", "import codec_md"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("GopPrimitives(") == 2


def test_the_example_draws_motion(tmp_path: Path) -> None:
    video, picture = tmp_path / "clip.mp4", tmp_path / "motion.png"
    pictures = samples.scene(320, 240, 3, 15, pan_px_s=(30.0, 0.0))
    video.write_bytes(samples.encode(pictures, fps=15))
    script = ROOT / "examples" / "draw_motion.py"
    command = [sys.executable, str(script), str(video), str(picture), "--at", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"wrote {picture}\n"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 50_000


def test_the_example_says_why_it_draws_nothing(tmp_path: Path) -> None:
    video = tmp_path / "still.mp4"
    video.write_bytes(samples.encode(samples.scene(320, 240, 0.1, 10), fps=10))
    script = ROOT / "examples" / "draw_motion.py"
    command = [sys.executable, str(script), str(video), str(tmp_path / "motion.png")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "no slot with motion" in done.stderr
