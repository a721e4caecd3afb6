"""The sparse products are the dense ones: values and gradients, in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saes import sparse
from saes.sparse import Codes, Pattern


def pattern_of(mask: torch.Tensor) -> Pattern:
    rows, columns = mask.nonzero(as_tuple=True)
    counts = torch.bincount(rows, minlength=len(mask))
    return Pattern(columns, counts.cumsum(0) - counts, mask.shape[1])


def drawn(seed: int, rows: int = 9, n: int = 13, d: int = 5, density: float = 0.3) -> tuple[Pattern, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, n, generator=generator) < density
    mask[3] = False  # a row without active features
    mask[:, 4] = False  # a feature that never fires
    pattern = pattern_of(mask)
    values = torch.randn(len(pattern.columns), generator=generator, dtype=torch.float64)
    return pattern, values, torch.randn(n, d, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_decoding_sparse_codes_is_the_dense_product_and_so_are_its_gradients(density):
    pattern, values, weight = drawn(0, density=density)
    values.requires_grad_(), weight.requires_grad_()
    upstream = torch.randn(9, 5, dtype=torch.float64)
    fast = sparse.decode(values, pattern, weight)
    slow = Codes(values, pattern).dense() @ weight
    assert torch.allclose(fast, slow, atol=1e-12)
    for a, b in zip(
        torch.autograd.grad(fast, (values, weight), upstream), torch.autograd.grad(slow, (values, weight), upstream), strict=True
    ):
        assert torch.allclose(a, b, atol=1e-12)


def test_gradients_of_the_sparse_decoder_match_finite_differences():
    pattern, values, weight = drawn(1)
    assert torch.autograd.gradcheck(lambda v, w: sparse.decode(v, pattern, w), (values.requires_grad_(), weight.requires_grad_()))


@pytest.mark.parametrize("k", [1, 3, 16])
def test_encoding_the_k_largest_is_dense_encoding_then_selection_with_all_its_gradients(k):
    torch.manual_seed(k)
    x, weight, bias = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((11, 6), (6, 16), (16,)))
    codes = sparse.encode_topk(x, weight, bias, k)
    pre = (x @ weight + bias).relu()
    dense = pre * torch.zeros_like(pre).scatter(1, pre.topk(k).indices, 1.0)
    assert torch.allclose(codes.dense(), dense, atol=1e-12)
    upstream = torch.randn(11, 16, dtype=torch.float64)
    fast = torch.autograd.grad(codes.dense(), (x, weight, bias), upstream)
    slow = torch.autograd.grad(dense, (x, weight, bias), upstream)
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(fast, slow, strict=True))


def test_encoding_at_any_selection_has_the_gradient_of_the_dense_product():
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((11, 6), (6, 16), (16,)))
    codes = sparse.encode(x, weight, bias, lambda pre: pattern_of(pre > 1))
    pre = x @ weight + bias
    dense = pre * (pre > 1)
    assert torch.allclose(codes.dense(), dense, atol=1e-12)
    fast = torch.autograd.grad(codes.dense().square().sum(), (x, weight, bias))
    slow = torch.autograd.grad(dense.square().sum(), (x, weight, bias))
    assert all(torch.allclose(a, b, atol=1e-11) for a, b in zip(fast, slow, strict=True))


@given(seed=st.integers(0, 10**6), n=st.integers(1, 400), k=st.integers(1, 20), ties=st.booleans())
def test_the_folded_search_finds_the_k_largest(seed, n, k, ties):
    k = min(k, n)
    pre = torch.randn(7, n, generator=torch.Generator().manual_seed(seed))
    pre = (3 * pre).round() if ties else pre
    values, columns = sparse.topk(pre, k)
    assert torch.equal(values.sort(1).values, pre.topk(k).values.sort(1).values)
    assert torch.equal(pre.gather(1, columns), values)
    assert all(len(set(row)) == k for row in columns.tolist())


def test_float32_products_agree_with_float64_ones():
    pattern, values, weight = drawn(2, rows=40, n=64, d=32)
    exact = sparse.decode(values, pattern, weight)
    assert torch.allclose(sparse.decode(values.float(), pattern, weight.float()).double(), exact, atol=1e-5)
    left = torch.randn(40, 32, dtype=torch.float64)
    assert torch.allclose(sparse.dots(left.float(), weight.float(), pattern).double(), sparse.dots(left, weight, pattern), atol=1e-4)
    assert torch.allclose(sparse.column_sums(values, pattern), Codes(values, pattern).dense().sum(0), atol=1e-12)
    slow = (left[pattern.rows] * weight[pattern.columns]).sum(1)
    assert torch.allclose(sparse.dots(left, weight, pattern), slow, atol=1e-12)
