"""Which features bring the answer about: the graph of exact edges from tokens to the logit difference."""

import streamlit as st

from app import feature_answers, frame
from app.case import Case
from app.parts.dashboard_view import name_of
from app.parts.feature_graph import feature_graph
from app.parts.metrics import Box, boxes
from app.parts.question import question

KEY = "feature_graph"


def section(case: Case) -> None:
    st.markdown(
        "##### What brings the answer about? :green-badge[live]",
        help="MLPs are replaced by their transcoders, attention patterns and norm scales are frozen, errors are kept: then every number is "
        "the exact sum of its incoming edges (Dunefsky et al. 2024). What the graph cannot explain is drawn as errors.",
    )
    question(case)
    found = frame.attempt(lambda: feature_answers.graph(frame.service(), case))
    if found is None:
        return
    graph, seconds = found
    boxes("graph", [
        Box("Replacement score", f"{graph.scores.replacement:.1%}", "of the influence ends in tokens",
            "The rest ends in the transcoders' errors, or in features that were not traced."),
        Box("Completeness score", f"{graph.scores.completeness:.1%}", "of the nodes' input is no error", "Weighed by influence."),
        Box("Traced features", f"{graph.n_features}", f"of {graph.n_active} active ones", "Those with the most influence."),
        Box("Sums close to", f"{graph.closure:.1e}", "largest gap of any node",
            "Edges into a node against its value: rounding in float32, exact in float64."),
    ])  # fmt: skip
    n_layers = frame.service().model(case.model).n_layers
    feature_graph(graph, n_layers, case.feature.name, key=KEY, on_pick=_clicked)
    st.html(f'<span class="badge exact">exact</span> <span class="quiet">one forward, linear passes back: {1000 * seconds:.0f} ms; orange '
            "diamonds: what is not explained, grey squares: tokens; biases are not drawn, the download has them</span>")  # fmt: skip
    most(case)


def most(case: Case) -> None:
    """The most influential features by name."""
    graph, _ = feature_answers.graph(frame.service(), case)
    reports = frame.attempt(lambda: feature_answers.reports_of(frame.service(), case))
    if reports is None:
        return
    rows = []
    for identity, influence in graph.top(12, "feature"):
        node = graph[identity]
        assert node.layer is not None and node.feature is not None and node.pos is not None
        rows.append({
            "feature": f"L{node.layer} #{node.feature}", "at": f"{node.pos} {graph.words[node.pos]}", "influence": round(influence, 3),
            "activation": round(node.activation or 0.0, 2), "what it is": name_of(reports[node.layer], node.feature),
        })  # fmt: skip
    st.dataframe(rows, hide_index=True)
    st.caption(f"The {len(rows)} most influential of {graph.n_features} traced features.")


def _clicked() -> None:
    """A feature's node opens its dashboard."""
    _, layer, _, feature = str(st.session_state[KEY].picked).split(".")
    frame.change_field("feature.name", f"{layer}.{feature}")
    frame.change_field("feature.layer", int(layer))
    frame.change_field("feature.part", "dashboard")
