"""Sparse codes and the products with them, whose cost grows with the active features instead of the dictionary.

A code of `rows` rows is a list of pairs (column, value), row after row. Decoding gathers decoder rows (`embedding_bag`). Its gradient with
respect to the decoder, and that of the encoder, is the transposed product: pairs sorted by column once, then again an
`embedding_bag`, this time over rows. Nothing of size rows x n_features is made but the pre-activations, a block of rows at a time.
Every function here equals dense autograd (tests, float64).

CUDA tensors are computed by the Triton kernels of `saes.kernels` where triton is installed; what is below is their reference.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from saes import kernels

BLOCK = 512
"""Rows whose pre-activations are held at a time."""


@dataclass(frozen=True, eq=False)
class Pattern:
    """Which features are active where: `columns` of all pairs, row after row; row r starts at offsets[r]."""

    columns: Int[Tensor, " pair"]
    offsets: Int[Tensor, " row"]
    n_features: int

    @cached_property
    def counts(self) -> Int[Tensor, " row"]:
        """Pairs of each row."""
        return self.offsets.diff(append=self.offsets.new_full((1,), len(self.columns)))

    @cached_property
    def rows(self) -> Int[Tensor, " pair"]:
        """The row of each pair."""
        rows = torch.arange(len(self.offsets), device=self.offsets.device)
        return torch.repeat_interleave(rows, self.counts, output_size=len(self.columns))  # a CUDA device need not be asked for the size

    @cached_property
    def transposed(self) -> tuple["Pattern", Int[Tensor, " pair"]]:
        """The pairs column after column (a stable order, so that sums are the same in every run), and where each came from."""
        columns, order = self.columns.int().sort(stable=True)
        features = torch.arange(self.n_features, dtype=torch.int32, device=columns.device)
        return Pattern(self.rows[order], torch.searchsorted(columns, features), len(self.offsets)), order


@dataclass(frozen=True, eq=False)
class Codes:
    """Sparse codes: the values of the pairs of a pattern."""

    values: Float[Tensor, " pair"]
    pattern: Pattern

    def dense(self) -> Float[Tensor, "row n_features"]:
        pattern = self.pattern
        out = self.values.new_zeros(len(pattern.offsets), pattern.n_features)
        return out.index_put((pattern.rows, pattern.columns), self.values)


def decode(values: Float[Tensor, " pair"], pattern: Pattern, weight: Float[Tensor, "n_features d"]) -> Float[Tensor, "row d"]:
    """codes @ weight, with gradients to values and weight."""
    return _Decode.apply(values, weight, pattern)  # type: ignore[no-any-return]


def encode(
    x: Float[Tensor, "row d"],
    weight: Float[Tensor, "d n_features"],
    bias: Float[Tensor, " n_features"],
    select: Callable[[Tensor], Pattern],
) -> Codes:
    """Pre-activations x @ weight + bias at the pairs that `select` chooses from all of them, with gradients to weight and bias."""
    with torch.no_grad():
        pre = torch.addmm(bias, x, weight)
        pattern = select(pre)
        values = pre[pattern.rows, pattern.columns].to(x.dtype)  # under autocast the product is bfloat16
    return Codes(_Encode.apply(x, weight, bias, values, pattern), pattern)  # type: ignore[arg-type]


def encode_topk(x: Float[Tensor, "row d"], weight: Float[Tensor, "d n_features"], bias: Float[Tensor, " n_features"], k: int) -> Codes:
    """Rectified pre-activations of the k largest of each row, a block of rows at a time; gradients to weight and bias."""
    with torch.no_grad():
        values, columns = (found.flatten() for found in _largest(x, weight, bias, k))
        values = values.to(x.dtype)  # under autocast the product is bfloat16
    pattern = Pattern(columns, torch.arange(0, len(columns), k, device=x.device), weight.shape[1])
    return Codes(_Encode.apply(x, weight, bias, values, pattern).relu(), pattern)  # type: ignore[union-attr]


def _largest(x: Tensor, weight: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest pre-activations of each row, unsorted, and their columns."""
    if (found := _fused(x, weight, bias, k)) is None:
        return _dense(x, weight, bias, k)
    values, columns, proven = found
    if len(rows := (~proven).nonzero().flatten()):
        exact, places = _dense(x[rows], weight, bias, k)
        values[rows], columns[rows] = exact.to(values.dtype), places
    return values, columns


def _dense(x: Tensor, weight: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor]:
    found = [topk(torch.addmm(bias, block, weight), k) for block in x.split(BLOCK)]
    values, columns = (torch.cat(parts) for parts in zip(*found, strict=True))
    return values, columns


