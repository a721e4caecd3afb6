"""What helps: the chosen scheme without and with each remedy, on the same documents."""

import streamlit as st

from app import frame, outlier_answers
from app.case import SCHEMES, Case
from app.parts.charts import Effect, effects
from app.parts.choices import choice
from app.parts.metrics import Box, boxes, escaped

COLUMNS = {
    "remedy": "remedy", "loss_float": "loss before rounding", "loss_quantized": "loss rounded", "kl": "KL",
    "recovered": "share of the KL gone", "bulk_sqnr": "bulk SQNR (dB)", "worst": "worst tensor",
    "inf_norm": "max inf-norm", "notes": "notes",
}  # fmt: skip


def section(case: Case) -> None:
    known = {name: name for name in SCHEMES if name != "llm.int8"}  # which is a remedy itself
    shown = case.outlier.mended_scheme
    choice("outlier.scheme", "Scheme", known, "select", shown=shown, width=260)
    with st.spinner("Trying every remedy ...", show_time=True):
        answer = frame.attempt(lambda: outlier_answers.remedied(frame.service(), case.model, case.outlier.texts, shown))
    if answer is None:
        return
    found, left_out = answer
    alone, best = found.rows[0].evaluation, found.best
    boxes("remedies", [
        Box("KL without remedies", f"{alone.kl:.5f}", f"loss {alone.damage:+.4f}", "KL(model || rounded), nats per token."),
        Box("Least KL", f"{best.evaluation.kl:.5f}", escaped(best.name), "Of all remedies tried."),
        Box("Recovered", f"{found.recovered(best):.0%}", "of the KL without remedies", "1 - KL with it / KL without."),
        Box("Documents", str(found.n_evaluated), f"{found.n_calibration} others to calibrate",
            "Measured on them. Ranges, smoothing and kept features never see the documents that are measured."),
    ])  # fmt: skip
    st.markdown(
        "##### How far is the rounded model from the model?",
        help="Smoothing and rotation keep the model's function and make it easier to round; keeping features or position 0 in floating "
        "point costs speed instead. What a remedy costs before rounding is in the table.",
    )
    effects("remedy_kl", [Effect(row.name, [row.evaluation.kl]) for row in found.rows], "KL (nats per token)", percent=False)
    st.dataframe(found.table()[list(COLUMNS)].rename(columns=COLUMNS).round(5), hide_index=True)
    for reason in left_out:
        st.caption(f"Left out: {escaped(reason)}")
    st.caption(f"{outlier_answers.documents(frame.service(), case.model, case.outlier.texts).said}.")
