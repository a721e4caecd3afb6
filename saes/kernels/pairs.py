"""Products over the pairs of a pattern: decoding, the gradient of the codes, the gradient of decoder and encoder.

No kernel has atomics: each output is written by one program, so the same input gives the same bits. Sums are made in float32 (float64 for
float64). Rows of the dense operand are gathered whole, `WIDTH` of their entries to a program; indices are int32 or int64, in any order.

Decoding gives one program to each row of codes. The transposed product has features in place of rows, and some features are active on
nearly every row while most have a few pairs: one program per feature would wait for the largest. So the sorted pairs are cut at every
multiple of `RUN`. A feature's program sums its pairs up to the first cut. Each cut has a program, which sums the pairs from there to the
next cut if the feature goes on beyond it; a last kernel adds these parts, in order, to the few features that were cut.
"""

# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportIndexIssue=false, reportOperatorIssue=false
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from saes.sparse import Pattern

PAIRS = 8
"""Pairs whose rows a program has in flight at a time."""
WIDTH = 256
"""Entries of a row that one program sums."""
RUN = 256
"""Pairs after which the work on a feature is cut."""
DOT_PAIRS, DOT_WIDTH = 16, 128


@triton.jit
def _sum(values, order, index, weight, stride, first, last, at, inside, ORDERED: tl.constexpr, PAIRS: tl.constexpr, WIDTH: tl.constexpr,
         SUM: tl.constexpr):  # fmt: skip
    """The sum of values[p] * weight[index[p], at] over first <= p < last; `values` are found through `order` where ORDERED."""
    total = tl.zeros([PAIRS, WIDTH], dtype=SUM)
    for start in range(first, last, PAIRS):
        pair = start + tl.arange(0, PAIRS)
        here = pair < last
        place = tl.load(order + pair, mask=here, other=0) if ORDERED else pair
        value = tl.load(values + place, mask=here, other=0.0).to(SUM)
        row = tl.load(index + pair, mask=here, other=0).to(tl.int64)
        entries = tl.load(weight + row[:, None] * stride + at[None, :], mask=here[:, None] & inside[None, :], other=0.0)
        total += value[:, None] * entries.to(SUM)
    return tl.sum(total, 0)


