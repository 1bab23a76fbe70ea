"""The report as one HTML page that needs nothing else: no scripts, no network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from cope_loadtest.outcomes import OK
from cope_loadtest.plots import plots
from cope_loadtest.svg import PALETTE, STYLE, alone

_STYLE = (
    PALETTE
    + STYLE
    + """
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1360px; padding: 28px 24px 60px; background: var(--bg); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 25px; margin: 0; } h2 { font-size: 18px; margin: 34px 0 10px; } h3 { font-size: 15px; margin: 0; }
p { margin: 4px 0; } .soft, .note { color: var(--soft); } .note { font-size: 13px; margin-bottom: 8px; }
.verdict { display: inline-block; margin-top: 10px; padding: 2px 11px; border: 1px solid; border-radius: 99px;
  font-weight: 600; } .verdict.good { color: var(--good); } .verdict.bad { color: var(--bad); }
ul.warnings { margin: 10px 0 0; padding-left: 20px; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 560px), 1fr)); gap: 16px; }
.plot { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: 14px 16px; }
svg { display: block; width: 100%; height: auto; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: 14px; }
th, td { padding: 4px 14px 4px 0; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule);
  font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 500; vertical-align: bottom; } td.left, th.left { text-align: left; }
td small { color: var(--soft); } details { margin-top: 14px; } summary { cursor: pointer; color: var(--soft); }
"""
)
_METRICS = {
    "ttft_s": "TTFT",
    "ttft_sent_s": "TTFT from sent",
    "ttft_body_s": "TTFT from body sent",
    "upload_s": "upload",
    "delay_s": "delay",
    "tpot_s": "TPOT",
    "itl_s": "ITL",
    "e2el_s": "E2EL",
}


def write_html(report: dict[str, Any], path: Path) -> None:
    """Write the page; a file of that name is replaced at once or not at all."""
    part = path.with_suffix(path.suffix + ".part")
    part.write_text(page(report), encoding="utf-8")
    part.replace(path)


def write_plots(report: dict[str, Any], folder: Path) -> None:
    """Write each plot as a file of its own, for documents; files of earlier reports are removed."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.svg"):
        old.unlink()
    for plot in plots(report):
        (folder / f"{plot.name}.svg").write_text(alone(plot.svg, plot.title), encoding="utf-8")


