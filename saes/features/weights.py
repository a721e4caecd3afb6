"""What a feature's weights say without any text: tokens that it promotes and suppresses, and features with a decoder like its own."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.contributions import unembedding_columns
from interp.models import Model
from interp.ov import linear_part
from interp.residual import norms_after
from interp.tokens import token_text
from saes.coders import Coder
from saes.ground_truth import cosine

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

CHUNK = 8192
"""Tokens of the vocabulary at once."""
FEATURES = 1024
"""Features at once."""
WRITES = {"hook_resid_pre": 0, "hook_attn_out": 0, "hook_resid_mid": 1, "hook_mlp_out": 1, "hook_resid_post": 2}
"""Sites on the residual stream, and how many of a post-norm block's two norms lie before them."""


@dataclass(frozen=True, eq=False)
class LogitWeights:
    """The tokens that features raise and lower most, strongest first: logits up to a positive factor (the final norm's scale)."""

    model: str
    site: str
    features: tuple[int, ...]
    promoted_ids: Int[Tensor, "feature k"]
    promoted: Float[Tensor, "feature k"]
    suppressed_ids: Int[Tensor, "feature k"]
    suppressed: Float[Tensor, "feature k"]
    words: dict[int, str]
    """The text of the token ids."""

    def table(self) -> "pd.DataFrame":
        """One row per feature, direction and place."""
        import pandas as pd

        rows = [
            {"feature": feature, "direction": direction, "rank": rank, "token_id": i, "token": self.words[i], "value": value}
            for direction, ids, values in self._both()
            for feature, some_ids, some in zip(self.features, ids.tolist(), values.tolist(), strict=True)
            for rank, (i, value) in enumerate(zip(some_ids, some, strict=True))
        ]
        return pd.DataFrame(rows).assign(unit="logits x positive factor", model=self.model, site=self.site)

    def figure(self, row: int = 0) -> "go.Figure":
        """Bars of one feature's tokens."""
        from saes.features import figures

        return figures.logit_weights(self, row)

    def to_json(self) -> str:
        names = ("promoted_ids", "promoted", "suppressed_ids", "suppressed")
        plain = {"model": self.model, "site": self.site, "features": self.features, "words": self.words}
        return json.dumps(plain | {name: getattr(self, name).tolist() for name in names})

    def _both(self) -> tuple[tuple[str, Tensor, Tensor], ...]:
        return ("promoted", self.promoted_ids, self.promoted), ("suppressed", self.suppressed_ids, self.suppressed)


def has_logit_weights(coder: Coder, model: Model) -> bool:
    """Whether the decoder writes to the residual stream, from where the way to the logits is straight."""
    kind = str(coder.target_site).rpartition(".")[2]
    return str(coder.target_site).startswith("blocks.") and kind in WRITES and coder.d_out == model.d_model


@torch.no_grad()
def logit_weights(model: Model, coder: Coder, features: Sequence[int] | None = None, k: int = 10) -> LogitWeights:
    """Decoder rows through the norms after their site (centred, times the weight, without scale and bias) and the unembedding.

    features: which, or all (KeyError for one that is not there). ValueError for a coder whose target is not on the residual stream.
    """
    if not has_logit_weights(coder, model):
        raise ValueError(f"{coder.target_site} is not on the residual stream ({', '.join(WRITES)}): its decoder has no logit weights.")
    chosen = torch.arange(coder.n_features) if features is None else torch.as_tensor(list(features), dtype=torch.long)
    if not len(chosen) or not 0 <= int(chosen.min()) <= int(chosen.max()) < coder.n_features:
        raise KeyError(f"Give features of 0-{coder.n_features - 1}, at least one; given {chosen.tolist()[:8]}.")
    found = [_ranked(model, logits, k) for logits in (_logits(model, coder, part) for part in chosen.split(FEATURES))]
    high_ids, high, low_ids, low = (torch.cat(parts) for parts in zip(*found, strict=True))
    words = {i: token_text(model, i) for i in torch.cat([high_ids, low_ids]).unique().tolist()}
    return LogitWeights(model.name, str(coder.target_site), tuple(chosen.tolist()), high_ids, high, low_ids, low, words)


def _logits(model: Model, coder: Coder, features: Tensor) -> Float[Tensor, "feature vocab"]:
    _, layer, kind = str(coder.target_site).split(".")
    anatomy = model.anatomy
    norms = norms_after(anatomy, int(layer))
    if anatomy.blocks[int(layer)].wiring == "post-norm":
        norms = norms[WRITES[kind] :]
    x = coder.W_dec[features.to(coder.W_dec.device)].to(model.device)
    for norm in norms:
        x = linear_part(norm, x)
    parts = [unembedding_columns(anatomy, ids)[0] for ids in torch.arange(model.d_vocab).split(CHUNK)]
    return torch.cat([x.to(columns) @ columns.T for columns in parts], 1)


def _ranked(model: Model, logits: Float[Tensor, "feature vocab"], k: int) -> tuple[Tensor, ...]:
    k = min(k, model.d_vocab)
    high, low = logits.topk(k, 1), logits.topk(k, 1, largest=False)
    return high.indices.cpu(), high.values.cpu(), low.indices.cpu(), low.values.cpu()


@torch.no_grad()
def encoder_decoder_cosine(coder: Coder) -> Float[Tensor, " feature"] | None:
    """Of each feature, float64; None where encoder and decoder live in spaces of different width."""
    if coder.d_in != coder.d_out:
        return None
    return torch.nn.functional.cosine_similarity(coder.W_enc.T.double(), coder.W_dec.double(), dim=1).cpu()


@torch.no_grad()
def nearest_features(coder: Coder, k: int = 5) -> tuple[Int[Tensor, "feature k"], Float[Tensor, "feature k"]]:
    """The other features whose decoder rows have the largest cosine, and that cosine (float64)."""
    k = min(k, coder.n_features - 1)
    ids, values = [], []
    for start in range(0, coder.n_features, FEATURES):
        near = cosine(coder.W_dec[start : start + FEATURES], coder.W_dec)
        near[torch.arange(len(near)), torch.arange(start, start + len(near))] = -torch.inf
        best = near.topk(k, 1)
        ids.append(best.indices.cpu())
        values.append(best.values.cpu())
    return torch.cat(ids), torch.cat(values)
