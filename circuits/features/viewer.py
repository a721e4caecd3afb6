"""Feature graphs in the JSON that circuit-tracer's viewer and Neuronpedia read.

Biases and position embeddings have no type there and are left out, which `metadata.info` says; errors and MLPs without transcoder are
"mlp reconstruction error". Write the pruned graph: viewers stop answering at some ten thousand links.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from circuits.edges.tracer import FORMAT, enter
from circuits.features.graph import FeatureGraph, Node
from interp.safefiles import write_text

TYPES = {
    "feature": "cross layer transcoder", "embed": "embedding", "error": "mlp reconstruction error", "mlp": "mlp reconstruction error",
    "logit": "logit",
}  # fmt: skip


def write(path: str | Path, graph: FeatureGraph, most: int = 20_000) -> None:
    """Writes a graph, and enters it in `graph-metadata.json` beside it. ValueError if it has more than `most` links."""
    path = Path(path)
    if path.suffix != ".json":
        raise ValueError(f"{path}: an attribution graph is a .json file; its name is the graph's slug.")
    shown = [i for i, node in enumerate(graph.nodes) if node.kind in TYPES]
    links = [(t, s) for t, s in (graph.weights != 0).nonzero().tolist() if t in set(shown) and s in set(shown)]
    if not 0 < len(links) <= most:
        raise ValueError(f"The graph has {len(links)} links; 1 to most={most} can be written. Prune it first.")
    ids = {i: _id(graph.nodes[i]) for i in shown}
    reached = graph.influence.tolist()
    order = sorted(shown, key=lambda i: -reached[i])
    whole, running, upto = sum(reached[i] for i in shown) or 1.0, 0.0, {}
    for i in order:
        running += reached[i]
        upto[i] = running / whole
    nodes = [_entry(graph.nodes[i], ids[i], upto[i], float(graph.target_weights[i]), len(graph.words)) for i in shown]
    left = sorted({node.kind for node in graph.nodes} - TYPES.keys())
    info = {"generator": {"name": "interp-workbench"}, "left_out": left, "features_of": graph.n_active, "scores": asdict(graph.scores)}
    words: Sequence[str] = graph.words
    metadata: dict[str, Any] = {
        "slug": path.stem, "scan": graph.model, "transcoder_list": [], "prompt_tokens": list(words), "prompt": " ".join(words),
        "schema_version": FORMAT, "info": info,
    }  # fmt: skip
    plain = {"metadata": metadata, "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""}}
    weights = [{"source": ids[s], "target": ids[t], "weight": float(graph.weights[t, s])} for t, s in links]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(plain | {"nodes": nodes, "links": weights}, indent=1))
    enter(path.with_name("graph-metadata.json"), metadata)


def _id(node: Node) -> str:
    """layer_feature_position, as circuit-tracer names nodes; errors stand for the MLP as a whole."""
    if node.kind == "embed":
        return f"E_{node.feature}_{node.pos}"
    if node.kind in ("error", "mlp"):
        return f"0_{node.layer}_{node.pos}_error"
    feature, layer = node.feature or 0, node.layer or 0
    return f"{layer + (node.kind == 'logit')}_{feature}_{node.pos}"


def _entry(node: Node, own: str, upto: float, probability: float, n_pos: int) -> dict[str, Any]:
    layer = "E" if node.kind == "embed" else own.split("_")[0] if node.kind == "logit" else str(node.layer)
    return {
        "node_id": own, "jsNodeId": own, "feature": -1 if node.feature is None else node.feature, "layer": layer, "ctx_idx": node.pos,
        "feature_type": TYPES[node.kind], "clerp": node.label, "token_prob": probability if node.kind == "logit" else 0.0,
        "is_target_logit": node.target, "run_idx": 0, "reverse_ctx_idx": n_pos - 1 - (node.pos or 0),
        "influence": None if node.target else upto, "activation": node.activation,
    }  # fmt: skip
