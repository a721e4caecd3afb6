"""Who computes sparse products; and the kernels' laws in triton's interpreter.

The interpreter is chosen before triton is imported: it has a process of its own.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from saes import kernels, sparse
from tests.saes.test_sparse import drawn

ROOT = Path(__file__).parents[2]
NEEDS_TRITON = pytest.mark.skipif(find_spec("triton") is None, reason="KERNELS NOT TESTED: triton is not installed (extra `gpu`)")


def run(*arguments: str, timeout: int = 170, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=timeout)


def laws(name: str, timeout: int, **environment: str) -> None:
    done = run("-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", f"tests/saes/{name}", timeout=timeout, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


@NEEDS_TRITON
def test_the_laws_of_the_kernels_hold_in_the_interpreter():
    laws("kernel_laws.py", 170, TRITON_INTERPRET="1")


@NEEDS_TRITON
@pytest.mark.slow
def test_the_kernels_compile_to_machine_code_without_atomics():
    laws("kernel_compilation.py", 900, TRITON_INTERPRET="0")


@pytest.fixture
def unimportable(tmp_path: Path) -> str:
    """A search path with a triton that ends the process which imports it."""
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text("raise SystemExit('triton was imported')\n")
    return os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])


def test_neither_importing_saes_nor_sparse_products_on_the_cpu_import_triton(unimportable):
    code = """
import saes, torch
from saes import kernels, sparse
weight = torch.ones(4, 12, requires_grad=True)
def products():
    codes = sparse.encode_topk(torch.ones(9, 4), weight, torch.zeros(12), 2)
    sparse.decode(codes.values, codes.pattern, weight.t()).sum().backward()
products()
print("nothing was imported")
kernels.use(True)
products()
"""
    done = run("-c", code, PYTHONPATH=unimportable)
    assert done.stdout.strip() == "nothing was imported", done.stderr
    assert done.returncode == 1 and "triton was imported" in done.stderr, "forced kernels do import it"


def test_cpu_tensors_are_computed_in_pure_torch_unless_the_kernels_are_forced(monkeypatch):
    x = torch.ones(2)
    assert not kernels.serve(x)
    monkeypatch.setattr(kernels, "installed", lambda: True)
    monkeypatch.setattr(kernels, "_interpreted", lambda: False)
    assert not kernels.serve(x)
    with kernels.use(True):
        assert not kernels.serve(x.int())
        with pytest.raises(ValueError, match=r"use\(True\), and tensors on \['cpu'\]: set TRITON_INTERPRET=1"):
            kernels.serve(x)
        with kernels.use(False):
            assert not kernels.serve(x)
        assert kernels.forced()
    assert not kernels.forced()


def test_forcing_kernels_without_triton_is_refused_and_changes_nothing(monkeypatch):
    monkeypatch.setattr(kernels, "installed", lambda: False)
    with pytest.raises(ValueError, match=r"triton, which is not installed: pip install 'interp-workbench\[gpu\]'"):
        kernels.use(True)
    assert not kernels.forced()
    assert kernels.status() == "pure torch: triton is not installed (the extra `gpu`)"


def test_status_says_what_computes_and_why(monkeypatch):
    monkeypatch.setattr(kernels, "installed", lambda: True)
    assert kernels.status().startswith("triton kernels for CUDA tensors")
    with kernels.use(False):
        assert kernels.status() == "pure torch: the kernels are turned off by saes.kernels.use(False)"
    with kernels.use(True):
        assert kernels.status() == "triton kernels, for all tensors: saes.kernels.use(True)"


def test_columns_may_come_in_any_order_within_a_row():
    pattern, values, weight = drawn(3)
    g = torch.Generator().manual_seed(0)
    order = (pattern.rows + 0.9 * torch.rand(len(values), generator=g)).argsort()
    shuffled = sparse.Pattern(pattern.columns[order], pattern.offsets, pattern.n_features)
    assert not torch.equal(shuffled.columns, pattern.columns)
    rows = torch.randn(9, 5, dtype=torch.float64)
    for product, given in ((sparse.gather, weight), (sparse.transposed_gather, rows)):
        assert torch.allclose(product(values[order], shuffled, given), product(values, pattern, given), atol=1e-12)
    assert torch.allclose(sparse.dots(rows, weight, shuffled), sparse.dots(rows, weight, pattern)[order], atol=1e-12)
