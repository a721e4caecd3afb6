"""A feature held at a value, on the page's prompt: what the model says then, and how its answer follows the value."""

from typing import TYPE_CHECKING

import streamlit as st

from app import feature_answers, frame
from app.case import Case
from app.parts import words
from app.parts.charts import CONTEXT, NEITHER, Line, lines
from app.parts.choices import choice
from app.parts.columns import split
from app.parts.metrics import Box, boxes, escaped
from app.parts.question import question

if TYPE_CHECKING:
    from saes.features import Report

WHERE = {"all": "all positions", "last": "the last position"}


def section(case: Case, feature: tuple[int, int], report: "Report") -> None:
    st.markdown(
        "##### What if it were stronger, or silent? :green-badge[live]",
        help="The MLP's output is changed by (value - activation) times the feature's decoder vector; the transcoder's error stays in, so "
        "that clamping a feature to its own activation changes nothing.",
    )
    question(case)
    most, value = held(case, report)
    with st.container(horizontal=True, gap="medium", vertical_alignment="bottom"):
        frame.shows("feature_clamp", value)
        st.slider("Hold it at", 0.0, 2 * most, step=most / 50, key="feature_clamp", on_change=_moved, width=380, format="%.4g",
                  help=f"0 silences it; the largest activation seen is {report.maximum:.4g}.")  # fmt: skip
        choice("feature.where", "At", WHERE)
    found = frame.attempt(lambda: feature_answers.clamped(frame.service(), case, feature, value, most))
    if found is None:
        return
    clean, now = found.next.measures["logit difference"]
    pair = escaped(f"{case.target} - {case.foil}, in logits.")
    boxes("clamp", [
        Box("Logit difference", f"{now:.3f}", f"clean {clean:.3f}", pair, f"{now - clean:+.3f}"),
        Box("KL to clean (nats)", f"{found.next.measures['KL to clean (nats)'][1]:.4f}", "of the next token", "How far the whole "
            "distribution moved."),
        Box("Its own activation", f"{found.own:.2f}", "at the last position", "Without the clamp."),
        Box("Another feature instead", f"{found.random - clean:+.3f}", f"#{found.other}, held at the same value",
            "The control: the strongest other feature of the layer on this prompt, clamped alike; change of the logit difference."),
    ])  # fmt: skip
    left, right = split("clamp", 6, 6)
    with left:
        reading = frame.attempt(lambda: frame.service().reading(case.clean()))
        if reading is not None:
            st.html(words.next_words_html(found.next, words.tags_of(reading), ("clean", "clamped")))
    with right:
        flat = [clean] * len(found.values)
        lines("clamp_curve", found.values, [Line("clamped", CONTEXT, found.curve), Line("clean", NEITHER, flat, dash="dot")],
              "activation that it is held at", "logit difference", percent=False, mark=value, from_zero=False)  # fmt: skip


def held(case: Case, report: "Report") -> tuple[float, float]:
    """(largest activation seen, or 1 of a feature that is never active; the value that it is held at, at most twice that)."""
    most = float(f"{report.maximum or 1.0:.4g}")
    return most, min(case.feature.clamp, 2 * most) if case.feature.clamp >= 0 else most


def _moved() -> None:
    frame.change_field("feature.clamp", float(f"{st.session_state['feature_clamp']:.6g}"))
