"""Dashboards as plain files: an index that searches and sorts, and one page per feature. No network, all text escaped.

Each page holds its own style and script; nothing else may be loaded (a content security policy says so).
"""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from interp.progress import Report as Progress
from interp.progress import reporting
from interp.safefiles import write_text
from saes.features.examples import TOP
from saes.features.reports import Example, Report, Reports

HERE = Path(__file__).parent
SHADES = 5
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
COLUMNS = (("feature", True), ("tokens active", True), ("maximum", True), ("label", False), ("F1", True), ("promotes", False),
           ("strongest tokens", False))  # fmt: skip


def export_html(
    reports: Reports, folder: str | Path, features: Sequence[int] | None = None, progress: Progress | bool | None = None
) -> Path:
    """Writes index.html and feature-N.html of the features (all that are ever active) into a folder; returns the index."""
    folder = Path(folder)
    chosen = reports.alive if features is None else list(features)
    made = [reports[i] for i in chosen]  # an unknown feature is refused before anything is written
    links = set(chosen)
    with reporting(progress, "pages") as report:
        for n, one in enumerate(made):
            write_text(folder / _page(one.feature), feature_page(one, links))
            report(n + 1, len(made))
    write_text(folder / "index.html", index_page(reports, made))
    return folder / "index.html"


def index_page(reports: Reports, made: Sequence[Report]) -> str:
    """All features in one table."""
    title = f"Features of {reports.target_site}, {reports.model}"
    what = "transcoder" if reports.transcoder else "autoencoder"
    dead = len(reports) - len(reports.alive)
    about = (
        f"{reports.kind} {what}, {reports.input_site} → {reports.target_site}: {len(reports)} features, {dead} of them never active on "
        f"{reports.statistics.tokens} tokens of {reports.statistics.documents} documents. {len(made)} have a page."
    )
    head = "".join(f'<th scope="col"{" class=n" if n else ""}><button type="button">{escape(name)}</button></th>' for name, n in COLUMNS)
    rows = "\n".join(f"<tr>{''.join(_cells(one))}</tr>" for one in made)
    body = f"""<h1>{escape(title)}</h1>
<p>{escape(about)}</p>
<p><label for="search">Search</label> <input id="search" type="search" autocomplete="off">
<span id="shown" role="status">Showing {len(made)} of {len(made)}</span></p>
<table class="index"><caption>{_LABELS if reports.labels else ""}</caption>
<thead><tr>{head}</tr></thead>
<tbody>
{rows}
</tbody></table>
<script>{(HERE / "page.js").read_text(encoding="utf-8")}</script>"""
    return _html(title, body)


_LABELS = (
    "Label: the known variable that the feature, active or not, tells best, chosen on half of the documents; F1 on the other half. "
    "Labels of kind token, class and previous are trivial: functions of the token itself or of the one before."
)


def _cells(one: Report) -> Iterable[str]:
    label = one.label
    strongest = dict.fromkeys(e.tokens[e.pos - e.start] for e in one.top)
    yield f'<td class=n data-value="{one.feature}"><a href="{_page(one.feature)}">{one.feature}</a></td>'
    yield f'<td class=n data-value="{one.density!r}">{one.density:.3%}</td>'
    yield f'<td class=n data-value="{one.maximum!r}">{one.maximum:.3g}</td>'
    yield f"<td>{escape(f'{label.variable} ({label.kind})') if label else ''}</td>"
    yield f"<td class=n>{f'{label.f1:.3f}' if label else ''}</td>"
    yield f"<td>{escape(' '.join(token for token, _ in one.promoted[:5]))}</td>"
    yield f"<td>{escape(' '.join(list(strongest)[:5]))}</td>"


