"""Which features do the MLPs compute, what do they mean, and which of them bring an answer about?"""

import time

import streamlit as st

from app import feature_answers, feature_exports, frame
from app.case import Case
from app.feature_answers import Quality
from app.parts import dashboard_view, feature_graph_view, feature_prompt_view
from app.parts.choices import choice
from app.parts.columns import header
from app.parts.metrics import Box, boxes, escaped
from app.parts.sharing import share_row
from app.service import Refused, short_name

PARTS = {
    "dashboard": ("One feature", dashboard_view.section),
    "prompt": ("Features of a prompt", feature_prompt_view.section),
    "graph": ("What brings the answer about?", feature_graph_view.section),
}


def share(case: Case) -> None:
    texts = {"Copy link": frame.this_link(case), "Copy Python": feature_exports.python(case)}
    share_row(texts, feature_exports.downloads(case), f"features-{short_name(case.model)}-{case.feature.part}")


def quality(case: Case) -> None:
    """How far what is shown can be trusted; always there."""
    with st.spinner("Measuring the transcoders ...", show_time=True):
        found: Quality | None = frame.attempt(lambda: feature_answers.quality(frame.service(), case.model, case.feature.layer))
    if found is None:
        return
    boxes("quality", [
        Box("Active features per token", f"{found.l0:.1f}", f"layer {case.feature.layer}; {found.dead:.0%} never",
            "L0 of this layer's transcoder."),
        Box("Error share", f"{found.fvu:.1%}", "of the MLP output's variance", "FVU: what the features leave unexplained."),
        Box("CE recovered", f"{found.ce_recovered:.1%}", "this MLP replaced by its features",
            "(loss ablated - loss replaced) / (loss ablated - loss): 100 % is the model itself, 0 % the MLP set to zero."),
        Box("Loss, all MLPs replaced", f"{found.ce_all:.3f}", f"the model itself {found.ce_clean:.3f}", "Nats per token.",
            f"{found.ce_all - found.ce_clean:+.3f}"),
    ])  # fmt: skip


def page() -> None:
    started = time.perf_counter()
    title, row = header()
    title.markdown("### Features")
    case = frame.case()
    try:
        n_layers = len(feature_answers.coders(frame.service(), case.model))
    except Refused as error:
        st.info(escaped(str(error)), icon=":material/block:")
        return
    if case.feature.layer >= n_layers:
        st.warning(f"There is no layer {case.feature.layer}: layers are 0-{n_layers - 1}. Layer 0 is shown.", icon=":material/link_off:")
        frame.change_field("feature.layer", 0)
        case = frame.case()
    with st.container(horizontal=True, gap="medium", vertical_alignment="bottom"):
        choice("feature.part", "Question", {name: label for name, (label, _) in PARTS.items()}, label_visibility="collapsed")
        choice("feature.layer", "MLP of layer", {i: str(i) for i in range(n_layers)})
    quality(case)
    PARTS[case.feature.part][1](case)
    with row:
        share(case)
    st.divider()
    st.caption(f"{short_name(case.model)}. This page took {1000 * (time.perf_counter() - started):.0f} ms.")


page()
