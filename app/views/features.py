"""Which features do the MLPs compute, what do they mean, and which of them bring an answer about?"""

import time
from collections.abc import Sequence
from contextlib import suppress

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
    texts = {"Copy link": frame.this_link(case)}
    with suppress(Refused):  # the page has said why
        texts["Copy Python"] = feature_exports.python(case)
    share_row(texts, feature_exports.downloads(case), f"features-{short_name(case.model)}-{case.feature.part}")


def own_coders(case: Case, expanded: bool = False) -> None:
    """The bundled transcoders, or those of a folder."""
    with st.expander("Transcoders: " + (escaped(case.feature.coders) or "bundled"), expanded, icon=":material/folder_open:"):
        frame.shows("coders", case.feature.coders)
        st.text_input(
            "Folder of coders", key="coders", placeholder="empty: the bundled ones", on_change=_open_coders,
            help="A folder that holds a folder per MLP, as `interp train transcoder MODEL --out DIR` writes them, in any format that "
            "`saes.load` reads.",
        )  # fmt: skip
        if case.feature.coders and not frame.service().allows_coders(case.feature.coders):
            st.button("Open these coders", key="open_coders", on_click=_open_coders, type="primary")


def _open_coders() -> None:
    folder = st.session_state["coders"].strip()
    frame.service().allow_coders(folder)
    frame.change_field("feature.coders", folder)


def quality(case: Case, layers: Sequence[int]) -> None:
    """How far what is shown can be trusted; always there."""
    view = case.feature
    with st.spinner("Measuring the transcoders ...", show_time=True):
        found: Quality | None = frame.attempt(lambda: feature_answers.quality(frame.service(), case.model, view.layer, view.coders))
    if found is None:
        return
    boxes("quality", [
        Box("Active features per token", f"{found.l0:.1f}", f"{found.dead:.0%} are never active",
            f"L0 of the transcoder of layer {view.layer}, and its share of features that no token activates."),
        Box("Error share", f"{found.fvu:.1%}", "of the output's variance", "FVU: what the features leave unexplained."),
        Box("CE recovered", f"{found.ce_recovered:.1%}", "by its features alone",
            "(loss ablated - loss replaced) / (loss ablated - loss): 100 % is the model itself, 0 % the MLP set to zero."),
        Box("Loss, all replaced", f"{found.ce_all:.3f}", f"clean {found.ce_clean:.3f}",
            f"Nats per token, with the MLPs of layers {', '.join(map(str, layers))} replaced at once.",
            f"{found.ce_all - found.ce_clean:+.3f}"),
    ])  # fmt: skip
    st.caption(f"Measured on {found.said}.")


def page() -> None:
    started = time.perf_counter()
    title, row = header()
    title.markdown("### Features")
    case = frame.case()
    try:
        layers = list(feature_answers.coders(frame.service(), case.model, case.feature.coders))
    except Refused as error:
        st.info(escaped(str(error)), icon=":material/block:")
        own_coders(case, expanded=True)
        return
    if case.feature.layer not in layers:
        given = ", ".join(map(str, layers))
        said = f"There is no layer {case.feature.layer} here: there are transcoders of {given}. Layer {layers[0]} is shown."
        st.warning(said, icon=":material/link_off:")
        frame.change_field("feature.layer", layers[0])
        case = frame.case()
    with st.container(horizontal=True, gap="medium", vertical_alignment="bottom"):
        choice("feature.part", "Question", {name: label for name, (label, _) in PARTS.items()}, label_visibility="collapsed")
        choice("feature.layer", "MLP of layer", {i: str(i) for i in layers})
    quality(case, layers)
    PARTS[case.feature.part][1](case)
    own_coders(case)
    with row:
        share(case)
    st.divider()
    st.caption(f"{short_name(case.model)}. This page took {1000 * (time.perf_counter() - started):.0f} ms.")


page()
