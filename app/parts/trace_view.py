"""Who writes an outlier dimension, and who lives on it."""

from html import escape

import streamlit as st

from app import frame, outlier_answers
from app.case import Case
from app.parts.charts import Effect, effects
from app.parts.columns import split
from app.parts.metrics import Box, boxes


def section(case: Case) -> None:
    controls(case)
    with st.spinner("Tracing, silencing every producer ...", show_time=True):
        found = frame.attempt(lambda: outlier_answers.traced(frame.service(), case.model, case.outlier.texts, case.outlier.layer_dim))
    if found is None:
        return
    mean = float(found.value.mean())
    boxes("trace", [
        Box("Dimension", f"{found.dim}", f"after layer {found.layer}", "Of the stream that leaves this layer."),
        Box("Its value", f"{mean:.1f}", "mean over prompts", "Where it is largest in each prompt."),
        Box("Loss without it", f"{found.loss_without:.4f}", f"with it {found.loss:.4f}", "The dimension is taken out of the stream at "
            "every position; nats per token.", f"{found.loss_without - found.loss:+.4f}"),
        Box("Loss without another", f"{found.loss_random:.4f}", "a random one",
            "The control: what taking out any dimension costs, the mean of some random ones.", f"{found.loss_random - found.loss:+.4f}"),
    ])  # fmt: skip
    left, right = split("trace", 1, 1)
    with left:
        st.markdown(
            "##### Who writes it?",
            help="Addends of an exact sum, means over prompts; beside them what the value loses when the component is silenced.",
        )
        shown = [Effect(p.component, [p.contribution]) for p in found.producers]
        effects("producers", shown, "addend of the value", percent=False)
        rows = "".join(
            f"<tr><td>{escape(p.component)}</td><td>{p.contribution:+.2f}</td>"
            f"<td>{'not rerun' if p.silenced is None else f'{p.silenced:+.2f}'}</td></tr>"
            for p in found.producers
        )
        st.html(
            f'<table class="lists"><thead><tr><th>component</th><th>addend</th><th>change when silenced</th></tr></thead>{rows}</table>'
        )
        st.caption(
            "Neurons (as L1.neuron7) are part of their MLP's addend; all the others sum to the value. Addend and change differ where later "
            "components answer to what was silenced."
        )
    with right:
        st.markdown("##### Who needs it?", help="Attention to position 0 of every later head, with the dimension and without it.")
        rows = "".join(
            f"<tr><td>{c.layer}.{c.head}</td><td>{c.sink_mass:.3f}</td><td>{c.sink_mass_without:.3f}</td>"
            f"<td>{c.sink_rate:.0%}</td><td>{c.sink_rate_without:.0%}</td></tr>"
            for c in found.consumers
        )
        head = "".join(f"<th>{t}</th>" for t in ("head", "mass on position 0", "without", "prompts with a sink", "without"))
        st.html(f'<table class="lists"><thead><tr>{head}</tr></thead>{rows}</table>')
    st.caption(f"{outlier_answers.documents(frame.service(), case.model, case.outlier.texts).said}.")


def controls(case: Case) -> None:
    """The dimension: the largest one, or one's own."""
    model = frame.service().model(case.model)
    if model.n_layers < 2:
        return
    layer, dim = case.outlier.layer_dim or (-1, 0)
    layer, dim = (layer, dim) if layer < model.n_layers - 1 and dim < model.d_model else (-1, 0)
    with st.container(horizontal=True, gap="medium", vertical_alignment="bottom"):
        frame.shows("trace_layer", layer)
        st.selectbox(
            "After layer", [-1, *range(model.n_layers - 1)], key="trace_layer", on_change=_chosen, width=230,
            format_func=lambda i: "where it is largest" if i < 0 else f"layer {i}",
        )  # fmt: skip
        if layer >= 0:
            frame.shows("trace_dim", dim)
            st.number_input("Dimension", 0, model.d_model - 1, key="trace_dim", on_change=_chosen, width=160)


def _chosen() -> None:
    layer = st.session_state["trace_layer"]
    frame.change_field("outlier.place", "" if layer < 0 else f"{layer}.{st.session_state.get('trace_dim', 0)}")
