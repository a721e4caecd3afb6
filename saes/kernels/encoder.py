"""The encoder's product and the k largest of each row in one pass: pre-activations never reach memory.

A program makes a tile of pre-activations (`ROWS` rows, `COLUMNS` features) and writes only the `keep` largest of each row of the tile, with
the largest that it dropped. The k largest candidates of a row are its k largest pre-activations whenever the k-th is not below anything
dropped; every row for which this does not hold is reported, and `saes.sparse.encode_topk` computes it densely. So the result is exact, and
`keep` decides only about speed: `candidates_per_tile` takes the smallest that should leave under 1 % of rows to be redone if active
features lie anywhere with the same probability.
"""

# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportIndexIssue=false, reportOperatorIssue=false
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false

import math

import torch
import triton
import triton.language as tl
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saes import kernels

ROWS, COLUMNS = 128, 128
DEPTH = 128
"""Bytes of a row of x that a program multiplies at a time."""
MOST = 8
"""More candidates per tile than this cost more than writing the pre-activations down."""
AT_ONCE = 16384
"""Rows whose candidates are held at a time."""


@triton.jit
def _candidates(x, weight, bias, values, columns, dropped, n_rows, n, d, n_tiles, x_row, x_d, w_d, w_n, KEEP: tl.constexpr,
                ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    program = tl.program_id(0)
    row_tiles = tl.cdiv(n_rows, ROWS)
    tile = program // row_tiles  # neighbouring programs share the columns of the weight, the larger operand
    row = (program % row_tiles) * ROWS + tl.arange(0, ROWS).to(tl.int64)
    place = tl.arange(0, COLUMNS)
    column = tile * COLUMNS + place.to(tl.int64)
    pre = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    for start in range(0, d, DEPTH):
        at = start + tl.arange(0, DEPTH)
        left = tl.load(x + row[:, None] * x_row + at[None, :] * x_d, mask=(row < n_rows)[:, None] & (at < d)[None, :], other=0.0)
        right = tl.load(weight + at[:, None] * w_d + column[None, :] * w_n, mask=(at < d)[:, None] & (column < n)[None, :], other=0.0)
        if UPCAST:  # the interpreter's product of bfloat16 operands is garbage
            left, right = left.to(tl.float32), right.to(tl.float32)
        pre = tl.dot(left, right, pre, input_precision=PRECISION)
    pre += tl.load(bias + column, mask=column < n, other=0.0).to(tl.float32)[None, :]
    undefined = tl.max((pre != pre).to(tl.int32), 1) > 0
    lowest = float("-inf")
    pre = tl.where((column < n)[None, :] & (pre == pre), pre, lowest)
    out = row * (n_tiles * KEEP) + tile * KEEP
    for i in tl.static_range(KEEP):
        largest, where = tl.max(pre, 1, return_indices=True)
        tl.store(values + out + i, largest, mask=row < n_rows)
        tl.store(columns + out + i, tile * COLUMNS + where, mask=row < n_rows)
        pre = tl.where(place[None, :] == where[:, None], lowest, pre)
    # NaN is below nothing and above nothing: such a row is never proven, and torch decides about it
    rest = tl.where(undefined, float("nan"), tl.max(pre, 1))
    tl.store(dropped + row * n_tiles + tile, rest, mask=row < n_rows)


INTERPRETED = not isinstance(_candidates, triton.JITFunction)


def candidates_per_tile(k: int, n: int, columns: int = COLUMNS) -> int | None:
    """The smallest number that leaves under 1 % of rows to be redone (Poisson, Markov's bound over tiles); None if above MOST."""
    tiles, mean = math.ceil(n / columns), k * min(columns, n) / n
    term = beyond = math.exp(-mean)
    beyond = 1 - beyond
    for keep in range(1, MOST + 1):
        term *= mean / keep
        beyond -= term
        if keep * tiles >= k and (tiles * beyond < 0.01 or keep >= min(k, columns)):
            return keep
    return None


def largest(x: Tensor, weight: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """`topk` in the precision that torch's settings ask for; None where the dense product and a search are the better or the only way.

    That is: float64; more than MOST candidates per tile; and float32 in full, which tensor cores cannot multiply (unless use(True)).
    """
    if torch.is_autocast_enabled(x.device.type) and x.dtype == weight.dtype == torch.float32:
        x, weight = (t.to(torch.get_autocast_dtype(x.device.type)) for t in (x, weight))
    full = x.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    keep = candidates_per_tile(k, weight.shape[1])
    if keep is None or x.dtype == torch.float64 or x.dtype != weight.dtype or (full and not kernels.forced()):
        return None
    return topk(x, weight, bias, k, keep)


def topk(
    x: Float[Tensor, "row d"],
    weight: Float[Tensor, "d n"],
    bias: Float[Tensor, " n"],
    k: int,
    keep: int,
    columns: int = COLUMNS,
) -> tuple[Float[Tensor, "row k"], Int[Tensor, "row k"], Bool[Tensor, " row"]]:
    """The k largest of x @ weight + bias in each row, unsorted and float32; their columns; and whether they are proven to be the k largest.

    What is not proven may hold anything, columns that do not exist too. TensorFloat-32 where torch is set to allow it. `keep` candidates
    are kept of each tile of `columns` features; ValueError if all of them together are fewer than k.
    """
    n, tiles = weight.shape[1], triton.cdiv(weight.shape[1], columns)
    if k > min(n, tiles * keep):
        raise ValueError(f"k={k} of {n} features, of which {tiles} tiles x {keep} are candidates: keep more of each tile.")
    parts = [_topk(block, weight, bias, k, keep, columns) for block in x.split(AT_ONCE)]
    values, places, proven = (torch.cat(part) if len(parts) > 1 else part[0] for part in zip(*parts, strict=True))
    return values, places, proven


def _topk(x: Tensor, weight: Tensor, bias: Tensor, k: int, keep: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    (rows, d), n = x.shape, weight.shape[1]
    tiles = triton.cdiv(n, columns)
    values = x.new_empty(rows, tiles * keep, dtype=torch.float32)
    places = x.new_empty(rows, tiles * keep, dtype=torch.int32)
    dropped = x.new_empty(rows, tiles, dtype=torch.float32)
    height = min(ROWS, max(16, triton.next_power_of_2(rows)))
    if rows:
        _candidates[(triton.cdiv(rows, height) * tiles,)](
            x, weight, bias, values, places, dropped, rows, n, d, tiles, *x.stride(), *weight.stride(),
            KEEP=keep, ROWS=height, COLUMNS=columns, DEPTH=DEPTH // x.element_size(), UPCAST=INTERPRETED, num_warps=8,
            PRECISION="ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32",
        )  # fmt: skip
    found, chosen = values.topk(k, dim=1, sorted=False)
    least = found.amin(1)
    # an entry of -inf may be a masked column
    return found, places.gather(1, chosen).long(), (least >= dropped.amax(1)) & (least > float("-inf"))
