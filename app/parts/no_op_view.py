"""Which heads do nothing: every measure of every head, and criteria that one can move; the ablation always stands beside the signs."""

from typing import TYPE_CHECKING

import streamlit as st

from app import frame, outlier_answers
from app.case import COSTS, OUTPUT_SHARES, SINK_SHARES, Case
from app.parts.choices import choice
from app.parts.colors import diverging, sequential
from app.parts.columns import split
from app.parts.matrix import matrix
from app.parts.metrics import escaped
from app.parts.question import to_head
from app.service import Refused, short_name

if TYPE_CHECKING:
    from interp.quant.no_op_heads import HeadReport

KEY = "no_op_grid"
SIGNED = ("loss_zero", "loss_mean", "loss_bos")


def section(case: Case) -> None:
    with st.spinner("Measuring every head, and the loss without it ...", show_time=True):
        report = frame.attempt(lambda: outlier_answers.heads(frame.service(), case.model, case.outlier.texts))
    if report is None:
        return
    left, right = split("no-op", 6, 7)
    with left:
        grid(case, report)
    with right:
        criteria(case, report)
    st.dataframe(outlier_answers.meets(report, case.outlier).round(4), hide_index=True, height=320)
    said = outlier_answers.documents(frame.service(), case.model, case.outlier.texts).said
    st.caption(
        f"{said}; unedited model; the longest has {report.longest} tokens, with which sinks fall. Sinks are over eps = {report.eps:g}, "
        f"small outputs below tau = {report.tau:g}. no_op[family]: on that kind of document alone."
    )
    others(case)


def grid(case: Case, report: "HeadReport") -> None:
    """One square per head, coloured by a column of the report."""
    from interp.quant.no_op_heads import COLUMNS

    column = case.outlier.column
    unit, meaning = COLUMNS[column]
    choice("outlier.column", "Colour the heads by", {name: name for name in COLUMNS}, "select", meaning)
    st.markdown(f"##### {escaped(meaning[:1].upper() + meaning[1:])}")
    values = report[column].tolist()
    limit = max((abs(v) for row in values for v in row if v == v), default=0.0)
    n_heads = len(values[0])
    quiet = outlier_answers.meets(report, case.outlier).query("does_nothing")
    cells = []
    for layer, row in enumerate(values):
        cells.append([])
        for head, value in enumerate(row):
            background, text = (diverging if column in SIGNED else sequential)(-value if column in SIGNED else value, limit)
            shown = "–" if value != value else f"{value:+.3f}" if column in SIGNED else f"{value:.2f}"
            cells[-1].append(
                {"t": shown if n_heads <= 8 else "", "bg": background, "fg": text, "say": f"Head {layer}.{head}: {shown} {unit}"}
            )
    matrix(
        [f"L{i}" for i in range(len(values))], [f"H{i}" for i in range(n_heads)], cells, key=KEY, label=meaning, on_pick=_picked,
        size=(max(20, min(76, 290 // n_heads)), 42 if len(values) <= 8 else 26), selected=case.layer_head,
        marked=list(zip(quiet.layer.tolist(), quiet["head"].tolist(), strict=True)), 
        hint="Orange dot: does nothing by the criteria. Click: that head.",
    )  # fmt: skip
    st.html(f'<span class="badge exact">exact</span> <span class="quiet">in {unit}; loss {report.loss:.3f} nats per token</span>')
    if case.layer_head is not None and case.layer_head[0] < len(values) and case.layer_head[1] < n_heads:
        to_head(case, case.head)


def _picked() -> None:
    layer, head = st.session_state[KEY].picked
    frame.change(head=f"{layer}.{head}")


def criteria(case: Case, report: "HeadReport") -> None:
    """Three thresholds; a head that meets all of them does nothing."""
    st.markdown(
        "##### When does a head do nothing?",
        help="Attention to a sink may carry a bias, and a small output may matter: neither sign proves it, so the loss without the head is "
        "a criterion of its own. Move it to the right to see which heads only look idle.",
    )
    choice("outlier.sink", "At least this share of its attention is on position 0", {v: f"{v:.0%}" for v in SINK_SHARES}, "slider")
    outputs = {v: f"{v:.0%}" if v < 10 else "any" for v in OUTPUT_SHARES}
    choice("outlier.output", "It writes less than this share of the stream", outputs, "slider")
    costs = {v: f"{v:g}" if v < 10 else "any" for v in COSTS}
    choice("outlier.cost", "The loss changes by less than this without it (nats per token)", costs, "slider")
    table = outlier_answers.meets(report, case.outlier)
    signs = table[(table.sink_mass >= case.outlier.sink) & (table.output_to_stream < case.outlier.output)]
    quiet, n = table[table.does_nothing], len(table)
    st.metric("Heads that do nothing", f"{len(quiet)} of {n}", border=True, help="All three criteria, on these documents.")
    both = f"{len(signs)} of {n} heads look idle by the first two; without {len(signs) - len(quiet)} of these the loss changes by more."
    names = ", ".join(f"{row.layer}.{row.head}" for row in quiet.itertuples()) or "none"
    st.caption(f"{both} Doing nothing: {names}.")


def others(case: Case) -> None:
    """The same criteria on the bundled models."""
    from interp.zoo import bundled

    st.markdown("##### By the same criteria, side by side")
    rows, refused, service = [], [], frame.service()
    with st.spinner("Measuring the other bundled models ...", show_time=True):
        for name in dict.fromkeys([case.model, *bundled()]):
            try:
                report = outlier_answers.heads(service, name, case.outlier.texts)
                found = outlier_answers.statistics(service, name, case.outlier.texts)
            except Refused as error:
                refused.append(f"{short_name(name)}: {error}")
                continue
            table = outlier_answers.meets(report, case.outlier)
            rows.append({
                "model": short_name(name), "do nothing": int(table.does_nothing.sum()), "of heads": len(table),
                "documents": report.n_prompts,
                "mean mass on position 0": round(float(table.sink_mass.mean()), 3),
                f"heads over {report.eps:.0%} (share of prompts)": round(float(table.sink_rate.mean()), 3),
                "loss": round(report.loss, 3), "max inf-norm of blocks": round(found.inf_norm["block"], 1),
                "mean kurtosis": round(found.mean_kurtosis, 1),
                "massive entries": sum(t.massive for t in found.tensors),
            })  # fmt: skip
    st.dataframe(rows, hide_index=True)
    for reason in refused:
        st.caption(f"Left out: {escaped(reason)}")
