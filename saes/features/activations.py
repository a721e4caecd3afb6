"""The activations of a coder's features over prompts: which features are active where, and how strongly."""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float

from interp.models import Model
from interp.prompts import Prompts
from interp.tokens import token_text
from saes.coders import Coder
from saes.features.recording import Block, recorded
from saes.replacing import sites_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False)
class FeatureActivations:
    """Active features of every token of prompts, as pairs sorted by row, position and feature."""

    model: str
    site: str
    n_features: int
    tokens: tuple[tuple[str, ...], ...]
    """The text of each prompt's tokens."""
    pairs: Block
    """`document` is the prompt's row."""

    def dense(self, row: int = 0) -> Float[np.ndarray, "pos feature"]:
        """All activations of one prompt."""
        part, out = self._of(row), np.zeros((len(self.tokens[row]), self.n_features), dtype=self.pairs.value.dtype)
        out[self.pairs.pos[part], self.pairs.feature[part]] = self.pairs.value[part]
        return out

    def top(self, row: int = 0, n: int = 10) -> list[int]:
        """The features of the largest activations of a prompt, at most n; the lower number first where two are equal."""
        part = self._of(row)
        order = np.lexsort((self.pairs.feature[part], -self.pairs.value[part]))
        return list(dict.fromkeys(self.pairs.feature[part][order].tolist()))[:n]

    def n_active(self, row: int = 0) -> int:
        """Features that some token of the prompt activates."""
        return len(np.unique(self.pairs.feature[self._of(row)]))

    def table(self) -> "pd.DataFrame":
        """One row per active feature of a token."""
        import pandas as pd

        p = self.pairs
        texts = [self.tokens[row][pos] for row, pos in zip(p.document.tolist(), p.pos.tolist(), strict=True)]
        frame = pd.DataFrame({"row": p.document, "pos": p.pos, "token": texts, "feature": p.feature, "activation": p.value})
        return frame.assign(model=self.model, site=self.site)

    def figure(self, row: int = 0, n: int = 20) -> "go.Figure":
        """The strongest features of a prompt over its tokens."""
        from saes.features import figures

        return figures.activations(self, row, n)

    def to_json(self) -> str:
        p = self.pairs
        plain = {"model": self.model, "site": self.site, "n_features": self.n_features, "tokens": self.tokens}
        plain |= {"row": p.document.tolist(), "pos": p.pos.tolist(), "feature": p.feature.tolist(), "activation": p.value.tolist()}
        return json.dumps(plain)

    @cached_property
    def _rows(self) -> np.ndarray:
        return np.searchsorted(self.pairs.document, np.arange(len(self.tokens) + 1))

    def _of(self, row: int) -> slice:
        if not 0 <= row < len(self.tokens):
            raise ValueError(f"There is no prompt {row}: there are {len(self.tokens)}, 0-{len(self.tokens) - 1}.")
        return slice(int(self._rows[row]), int(self._rows[row + 1]))


@torch.no_grad()
def feature_activations(model: Model, coder: Coder, prompts: "Prompts | str | Sequence[str]", rows: int = 64) -> FeatureActivations:
    """Every active feature of every real token of the prompts. ValueError if the coder does not know its input site."""
    prompts = model.check_prompts(prompts)
    with recorded(model, coder, prompts, rows) as codes:
        blocks = list(codes.blocks())
    pairs = Block(*(np.concatenate([getattr(b, name) for b in blocks]) for name in ("document", "pos", "feature", "value")))
    order = np.lexsort((pairs.feature, pairs.pos, pairs.document))
    pairs = Block(pairs.document[order], pairs.pos[order], pairs.feature[order], pairs.value[order])
    texts = tuple(tuple(token_text(model, i) for i in ids) for ids in prompts.rows())
    return FeatureActivations(model.name, sites_of(coder, model)[1], coder.n_features, texts, pairs)
