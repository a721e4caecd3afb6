"""Which keys a cache keeps: policies of key-value eviction as masks over the attention pattern.

    full         every key
    local        the last `budget` keys, the query's own position among them
    sink         position 0 and the last budget - 1 keys (StreamingLLM, Xiao et al. 2024, arXiv 2309.17453)
    special      position 0 and special tokens, and the own position (a policy of FastGen, Ge et al. 2024, arXiv 2310.01801)
    punctuation  these, and delimiters (another one)
    heavy        budget / 2 last keys and, of the others, those with the most attention so far (H2O, Zhang et al. 2023, arXiv 2306.14048)
    random       the own position and a random choice of budget - 1 others: the control

What is evicted never comes back: a key that a query does not have, no later query has.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

POLICIES = ("full", "local", "sink", "special", "punctuation", "heavy", "random")
Pattern = Float[Tensor, "row head query key"]
Kept = Bool[Tensor, "row head query key"]


def kept_keys(
    policy: str, pattern: Pattern, ids: Int[Tensor, "row pos"], budget: int, *, special: Sequence[int] = (),
    delimiters: Sequence[int] = (), priority: Float[Tensor, "row head key"] | None = None,
) -> Kept:  # fmt: skip
    """Which keys each query still has.

    pattern   attention without eviction, which `heavy` counts
    budget    keys that a head may hold, at least 2; `special` and `punctuation` hold what there is
    priority  random numbers, for `random`
    """
    if policy not in POLICIES:
        raise ValueError(f"No policy {policy!r}; there are {', '.join(POLICIES)}.")
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 2:
        raise ValueError(f"budget is how many keys a head holds, at least 2; given {budget!r}.")
    rows, heads, width = pattern.shape[:3]
    query, key = torch.arange(width, device=pattern.device)[:, None], torch.arange(width, device=pattern.device)
    seen = key <= query
    if policy == "heavy":
        return heavy_hitters(pattern, budget)
    if policy == "random":
        if priority is None:
            raise ValueError("The random policy needs priority, random numbers [row, head, key].")
        return _highest(priority, budget - 1) & seen
    if policy in ("special", "punctuation"):
        wanted = torch.tensor([*special, *(delimiters if policy == "punctuation" else ())], dtype=torch.long, device=ids.device)
        held = torch.isin(ids, wanted)
        held[:, 0] = True
        return ((held[:, None, None] | (key == query)) & seen).expand(rows, heads, -1, -1)
    kept = {"full": seen, "local": key > query - budget, "sink": (key == 0) | (key > query - budget + 1)}[policy] & seen
    return kept.expand(rows, heads, -1, -1)


def heavy_hitters(pattern: Pattern, budget: int) -> Kept:
    """H2O: of budget keys half are the last ones; when one is too many, the older one with the least attention so far goes."""
    rows, heads, width = pattern.shape[:3]
    recent = budget // 2
    alive = torch.zeros(rows, heads, width, dtype=torch.bool, device=pattern.device)
    received = pattern.new_zeros(rows, heads, width)
    kept = torch.zeros(pattern.shape, dtype=torch.bool, device=pattern.device)
    for query in range(width):
        alive[..., query] = True
        if query >= budget:
            older = alive[..., : query - recent + 1]
            least = received[..., : query - recent + 1].masked_fill(~older, torch.inf).argmin(-1, keepdim=True)
            alive.scatter_(-1, least, False)
        kept[..., query, :] = alive
        received += pattern[..., query, :].masked_fill(~alive, 0.0)
    return kept


def _highest(priority: Float[Tensor, "row head key"], n: int) -> Kept:
    """For each query the own position and the n earlier keys of highest priority."""
    width = priority.shape[-1]
    earlier = torch.ones(width, width, dtype=torch.bool, device=priority.device).tril(-1)
    ranked = priority[..., None, :].masked_fill(~earlier, -torch.inf)
    best = ranked.topk(min(n, width), dim=-1).indices
    kept = torch.zeros(*priority.shape[:2], width, width, dtype=torch.bool, device=priority.device)
    kept.scatter_(-1, best, True)
    return (kept & earlier) | torch.eye(width, dtype=torch.bool, device=priority.device)


def recovered(pattern: Pattern, kept: Kept, real: Bool[Tensor, "row pos"]) -> Float[Tensor, " head"]:
    """The attention that goes to kept keys, summed over rows and real queries from position 1 on."""
    counted = real.clone()
    counted[:, 0] = False
    return ((pattern * kept).sum(-1) * counted[:, None]).sum((0, 2), dtype=torch.float64)


def held(kept: Kept, real: Bool[Tensor, "row pos"]) -> Float[Tensor, " head"]:
    """Kept keys over keys seen, summed over rows and real queries from position 1 on."""
    counted = real.clone()
    counted[:, 0] = False
    seen = torch.arange(1, kept.shape[-1] + 1, device=kept.device)
    return (kept.sum(-1) / seen * counted[:, None]).sum((0, 2), dtype=torch.float64)
