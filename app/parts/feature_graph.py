"""An attribution graph in the browser: what brings a prediction about, node by node, with thresholds that need no server."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.parts.words import visible

if TYPE_CHECKING:
    from circuits.features import FeatureGraph

HERE = Path(__file__).parent
EDGES = 4000  # sent to the browser: the most influential ones
HTML = """<div class="fgraph"><div class="bar">
<label>Nodes: share of the influence
<input type="range" min="5" max="100" value="85" aria-label="Share of the influence that nodes hold"></label>
<label>Edges: share of theirs
<input type="range" min="5" max="100" value="90" aria-label="Share of the influence that edges hold"></label>
<span class="shown" role="status"></span></div>
<div class="scroll"><svg></svg></div><div class="readout" aria-live="polite">&nbsp;</div></div>"""
KINDS = {
    "feature": "feature", "embed": "token", "pos_embed": "token", "error": "error", "mlp": "error", "unexpanded": "error", "logit": "logit",
}  # fmt: skip


@cache
def component() -> Callable[..., Any]:
    """Registered once for the whole server."""
    import streamlit as st

    css, js = (HERE.joinpath(f"feature_graph.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    return st.components.v2.component("workbench_feature_graph", html=HTML, css=css, js=js)


def feature_graph(graph: "FeatureGraph", n_layers: int, selected: str, *, key: str, on_pick: Callable[[], None]) -> Any:
    """Draws it. `selected` is "layer.feature". A click on a feature calls `on_pick`; st.session_state[key].picked is then its node's id."""
    return component()(data=layout(graph, n_layers, selected), key=key, on_picked_change=on_pick)


def layout(graph: "FeatureGraph", n_layers: int, selected: str) -> dict[str, Any]:
    """What the component draws. Nodes without a position (biases, what was left out) are not drawn; the table has them."""
    plain = json.loads(graph.to_json(EDGES))
    drawn = [i for i, node in enumerate(plain["nodes"]) if node["pos"] is not None]
    number = {i: n for n, i in enumerate(drawn)}
    nodes = [_node(plain["nodes"][i], n_layers, selected) for i in drawn]
    edges = [[number[s], number[t], weight, part] for s, t, weight, part in plain["edges"] if s in number and t in number]
    return {
        "nodes": nodes, "edges": edges, "words": [visible(word.strip() or word) for word in plain["words"]],
        "rows": ["tokens", *(f"layer {i}" for i in range(n_layers)), "logits"], "features": plain["features"],
        "features_of": plain["features_of"], "edges_of": plain["edges_of"], "label": "Attribution graph",
    }  # fmt: skip


def _node(node: dict[str, Any], n_layers: int, selected: str) -> dict[str, Any]:
    kind = KINDS.get(node["kind"], "other")
    row = 0 if kind == "token" else n_layers + 1 if kind == "logit" else node["layer"] + 1
    size = "" if node["activation"] is None else f", {'logit' if kind == 'logit' else 'activation'} {node['activation']:.3g}"
    where = "" if kind == "logit" else f" at {node['pos']} {node['word']}"
    say = f"{node['label']}{where}{size}; influence {node['influence']:.3f}"
    return {
        "id": node["id"], "kind": kind, "pos": node["pos"], "row": row, "influence": node["influence"], "fixed": bool(node["target"]),
        "say": say, "selected": f"{node['layer']}.{node['feature']}" == selected,
    }  # fmt: skip