def feature_page(one: Report, links: set[int] | None = None) -> str:
    """A feature by itself. `links`: the features that have a page."""
    title = f"Feature {one.feature} of {one.site}, {one.model}"
    facts = [
        f"Active on {one.active} of {one.tokens} tokens ({one.density:.3%}) and in {one.active_documents} documents; "
        f"mean {one.mean:.3g} where active, maximum {one.maximum:.3g}."
    ]
    if one.encoder_decoder_cosine is not None:
        facts.append(f"Cosine of encoder and decoder: {one.encoder_decoder_cosine:.3f}.")
    if one.label:
        measured = f"F1 {one.label.f1:.3f} (precision {one.label.precision:.3f}, recall {one.label.recall:.3f})"
        facts.append(f"Best known variable: {one.label.variable} ({one.label.kind}), {measured} on documents that it was not chosen on.")
    near = ", ".join(f"{_link(i, links)} ({value:.2f})" for i, value in one.nearest)
    paragraphs = "\n".join(f"<p>{escape(fact)}</p>" for fact in facts)
    groups = [_examples(one, TOP, "Strongest documents")]
    for band in range(len(one.band_documents) - 1, -1, -1):
        low, high = one.limits(band)
        groups.append(_examples(one, band, f"Activation {low:.3g} to {high:.3g}"))
    body = f"""<p><a href="index.html">All features</a></p>
<h1>{escape(title)}</h1>
{paragraphs}
<p>Nearest decoder rows (cosine): {near}</p>
<div class="sides">
<section><h2>Activations</h2>{_histogram(one)}</section>
{_logits("Promotes", one.promoted)}{_logits("Suppresses", one.suppressed)}
</div>
{"".join(groups)}"""
    return _html(title, body)


def _examples(one: Report, band: int, title: str) -> str:
    lines = "\n".join(_example(e, one.maximum) for e in one.band(band))
    return f'<section><h2>{escape(title)} <span class="note">(showing {escape(one.shown(band))})</span></h2>\n{lines}</section>\n'


def _example(e: Example, maximum: float) -> str:
    words = [
        _token(token, value, maximum, e.start + i == e.pos) for i, (token, value) in enumerate(zip(e.tokens, e.activations, strict=True))
    ]
    before = "… " if e.start else ""
    return f'<p class="example"><span class=n>{e.value:.3g}</span> {before}{" ".join(words)}</p>'


def _token(token: str, value: float, maximum: float, strongest: bool) -> str:
    text = escape(token.strip()) or "␣"
    if strongest:
        text = f"<b>{text}</b>"
    if not value > 0:
        return text
    return f'<span class=a{min(int(value / maximum * SHADES) + 1, SHADES)} title="{value:.3g}">{text}</span>'


def _logits(title: str, tokens: Sequence[tuple[str, float]]) -> str:
    if not tokens:
        return ""
    rows = "".join(f"<tr><td>{escape(token)}</td><td class=n>{value:+.3f}</td></tr>" for token, value in tokens)
    return f"<section><h2>{title}</h2><table><caption>logits × positive factor</caption>{rows}</table></section>\n"


def _histogram(one: Report) -> str:
    width, height, n = 320, 120, len(one.histogram)
    most, step = max(one.histogram, default=0) or 1, 320 / max(n, 1)
    bars = []
    for i, count in enumerate(one.histogram):
        tall = height * count / most
        low, high = one.maximum * i / n, one.maximum * (i + 1) / n
        bars.append(
            f'<rect x="{i * step:.1f}" y="{height - tall:.1f}" width="{step - 1:.1f}" height="{tall:.1f}" fill="#2563eb">'
            f"<title>{low:.3g} to {high:.3g}: {count} tokens</title></rect>"
        )
    label = f"Histogram of {one.active} activations from 0 to {one.maximum:.3g}; the fullest bin has {most} tokens"
    return f'<svg role="img" aria-label="{label}" width="{width}" height="{height}">{"".join(bars)}</svg><p class="note">{label}.</p>'


def _link(feature: int, links: set[int] | None) -> str:
    return f'<a href="{_page(feature)}">{feature}</a>' if links is None or feature in links else f"{feature}"


def _page(feature: int) -> str:
    return f"feature-{feature}.html"


def _html(title: str, body: str) -> str:
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{(HERE / "page.css").read_text(encoding="utf-8")}</style></head>
<body><main>
{body}
</main></body></html>
"""