def _fused(x: Tensor, weight: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """Values, columns and which rows are proven, from one kernel; None where the dense product is the way."""
    if not kernels.serve(x, weight, bias):
        return None
    from saes.kernels import encoder

    with kernels.on_device_of(x):
        return encoder.largest(x, weight, bias, k)


def topk(pre: Float[Tensor, "row n"], k: int) -> tuple[Float[Tensor, "row k"], Int[Tensor, "row k"]]:
    """The k largest of each row, unsorted; exact, and faster than `torch.topk` on rows much longer than k.

    A row is folded to a quarter of its length, keeping maxima. The k largest entries lie under at most k maxima, and no other
    maximum is larger than these, so the k largest maxima (found the same way) cover them: only 4 k candidates remain.
    """
    n = pre.shape[1]
    if pre.is_cuda or n <= 8 * k or n % 4:
        return pre.topk(k, dim=1, sorted=False)
    fold = pre.view(len(pre), 4, n // 4)
    places = topk(fold.amax(1), k)[1]
    candidates = (places.unsqueeze(2) + (n // 4) * torch.arange(4, device=pre.device)).flatten(1)
    values, chosen = pre.gather(1, candidates).topk(k, dim=1, sorted=False)
    return values, candidates.gather(1, chosen)


def gather(values: Float[Tensor, " pair"], pattern: Pattern, weight: Float[Tensor, "n d"]) -> Float[Tensor, "row d"]:
    """For each row of the pattern, the sum of value * weight[column]. No gradient."""
    values, weight = values.detach(), weight.detach()
    if kernels.serve(values, weight):
        from saes.kernels import pairs

        with kernels.on_device_of(weight):
            return pairs.gather(values, pattern, weight)
    return F.embedding_bag(pattern.columns, weight, pattern.offsets, mode="sum", per_sample_weights=values)


def transposed_gather(values: Float[Tensor, " pair"], pattern: Pattern, rows: Float[Tensor, "row d"]) -> Float[Tensor, "n_features d"]:
    """codes^T @ rows: for each feature, the sum of value * rows[row] over the rows where it is active. No gradient."""
    values, rows = values.detach(), rows.detach()
    if kernels.serve(values, rows):
        from saes.kernels import pairs

        with kernels.on_device_of(rows):
            return pairs.transposed_gather(values, pattern, rows)
    flipped, order = pattern.transposed
    return gather(values[order], flipped, rows)


def column_sums(values: Float[Tensor, " pair"], pattern: Pattern) -> Float[Tensor, " n_features"]:
    """For each feature, the sum of its values. No gradient."""
    values = values.detach()
    if kernels.serve(values):  # index_add_ has atomics on CUDA: sums would differ from run to run
        return transposed_gather(values, pattern, values.new_ones(len(pattern.offsets), 1)).squeeze(1)
    return values.new_zeros(pattern.n_features).index_add_(0, pattern.columns, values)


def dots(left: Float[Tensor, "row d"], right: Float[Tensor, "n d"], pattern: Pattern) -> Float[Tensor, " pair"]:
    """left[row] . right[column] at each pair of the pattern. No gradient."""
    if kernels.serve(left, right):
        from saes.kernels import pairs

        with kernels.on_device_of(left):
            return pairs.dots(left.detach(), right.detach(), pattern)
    if left.dtype not in (torch.float32, torch.float64) or not right.is_contiguous():
        return (left[pattern.rows] * right[pattern.columns]).sum(1)
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        left.contiguous(), right, pattern.columns, pattern.offsets, pattern.rows, 0, -1
    )


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, pattern: Pattern) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(values, weight)
        ctx.pattern = pattern
        return gather(values, pattern, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:  # type: ignore[override]
        values, weight = ctx.saved_tensors
        wants_values, wants_weight = ctx.needs_input_grad[:2]
        to_values = dots(grad, weight, ctx.pattern) if wants_values else None
        return to_values, transposed_gather(values, ctx.pattern, grad) if wants_weight else None, None


class _Encode(torch.autograd.Function):
    """Passes `values` on; they are x[row] . weight[:, column] + bias[column], and the gradient is that of this product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, values: Tensor, pattern: Pattern) -> Tensor:  # type: ignore[override]  # noqa: ARG004
        ctx.save_for_backward(x, weight)
        ctx.pattern = pattern
        return values.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        to_x = gather(grad, ctx.pattern, weight.t().contiguous()) if wants_x else None
        to_weight = transposed_gather(grad, ctx.pattern, x).t() if wants_weight else None
        to_bias = column_sums(grad, ctx.pattern) if wants_bias else None
        return to_x, to_weight, to_bias, None, None