@triton.jit
def _bags(values, order, index, offsets, weight, out, n_bags, n_pairs, d, stride, RUN: tl.constexpr, ORDERED: tl.constexpr,
          PAIRS: tl.constexpr, WIDTH: tl.constexpr, SUM: tl.constexpr):  # fmt: skip
    """out[bag]: its pairs up to the first multiple of RUN beyond its start, or all of them where RUN is 0."""
    bag = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = at < d
    first = tl.load(offsets + bag).to(tl.int64)
    last = tl.load(offsets + bag + 1, mask=bag + 1 < n_bags, other=n_pairs).to(tl.int64)
    if RUN:
        last = tl.minimum(last, (first // RUN + 1) * RUN)
    total = _sum(values, order, index, weight, stride, first, last, at, inside, ORDERED, PAIRS, WIDTH, SUM)
    tl.store(out + bag * d + at, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _cut_bag(cut, order, bags, offsets, n_bags, n_pairs):
    """The bag of the pair at a cut, its first pair and its end."""
    bag = tl.load(bags + tl.load(order + cut)).to(tl.int64)
    last = tl.load(offsets + bag + 1, mask=bag + 1 < n_bags, other=n_pairs).to(tl.int64)
    return bag, tl.load(offsets + bag).to(tl.int64), last


@triton.jit
def _parts(values, order, index, bags, offsets, weight, parts, n_bags, n_pairs, d, stride, RUN: tl.constexpr, PAIRS: tl.constexpr,
           WIDTH: tl.constexpr, SUM: tl.constexpr):  # fmt: skip
    """parts[c]: the pairs from cut c to the next cut of the bag that crosses it; nothing is written where none does."""
    number = tl.program_id(0).to(tl.int64)
    cut = number * RUN
    at = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = at < d
    _, first, last = _cut_bag(cut, order, bags, offsets, n_bags, n_pairs)
    if first < cut:
        last = tl.minimum(last, cut + RUN)
        total = _sum(values, order, index, weight, stride, cut, last, at, inside, True, PAIRS, WIDTH, SUM)
        tl.store(parts + number * d + at, total, mask=inside)


@triton.jit
def _join(order, bags, offsets, parts, sums, out, n_bags, n_pairs, d, RUN: tl.constexpr, WIDTH: tl.constexpr):
    """sums[bag] and all its parts to out[bag], by the program of the first cut that the bag crosses."""
    number = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = at < d
    bag, first, last = _cut_bag(number * RUN, order, bags, offsets, n_bags, n_pairs)
    if (first < number * RUN) & (first // RUN + 1 == number):
        total = tl.load(sums + bag * d + at, mask=inside, other=0.0).to(parts.dtype.element_ty)
        for part in range(number, (last - 1) // RUN + 1):
            total += tl.load(parts + part * d + at, mask=inside, other=0.0)
        tl.store(out + bag * d + at, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _dots(left, right, rows, columns, out, n_pairs, d, left_stride, right_stride, PAIRS: tl.constexpr, WIDTH: tl.constexpr,
          SUM: tl.constexpr):  # fmt: skip
    """out[p] = left[rows[p]] . right[columns[p]] for PAIRS pairs; neighbours share their left row, which stays in the cache."""
    pair = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    here = pair < n_pairs
    row = tl.load(rows + pair, mask=here, other=0).to(tl.int64)
    column = tl.load(columns + pair, mask=here, other=0).to(tl.int64)
    total = tl.zeros([PAIRS, WIDTH], dtype=SUM)
    for start in range(0, d, WIDTH):
        at = start + tl.arange(0, WIDTH)
        mask = here[:, None] & (at < d)[None, :]
        a = tl.load(left + row[:, None] * left_stride + at[None, :], mask=mask, other=0.0).to(SUM)
        b = tl.load(right + column[:, None] * right_stride + at[None, :], mask=mask, other=0.0).to(SUM)
        total += a * b
    tl.store(out + pair, tl.sum(total, 1).to(out.dtype.element_ty), mask=here)


INTERPRETED = not isinstance(_bags, triton.JITFunction)
"""Whether triton was imported with TRITON_INTERPRET=1: kernels then take CPU tensors, and nothing else."""


def gather(values: Float[Tensor, " pair"], pattern: Pattern, weight: Float[Tensor, "n d"]) -> Float[Tensor, "row d"]:
    """`sparse.gather`: for each row of the pattern, the sum of value * weight[column]."""
    weight = _rows_together(weight)
    n, d = len(pattern.offsets), weight.shape[1]
    out = weight.new_empty(n, d)
    width = min(WIDTH, triton.next_power_of_2(d))
    columns, offsets = pattern.columns.contiguous(), pattern.offsets.contiguous()
    if out.numel():
        _bags[n, triton.cdiv(d, width)](
            values.contiguous(), columns, columns, offsets, weight, out, n, len(columns), d, weight.stride(0),
            RUN=0, ORDERED=False, PAIRS=PAIRS, WIDTH=width, SUM=_sum_in(weight),
        )  # fmt: skip
    return out


def transposed_gather(
    values: Float[Tensor, " pair"], pattern: Pattern, rows: Float[Tensor, "row d"], run: int = RUN
) -> Float[Tensor, "n_features d"]:
    """`sparse.transposed_gather`: for each feature, the sum of value * rows[row] over the rows where it is active."""
    flipped, order = pattern.transposed
    rows, values = _rows_together(rows), values.contiguous()
    n, d, n_pairs = pattern.n_features, rows.shape[1], len(values)
    width, cuts = min(WIDTH, triton.next_power_of_2(d)), triton.cdiv(n_pairs, run)
    exact = torch.float64 if rows.dtype == torch.float64 else torch.float32
    out = rows.new_empty(n, d)
    if not out.numel():
        return out
    meta = {"RUN": run, "PAIRS": PAIRS, "WIDTH": width, "SUM": _sum_in(rows)}
    # a cut feature's first part must not be rounded before the others are added
    sums = out if out.dtype == exact else out.new_empty(n, d, dtype=exact)
    sizes = n, n_pairs, d
    tiles = triton.cdiv(d, width)
    _bags[n, tiles](values, order, flipped.columns, flipped.offsets, rows, sums, *sizes, rows.stride(0), ORDERED=True, **meta)
    if cuts > 1:
        columns = pattern.columns.contiguous()
        parts = rows.new_empty(cuts, d, dtype=exact)
        _parts[cuts, tiles](values, order, flipped.columns, columns, flipped.offsets, rows, parts, *sizes, rows.stride(0), **meta)
        _join[cuts, tiles](order, columns, flipped.offsets, parts, sums, sums, *sizes, RUN=run, WIDTH=width)
    return sums.to(rows.dtype)


def dots(left: Float[Tensor, "row d"], right: Float[Tensor, "n d"], pattern: Pattern) -> Float[Tensor, " pair"]:
    """`sparse.dots`: left[row] . right[column] at each pair."""
    left, right = _rows_together(left), _rows_together(right)
    n_pairs, d = len(pattern.columns), left.shape[1]
    out = left.new_empty(n_pairs)
    if n_pairs:
        _dots[(triton.cdiv(n_pairs, DOT_PAIRS),)](
            left, right, pattern.rows, pattern.columns.contiguous(), out, n_pairs, d, left.stride(0), right.stride(0),
            PAIRS=DOT_PAIRS, WIDTH=min(DOT_WIDTH, triton.next_power_of_2(d)), SUM=_sum_in(left),
        )  # fmt: skip
    return out


def _rows_together(matrix: Tensor) -> Tensor:
    """The kernels step along a row by one."""
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()


def _sum_in(matrix: Tensor) -> tl.dtype:
    return tl.float64 if matrix.dtype == torch.float64 else tl.float32
