"""The kernels' laws on a CUDA device, and what only a device can show: the default, the same bits in every run."""

import pytest
import torch

pytest.importorskip("triton", reason="NOT TESTED on a CUDA device: triton is not installed (extra `gpu`)")

from saes import kernels, sparse  # noqa: E402
from saes.kernels import encoder  # noqa: E402
from tests.saes.kernel_laws import *  # noqa: E402, F403
from tests.saes.kernel_laws import close, drawn, holds_the_largest, matrix  # noqa: E402

pytestmark = pytest.mark.gpu


@pytest.fixture
def device() -> str:
    if not torch.cuda.is_available():
        pytest.skip("NOT TESTED: no CUDA device")
    return "cuda"


def large(device, dtype):
    return drawn(device, dtype, rows=4096, n=3000, d=200, density=0.01)


def test_cuda_tensors_go_to_the_kernels_by_default_and_not_when_they_are_turned_off(device):
    x = torch.ones(1, device=device)
    with kernels.use(None):
        assert kernels.serve(x)
        assert not kernels.serve(x.cpu())
        with kernels.use(False):
            assert not kernels.serve(x)
    assert "triton kernels for CUDA tensors" in kernels.status() or "use(True)" in kernels.status()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_programs_at_once_give_the_dense_products_and_the_same_bits_in_every_run(device, dtype):
    pattern, values, weight, rows = large(device, dtype)
    values = values / 10  # sums of some thousand terms stay of order one
    codes = matrix(values, pattern)
    first = sparse.gather(values, pattern, weight), sparse.transposed_gather(values, pattern, rows), sparse.dots(rows, weight, pattern)
    scale = 10 if dtype == torch.float32 else 1
    close(first[0] / scale, codes @ weight.double() / scale, dtype)
    close(first[1] / scale, codes.T @ rows.double() / scale, dtype)
    for _ in range(20):
        again = sparse.gather(values, pattern, weight), sparse.transposed_gather(values, pattern, rows), sparse.dots(rows, weight, pattern)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_kernels_run_on_the_device_of_their_tensors_whichever_is_the_current_one(device):
    if torch.cuda.device_count() < 2:
        pytest.skip("NOT TESTED: one CUDA device only")
    pattern, values, weight, rows = drawn("cuda:1", torch.float32)
    codes = matrix(values, pattern)
    with torch.cuda.device(0):
        assert close(sparse.gather(values, pattern, weight), codes @ weight.double(), torch.float32)
        assert close(sparse.transposed_gather(values, pattern, rows), codes.T @ rows.double(), torch.float32)
        assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("precision", ["highest", "high", "bfloat16"])
def test_the_fused_encoder_finds_the_largest_on_tensor_cores_too(device, precision):
    g = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*s, generator=g).to(device) for s in ((3000, 200), (200, 5000), (5000,)))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "high" else "highest")
    try:
        if precision == "bfloat16":
            x, weight = x.bfloat16(), weight.bfloat16()
        keep = encoder.candidates_per_tile(16, 5000)
        assert keep is not None
        values, columns, proven = encoder.topk(x, weight, bias, 16, keep)
    finally:
        torch.set_float32_matmul_precision(before)
    pre = x.double() @ weight.double() + bias.double()
    assert float(proven.float().mean()) > 0.98
    # TensorFloat-32 rounds operands to 11 bits: 200 products of order one
    assert holds_the_largest(pre[proven], values[proven], columns[proven], 0.1 if precision == "high" else 1e-3)
