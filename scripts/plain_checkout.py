"""Makes a checkout usable where nothing can be installed: prints the PYTHONPATH that an installation would amount to.

vLLM finds plugins through the metadata of installed packages, so a folder with just that is written. Standard library
only.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def write_metadata(folder: Path) -> None:
    """Write `NAME-VERSION.dist-info` with the entry points that pyproject.toml declares."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    name, version = project["name"], project["version"]
    target = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    target.mkdir(parents=True, exist_ok=True)
    (target / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    lines = []
    for group, points in {"console_scripts": project["scripts"], **project["entry-points"]}.items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in points.items()), ""]
    (target / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")


def rooms() -> list[Path]:
    """The folders whose packages an installation would make importable."""
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    packages = tool["hatch"]["build"]["targets"]["wheel"]["packages"]
    return [ROOT / Path(package).parent for package in packages]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: plain_checkout.py FOLDER      (for the metadata; prints a PYTHONPATH)")
    metadata = Path(sys.argv[1]).resolve()
    write_metadata(metadata)
    print(":".join(str(path) for path in (*rooms(), metadata)))
