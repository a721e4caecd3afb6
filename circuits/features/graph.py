"""A feature graph: the active features, tokens and errors that bring a target about, with every edge's contribution."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.features.influence import Scores, influence, normalized, share_above
from circuits.features.replacement import BIASES

if TYPE_CHECKING:
    import networkx
    import pandas as pd
    import plotly.graph_objects as go

FORMAT = 1
TOKENS = ("embed", "pos_embed")
ERRORS = ("error", "mlp", "unexpanded")
"""What is not explained: errors of transcoders, MLPs without one, and active features whose own input was not traced."""


@dataclass(frozen=True)
class Node:
    """One node. Kinds: feature, embed, pos_embed, error, mlp (without transcoder), the biases, unexpanded (active features left out),
    pruned (what pruning took away), and the targets: logit, or a feature."""

    id: str
    kind: str
    layer: int | None = None
    pos: int | None = None
    feature: int | None = None
    """Index in the layer's dictionary; of an embedding or a logit the token's id."""
    activation: float | None = None
    """Of a feature its activation, of a target logit the logit."""
    label: str = ""
    target: bool = False


@dataclass(frozen=True, eq=False)
class FeatureGraph:
    """Nodes and edges of one prompt. weights.sum(1) == values at every node that has input: at all targets and shown features."""

    model: str
    ids: tuple[int, ...]
    """The prompt's tokens."""
    words: tuple[str, ...]
    nodes: tuple[Node, ...]
    """Sources in causal order, targets last; a target feature is among the features."""
    weights: Float[Tensor, "target source"]
    """Contributions between nodes: in units of the target's activation, or logits."""
    values: Float[Tensor, " node"]
    """Pre-activation or logit of nodes with input, NaN for the others."""
    target_weights: Float[Tensor, " node"]
    """What influence starts from: probabilities of target tokens, or 1."""
    n_active: int
    """Active features of the prompt, shown or not."""
    closure: float
    """Largest difference between a node's value and the sum of what all sources bring, before anything was left out."""
    scores: Scores
    """Of the graph before pruning."""
    settings: dict[str, Any]

    @property
    def n_features(self) -> int:
        return sum(node.kind == "feature" for node in self.nodes)

    @property
    def n_edges(self) -> int:
        return int((self.weights != 0).sum())

    @property
    def shares(self) -> Float[Tensor, "target source"]:
        return normalized(self.weights, self._kinds(BIASES, inside=False))

    @property
    def influence(self) -> Float[Tensor, " node"]:
        """Of every node on the targets, by way of the shown nodes; targets have their own weight on top."""
        rows = torch.where(self.values.isnan(), -1, torch.arange(len(self.nodes)))
        return influence(self.shares, rows, self.target_weights)[0] + self.target_weights

    @property
    def totals(self) -> Float[Tensor, " node"]:
        """What each node brings to the targets by all shown ways together, with its sign, in units of the targets times their weights.

        Nodes without input (tokens, errors, biases, what is left out) add up to the targets' values.
        """
        rows = torch.where(self.values.isnan(), -1, torch.arange(len(self.nodes)))
        start = torch.where(self.target_weights > 0, self.target_weights * self.values, 0.0)
        return influence(self.weights / self.values.nan_to_num(1.0)[:, None], rows, start)[0] + start

    @property
    def edge_influence(self) -> Float[Tensor, "target source"]:
        """Share of an edge in its target's input times the target's influence."""
        return self.shares * self.influence[:, None]

    def __getitem__(self, id: str) -> Node:
        for node in self.nodes:
            if node.id == id:
                return node
        raise KeyError(f"No node {id!r} in this graph of {len(self.nodes)}; ids look like {', '.join(n.id for n in self.nodes[:3])}.")

    def index(self, id: str) -> int:
        return self.nodes.index(self[id])

    def top(self, n: int = 10, kind: str | None = None) -> list[tuple[str, float]]:
        """Nodes by influence."""
        order = self.influence.argsort(descending=True, stable=True).tolist()
        found = [(self.nodes[i].id, float(self.influence[i])) for i in order if kind in (None, self.nodes[i].kind)]
        return found[:n]

    def prune(self, node_threshold: float = 0.8, edge_threshold: float = 0.98) -> "FeatureGraph":
        """The fewest nodes that hold `node_threshold` of all influence, then the fewest edges that hold `edge_threshold` of theirs.

        Thresholds are those of circuit-tracer. Targets and biases stay. Features that are left without a way to a target go too. What each
        node loses stands in the node "pruned", so sums still close.
        """
        for name, share in (("node_threshold", node_threshold), ("edge_threshold", edge_threshold)):
            if not 0 < share <= 1:
                raise ValueError(f"{name} is a share of the influence, above 0 and at most 1; given {share!r}.")
        fixed = self._kinds((*BIASES, "pruned")) | (self.target_weights > 0)
        kept = share_above(self.influence.masked_fill(fixed, 0.0), node_threshold) | fixed
        graph = self.only(kept)._closed()
        fixed = graph._kinds((*BIASES, "pruned"))
        strong = share_above(graph.edge_influence.flatten(), edge_threshold).view_as(graph.weights) | fixed
        graph = replace(graph, weights=graph.weights.where(strong, 0.0))._closed()
        while not bool((alive := graph._alive()).all()):
            graph = graph.only(alive)._closed()
        return replace(graph, settings={**self.settings, "node_threshold": node_threshold, "edge_threshold": edge_threshold})

    def _alive(self) -> Tensor:
        fixed = self._kinds((*BIASES, "pruned")) | (self.target_weights > 0)
        return (self.weights != 0).any(0) | fixed

    def _kinds(self, kinds: Sequence[str], inside: bool = True) -> Tensor:
        return torch.tensor([(node.kind in kinds) == inside for node in self.nodes])

    def only(self, kept: Bool[Tensor, " node"]) -> "FeatureGraph":
        """Some of the nodes, and the edges among them."""
        index = kept.nonzero().flatten()
        part: dict[str, Any] = {name: getattr(self, name)[index] for name in ("values", "target_weights")}
        return replace(self, nodes=tuple(self.nodes[i] for i in index.tolist()), weights=self.weights[index][:, index], **part)

    def _closed(self) -> "FeatureGraph":
        """With what is missing to the values in the node "pruned"."""
        nodes, weights, values, start = self.nodes, self.weights, self.values, self.target_weights
        if "pruned" not in [node.kind for node in nodes]:
            nodes = (Node("pruned", "pruned", label="pruned"), *nodes)
            weights = torch.nn.functional.pad(weights, (1, 0, 1, 0))
            values, start = torch.cat([values.new_full((1,), torch.nan), values]), torch.cat([start.new_zeros(1), start])
        place = [node.kind for node in nodes].index("pruned")
        weights = weights.clone()
        weights[:, place] = 0.0
        weights[:, place] = torch.where(values.isnan(), 0.0, values - weights.sum(1))
        return replace(self, nodes=nodes, weights=weights, values=values, target_weights=start)

    # --- as tables, figures, files ------------------------------------------------------------------------------------------

    def table(self) -> "pd.DataFrame":
        """One row per edge, the most influential first."""
        import pandas as pd

        target, source = (self.weights != 0).nonzero(as_tuple=True)
        part = self.edge_influence[target, source]
        order = part.argsort(descending=True, stable=True)
        target, source = target[order], source[order]
        columns = {
            "source": [self.nodes[i].id for i in source.tolist()], "target": [self.nodes[i].id for i in target.tolist()],
            "source_kind": [self.nodes[i].kind for i in source.tolist()], "weight": self.weights[target, source].tolist(),
            "share": self.shares[target, source].tolist(), "influence": part[order].tolist(),
        }  # fmt: skip
        return pd.DataFrame(columns).assign(model=self.model)

    def node_table(self) -> "pd.DataFrame":
        """One row per node."""
        import pandas as pd

        rows = [asdict(node) for node in self.nodes]
        whole = {"layer": "Int64", "pos": "Int64", "feature": "Int64"}
        frame = pd.DataFrame(rows).astype(whole).assign(value=self.values.tolist(), influence=self.influence.tolist())
        return frame.assign(word=[self._word(node) for node in self.nodes], model=self.model)

    def networkx(self) -> "networkx.DiGraph":
        """Nodes by id with their fields and influence; edges from source to target with weight, share and influence."""
        import networkx

        graph = networkx.DiGraph(model=self.model, tokens=list(self.words), **asdict(self.scores))
        for node, part in zip(self.nodes, self.influence.tolist(), strict=True):
            graph.add_node(node.id, **{k: v for k, v in asdict(node).items() if k != "id" and v is not None}, influence=part)
        shares, parts = self.shares, self.edge_influence
        for t, s in (self.weights != 0).nonzero().tolist():
            names = {"weight": float(self.weights[t, s]), "share": float(shares[t, s]), "influence": float(parts[t, s])}
            graph.add_edge(self.nodes[s].id, self.nodes[t].id, **names)
        return graph

    def figure(self, most: int = 60) -> "go.Figure":
        """Nodes by position and layer, edges as lines: the `most` most influential features, with what is shown of how many."""
        from circuits.features import figures

        return figures.graph(self, most)

    def to_json(self, max_edges: int = 20_000) -> str:
        """Everything a viewer needs to prune by itself: nodes with influence, edges as [source, target, weight, influence], counts.

        source and target are indices into `nodes`. Of more than `max_edges` edges the most influential are written; "edges_of" counts all.
        """
        target, source = (self.weights != 0).nonzero(as_tuple=True)
        part = self.edge_influence[target, source]
        order = part.argsort(descending=True, stable=True)[:max_edges]
        rows = [source[order].tolist(), target[order].tolist(), self.weights[target, source][order].tolist(), part[order].tolist()]
        reached = self.influence.tolist()
        nodes = [
            asdict(node) | {"word": self._word(node), "value": None if value != value else value, "influence": round(reach, 6)}
            for node, value, reach in zip(self.nodes, self.values.tolist(), reached, strict=True)
        ]
        plain = {"format": FORMAT, "model": self.model, "ids": self.ids, "words": self.words, "settings": self.settings}
        plain |= {"scores": asdict(self.scores), "closure": self.closure, "features": self.n_features, "features_of": self.n_active}
        edges = [[s, t, float(f"{w:.6g}"), float(f"{p:.4g}")] for s, t, w, p in zip(*rows, strict=True)]
        return json.dumps(plain | {"nodes": nodes, "edges": edges, "edges_of": self.n_edges})

    def _word(self, node: Node) -> str | None:
        return None if node.pos is None or node.kind == "logit" else self.words[node.pos]
