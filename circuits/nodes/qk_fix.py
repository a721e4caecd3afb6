"""What patching a query or a key does to the attention pattern, exactly, with all that comes after the pattern linearised.

Where attention is saturated the gradient at queries and keys is almost zero, and a linear estimate misses a query whose patching moves the
whole pattern. AtP* (Kramar et al. 2024, section 3.1.1) recomputes the softmax instead. With A the clean pattern and g = dM/dA:

    queries   I(q_i) = sum over keys j of (softmax(q'_i . k)_j - A_ij) g_ij
    keys      I(k_t) = sum over queries i of (A_i with k_t patched - A_i) . g_i

If key t of one query goes from probability p to p', the other keys keep their proportions, so its part of I(k_t) is
(p' - p) (g_t - mean of g over the others). The odds against the others are kept as logarithms: where attention is saturated 1 - p is lost.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.edges.forward import Forward
from interp.engine.anatomy import Block
from interp.residual import precise

Scores = Float[Tensor, "*row query key"]


def attention_scores(
    forward: Forward, block: Block, q: Float[Tensor, "row pos head d_head"], k: Float[Tensor, "row pos head d_head"]
) -> Float[Tensor, "row head query key"]:
    """Scores from the projections' outputs, in float32 at least, with -inf at later keys."""
    if block.variant is not None:
        raise ValueError(f"The fix of queries and keys knows softmax alone; layer {block.layer} has {block.variant.spec} attention.")
    scores = torch.einsum("rqhe,rkhe->rhqk", precise(forward.rotate(q)), precise(forward.rotate(k))) * block.score_scale
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    return scores.masked_fill(later, -torch.inf)


def pattern_effects(scores: Scores, patched: Scores, gradient: Scores) -> Float[Tensor, "*row query"]:
    """Of replacing each query's scores: sum over keys of (softmax(patched) - softmax(scores)) * gradient."""
    return ((patched.softmax(-1) - scores.softmax(-1)) * gradient).sum(-1)


def key_effects(scores: Scores, patched: Scores, gradient: Scores) -> Float[Tensor, "*row key"]:
    """Of replacing the scores of one key at a time, summed over queries; `patched` are the scores with every key replaced.

    In time and memory of one pattern, not of one pattern per key.
    """
    others = _all_but_one(scores)
    shift = (patched - others).sigmoid() - (scores - others).sigmoid()
    up, down = (_all_but_one(scores + part.log()) for part in (gradient.clamp(min=0), (-gradient).clamp(min=0)))
    mean = (up - others).exp() - (down - others).exp()
    return torch.where(others > -torch.inf, shift * (gradient - mean), 0.0).sum(-2)  # the first query has no other key


def _all_but_one(x: Float[Tensor, "*row key"]) -> Float[Tensor, "*row key"]:
    """log of the sum over all other entries of exp(x)."""
    none = torch.full_like(x[..., :1], -torch.inf)
    before = torch.cat([none, x.logcumsumexp(-1)[..., :-1]], -1)
    after = torch.cat([x.flip(-1).logcumsumexp(-1).flip(-1)[..., 1:], none], -1)
    return torch.logaddexp(before, after)
