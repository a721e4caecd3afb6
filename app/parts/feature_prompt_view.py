"""The features that a prompt activates, over its tokens."""

from typing import TYPE_CHECKING

import streamlit as st

from app import feature_answers, frame
from app.case import Case
from app.parts.colors import sequential
from app.parts.dashboard_view import name_of
from app.parts.matrix import matrix
from app.parts.question import FIELDS, field
from app.parts.words import visible

if TYPE_CHECKING:
    from saes.features import FeatureActivations, Reports

KEY = "feature_map"
SHOWN = 20  # features


def section(case: Case) -> None:
    st.markdown(
        "##### Which features does the prompt activate? :green-badge[live]", help="Strongest first; a row is a feature, a column a token."
    )
    field(case, "prompt", *FIELDS["prompt"])
    found = frame.attempt(lambda: feature_answers.on_prompt(frame.service(), case))
    reports = frame.attempt(lambda: feature_answers.reports_of(frame.service(), case))
    if found is None or reports is None:
        return
    top = found.top(0, SHOWN)
    values = found.dense(0)[:, top].T.tolist()
    limit = max((v for row in values for v in row), default=0.0)
    names = [f"#{f}" for f in top]
    columns = [f"{i} {visible(t.strip() or t)}" for i, t in enumerate(found.tokens[0])]
    layer = reports[case.feature.layer]
    cells = [[_cell(name_of(layer, f), c, v, limit) for c, v in zip(columns, row, strict=True)] for f, row in zip(top, values, strict=True)]
    matrix(
        names, columns, cells, key=KEY, label="Activations of the prompt's strongest features", slanted=True, fluid=(16, 66), size=(40, 26),
        hint="Click a square: that feature's dashboard.", on_pick=_clicked,
    )  # fmt: skip
    st.caption(f"Showing {len(top)} of {found.n_active(0)} features of layer {case.feature.layer} that some token activates.")
    strongest(found, case, layer)


def _cell(name: str, column: str, value: float, limit: float) -> dict[str, str]:
    background, text = sequential(value, limit)
    shown = f"{value:.1f}" if value else ""
    return {"t": shown, "bg": background, "fg": text, "say": f"{name} at {column}: {value:.2f}"}


def strongest(found: "FeatureActivations", case: Case, layer: "Reports") -> None:
    """The features of the last token."""
    dense = found.dense(0)[-1]
    order = [int(f) for f in (-dense).argsort(kind="stable")[:10] if dense[f] > 0]
    rows = [{"feature": f"L{case.feature.layer} #{f}", "activation": round(float(dense[f]), 2), "what it is": name_of(layer, f)}
            for f in order]  # fmt: skip
    st.markdown(f"**At the last token** ({len(order)} of {int((dense > 0).sum())} active features)")
    st.dataframe(rows, hide_index=True)


def _clicked() -> None:
    case = frame.case()
    row, _ = st.session_state[KEY].picked
    found = frame.attempt(lambda: feature_answers.on_prompt(frame.service(), case))
    if found is None:
        frame.touched()
        return
    frame.change_field("feature.name", f"{case.feature.layer}.{found.top(0, SHOWN)[row]}")
    frame.change_field("feature.part", "dashboard")
