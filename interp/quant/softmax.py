"""Softmax variants that let a head attend to nothing, and gates that let it write nothing (Bondarenko et al. 2023, arXiv 2306.12929).

    clipped      clip((zeta - gamma) softmax(x) + gamma, 0, 1)            gamma < 0: small probabilities become exactly 0
    normalised   the same with gamma = -alpha / (keys the query sees)     for rows of any length (Liao & Monz 2024, arXiv 2402.12102)
    softmax-1    exp(x) / (1 + sum exp(x))                                a key with score 0 and no value

They are for training and fine-tuning. Switched on in a model trained without them they take attention away that the model relies on.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def clipped_softmax(
    scores: Float[Tensor, "*rows key"], gamma: float = -0.03, zeta: float = 1.0, keep: Bool[Tensor, "*mask key"] | None = None
) -> Float[Tensor, "*rows key"]:
    """Probabilities below -gamma / (zeta - gamma) become exactly 0, above (1 - gamma) / (zeta - gamma) exactly 1; rows need not sum to 1.

    keep  True where a query may look; elsewhere the result is 0 whatever gamma is
    """
    if not gamma <= 0 or not zeta >= 1:
        raise ValueError(f"Clipped softmax stretches the unit interval: gamma <= 0 and zeta >= 1; given gamma={gamma}, zeta={zeta}.")
    masked = scores if keep is None else scores.masked_fill(~keep, -torch.inf)
    out = ((zeta - gamma) * torch.softmax(masked, -1) + gamma).clamp(0, 1)
    return out if keep is None else out.masked_fill(~keep, 0)


def normalized_clipped_softmax(
    scores: Float[Tensor, "*rows query key"], alpha: float = 2.0, keep: Bool[Tensor, "*mask query key"] | None = None
) -> Float[Tensor, "*rows query key"]:
    """Causal clipped softmax with gamma = -alpha / T for a query that sees T keys; a query that sees at most alpha keys is not clipped.

    keep  True where a query may look; None: the queries are the last of the keys' positions
    """
    if not alpha >= 0:
        raise ValueError(f"alpha is at least 0; given {alpha}.")
    n_query, n_key = scores.shape[-2:]
    if keep is None:
        keep = torch.ones(n_query, n_key, dtype=torch.bool, device=scores.device).tril(n_key - n_query)
    seen = keep.sum(-1, keepdim=True)
    gamma = torch.where(seen > alpha, -alpha / seen.to(scores.dtype), torch.zeros((), dtype=scores.dtype, device=scores.device))
    weights = torch.softmax(scores.masked_fill(~keep, -torch.inf), -1)
    return ((1 - gamma) * weights + gamma).clamp(0, 1).masked_fill(~keep, 0)


def softmax_one(scores: Float[Tensor, "*rows key"], extra: float | Float[Tensor, "*rows 1"] = 0.0) -> Float[Tensor, "*rows key"]:
    """exp(x) / (exp(extra) + sum exp(x)), also where all scores are very negative: the extra key's part is scaled with the rest."""
    sink = torch.as_tensor(extra, dtype=scores.dtype, device=scores.device)
    top = torch.maximum(scores.amax(-1, keepdim=True), sink)
    weights = (scores - top).exp()
    return weights / (weights.sum(-1, keepdim=True) + (sink - top).exp())
