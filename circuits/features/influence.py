"""How much of what a graph explains passes through each node, and how much of it ends in tokens rather than in errors.

    A[t, s] = |edge(s -> t)| / sum over s' of |edge(s' -> t)|,        influence = w A + w A^2 + ...

w weighs the targets. The graph has no cycles, so the series ends. Biases are neither explained nor unexplained and take no part.
Definitions as in circuit-tracer (Ameisen et al. 2025): replacement score = what reaches tokens / (tokens + errors); completeness score =
the mean over nodes, weighed by their influence, of the share of their input that is not error.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """Fractions, 0 to 1."""

    replacement: float
    completeness: float


def normalized(weights: Float[Tensor, "target source"], counted: Bool[Tensor, " source"]) -> Float[Tensor, "target source"]:
    """Sizes of edges as shares of their target's input; 0 for sources that do not count."""
    sizes = weights.abs() * counted
    return sizes / sizes.sum(1, keepdim=True).clamp_min(torch.finfo(sizes.dtype).tiny)


def influence(
    shares: Float[Tensor, "target source"], rows: Int[Tensor, " target"], start: Float[Tensor, " target"]
) -> tuple[Float[Tensor, " source"], Float[Tensor, " target"]]:
    """(of every source, of every target with its own weight).

    rows   the column in which a target is itself a source; -1 for one that is none (a logit)
    start  the targets' own weights w
    """
    inside = (rows >= 0).nonzero().flatten()
    columns = rows[inside]
    total, current = start.clone(), start
    for _ in range(len(start) + 1):  # ends after as many steps as the longest path
        onward = torch.zeros_like(current)
        onward[inside] = (current @ shares)[columns]
        if not bool(onward.any()):
            return total @ shares, total
        total, current = total + onward, onward
    raise ValueError("The edges have a cycle: a feature reads what is written before it.")


def scores(
    shares: Float[Tensor, "target source"],
    through: Float[Tensor, " target"],
    reached: Float[Tensor, " source"],
    start: Float[Tensor, " target"],
    token: Bool[Tensor, " source"],
    unexplained: Bool[Tensor, " source"],
) -> Scores:
    """Both scores of what `influence` gives as (reached, through); `unexplained` are errors, and what stands for them."""
    tokens, errors = float(reached[token].sum()), float(reached[unexplained].sum())
    missing = float((through * shares[:, unexplained].sum(1)).sum())  # tokens and errors have no input, so none that is missing
    whole = float(reached.sum() + start.sum())
    return Scores(tokens / (tokens + errors) if tokens + errors else float("nan"), 1 - missing / whole if whole else float("nan"))


def share_above(values: Float[Tensor, " n"], share: float) -> Bool[Tensor, " n"]:
    """The fewest values that hold `share` of the sum, largest first."""
    order = values.argsort(descending=True, stable=True)
    before = values[order].cumsum(0) - values[order]
    kept = torch.zeros_like(values, dtype=torch.bool)
    kept[order] = (before < share * values.sum()) & (values[order] > 0)
    return kept
