"""Circuits as attribution graphs: the JSON that circuit-tracer's viewer and Neuronpedia read, written and read back.

    tracer.write("graphs/ioi.json", scores.circuit(0.05), tokens=["<bos>", "When", ..])     # metadata, qParams, nodes, links

Node ids are layer_feature_position, the layer "E" for the embedding and one past the last plus one for the logits. A head's feature is its
index, an MLP's the number of heads. Edge scores are sums over positions, so all nodes stand in one column, the last, where the metric is
read. A link's weight is the score with the sign in which larger helps the metric; `reader` (q, k, v), which viewers pass over, tells the
inputs of a head apart. A node's influence is what circuit-tracer prunes by: sort nodes by the size of what they send, largest first; how
much of the total is sent down to and with this one.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch

from circuits.edges.circuit import Circuit
from circuits.edges.graph import Graph
from circuits.edges.mib import read_json
from circuits.edges.scores import HELPFUL, EdgeScores, Header
from interp.safefiles import write_text

FORMAT = 1  # circuit-tracer's schema_version


def write(path: str | Path, circuit: Circuit, tokens: Sequence[str] | None = None, most: int = 20_000) -> None:
    """Writes a circuit with its scores, and enters it in `graph-metadata.json` beside it, from which viewers list graphs.

    path    its name without .json is the graph's slug
    tokens  of the prompt that stands for the task; None: the task's name
    most    links; ValueError if the circuit has more, since viewers stop answering
    """
    path, scores = Path(path), circuit.scores
    if scores is None:
        raise ValueError("The links of an attribution graph have weights, and this circuit has no scores; use Circuit.to_mib.")
    if path.suffix != ".json":
        raise ValueError(f"{path}: an attribution graph is a .json file; its name is the graph's slug.")
    if not 0 < circuit.n_edges <= most:
        raise ValueError(f"The circuit has {circuit.n_edges} edges; a graph has 1 to most={most} links. Choose another size.")
    words = [scores.header.task] if tokens is None else [str(token) for token in tokens]
    if not words:
        raise ValueError("No tokens were given; None takes the task's name.")
    ids = _ids(circuit.graph, len(words) - 1)
    metadata = _metadata(path.stem, circuit, words)
    qparams = {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""}
    graph = {"metadata": metadata, "qParams": qparams, "nodes": _nodes(circuit, ids, len(words) - 1), "links": _links(circuit, ids)}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(graph, indent=1))
    enter(path.with_name("graph-metadata.json"), metadata)


def read(path: str | Path) -> Circuit:
    """The circuit of a file that `write` made, with the scores of its edges; other edges score 0. ValueError names what is wrong."""
    found = read_json(path, "an attribution graph", metadata=dict, qParams=dict, nodes=list, links=list)
    entries = found["nodes"] + found["links"]
    if not all(isinstance(entry, dict) for entry in entries) or not all(isinstance(n.get("node_id"), str) for n in found["nodes"]):
        raise ValueError(f"{path}: nodes and links are objects, and each node has a node_id, a text.")
    info = found["metadata"].get("info")
    about = info.get("circuit") if isinstance(info, dict) else None
    if not isinstance(about, dict) or not {"graph", "header"} <= about.keys():
        raise ValueError(f"{path} is an attribution graph of another tool: its nodes are features, not the heads and MLPs of a model.")
    graph, header = _graph(about["graph"], path), Header.read(about["header"])
    names = {node["node_id"]: _name(graph, node, path) for node in found["nodes"]}
    edges, scores = torch.zeros_like(graph.real), torch.zeros(graph.real.shape, dtype=torch.float64)
    for link in found["links"]:
        for end in ("source", "target"):
            if not isinstance(link.get(end), str) or link[end] not in names:
                raise ValueError(f"{path}: a link's {end} is {link.get(end)!r}, which is no node of the file.")
        target, reader, weight = names[link["target"]], link.get("reader"), link.get("weight")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise ValueError(f"{path}: the weight of {link['source']} -> {link['target']} is {weight!r}; weights are finite numbers.")
        try:
            at = graph.edge(f"{names[link['source']]}->{target}{f'<{reader}>' if reader else ''}")
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        edges[at], scores[at] = True, weight * HELPFUL[header.sign]
    return Circuit(graph, edges, EdgeScores(graph, scores, header), about.get("fraction"), about.get("rank_by"))


def _graph(given: Any, path: str | Path) -> Graph:
    sizes: dict[str, Any] = {f.name: given.get(f.name) for f in fields(Graph)} if isinstance(given, dict) else {}
    if not sizes or any(type(size) is not (bool if name == "parallel" else int) for name, size in sizes.items()):
        raise ValueError(f"{path}: info.circuit.graph has n_layers, n_heads and d_model, whole numbers, and parallel; given {given!r:.99}.")
    return Graph(**sizes)


def _metadata(slug: str, circuit: Circuit, words: Sequence[str]) -> dict[str, Any]:
    assert circuit.scores is not None
    header = asdict(circuit.scores.header) | {"options": dict(circuit.scores.header.options)}
    about = {"graph": asdict(circuit.graph), "header": header, "fraction": circuit.fraction, "rank_by": circuit.rank_by}
    said = f"{circuit.n_edges} of {circuit.graph.n_edges} edges by {header['method']} on {header['task']} ({header['n_prompts']} prompts)"
    info = {"description": f"{said}; scores are summed over positions, so all nodes stand in the last column.", "circuit": about}
    spaced = any(" " in word for word in words)  # tokens that carry their spaces
    return {
        "slug": slug, "scan": header["model"], "transcoder_list": [], "prompt_tokens": list(words), "schema_version": FORMAT,
        "prompt": ("" if spaced else " ").join(words), "info": info | {"generator": {"name": "interp-workbench"}},
    }  # fmt: skip


def _ids(graph: Graph, position: int) -> list[str]:
    """A node id for every node of a graph, in its order."""
    layers = [f"{layer}_{feature}_{position}" for layer in range(graph.n_layers) for feature in range(graph.n_heads + 1)]
    return [f"E_0_{position}", *layers, f"{graph.n_layers + 1}_0_{position}"]


def _nodes(circuit: Circuit, ids: list[str], position: int) -> list[dict[str, Any]]:
    assert circuit.scores is not None
    graph = circuit.graph
    sent = circuit.scores.scores.double().abs().masked_fill(~circuit.edges, 0.0).sum(1)
    order = sent.argsort(descending=True, stable=True)
    influence = torch.empty_like(sent)
    influence[order] = sent[order].cumsum(0) / sent.sum().clamp(min=torch.finfo(sent.dtype).tiny)
    out = []
    for i in graph.in_circuit(circuit.edges).nonzero().squeeze(1).tolist():
        layer, feature, _ = ids[i].split("_")
        last, name = i == graph.n_sources, graph.nodes[i]
        kind = "logit" if last else "embedding" if i == 0 else "mlp" if name[0] == "m" else "attention head"
        out.append({
            "node_id": ids[i], "jsNodeId": ids[i], "feature": int(feature), "layer": layer, "ctx_idx": position, "feature_type": kind,
            "clerp": circuit.scores.header.metric if last else name, "token_prob": 0.0, "is_target_logit": last, "run_idx": 0,
            "reverse_ctx_idx": 0, "influence": None if last else float(influence[i]), "activation": None,
        })  # fmt: skip
    return out


def _links(circuit: Circuit, ids: list[str]) -> list[dict[str, Any]]:
    assert circuit.scores is not None
    graph, helpful = circuit.graph, HELPFUL[circuit.scores.header.sign]
    owners, names, out = graph.owner.tolist(), graph.destinations, []
    for u, v in circuit.edges.nonzero().tolist():
        link: dict[str, Any] = {"source": ids[u], "target": ids[owners[v]], "weight": float(circuit.scores.scores[u, v]) * helpful}
        out.append(link | ({"reader": names[v][-2]} if names[v].endswith(">") else {}))
    return out


def _name(graph: Graph, node: Mapping[str, Any], path: str | Path) -> str:
    """The graph's name of a node of a file."""
    layer, kind = str(node.get("layer")), node.get("feature_type")
    name = {"embedding": "input", "logit": "logits", "mlp": f"m{layer}", "attention head": f"a{layer}.h{node.get('feature')}"}.get(
        str(kind)
    )
    if name not in graph.nodes:
        raise ValueError(f"{path}: node {node.get('node_id')!r} ({kind}, layer {layer}) is not one of a graph with {graph.describe()}.")
    return name


def enter(path: Path, metadata: Mapping[str, Any]) -> None:
    """Adds a graph to the folder's list, in place of one of the same slug."""
    listed = read_json(path, "a list of graphs", graphs=list)["graphs"] if path.is_file() else []
    write_text(path, json.dumps({"graphs": [*(g for g in listed if g.get("slug") != metadata["slug"]), metadata]}, indent=1))
