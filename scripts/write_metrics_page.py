"""Writes docs/metrics.md: our metrics with their types, labels, units and meanings, as the code has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cope_server import codec_metrics, metrics
from cope_server.stages import STAGES

PAGE = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"
_HEAD = """# Metrics

Written by `python scripts/write_metrics_page.py`; change the code, not this page.

`/metrics` has these beside vLLM's own, whose names begin with `vllm:` and which
[vLLM documents](https://docs.vllm.ai/en/stable/usage/metrics/). vLLM's clock of a request starts when its body has been
read and parsed, ours at its first byte. Histograms have the suffixes `_bucket`, `_sum` and `_count`.
"""
_TABLE = """
## {heading}

| name | type | labels | unit | meaning |
|---|---|---|---|---|
"""
_STAGES = """
## Stages

`cope_stage_seconds{stage}`, and `usage.timings` of an answer. They follow one another and add up to the time to the
first token (`ttft`; for an answer in one piece, until the server had its first token). Videos of one request load in
parallel: no instant counts twice.

| stage | meaning |
|---|---|
"""
_UNITS = ("seconds", "bytes", "tokens")


def page() -> str:
    """The whole page."""
    text = _HEAD
    for heading, module in {"Requests": metrics, "Codec workers and their cache": codec_metrics}.items():
        text += _TABLE.format(heading=heading)
        for metric in vars(module).values():
            if hasattr(metric, "describe") and hasattr(metric, "_labelnames"):
                text += _row(metric)
    text += _STAGES
    for stage, meaning in STAGES.items():
        text += f"| {stage} | {meaning} |\n"
    return text


def _row(metric: Any) -> str:
    (described,) = metric.describe()
    name = described.name + ("_total" if described.type == "counter" else "")
    unit = next((unit for unit in _UNITS if unit in described.name.split("_")), "")
    labels = ", ".join(f"`{label}`" for label in metric._labelnames)
    return f"| `{name}` | {described.type} | {labels} | {unit} | {described.documentation} |\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"wrote {PAGE}")
