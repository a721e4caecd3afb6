"""How well features tell variables: F1 of every feature for every variable by products of sparse matrices, and the best, held out.

F1 = 2 |both| / (|feature active| + |variable holds|). The feature counts as active above a level, a fraction of its maximum on the tokens
that it is chosen on (level 0: activation > 0).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from saes.features.variables import Sparse, Variables

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

LEVELS = tuple(i / 16 for i in range(16))
"""Levels that are tried, as fractions of a feature's maximum."""


@dataclass(frozen=True, eq=False)
class Confusion:
    """Tokens: where both are true, each feature is active, each variable holds."""

    both: Int[np.ndarray, "feature variable"]
    features: Int[np.ndarray, " feature"]
    variables: Int[np.ndarray, " variable"]

    @property
    def f1(self) -> Float[np.ndarray, "feature variable"]:
        return _share(2 * self.both, self.features[:, None] + self.variables[None, :])

    @property
    def precision(self) -> Float[np.ndarray, "feature variable"]:
        return _share(self.both, np.broadcast_to(self.features[:, None], self.both.shape))

    @property
    def recall(self) -> Float[np.ndarray, "feature variable"]:
        return _share(self.both, np.broadcast_to(self.variables[None, :], self.both.shape))


@dataclass(frozen=True, eq=False)
class Detection:
    """For each variable the feature and level that are best on one set of tokens, and what they reach on another."""

    variables: Variables
    feature: Int[np.ndarray, " variable"]
    level: Float[np.ndarray, " variable"]
    """Fraction of the feature's maximum on the tokens that it was chosen on."""
    chosen_f1: Float[np.ndarray, " variable"]
    """On the tokens that it was chosen on."""
    f1: Float[np.ndarray, " variable"]
    """On the others."""
    precision: Float[np.ndarray, " variable"]
    recall: Float[np.ndarray, " variable"]
    count: Int[np.ndarray, " variable"]
    """Tokens of the others of which the variable holds."""

    def table(self) -> "pd.DataFrame":
        """One row per variable."""
        import pandas as pd

        names = ("feature", "level", "chosen_f1", "f1", "precision", "recall", "count")
        first = {"variable": self.variables.names, "kind": self.variables.kinds, "group": self.variables.groups}
        return pd.DataFrame(first | {name: getattr(self, name) for name in names})

    def figure(self) -> "go.Figure":
        """F1 by group of variables."""
        from saes.features import figures

        return figures.detection(self)

    def to_json(self) -> str:
        return str(self.table().to_json(orient="records"))


def confusion(codes: Sparse, variables: Sparse, above: Float[np.ndarray, " feature"] | None = None) -> Confusion:
    """Of all features and variables over the same tokens; a feature is active above 0, or above its number of `above`."""
    if codes.shape[0] != variables.shape[0]:
        raise ValueError(f"Codes are of {codes.shape[0]} tokens and variables of {variables.shape[0]}.")
    active = _active(codes, above)
    held = variables.astype(np.int32)
    return Confusion((active.T @ held).toarray(), _sums(active), _sums(held))


def detect(
    codes: Sparse,
    variables: Variables,
    chosen_on: Int[np.ndarray, " token"],
    measured_on: Int[np.ndarray, " token"],
    levels: Sequence[float] = LEVELS,
) -> Detection:
    """The best feature and level for each variable, chosen on some tokens and measured on others; the first of equals."""
    if not len(variables):
        raise ValueError("There are no variables to detect.")
    here, there = codes[chosen_on], codes[measured_on]
    known, asked = variables.values[chosen_on], variables.values[measured_on]
    maximum = _maximum(here)
    n = len(variables)
    best, feature, level = np.full(n, -1.0), np.zeros(n, dtype=np.int64), np.zeros(n)
    for fraction in levels:
        f1 = confusion(here, known, fraction * maximum).f1
        first = f1.argmax(0)
        better = f1[first, np.arange(n)] > best
        best[better], feature[better], level[better] = f1[first, np.arange(n)][better], first[better], fraction
    held = np.zeros((3, n))
    for fraction in np.unique(level):
        at = (level == fraction).nonzero()[0]
        columns, place = np.unique(feature[at], return_inverse=True)
        found = confusion(there[:, columns], asked[:, at], fraction * maximum[columns])
        held[:, at] = [x[place, np.arange(len(at))] for x in (found.f1, found.precision, found.recall)]
    f1, precision, recall = held
    return Detection(variables, feature, level, best, f1, precision, recall, _sums(asked))


def best_variables(
    codes: Sparse, variables: Variables, chosen_on: Int[np.ndarray, " token"], measured_on: Int[np.ndarray, " token"]
) -> tuple[Int[np.ndarray, " feature"], Confusion]:
    """For each feature the variable of the highest F1 (active: above 0) on some tokens, and the counts of all on the others."""
    chosen = confusion(codes[chosen_on], variables.values[chosen_on]).f1.argmax(1)
    return chosen, confusion(codes[measured_on], variables.values[measured_on])


def halves(lengths: Int[np.ndarray, " document"]) -> tuple[Int[np.ndarray, " token"], Int[np.ndarray, " token"]]:
    """The tokens of documents with even and with odd number."""
    odd = np.repeat(np.arange(len(lengths)) % 2, lengths).astype(bool)
    return (~odd).nonzero()[0], odd.nonzero()[0]


def _active(codes: Sparse, above: np.ndarray | None) -> Sparse:
    active = codes.copy()
    limit = 0.0 if above is None else np.maximum(above, 0.0)[active.indices]
    active.data = (active.data > limit).astype(np.int32)
    active.eliminate_zeros()
    return active


def _maximum(codes: Sparse) -> Float[np.ndarray, " feature"]:
    maximum = np.zeros(codes.shape[1], dtype=codes.dtype)
    np.maximum.at(maximum, codes.indices, codes.data)
    return maximum


def _sums(x: Sparse) -> Int[np.ndarray, " column"]:
    return np.asarray(x.sum(0)).ravel()


def _share(part: np.ndarray, whole: np.ndarray) -> Float[np.ndarray, "..."]:
    """part / whole, 0 where there is nothing."""
    return np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0)
