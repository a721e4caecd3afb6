"""Curves with intervals, and effects beside their controls, in the colours of the page."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import streamlit as st

if TYPE_CHECKING:
    import plotly.graph_objects as go

CONTEXT, MEMORY, NEITHER, NOW, CONTROL = "#2166ac", "#b2182b", "#94a3b8", "#f59e0b", "#cbd5e1"
INK, GRID = "#475569", "#eef2f7"


@dataclass(frozen=True)
class Line:
    """Values over x, with the ends of their intervals where there are some."""

    name: str
    color: str
    values: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    dash: str = "solid"
    listed: bool = True
    """Whether it stands in the legend."""


@dataclass(frozen=True)
class Effect:
    """A number with its interval, or, of a control, many numbers."""

    name: str
    values: Sequence[float]
    low: float | None = None
    high: float | None = None
    control: bool = False


def lines(
    key: str, x: Sequence[float], shown: Sequence[Line], x_title: str, y_title: str, *, log: bool = False, percent: bool = True,
    mark: float | None = None, height: int = 290, from_zero: bool = True,
) -> None:  # fmt: skip
    """One line per series with its band; `mark` is the present x. Rates are fractions and drawn in percent."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for line in shown:
        if len(line.low):
            both = {"x": [*x, *reversed(x)], "y": [*line.high, *reversed(line.low)]}
            figure.add_scatter(
                **both, fill="toself", fillcolor=line.color, opacity=0.14, line={"width": 0}, hoverinfo="skip", showlegend=False
            )
        form = "%{y:.1%}" if percent else "%{y:.3g}"
        figure.add_scatter(
            x=list(x), y=list(line.values), name=line.name, showlegend=line.listed, mode="lines+markers", marker={"size": 5},
            hovertemplate=f"{line.name}: {form}<extra></extra>", line={"color": line.color, "width": 2, "dash": line.dash},
        )  # fmt: skip
    if mark is not None:
        figure.add_vline(mark, line={"color": NOW, "width": 2, "dash": "dot"})
    _draw(figure, x_title, y_title, height)
    if log:
        figure.update_xaxes(type="log", dtick=1)
    figure.update_yaxes(tickformat=".0%" if percent else None, rangemode="tozero" if from_zero else "normal")
    figure.update_layout(hovermode="x unified")
    _show(figure, key)


def effects(
    key: str, shown: Sequence[Effect], x_title: str, *, percent: bool = True, height: int | None = None, signed: bool = True
) -> None:
    """Effects in rows, one below the other: a point with its interval, or the points of all controls of a kind."""
    import plotly.graph_objects as go

    figure = go.Figure()
    form = "%{x:.1%}" if percent else "%{x:+.4g}"
    for row in shown:
        spread = None
        if row.low is not None and row.high is not None:
            value = row.values[0]
            spread = {"type": "data", "symmetric": False, "array": [row.high - value], "arrayminus": [value - row.low], "thickness": 2}
        figure.add_scatter(
            x=list(row.values), y=[row.name] * len(row.values), mode="markers", error_x=spread, hovertemplate=f"{form}<extra></extra>",
            marker={"size": 7 if row.control else 11, "color": NEITHER if row.control else CONTEXT, "opacity": 0.75 if row.control else 1},
        )  # fmt: skip
    figure.add_vline(0, line={"color": INK, "width": 1})
    _draw(figure, x_title, "", height or 76 + 32 * len(shown))
    figure.update_xaxes(tickformat=("+.0%" if signed else ".0%") if percent else None)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_layout(showlegend=False)
    _show(figure, key)


def _draw(figure: "go.Figure", x_title: str, y_title: str, height: int) -> None:
    figure.update_layout(
        height=height, margin={"l": 8, "r": 12, "t": 8, "b": 8}, plot_bgcolor="white", paper_bgcolor="white",
        font={"size": 12, "color": INK}, legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "xanchor": "left"},
    )  # fmt: skip
    figure.update_xaxes(title={"text": x_title, "font": {"size": 12}}, gridcolor=GRID, zeroline=False, automargin=True)
    figure.update_yaxes(title={"text": y_title, "font": {"size": 12}}, gridcolor=GRID, zeroline=False, automargin=True)


def _show(figure: "go.Figure", key: str) -> None:
    st.plotly_chart(figure, key=key, theme=None, config={"displayModeBar": False})
