"""Attention for rows that hold only the last part of their prompt.

Row r computes queries from its own first position on; the keys and values before that are the clean run's, of the same prompt.
Rows of similar width share one padded attention call. The keys of a bucket are gathered from [clean tokens | own tokens].
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from interp.attention_variants import VariantAttention
from interp.engine.operations import Layout
from interp.engine.rows import Rows
from interp.engine.seam import explicit_attention, unvisited

VisitMatrix = Callable[[str, Tensor, Tensor, Layout, np.ndarray], Tensor]
"""(name, [row, head, query, key], mask, layout of the queries, which rows of the batch they are) -> what flows on"""


@dataclass(frozen=True, eq=False)
class Bucket:
    """Rows that share an attention call. Index tensors are for all its rows; the active ones are a prefix."""

    members: np.ndarray
    queries: int
    keys: int
    tokens_before: np.ndarray
    """Query tokens of the first i members, for i = 0 .. len(members)."""
    query_index: Tensor | None
    """[row, query] into the query tokens; None where these are the grid already."""
    key_index: Tensor | None
    """[row, key] into [clean tokens | own tokens]; None where the own tokens are the grid already."""
    picked: Tensor | None
    """Places of the real queries in the flattened grid, and their tokens in `placed`."""
    placed: Tensor | None
    mask: Tensor | None
    """[row or 1, 1, query, key], True = attend; None: every key, or the causal triangle if `causal`."""
    causal: bool
    layout: Layout
    """The grid as a layout, for edits of scores and pattern."""


def make_buckets(
    rows: Rows, first_query: np.ndarray, clean_offset: np.ndarray, n_clean: int, device: torch.device, keys: int | None
) -> list[Bucket]:
    """Buckets for queries first_query[r] .. length[r]-1 of every row. `keys`: width of the key axis, None for as few as needed."""
    width = rows.length - first_query
    widest = int(width.max(initial=1))
    rounded = np.minimum(np.maximum(8, 2 ** np.ceil(np.log2(np.maximum(width, 1))).astype(np.int64)), widest)
    offsets, own_offset = np.cumsum(width) - width, np.cumsum(rows.tokens) - rows.tokens
    sizes = np.unique(rounded)
    return [
        _bucket(
            rows, np.flatnonzero(rounded == size), first_query, offsets, own_offset, clean_offset, n_clean, device, keys, len(sizes) == 1
        )
        for size in sizes
    ]


def _bucket(rows: Rows, members, first_query, offsets, own_offset, clean_offset, n_clean, device, keys, alone: bool) -> Bucket:
    start, length, query0 = rows.start[members], rows.length[members], first_query[members]
    width = length - query0
    n_query, n_key = int(width.max()), keys or int(length.max())
    i, j = np.arange(n_query), np.arange(n_key)
    even = alone and (width == n_query).all()
    whole = alone and (start == 0).all() and (length == n_key).all()

    def tensor(x: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(x)).to(device)

    queries = picked = placed = key = mask = None
    if not even:
        real = i < width[:, None]
        grid = offsets[members][:, None] + np.minimum(i, width[:, None] - 1)
        queries, picked, placed = tensor(grid), tensor(np.flatnonzero(real)), tensor(grid[real])
    if not whole:
        before = clean_offset[rows.prompt[members]][:, None] + j
        own = n_clean + own_offset[members][:, None] + np.minimum(np.maximum(j, start[:, None]), length[:, None] - 1) - start[:, None]
        key = tensor(np.where(j < start[:, None], before, own))
    same = bool((query0 == query0[0]).all())
    causal = same and query0[0] == 0 and n_query == n_key
    if not causal and not (same and query0[0] == n_key - 1):
        see = j <= (query0[:1] if same else query0)[:, None, None] + i[:, None]
        mask = None if see.all() else tensor(see[:, None])

    return Bucket(
        members=members, queries=n_query, keys=n_key, tokens_before=np.concatenate([[0], np.cumsum(width)]),
        query_index=queries, key_index=key, picked=picked, placed=placed, mask=mask, causal=bool(causal),
        layout=Layout(rows.prompt[members], query0, length, np.arange(len(members)) * n_query, device),
    )  # fmt: skip


def attend(
    buckets: list[Bucket],
    n_rows: int,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    clean_kv: tuple[Tensor, Tensor] | None,
    scale: float,
    visit: VisitMatrix | None,
    variant: VariantAttention | None = None,
) -> Tensor:
    """z [query token, head, d_head] of the first n_rows rows, before gates; q, k, v [token, head, d_head].

    `visit` sees scores and pattern.
    """
    if clean_kv is not None and any(b.key_index is not None for b in buckets):
        k, v = torch.cat([clean_kv[0], k]), torch.cat([clean_kv[1], v])
    out = None
    for bucket in buckets:
        active = int(np.searchsorted(bucket.members, n_rows))
        if not active:
            continue
        z = _attend_bucket(bucket, active, q, k, v, scale, visit, variant)  # [row, query, head, d_head]
        if bucket.picked is None:
            return z.reshape(-1, *z.shape[2:])
        if out is None:
            out = torch.empty_like(q)
        n = int(bucket.tokens_before[active])
        assert bucket.placed is not None
        out[bucket.placed[:n]] = z.reshape(-1, *z.shape[2:])[bucket.picked[:n]]
    return q if out is None else out


def _attend_bucket(
    bucket: Bucket, n: int, q: Tensor, k: Tensor, v: Tensor, scale: float, visit: VisitMatrix | None, variant: VariantAttention | None
) -> Tensor:
    q = (q.unflatten(0, (n, bucket.queries)) if bucket.query_index is None else q[bucket.query_index[:n]]).transpose(1, 2)
    if bucket.key_index is None:
        k, v = (x.unflatten(0, (n, bucket.keys)).transpose(1, 2) for x in (k, v))
    else:
        index = bucket.key_index[:n]
        k, v = k[index].transpose(1, 2), v[index].transpose(1, 2)
    mask = bucket.mask if bucket.mask is None or len(bucket.mask) == 1 else bucket.mask[:n]
    plain = variant is None or variant.spec.is_gate
    if visit is None and plain:
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=bucket.causal, scale=scale).transpose(1, 2)
    see = torch.ones(bucket.queries, bucket.keys, dtype=torch.bool, device=q.device)
    keep = mask if mask is not None else see.tril() if bucket.causal else see
    if visit is None:
        return explicit_attention(q, k, v, scale, keep, unvisited, unvisited, variant).transpose(1, 2)
    layout = bucket.layout.first_rows(n)
    z = explicit_attention(
        q, k, v, scale, keep,
        lambda x, keep: visit("attn.hook_attn_scores", x, keep, layout, bucket.members[:n]),
        lambda x, keep: visit("attn.hook_pattern", x, keep, layout, bucket.members[:n]),
        variant,
    )  # fmt: skip
    return z.transpose(1, 2)
