"""Which activations explode, which heads do nothing, who writes an outlier dimension, and what do 8 bits cost?"""

import time
from contextlib import suppress

import streamlit as st

from app import frame, outlier_exports
from app.case import PROMPTS, Case
from app.parts import bits_view, no_op_view, remedies_view, sizes_view, trace_view
from app.parts.choices import choice
from app.parts.columns import header
from app.parts.sharing import share_row
from app.service import Refused, short_name

PARTS = {
    "sizes": ("How large?", sizes_view.section),
    "heads": ("Idle heads", no_op_view.section),
    "trace": ("Who writes it?", trace_view.section),
    "bits": ("What do bits cost?", bits_view.section),
    "remedies": ("What helps?", remedies_view.section),
}


def share(case: Case) -> None:
    texts = {"Copy link": frame.this_link(case)}
    with suppress(Refused):  # the page has said why
        texts |= {"Copy Python": outlier_exports.python(case), "Copy command": outlier_exports.command(case)}
    share_row(texts, outlier_exports.downloads(case), f"outliers-{short_name(case.model)}-{case.outlier.part}")


def page() -> None:
    started = time.perf_counter()
    title, row = header()
    title.markdown("### Outliers")
    case = frame.case()
    with st.container(horizontal=True, gap="medium", vertical_alignment="bottom"):
        choice("outlier.part", "Question", {name: label for name, (label, _) in PARTS.items()}, label_visibility="collapsed")
        choice("outlier.texts", "Documents", {n: str(n) for n in PROMPTS}, doc="How many documents are measured.")
    PARTS[case.outlier.part][1](case)
    with row:
        share(case)
    st.divider()
    st.caption(f"{short_name(case.model)}. This page took {1000 * (time.perf_counter() - started):.0f} ms.")


page()
