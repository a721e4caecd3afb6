"""One feature: where it is active, what it promotes, what it stands for, and what happens when it is held at another value."""

from html import escape
from typing import TYPE_CHECKING

import streamlit as st

from app import feature_answers, frame
from app.case import Case
from app.parts import clamp_view
from app.parts.choices import choice
from app.parts.columns import split
from app.parts.metrics import escaped
from app.parts.words import visible

if TYPE_CHECKING:
    from saes.features import Example, Report, Reports

ORDERS = {"label": "best label", "density": "most frequent", "maximum": "strongest", "number": "number"}
TRIVIAL = {"token": "the token itself", "previous": "the token before", "class": "the token's class", "context": "the context"}
SHOWN = 8  # top examples


def section(case: Case) -> None:
    with st.spinner("Reading documents ...", show_time=True):
        found = frame.attempt(lambda: feature_answers.reports_of(frame.service(), case))
    if found is None:
        return
    layer = found[case.feature.layer]
    feature = picker(case, layer)
    if feature is None:
        return
    report = layer[feature]
    about(case, report)
    left, right = split("dashboard", 7, 5)
    with left:
        examples(report, layer.statistics.documents)
    with right:
        numbers(report)
    st.divider()
    clamp_view.section(case, (case.feature.layer, feature), report)


def picker(case: Case, layer: "Reports") -> int | None:
    """The list of a layer's living features, in the order asked for."""
    order, feature = ordered(layer, case.feature.order), in_focus(case, layer)
    if feature is None:
        st.info("No document activates any feature of this layer.", icon=":material/info:")
        return None
    chosen = case.feature.layer_feature
    if chosen is not None and chosen[0] == case.feature.layer and chosen[1] != feature:
        said = f"There is no feature {chosen[1]}: this layer has 0-{len(layer) - 1}. Feature {feature} is shown."
        st.warning(said, icon=":material/link_off:")
    with st.container(horizontal=True, gap="medium", vertical_alignment="bottom"):
        frame.shows("feature_pick", feature)
        st.selectbox(
            f"Feature ({len(order)} of {len(layer)} are ever active)", order if feature in order else [feature, *order], key="feature_pick",
            format_func=lambda f: name_of(layer, f), on_change=_picked, width=620,
        )  # fmt: skip
        choice("feature.order", "Listed by", ORDERS)
    return feature


def in_focus(case: Case, layer: "Reports") -> int | None:
    """The feature chosen in this layer, else the first of the list; None where no feature is ever active."""
    chosen = case.feature.layer_feature
    if chosen is not None and chosen[0] == case.feature.layer and chosen[1] < len(layer):
        return chosen[1]
    return next(iter(ordered(layer, case.feature.order)), None)


def ordered(layer: "Reports", by: str) -> list[int]:
    """Living features."""
    alive = layer.alive
    keys = {
        "density": lambda f: -layer.density[f],
        "maximum": lambda f: -layer.statistics.maximum[f],
        "number": lambda f: f,
        "label": lambda f: -(layer.labels[f].f1 if layer.labels and layer.labels[f] else 0.0),
    }
    return sorted(alive, key=keys[by])


def name_of(layer: "Reports", feature: int) -> str:
    """A feature in the list: its label, or what it promotes."""
    label = layer.labels[feature] if layer.labels else None
    told = f"{label.variable} (F1 {label.f1:.2f})" if label else "never active" if feature not in layer.alive else ""
    promoted = " ".join(layer.words[i].strip() for i in layer.promoted_ids[feature][:3].tolist())
    return f"#{feature}  {told}  → {promoted}"


def _picked() -> None:
    frame.change_field("feature.name", f"{frame.case().feature.layer}.{st.session_state['feature_pick']}")


