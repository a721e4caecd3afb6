"""What the kernels promise, on the device of the fixture `device`: in triton's interpreter on a CPU (`test_kernels.py` runs this file in a
process with TRITON_INTERPRET=1) or on a CUDA device (`test_kernels_gpu.py`)."""

from collections.abc import Iterator

import pytest
import torch

import saes
from saes import kernels, sparse
from saes.kernels import encoder, pairs
from saes.sparse import Codes, Pattern
from saes.trainer import Trainer
from saes.weights import Scaling

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
CLOSE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-7}  # bfloat16: sums are float32, what is stored is rounded once


@pytest.fixture
def device() -> str:
    return "cpu"


@pytest.fixture(autouse=True)
def kernels_on(device: str) -> Iterator[None]:
    with kernels.use(True):
        yield


@pytest.fixture
def nothing_uninitialised() -> Iterator[None]:
    """Memory that is not written holds NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def shuffled(mask: torch.Tensor, generator: torch.Generator, index: torch.dtype = torch.int64) -> Pattern:
    """The pattern of a mask; the columns of each row are in random order."""
    rows, columns = mask.nonzero(as_tuple=True)
    counts = torch.bincount(rows, minlength=len(mask))
    order = (rows + 0.9 * torch.rand(len(rows), generator=generator)).argsort()
    return Pattern(columns[order].to(index), (counts.cumsum(0) - counts).to(index), mask.shape[1])


def on(device: str, pattern: Pattern) -> Pattern:
    return Pattern(pattern.columns.to(device), pattern.offsets.to(device), pattern.n_features)


def drawn(device, dtype, seed=0, rows=9, n=13, d=5, density=0.3, index=torch.int64):
    """A pattern, values, a weight [n, d], dense rows [rows, d]. Rows 0, 3 and the last are empty, feature 4 never fires, 6 always does."""
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, n, generator=g) < density
    mask[:, 4], mask[:, 6] = False, density > 0
    mask[[0, 3, -1]] = False
    pattern = shuffled(mask, g, index)
    values = torch.randn(len(pattern.columns), generator=g, dtype=torch.float64)
    weight, dense = (torch.randn(size, d, generator=g, dtype=torch.float64) for size in (n, rows))
    return on(device, pattern), *(t.to(device, dtype) for t in (values, weight, dense))


def matrix(values, pattern):
    return Codes(values.double(), Pattern(pattern.columns.long(), pattern.offsets.long(), pattern.n_features)).dense()


def close(found, expected, dtype):
    assert found.dtype == dtype
    assert torch.allclose(found.double(), expected.double(), atol=CLOSE[dtype], rtol=CLOSE[dtype])
    return True


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("d", "density", "index"), [(5, 0.3, torch.int64), (37, 1.0, torch.int32), (300, 0.2, torch.int64), (3, 0.0, torch.int32)]
)
def test_the_three_products_are_the_dense_ones(device, dtype, d, density, index, nothing_uninitialised):
    pattern, values, weight, rows = drawn(device, dtype, d=d, density=density, index=index)
    codes = matrix(values, pattern)
    close(pairs.gather(values, pattern, weight), codes @ weight.double(), dtype)
    close(pairs.transposed_gather(values, pattern, rows), codes.T @ rows.double(), dtype)
    close(sparse.column_sums(values, pattern), codes.sum(0), dtype)
    all_dots = rows.double() @ weight.double().T
    close(pairs.dots(rows, weight, pattern), all_dots[pattern.rows.long(), pattern.columns.long()], dtype)


@pytest.mark.parametrize("run", [1, 2, 3, 5, 8, 1000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_wherever_the_work_on_features_is_cut_the_sum_is_the_same(device, dtype, run, nothing_uninitialised):
    pattern, values, _, rows = drawn(device, dtype, seed=run, rows=12, n=7, d=6, density=0.6)
    close(pairs.transposed_gather(values, pattern, rows, run), matrix(values, pattern).T @ rows.double(), dtype)


def test_features_that_nearly_every_row_activates_are_cut_at_the_default_length(device, nothing_uninitialised):
    pattern, values, _, rows = drawn(device, torch.float32, rows=2 * pairs.RUN + 50, n=7, d=3, density=0.1)
    assert int(pattern.columns.bincount().max()) > 2 * pairs.RUN
    close(pairs.transposed_gather(values, pattern, rows), matrix(values, pattern).T @ rows.double(), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operands_may_be_strided(device, dtype):
    pattern, values, weight, rows = drawn(device, dtype)
    other, spread = weight.t().contiguous().t(), torch.stack([rows, -rows], 1)[:, 0]
    assert not other.is_contiguous()
    assert not spread.is_contiguous()
    assert torch.equal(pairs.gather(values, pattern, other), pairs.gather(values, pattern, weight))
    assert torch.equal(pairs.dots(spread, other, pattern), pairs.dots(rows, weight, pattern))
    assert torch.equal(pairs.transposed_gather(values, pattern, spread), pairs.transposed_gather(values, pattern, rows))


def test_no_rows_and_no_pairs_give_zeros_of_the_right_shape(device):
    none = torch.zeros(0, dtype=torch.long, device=device)
    weight = torch.randn(6, 4, device=device)
    assert pairs.gather(weight[:0, 0], Pattern(none, none, 6), weight).shape == (0, 4)
    empty = Pattern(none, torch.zeros(3, dtype=torch.long, device=device), 6)
    assert torch.equal(pairs.gather(weight[:0, 0], empty, weight), weight.new_zeros(3, 4))
    assert torch.equal(pairs.transposed_gather(weight[:0, 0], empty, weight[:3]), torch.zeros_like(weight))
    assert pairs.dots(weight[:3], weight, empty).shape == (0,)


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_decoding_and_its_gradients_are_those_of_pure_torch_and_of_dense_autograd(device, density):
    pattern, values, weight, upstream = drawn(device, torch.float64, density=density)
    values.requires_grad_(), weight.requires_grad_()

    def with_gradients(out):
        return [out, *torch.autograd.grad(out, (values, weight), upstream)]

    fast = with_gradients(sparse.decode(values, pattern, weight))
    with kernels.use(False):
        pure = with_gradients(sparse.decode(values, pattern, weight))
    dense = with_gradients(Codes(values, pattern).dense() @ weight)
    assert all(torch.allclose(a, b, atol=1e-12) and torch.allclose(a, c, atol=1e-12) for a, b, c in zip(fast, pure, dense, strict=True))


def test_gradients_through_the_kernels_match_finite_differences(device):
    pattern, values, weight, _ = drawn(device, torch.float64, rows=5, n=7, d=1, density=0.2)
    assert torch.autograd.gradcheck(lambda v, w: sparse.decode(v, pattern, w), (values.requires_grad_(), weight.requires_grad_()))


@pytest.mark.parametrize("k", [1, 5])
def test_encoding_and_its_gradients_are_those_of_pure_torch(device, k):
    g = torch.Generator().manual_seed(k)
    x, weight, bias = (torch.randn(*s, generator=g).to(device).requires_grad_() for s in ((6, 21), (21, 131), (131,)))
    assert encoder.candidates_per_tile(k, 131) is not None
    upstream = torch.randn(6, 131, generator=g).to(device)

    def codes_and_gradients():
        codes = sparse.encode_topk(x, weight, bias, k).dense()
        return [codes, *torch.autograd.grad(codes, (x, weight, bias), upstream)]

    fast = codes_and_gradients()
    with kernels.use(False):
        pure = codes_and_gradients()
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(fast, pure, strict=True))


def holds_the_largest(pre, values, columns, atol):
    """Values of the right columns, no column twice, and nothing left out that is larger."""
    k = values.shape[1]
    assert all(len(set(row)) == k for row in columns.tolist())
    assert torch.allclose(pre.gather(1, columns), values.double(), atol=atol)
    return torch.allclose(values.double().sort(1).values, pre.topk(k).values.flip(1), atol=atol)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "d", "n", "k", "keep"), [(5, 7, 40, 6, 4), (37, 21, 150, 5, 1), (33, 40, 131, 17, 3), (18, 65, 16, 9, 9)])
def test_what_is_proven_are_the_k_largest_and_some_rows_are(device, dtype, rows, d, n, k, keep, transposed, nothing_uninitialised):
    g = torch.Generator().manual_seed(n)
    x, weight = torch.randn(rows, d, generator=g).to(device, dtype), torch.randn(d, n, generator=g).to(device, dtype)
    bias = torch.randn(n, generator=g).to(device)
    given = weight.t().contiguous().t() if transposed else weight
    values, columns, proven = encoder.topk(x, given, bias, k, keep, columns=16)
    pre = x.double() @ weight.double() + bias.double()
    assert proven.any()
    assert holds_the_largest(pre[proven], values[proven], columns[proven], 1e-4)
    if keep == k:
        assert proven.all()


def test_the_proof_is_needed_and_unproven_rows_are_computed_densely(device, monkeypatch):
    """The first features, which share a tile, are the largest in half of the rows."""
    g = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*s, generator=g).to(device) for s in ((20, 8), (8, 300), (300,)))
    x[:, 0] = (torch.arange(20, device=device) % 2) * 100.0
    weight[0] = 0
    weight[0, :12] = 1
    values, columns, proven = encoder.topk(x, weight, bias, 8, keep=4)
    pre = x.double() @ weight.double() + bias.double()
    assert not proven[1::2].any()
    assert proven[::2].any()
    assert not torch.allclose(values[1::2].double().sort(1).values, pre[1::2].topk(8).values.flip(1), atol=1e-3)  # the control
    seen = []
    dense = sparse._dense
    monkeypatch.setattr(sparse, "_dense", lambda x, *rest: (seen.append(len(x)), dense(x, *rest))[1])
    monkeypatch.setattr(encoder, "candidates_per_tile", lambda *_: 4)
    values, columns = sparse._largest(x, weight, bias, 8)
    assert seen == [int((~proven).sum())]
    assert holds_the_largest(pre, values, columns, 1e-3)


def test_ties_and_minus_infinity_never_bring_a_column_that_does_not_exist(device):
    x = torch.ones(3, 4, device=device)
    weight, bias = torch.zeros(4, 21, device=device), torch.zeros(21, device=device)
    values, columns, proven = encoder.topk(x, weight, bias, 6, keep=3, columns=16)
    assert proven.all()  # what is dropped is as large, not larger
    assert bool((values == 0).all())
    assert bool((columns < 21).all())
    assert all(len(set(row)) == 6 for row in columns.tolist())
    bias[2:] = float("-inf")
    assert not encoder.topk(x, weight, bias, 6, keep=3, columns=16)[2].any()
    columns = sparse._largest(x, weight, bias, 6)[1]
    assert bool((columns < 21).all())


def test_rows_with_nan_are_never_proven_and_stay_nan(device):
    g = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*s, generator=g).to(device) for s in ((6, 4), (4, 150), (150,)))
    x[2, 1] = float("nan")
    assert encoder.topk(x, weight, bias, 2, keep=2)[2].tolist() == [True, True, False, True, True, True]
    codes = sparse.encode_topk(x, weight, bias, 2)
    assert codes.values.view(6, 2).isnan().any(1).tolist() == [False, False, True, False, False, False]


def test_candidates_are_as_few_as_leave_less_than_a_hundredth_of_the_rows_or_none():
    assert encoder.candidates_per_tile(32, 24576) == 3
    assert encoder.candidates_per_tile(32, 4096) == 6
    assert encoder.candidates_per_tile(32, 1024) is None
    assert encoder.candidates_per_tile(7, 128) == 7  # all of the only tile's
    assert encoder.candidates_per_tile(1, 10) == 1
    for k, n in ((32, 24576), (16, 3000)):
        keep, tiles = encoder.candidates_per_tile(k, n), -(-n // encoder.COLUMNS)
        chosen = torch.rand(500, n, generator=torch.Generator().manual_seed(k)).topk(k).indices // encoder.COLUMNS
        most = torch.zeros(500, tiles).scatter_add_(1, chosen, torch.ones(500, k)).amax(1)
        assert keep is not None
        assert float((most > keep).float().mean()) < 0.01


def test_fewer_candidates_than_k_are_refused(device):
    x = torch.ones(2, 4, device=device)
    with pytest.raises(ValueError, match="k=5 of 40 features, of which 3 tiles x 1 are candidates"):
        encoder.topk(x, x.new_ones(4, 40), x.new_ones(40), 5, keep=1, columns=16)


def test_the_order_in_which_programs_run_changes_no_bit(device, monkeypatch):
    if device != "cpu":
        pytest.skip("only the interpreter lets us choose the order")
    from triton.runtime import interpreter

    pattern, values, weight, rows = drawn(device, torch.float32, rows=9, n=7, d=300, density=0.6)
    x, bias = torch.randn(20, 20), torch.randn(100)

    def everything():
        encoded = encoder.topk(x, rows.new_ones(20, 100) * bias, bias, 3, keep=2, columns=16)
        cut = pairs.transposed_gather(values, pattern, rows, 4)
        return [pairs.gather(values, pattern, weight), cut, pairs.dots(rows, weight, pattern), *encoded]

    builder = interpreter.interpreter_builder
    forwards, number = everything(), type(builder).set_grid_idx

    def backwards(self, *place):
        number(self, *(size - 1 - at for size, at in zip(self.grid_dim, place, strict=True)))

    monkeypatch.setattr(type(builder), "set_grid_idx", backwards)
    assert all(torch.equal(a, b) for a, b in zip(forwards, everything(), strict=True))


@pytest.mark.parametrize(
    ("kind", "dtype", "rel"),
    [("topk", torch.float32, 1e-4), ("topk", torch.float64, 1e-9), ("batchtopk", torch.float64, 1e-9), ("matryoshka", torch.float64, 1e-9)],
)
def test_training_with_the_kernels_is_training_without_them(device, kind, dtype, rel):
    x = torch.randn(21, 6, generator=torch.Generator().manual_seed(0)).to(device, dtype)

    def losses():
        sizes = {"n_features": 12, "k": 2, "steps": 3, "batch_size": 7, "details": saes.Details(groups=(0.5, 1.0))}
        config = saes.Config(kind=kind, dead_after=7, aux_coefficient=0.1, lr=1e-2, **sizes)
        trainer = Trainer(config, Scaling.of(x), Scaling.of(x), x, transcoder=False)
        return [trainer.step(batch).loss for batch in x.split(7)]

    fast = losses()
    with kernels.use(False):
        pure = losses()
    assert fast == pytest.approx(pure, rel=rel)
    assert len({round(loss, 3) for loss in fast}) == 3
