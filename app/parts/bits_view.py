"""What rounding costs, end to end and tensor by tensor."""

import math

import streamlit as st

from app import frame, outlier_answers
from app.case import SCHEMES, Case
from app.parts.charts import Effect, effects
from app.parts.choices import choice
from app.parts.columns import split
from app.parts.metrics import Box, boxes, escaped
from app.service import Refused

ABOUT = {
    "w8a8": "weights and activations, one range per tensor, ranges fixed on other documents (Bondarenko et al. 2023)",
    "w8a8-percentile": "the same with ranges at the 99.99th percentile: outliers are clipped",
    "w8a8-token": "a range for every token and every output channel, found while running",
    "w8": "weights alone", "a8": "activations alone", "w6a6": "six bits", "w4a8": "four-bit weights", "w4": "four-bit weights alone",
    "llm.int8": "products in 8 bits but for columns with an entry above 6 (Dettmers et al. 2022)",
}  # fmt: skip
WORST = 12  # tensors listed


def section(case: Case) -> None:
    choice("outlier.scheme", "Scheme", {name: name for name in SCHEMES}, "select", ABOUT[case.outlier.scheme], width=260)
    st.caption(f"{case.outlier.scheme}: {ABOUT[case.outlier.scheme]}.")
    with st.spinner("Running the model on rounded numbers ...", show_time=True):
        found = frame.attempt(lambda: outlier_answers.quantized(frame.service(), case.model, case.outlier.texts, case.outlier.scheme))
    if found is None:
        return
    low, high = found.interval()
    boxes("bits", [
        Box("Loss on rounded numbers", f"{found.loss_quantized:.4f}", f"clean {found.loss:.4f}", "Nats per token; clean is unrounded.",
            f"{found.damage:+.4f}"),
        Box("95 % interval of the change", f"{low:+.4f}", f"to {high:+.4f}", "Documents drawn at random; nats per token."),
        Box("KL", f"{found.kl:.5f}", f"{found.agreement:.1%} top tokens stay",
            "KL(model || rounded), nats per token; and how often the likeliest next token stays the same."),
        Box("Rounded tensors", str(found.n_quantized), f"{len(found.weights)} weights, {len(found.activations)} activations",
            "Count them: tools skip layers silently. The unembedding stays in floating point."),
    ])  # fmt: skip
    left, right = split("bits", 1, 1)
    with left:
        worst(case)
    with right:
        schemes(case)
    texts = outlier_answers.documents(frame.service(), case.model, case.outlier.texts)
    st.caption(f"{texts.said}; {texts.ranges}. Which single tensor hurts: `interp quant sensitivity`; what helps: `interp quant remedy`.")


def worst(case: Case) -> None:
    """The tensors whose bulk is rounded worst."""
    found = outlier_answers.quantized(frame.service(), case.model, case.outlier.texts, case.outlier.scheme)
    st.markdown(
        "##### Where is precision lost?",
        help="Signal to noise of what was rounded there. A massive entry makes the total look fine while everything else is lost, so the "
        "bulk (entries within six standard deviations) stands beside it.",
    )
    order = sorted(found.activations, key=lambda name: found.bulk_sqnr[name])
    rows = [{"activation": n, "bulk SQNR (dB)": _db(found.bulk_sqnr[n]), "total SQNR (dB)": _db(found.sqnr[n])} for n in order[:WORST]]
    if not rows:
        st.info("This scheme rounds no activation on its own.", icon=":material/info:")
        return
    st.dataframe(rows, hide_index=True)
    st.caption(f"Showing the worst {len(rows)} of {len(order)}.")


def _db(value: float) -> float | None:
    return round(value, 1) if math.isfinite(value) else None


def schemes(case: Case) -> None:
    """The loss of every scheme with its interval."""
    st.markdown("##### Which scheme costs how much?", help="Change of the loss with its 95 % interval; every point is a run.")
    shown, service, refused = [], frame.service(), []
    with st.spinner("Running every scheme ...", show_time=True):
        for name in SCHEMES:
            try:
                one = outlier_answers.quantized(service, case.model, case.outlier.texts, name)
            except Refused as error:
                refused.append(f"{name}: {error}")
                continue
            shown.append(Effect(name, [one.damage], *one.interval()))
    effects("schemes", shown, "loss on rounded numbers - loss (nats per token)", percent=False)
    for reason in refused:
        st.caption(f"Left out: {escaped(reason)}")
