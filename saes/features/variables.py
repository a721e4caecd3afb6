"""Known variables of tokens: what is true of each token of a text, as a sparse matrix, to ask which feature says it.

`kind` says what a variable needs: "token" (the token itself), "class" (what kind of word it is) and "previous" (the token before) are
trivial; "context" depends on more of the text.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

KINDS = ("token", "class", "previous", "context")
TRIVIAL = ("token", "class", "previous")
Sparse = Any
"""A scipy.sparse.csr_array: its type knows no shape."""


@dataclass(frozen=True, eq=False)
class Variables:
    """Variables of the tokens of documents: `values[token, variable]` is True where it holds."""

    names: tuple[str, ...]
    """Such as "token = Paris" or "country spoken of = France"."""
    kinds: tuple[str, ...]
    values: Sparse

    def __len__(self) -> int:
        return len(self.names)

    @property
    def groups(self) -> tuple[str, ...]:
        """The names without their values."""
        return tuple(name.partition(" = ")[0] for name in self.names)

    def count(self) -> Int[np.ndarray, " variable"]:
        """Tokens of which each variable holds."""
        return np.asarray(self.values.sum(0)).ravel()

    def take(self, chosen: Sequence[int] | Int[np.ndarray, " chosen"]) -> "Variables":
        """Some of the variables."""
        chosen = np.asarray(chosen, dtype=np.int64)
        return Variables(tuple(self.names[i] for i in chosen), tuple(self.kinds[i] for i in chosen), self.values[:, chosen].tocsr())

    def of_kind(self, *kinds: str) -> "Variables":
        if unknown := set(kinds) - set(KINDS):
            raise ValueError(f"No kind of variable {sorted(unknown)[0]!r}: there are {', '.join(KINDS)}.")
        return self.take([i for i, kind in enumerate(self.kinds) if kind in kinds])

    def frequent(self, least: int, rows: Sequence[np.ndarray] = ()) -> "Variables":
        """Those that hold of at least so many tokens (of each group of `rows`, where given) and fail of as many."""
        groups = rows or (np.arange(self.values.shape[0]),)
        counts = [np.asarray(self.values[group].sum(0)).ravel() for group in groups]
        enough = [(count >= least) & (len(group) - count >= least) for count, group in zip(counts, groups, strict=True)]
        return self.take(np.all(enough, axis=0).nonzero()[0])


def gather(n_tokens: int, marks: Iterable[tuple[int, str, str]]) -> Variables:
    """Variables from (token, kind, name), one for each token that a variable holds of; repeats count once. Sorted by kind and name."""
    from scipy.sparse import coo_array

    triples = list(marks)
    named = sorted({(kind, name) for _, kind, name in triples}, key=lambda pair: (KINDS.index(pair[0]), pair[1]))
    place = {pair: i for i, pair in enumerate(named)}
    rows = np.fromiter((token for token, _, _ in triples), dtype=np.int64, count=len(triples))
    columns = np.fromiter((place[kind, name] for _, kind, name in triples), dtype=np.int64, count=len(triples))
    if len(rows) and (rows.min() < 0 or rows.max() >= n_tokens):
        raise ValueError(f"Marks are of tokens 0-{n_tokens - 1}; given {int(rows.min())} to {int(rows.max())}.")
    values = coo_array((np.ones(len(rows), dtype=bool), (rows, columns)), shape=(n_tokens, len(named))).tocsr()
    values.data[:] = True  # summing repeats of True keeps True; stated so that it does not rest on the dtype's addition
    return Variables(tuple(name for _, name in named), tuple(kind for kind, _ in named), values)
