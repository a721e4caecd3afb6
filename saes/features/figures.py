"""Figures of features."""

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from saes.evaluation import LIVE

if TYPE_CHECKING:
    from saes.features.activations import FeatureActivations
    from saes.features.detection import Detection
    from saes.features.reports import Report, Reports
    from saes.features.weights import LogitWeights

BLUE, RED = "#2563eb", "#b2182b"


def report(found: "Report") -> go.Figure:
    """Left: active tokens by activation. Right: promoted and suppressed tokens."""
    figure = make_subplots(1, 2, subplot_titles=("Activations", "Logit weights"), column_widths=[0.5, 0.5])
    n = len(found.histogram)
    centres = [found.maximum * (i + 0.5) / n for i in range(n)]
    figure.add_trace(go.Bar(x=centres, y=found.histogram, marker_color=BLUE, name="tokens"), 1, 1)
    tokens = [*found.promoted, *reversed(found.suppressed)][::-1]
    figure.add_trace(_bars(tokens), 1, 2)
    figure.update_yaxes(title_text="tokens", row=1, col=1)
    figure.update_yaxes(tickvals=list(range(len(tokens))), ticktext=[t for t, _ in tokens], row=1, col=2)
    figure.update_xaxes(title_text="activation", row=1, col=1)
    figure.update_xaxes(title_text="logits x positive factor", row=1, col=2)
    title = f"{found.model}, {found.site}, feature {found.feature}: active on {found.density:.2%} of {found.tokens} tokens"
    return figure.update_layout(title=title, showlegend=False)


def logit_weights(found: "LogitWeights", row: int) -> go.Figure:
    """Promoted and suppressed tokens of one of the features."""
    pairs = [list(zip(ids[row].tolist(), values[row].tolist(), strict=True)) for _, ids, values in found._both()]
    tokens = [(found.words[i], value) for i, value in (*pairs[0], *reversed(pairs[1]))][::-1]
    figure = go.Figure(_bars(tokens))
    title = f"{found.model}, {found.site}, feature {found.features[row]}: what does it promote and suppress?"
    figure.update_yaxes(tickvals=list(range(len(tokens))), ticktext=[t for t, _ in tokens])
    return figure.update_layout(title=title, xaxis_title="logits x positive factor")


def detection(found: "Detection") -> go.Figure:
    """Held-out F1 of each variable, by group."""
    figure = go.Figure()
    for kind in dict.fromkeys(found.variables.kinds):
        chosen = [i for i, k in enumerate(found.variables.kinds) if k == kind]
        groups, names = ([each[i] for i in chosen] for each in (found.variables.groups, found.variables.names))
        figure.add_trace(go.Box(x=groups, y=found.f1[chosen], text=names, name=kind, boxpoints="all"))
    return figure.update_layout(title="How well does the best feature tell a variable?", yaxis_title="F1 on documents not chosen on")


def _bars(tokens: list[tuple[str, float]]) -> go.Bar:
    """Numbered places: two ids may have the same text, and bars of one name would be stacked."""
    colors = [BLUE if value >= 0 else RED for _, value in tokens]
    return go.Bar(x=[v for _, v in tokens], y=list(range(len(tokens))), orientation="h", marker_color=colors, name="logits")


def reports(found: "Reports") -> go.Figure:
    """Histogram of log10 density."""
    logs = np.log10(np.maximum(found.density, LIVE))
    figure = go.Figure(go.Histogram(x=logs, xbins={"start": -5, "end": 0.25, "size": 0.25}, marker_color=BLUE))
    dead = len(found) - len(found.alive)
    title = f"{found.model}, {found.target_site}: {len(found)} features, {dead} never active on {found.statistics.tokens} tokens"
    return figure.update_layout(
        title=title, xaxis_title="log10 fraction of tokens (dead features in the first bar)", yaxis_title="features"
    )


def activations(found: "FeatureActivations", row: int, n: int) -> go.Figure:
    """The n strongest features of a prompt over its tokens."""
    features = found.top(row, n)
    values = found.dense(row)[:, features].T
    words = [f"{i}: {word}" for i, word in enumerate(found.tokens[row])]
    heat = go.Heatmap(
        z=values, x=words, y=[f"feature {i}" for i in features], colorscale="Blues", zmin=0, colorbar={"title": {"text": "activation"}}
    )
    title = f"{found.model}, {found.site}: {len(features)} of {found.n_active(row)} active features"
    return go.Figure(heat).update_layout(title=title, xaxis_title="token", yaxis={"autorange": "reversed"})
