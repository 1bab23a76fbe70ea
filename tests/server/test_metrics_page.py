from __future__ import annotations

import importlib
import pkgutil
import runpy
from pathlib import Path

from prometheus_client import REGISTRY

import cope_server

ROOT = Path(__file__).parents[2]


def test_the_page_of_metrics_is_what_the_code_says() -> None:
    page = runpy.run_path(str(ROOT / "scripts" / "write_metrics_page.py"))["page"]()
    assert (ROOT / "docs" / "metrics.md").read_text() == page, "run scripts/write_metrics_page.py"
    assert "| `cope_stage_seconds` | histogram | `stage` | seconds |" in page
    assert "| `cope_video_tokens_total` | counter | `kind` | tokens |" in page
    assert "| `cope_codec_cache_bytes` | gauge |  | bytes |" in page


def test_no_metric_is_missing_from_the_page() -> None:
    for module in pkgutil.iter_modules(cope_server.__path__, "cope_server."):
        importlib.import_module(module.name)
    page = (ROOT / "docs" / "metrics.md").read_text()
    names = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in REGISTRY.collect()
        if family.name.startswith("cope_")
    }
    assert len(names) > 10
    assert [name for name in sorted(names) if f"`{name}`" not in page] == []