def about(case: Case, report: "Report") -> None:
    label = report.label
    told = ""
    if label is not None:
        told = (
            f" Best known variable: **{escaped(label.variable)}** ({TRIVIAL.get(label.kind, label.kind)}), F1 {label.f1:.2f}, precision "
            f"{label.precision:.2f}, recall {label.recall:.2f}, on documents that did not choose it."
        )
    st.markdown(
        f"##### Feature {report.feature} of layer {case.feature.layer}",
        help="Active means activation above 0. The label is the variable of the corpus that the feature tells best; a token's own identity "
        "is a trivial one and is named so.",
    )
    st.markdown(f"Active at {report.density:.2%} of {report.tokens:,} tokens, in {report.active_documents} documents, at most "
                f"{report.maximum:.2f}, {report.mean:.2f} on average where active.{told}")  # fmt: skip


def examples(report: "Report", documents: int) -> None:
    """The strongest examples, then some of every band of its range."""
    st.markdown("**Strongest examples**")
    st.html("".join(example_html(e, report.maximum) for e in report.top[:SHOWN]) or '<div class="quiet">never active</div>')
    st.caption(f"Showing {min(SHOWN, len(report.top))} of the {report.active_documents} documents that activate it, of {documents} read; "
               "darker is stronger.")  # fmt: skip
    with st.expander("Examples over its whole range"):
        for band in reversed(range(len(report.band_documents))):
            low, high = report.limits(band)
            st.html(f'<div class="quiet">{low:.2f} to {high:.2f}: {escape(report.shown(band))}</div>'
                    + "".join(example_html(e, report.maximum) for e in report.band(band)))  # fmt: skip


def example_html(example: "Example", most: float) -> str:
    """Tokens, coloured by activation; the strongest one has its value."""
    spans = []
    for i, (token, value) in enumerate(zip(example.tokens, example.activations, strict=True)):
        share = min(1.0, value / most) if most else 0.0
        mark = f' style="background:rgba(245,158,11,{0.12 + 0.83 * share:.2f})"' if value > 0 else ""
        peak = f"<sub>{value:.1f}</sub>" if example.start + i == example.pos else ""
        spans.append(f'<span{mark} title="{value:.3f}">{escape(visible(token))}{peak}</span>')
    return f'<div class="tokens example">{"".join(spans)}</div>'


def numbers(report: "Report") -> None:
    """Histogram, logit weights, neighbours."""
    import plotly.graph_objects as go

    st.markdown("**How strongly is it active?**")
    n = len(report.histogram)
    middles = [report.maximum * (i + 0.5) / n for i in range(n)]
    figure = go.Figure(
        go.Bar(x=middles, y=list(report.histogram), marker_color="#2166ac", hovertemplate="%{x:.2f}: %{y} tokens<extra></extra>")
    )
    figure.update_layout(height=170, margin={"l": 8, "r": 8, "t": 4, "b": 8}, plot_bgcolor="white", bargap=0.05,
                         xaxis_title="activation", yaxis_title="tokens")  # fmt: skip
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(automargin=True, rangemode="tozero", tickformat="d", nticks=4)
    st.plotly_chart(figure, key="feature_histogram", theme=None, config={"displayModeBar": False})
    st.markdown("**What does it write?**", help="Its decoder vector through the final norm's weight and the unembedding, up to a factor.")
    rows = "".join(
        f"<tr><td>{escape(visible(a))}</td><td>{x:+.2f}</td><td>{escape(visible(b))}</td><td>{y:+.2f}</td></tr>"
        for (a, x), (b, y) in zip(report.promoted, report.suppressed, strict=True)
    )
    st.html(f'<table class="lists"><thead><tr><th>promotes</th><th></th><th>suppresses</th><th></th></tr></thead>{rows}</table>')
    near = ", ".join(f"#{f} ({cosine:+.2f})" for f, cosine in report.nearest)
    own = "" if report.encoder_decoder_cosine is None else f" Encoder and decoder: cosine {report.encoder_decoder_cosine:+.2f}."
    st.caption(f"Nearest decoder vectors: {near or 'none'}.{own}")
