"""Fake quantization against a loop over entries, against torchao, and against its own laws."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interp.quant import fake_fp8, fake_quant, sqnr
from interp.quant.rounding import CANDIDATES, find_range, round_to_grid

X = torch.randn(3, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def by_hand(row: list[float], bits: int, symmetric: bool, half_step: bool = False) -> list[float]:
    """One scale for a list of numbers, entry by entry; Python's round is half to even too."""
    low, high = min(row), max(row)
    if symmetric:
        step = max(abs(low), abs(high)) / (2 ** (bits - 1) - (0.5 if half_step else 1))
        steps = [v * (1 / step) if half_step else v / step for v in row]  # the largest is a tie at half a step: as torchao computes it
        return [min(max(round(v), -(2 ** (bits - 1))), 2 ** (bits - 1) - 1) * step for v in steps]
    low, high = min(low, 0.0), max(high, 0.0)
    step = (high - low) / (2**bits - 1)
    zero = round(-low / step)
    return [(min(max(round(v / step) + zero, 0), 2**bits - 1) - zero) * step for v in row]


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("half_step", [False, True])
def test_every_granularity_equals_a_loop(bits, symmetric, half_step):
    tensor = fake_quant(X, bits, symmetric, half_step=half_step)
    assert tensor.flatten().tolist() == pytest.approx(by_hand(X.flatten().tolist(), bits, symmetric, half_step))
    token = fake_quant(X, bits, symmetric, "token", half_step=half_step)
    channel = fake_quant(X, bits, symmetric, "channel", half_step=half_step)
    group = fake_quant(X, bits, symmetric, "group", group=4, half_step=half_step)
    for i in range(3):
        for j in range(5):
            assert token[i, j].tolist() == pytest.approx(by_hand(X[i, j].tolist(), bits, symmetric, half_step))
            for k in (0, 4):
                assert group[i, j, k : k + 4].tolist() == pytest.approx(by_hand(X[i, j, k : k + 4].tolist(), bits, symmetric, half_step))
    for k in range(8):
        assert channel[..., k].flatten().tolist() == pytest.approx(by_hand(X[..., k].flatten().tolist(), bits, symmetric, half_step))


@given(st.lists(st.floats(-1e6, 1e6).filter(lambda v: v == 0 or abs(v) > 1e-6), min_size=1, max_size=20), st.integers(2, 16), st.booleans())
def test_rounding_twice_is_rounding_once_and_zeros_stay_zeros(row, bits, symmetric):
    x = torch.tensor(row, dtype=torch.float64)
    once = fake_quant(x, bits, symmetric)
    torch.testing.assert_close(fake_quant(once, bits, symmetric), once, rtol=1e-9, atol=1e-9)
    assert not once[x == 0].any()
    step = (max(*row, 0.0) - min(*row, 0.0)) / (2**bits - 1) if not symmetric else x.abs().max() / (2 ** (bits - 1) - 1)
    assert float((once - x).abs().max()) <= float(step) * (1 + 1e-9)


def test_a_constant_and_an_all_zero_tensor_stay_what_they_are():
    for x in (torch.zeros(4, 4), torch.full((4, 4), 3.0)):
        for per in ("tensor", "token", "channel"):
            torch.testing.assert_close(fake_quant(x, 8, False, per), x)


def test_a_percentile_range_is_that_of_numpy_and_100_is_min_max():
    import numpy as np

    low, high = find_range(X, "tensor", 99.0, 8, False)
    assert float(high) == pytest.approx(np.percentile(X.numpy(), 99)) and float(low) == pytest.approx(np.percentile(X.numpy(), 1))
    assert torch.equal(fake_quant(X, range=100.0), fake_quant(X))
    low, high = find_range(X, "channel", 90.0, 8, False)
    assert high.flatten().tolist() == pytest.approx(np.percentile(X.reshape(-1, 8).numpy(), 90, axis=0).tolist())


@pytest.mark.parametrize("per", ["tensor", "token", "channel"])
def test_the_mse_range_is_the_best_of_its_candidates(per):
    chosen = (fake_quant(X, 3, True, per, "mse") - X).square()
    axes = {"tensor": (0, 1, 2), "token": (2,), "channel": (0, 1)}[per]
    low, high = find_range(X, per, "minmax", 3, True)
    for share in torch.linspace(1 / CANDIDATES, 1, CANDIDATES, dtype=torch.float64):
        other = (round_to_grid(X, low * share, high * share, 3, True) - X).square()
        assert bool((chosen.sum(axes) <= other.sum(axes) + 1e-12).all())


def test_a_gaussian_at_8_bits_per_tensor_keeps_about_40_db():
    x = torch.randn(393_216, generator=torch.Generator().manual_seed(0))
    step = float(x.abs().max()) / 127
    assert sqnr(x, fake_quant(x)) == pytest.approx(10 * math.log10(12 / step**2), abs=0.05)
    assert 39 < sqnr(x, fake_quant(x)) < 41


def test_fp8_keeps_its_own_grid():
    grid = torch.tensor([448.0, 416.0, 1.0, 1.125, -0.5, 2.0**-9, 0.0])
    assert torch.equal(fake_fp8(grid), grid)
    assert sqnr(X, fake_fp8(X)) > 25


@pytest.mark.parametrize(
    ("options", "said"),
    [({"bits": 1}, "2 to 16"), ({"bits": 8.0}, "2 to 16"), ({"per": "row"}, "'token'"), ({"range": "best"}, "'best'"),
     ({"range": 20}, "20"), ({"per": "group", "group": 3}, "groups of 3")],
)  # fmt: skip
def test_what_cannot_be_done_is_said(options, said):
    with pytest.raises(ValueError, match=said):
        fake_quant(X, **options)


@pytest.mark.parametrize("bad", [torch.tensor([1.0, math.nan]), torch.tensor([math.inf]), torch.empty(0)])
def test_nan_infinity_and_nothing_are_refused(bad):
    with pytest.raises(ValueError, match="NaN|empty"):
        fake_quant(bad)


@pytest.mark.parametrize(("per", "granularity"), [("tensor", "PerTensor"), ("token", "PerRow")])
def test_symmetric_rounding_equals_torchao_at_70_db(per, granularity):
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed (extra int8)")
    primitives = pytest.importorskip("torchao.quantization.quant_primitives")
    x = torch.randn(64, 256, generator=torch.Generator().manual_seed(1))
    block = x.shape if granularity == "PerTensor" else (1, x.shape[1])
    scale, zero = primitives.choose_qparams_affine(x, quantization.MappingType.SYMMETRIC, block, torch.int8, eps=1e-12)
    q = primitives.quantize_affine(x, block, scale, zero, torch.int8)
    theirs = primitives.dequantize_affine(q, block, scale, zero, torch.int8)
    # a row's largest entry lies on the tie between two integers (127.5 steps), which the last bit of the division decides
    inner = x.abs() < (x.abs().amax() if per == "tensor" else x.abs().amax(-1, keepdim=True))
    assert sqnr(theirs[inner], fake_quant(x, 8, True, per, half_step=True)[inner]) >= 70
    assert sqnr(theirs, fake_quant(x, 8, True, per)) < 60  # the other convention: the switch is not idle


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_half_precision_is_rounded_on_the_same_grid_as_double(dtype, symmetric, bits):
    half = X.to(dtype)
    expected = fake_quant(half.double(), bits, symmetric)
    torch.testing.assert_close(fake_quant(half, bits, symmetric).double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    small = half * 1e-4
    assert sqnr(small, fake_fp8(small)) > 20  # 448 / absmax is more than float16 holds
