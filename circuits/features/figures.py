"""Plotly figures of feature graphs."""

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from interp.figures import GREY, LINE

if TYPE_CHECKING:
    from circuits.features.graph import FeatureGraph, Node

HIGHER, LOWER = "#2166ac", "#b2182b"  # edges that raise and lower their target
SHOWN = 200  # edges drawn


def graph(found: "FeatureGraph", most: int) -> go.Figure:
    """Nodes by position and layer, tokens at the bottom and targets on top; the strongest edges as lines, blue raises and red lowers."""
    reached = found.influence
    order = [i for i in reached.argsort(descending=True, stable=True).tolist() if found.nodes[i].pos is not None]
    features = [i for i in order if found.nodes[i].kind == "feature"][:most]
    others = [i for i in order if found.nodes[i].kind != "feature"][: most + 10]
    shown = sorted({*features, *others, *(i for i, node in enumerate(found.nodes) if node.target)})
    places = _places([found.nodes[i] for i in shown])
    at = dict(zip(shown, places, strict=True))
    figure = go.Figure()
    strength = found.edge_influence
    pairs = [(float(strength[t, s]), t, s) for t in shown for s in shown if float(found.weights[t, s])]
    for sign, colour in ((1, HIGHER), (-1, LOWER)):
        xs: list[float | None] = []
        ys: list[float | None] = []
        for _, t, s in sorted(pairs, reverse=True)[:SHOWN]:
            if float(found.weights[t, s]) * sign > 0:
                xs += [at[s][0], at[t][0], None]
                ys += [at[s][1], at[t][1], None]
        name = "raises" if sign > 0 else "lowers"
        figure.add_scatter(x=xs, y=ys, mode="lines", line={"color": colour, "width": 1}, opacity=0.4, hoverinfo="skip", name=name)
    hover = [f"{found.nodes[i].id}<br>{found.nodes[i].label}<br>influence {float(reached[i]):.3f}" for i in shown]
    colours = [LINE if found.nodes[i].kind == "feature" else "black" if found.nodes[i].target else GREY for i in shown]
    figure.add_scatter(
        x=[p[0] for p in places], y=[p[1] for p in places], mode="markers", marker={"size": 9, "color": colours}, hovertext=hover,
        hoverinfo="text", name="nodes",
    )  # fmt: skip
    said = f"showing {len(features)} of {found.n_active} active features, {min(SHOWN, len(pairs))} of {found.n_edges} edges"
    figure.update_layout(title={"text": f"{found.model}: {said}"}, template="plotly_white", yaxis_title="layer")
    figure.update_xaxes(tickvals=list(range(len(found.words))), ticktext=list(found.words), title="token")
    return figure


def _places(nodes: "list[Node]") -> list[tuple[float, float]]:
    """(x, y): nodes of one layer and position stand side by side within the position."""
    counts: dict[tuple[float, int], int] = {}
    level = [_level(node) for node in nodes]
    for node, y in zip(nodes, level, strict=True):
        key = (y, node.pos or 0)
        counts[key] = counts.get(key, 0) + 1
    seen: dict[tuple[float, int], int] = {}
    out = []
    for node, y in zip(nodes, level, strict=True):
        key = (y, node.pos or 0)
        seen[key] = seen.get(key, -1) + 1
        out.append((key[1] + 0.8 * (seen[key] + 0.5) / counts[key] - 0.4, y))
    return out


def _level(node: "Node") -> float:
    if node.layer is None:
        return -1.0 if node.kind == "embed" else -1.3
    return node.layer + (0.0 if node.kind in ("feature", "logit") else -0.3)


def bars(names: list[str], values: list[float], target: str, of: int) -> go.Figure:
    """Horizontal bars, the first on top."""
    figure = go.Figure(go.Bar(x=values, y=names, orientation="h", marker={"color": [HIGHER if v > 0 else LOWER for v in values]}))
    figure.update_layout(title={"text": f"{target}: {len(names)} of {of} parts"}, template="plotly_white", xaxis_title="contribution")
    figure.update_yaxes(autorange="reversed", type="category")
    return figure
