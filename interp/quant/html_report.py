"""A report on a model's outliers as one page that needs no network: figures, then the tables they are drawn from."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from interp.safefiles import write_text

TITLES = {
    "sizes": ("How large do activations get?", "Largest |x| of every dimension in every tensor; outlier dimensions are vertical lines."),
    "heads": (
        "Which heads do nothing?",
        "A sign of idleness against what the loss does without the head: idle heads lie at the lower right.",
    ),
    "trace": ("Who writes the largest dimension?", "Addends of an exact sum, beside what a rerun without the component loses."),
    "bits": ("What does rounding cost?", "Signal to noise of every rounded activation, all entries and bulk."),
    "remedies": ("What helps?", "The same scheme with each remedy."),
}
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem;color:#1f2937}
table{border-collapse:collapse;font-size:13px;margin:1rem 0}th{text-align:right;color:#6b7280;font-weight:500}
td{text-align:right;font-variant-numeric:tabular-nums}th,td{padding:2px 12px 2px 0;border-bottom:1px solid #f3f4f6}
td:first-child,th:first-child{text-align:left}.wide{overflow-x:auto}p{color:#6b7280}"""


def write_html(path: str | Path, model: str, documents: str, results: Mapping[str, Any]) -> Path:
    """Writes the page. `results` are results of interp.quant by the names of TITLES; each has `.figure()` and `.table()`."""
    unknown = set(results) - set(TITLES)
    if unknown:
        raise KeyError(f"No part {sorted(unknown)[0]!r} of a report; there are {', '.join(TITLES)}.")
    if not results:
        raise ValueError("A report of nothing: give at least one result.")
    parts, plotly = [], True  # the library goes in once, with the first figure
    for name, result in results.items():
        title, about = TITLES[name]
        figure = result.figure().to_html(full_html=False, include_plotlyjs=plotly)
        plotly = False
        rows = result.table().to_html(index=False, border=0, float_format=lambda v: f"{v:.4g}", na_rep="")
        parts.append(f'<h2>{escape(title)}</h2><p>{escape(about)}</p>{figure}<div class="wide">{rows}</div>')
    head = f'<meta charset="utf-8"><title>{escape(model)}: outliers</title><style>{STYLE}</style>'
    intro = f"<h1>{escape(model)}: outliers, idle heads, few bits</h1><p>Measured on {escape(documents)}.</p>"
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, f'<!doctype html><html lang="en"><head>{head}</head><body>{intro}{"".join(parts)}</body></html>\n')
    return target