def page(report: dict[str, Any]) -> str:
    """The whole page."""
    title = f"{report['scenario']['name']}: load test of {report['conditions']['model']}"
    drawn = "".join(
        f'<div class="plot"><h3>{escape(plot.title)}</h3><p class="note">{escape(plot.note)}</p>{plot.svg}</div>'
        for plot in plots(report)
    )
    parts = [
        _head(report),
        f'<h2>Plots</h2><div class="plots">{drawn}</div>' if drawn else "",
        _points(report),
        _cuts(report["codec_vs_dense"]),
        _metrics(report),
        _conditions(report),
        _corpus(report["corpus"]),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _head(report: dict[str, Any]) -> str:
    scenario, noted, verdict = report["scenario"], report["conditions"], report["verdict"]
    counted = sum(point["requests"] for point in report["points"])
    wrong = []
    if verdict["interrupted"]:
        wrong.append("interrupted")
    if verdict["trouble"]:
        wrong.append(verdict["trouble"])
    if verdict["failed"]:
        wrong.append(f"{verdict['failed']} requests failed")
    if verdict["not_measured"]:
        wrong.append("nothing measured at " + ", ".join(verdict["not_measured"]))
    if verdict["slo_missed"]:
        wrong.append("SLO missed at " + ", ".join(verdict["slo_missed"]))
    told = "; ".join(wrong) or "no request failed"
    lines = [
        f"<h1>{escape(scenario['name'])}</h1>",
        f"<p>{escape(scenario['description'])}</p>" if scenario["description"] else "",
        f'<p class="soft">{escape(noted["model"])} at {escape(noted["base_url"])}, {escape(noted["started"])}, '
        f"{counted:,} measured requests</p>",
        f'<p class="verdict {"bad" if wrong else "good"}">{escape(told)}</p>',
    ]
    if verdict["warnings"]:
        items = "".join(f"<li>{escape(warning)}</li>" for warning in verdict["warnings"])
        lines.append(f'<ul class="warnings">{items}</ul>')
    for knee in report["knees"]:
        kept = "no value" if knee["sustained"] is None else f"{knee['over']} {knee['sustained']:g}"
        reason = f"; then {knee['reason']}" if knee["reason"] else ""
        lines.append(f"<p>{escape(knee['label'])}: keeps up with {escape(kept)}{escape(reason)}</p>")
    return "".join(lines)


def _points(report: dict[str, Any]) -> str:
    heads = ("point", "ok", "others", "req/s", "tokens/s", "TTFT p50", "TTFT p95", "TPOT p50", "E2EL p50", "client")
    rows = []
    for point in report["points"]:
        outcomes, metrics = dict(point["outcomes"]), point["metrics"]
        ok = outcomes.pop(OK, 0)
        overhead = point["overhead"]
        share = None if overhead is None else overhead["share"]
        rows.append(
            (
                escape(point["label"]),
                str(ok),
                escape(", ".join(f"{count} {name}" for name, count in outcomes.items())) or "none",
                f"{point['requests_per_s']:.2f}",
                f"{point['output_tokens_per_s']:,.0f}",
                *(_ms(metrics[name], q) for name, q in (("ttft_s", "p50"), ("ttft_s", "p95"), ("tpot_s", "p50"))),
                _ms(metrics["e2el_s"], "p50"),
                "-" if share is None else f"{share:.1%}",
            )
        )
    note = (
        "Milliseconds from the scheduled time with 95% intervals; client: its own share of the median TTFT, measured "
        "against a server that answers at once."
    )
    return f'<h2>Points</h2><p class="note">{note}</p>{_table(heads, rows, left=(0, 2))}'


def _cuts(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    heads = ("keyframes per GOP", "users", "cache", "TTFT ms", "dense TTFT ms", "TTFT cut", "E2EL cut")
    cells = [
        (
            str(row["keyframes_per_gop"]),
            "-" if row["concurrency"] is None else str(row["concurrency"]),
            escape(row["cache"]),
            f"{row['ttft_s'] * 1e3:,.1f}",
            f"{row['dense_ttft_s'] * 1e3:,.1f}",
            *(
                f"{row[name]:.1%} <small>{row[name + '_interval'][0]:.1%} to {row[name + '_interval'][1]:.1%}</small>"
                for name in ("ttft_cut", "e2el_cut")
            ),
        )
        for row in rows
    ]
    note = "What is saved of the time that dense frames take; medians with 95% intervals."
    return f'<h2>Codec against dense</h2><p class="note">{note}</p>{_table(heads, cells, left=(2,))}'


def _metrics(report: dict[str, Any]) -> str:
    heads = ("point", "metric", "n", "mean", "p50", "p90", "p95", "p99", "max")
    rows = [
        (
            escape(point["label"]),
            label,
            str(found["n"]),
            f"{found['mean'] * 1e3:,.2f}",
            *(_ms(found, quantile) for quantile in ("p50", "p90", "p95", "p99")),
            f"{found['max'] * 1e3:,.2f}",
        )
        for point in report["points"]
        for name, label in _METRICS.items()
        if (found := point["metrics"][name]) is not None
    ]
    if not rows:
        return ""
    return f"<details><summary>Every metric, ms</summary>{_table(heads, rows, left=(0, 1))}</details>"


def _conditions(report: dict[str, Any]) -> str:
    noted = report["conditions"]
    flat = {
        **{name: value for name, value in noted.items() if not isinstance(value, dict)},
        **{f"server {name}": value for name, value in noted["server"].items()},
        **{f"client {name}": value for name, value in noted["client"].items()},
        "client chunks/s of a core": report["selfcheck"]["chunks_per_s"],
    }
    rows = [(escape(name), escape(str(value))) for name, value in flat.items() if value is not None]
    return f"<h2>Conditions</h2>{_table(('', ''), rows, left=(0, 1))}"


def _corpus(entries: list[dict[str, Any]]) -> str:
    if not entries:
        return ""
    names = (
        *("file", "codec", "width", "height", "seconds", "bytes", "i_frames", "p_frames", "b_frames"),
        *("vectors_per_frame", "residual_energy", "sha256"),
    )
    heads = [name.replace("_", " ") for name in names]
    rows = [
        tuple(escape(str(entry[name])[:12] if name == "sha256" else str(entry[name])) for name in names)
        for entry in entries
    ]
    table = _table(heads, rows, left=(0, 1))
    return f"<details><summary>Corpus: {len(entries)} clips</summary>{table}</details>"


def _ms(found: dict[str, Any] | None, quantile: str) -> str:
    if found is None:
        return "-"
    low, value, high = (found[quantile][name] * 1e3 for name in ("low", "value", "high"))
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{digits}f} <small>{low:,.{digits}f}-{high:,.{digits}f}</small>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[int]) -> str:
    """A table of cells that are HTML already."""

    def line(cells: Sequence[str], tag: str) -> str:
        inner = (
            f'<{tag} class="left">{cell}</{tag}>' if k in left else f"<{tag}>{cell}</{tag}>"
            for k, cell in enumerate(cells)
        )
        return f"<tr>{''.join(inner)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f'<div class="scroll"><table>{line(heads, "th")}{body}</table></div>'
