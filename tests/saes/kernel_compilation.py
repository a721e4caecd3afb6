"""The kernels compile for real devices, on a machine that has none: triton brings its own assembler. Run by `test_kernels.py`.

The interpreter executes what Python would; the compiler refuses more (types that change in a loop, shapes, shared memory).
"""

import re
import subprocess
from pathlib import Path

import pytest
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from saes.kernels import encoder, pairs

POINTERS = {
    **dict.fromkeys(("order", "index", "offsets", "bags", "rows", "columns"), "*i64"),
    **dict.fromkeys(("values", "bias", "dropped", "parts", "sums", "out"), "*fp32"),
}
COUNTS = {"n_tiles", "n_pairs", "n_bags"}  # any number; of strides and widths the compiler is told that they are multiples of 16
SHARED = {80: 99, 90: 227}
"""KiB of shared memory of a program; 99 is what devices of compute capability 8.6 and 8.9, which run code for 8.0, have."""


def compiled(kernel, capability, constants, types, **options):
    signature = {name: "constexpr" if name in constants else types.get(name) or POINTERS.get(name) or "i32" for name in kernel.arg_names}
    wide = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if name not in constants.keys() | COUNTS}
    made = compile(ASTSource(kernel, signature, constants, wide), target=GPUTarget("cuda", capability, 32), options=options)
    assert not re.search(r"\b(atom|red)\.", made.asm["ptx"])
    assert made.metadata.shared <= SHARED[capability] * 1024
    return made


def bytes_spilled(made, tmp_path: Path) -> int:
    """Bytes of stack of a thread: registers that did not suffice."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        pytest.skip(f"this build of triton brings no {tool.name}")
    (tmp_path / "kernel.cubin").write_bytes(made.asm["cubin"])
    usage = subprocess.run([tool, "-res-usage", tmp_path / "kernel.cubin"], capture_output=True, text=True, check=True).stdout
    return max(int(n) for n in re.findall(r"STACK:(\d+)", usage))


@pytest.mark.parametrize("capability", SHARED)
@pytest.mark.parametrize("dtype", ["*fp32", "*bf16", "*fp64"])
def test_products_over_pairs_compile(capability, dtype, tmp_path):
    total, exact = (tl.float64, "*fp64") if dtype == "*fp64" else (tl.float32, "*fp32")
    sizes = {"PAIRS": pairs.PAIRS, "WIDTH": pairs.WIDTH, "SUM": total}
    types = {"values": dtype, "weight": dtype}
    sums = {"parts": exact, "sums": exact, "out": exact}
    dot = {"PAIRS": pairs.DOT_PAIRS, "WIDTH": pairs.DOT_WIDTH, "SUM": total}
    for made in (
        compiled(pairs._bags, capability, {"RUN": 0, "ORDERED": False, **sizes}, {**types, "out": dtype}),
        compiled(pairs._bags, capability, {"RUN": pairs.RUN, "ORDERED": True, **sizes}, {**types, **sums}),
        compiled(pairs._parts, capability, {"RUN": pairs.RUN, **sizes}, {**types, **sums}),
        compiled(pairs._join, capability, {"RUN": pairs.RUN, "WIDTH": pairs.WIDTH}, sums),
        compiled(pairs._dots, capability, dot, {"left": dtype, "right": dtype, "out": dtype}),
    ):
        assert bytes_spilled(made, tmp_path) == 0


@pytest.mark.parametrize("capability", SHARED)
@pytest.mark.parametrize(("dtype", "precision"), [("*fp32", "tf32"), ("*bf16", "ieee")])
@pytest.mark.parametrize("keep", [3, encoder.MOST])
def test_the_fused_encoder_compiles_to_tensor_core_instructions(capability, dtype, precision, keep, tmp_path):
    width = 4 if dtype == "*fp32" else 2
    constants = {"KEEP": keep, "ROWS": encoder.ROWS, "COLUMNS": encoder.COLUMNS, "DEPTH": encoder.DEPTH // width}
    constants |= {"PRECISION": precision, "UPCAST": False, "x_d": 1, "w_d": 1}
    types = {"x": dtype, "weight": dtype, "columns": "*i32"}
    made = compiled(encoder._candidates, capability, constants, types, num_warps=8)
    assert ("wgmma.mma_async" if capability == 90 else "mma.sync") in made.asm["ptx"]
    assert bytes_spilled(made, tmp_path) == 0


def test_sizes_of_one_which_the_compiler_makes_constants_compile_too():
    """A launch passes an integer that is 1 as a constant; biases are rows of width 1."""
    one, sums = {"d": 1, "stride": 1, "n_bags": 1, "n_pairs": 1}, {"parts": "*fp32", "sums": "*fp32", "out": "*fp32", "weight": "*fp32"}
    sizes = {"PAIRS": pairs.PAIRS, "WIDTH": 1, "SUM": tl.float32, **one}
    dot = {"left_stride": 1, "right_stride": 1, "d": 1, "n_pairs": 1, "PAIRS": pairs.DOT_PAIRS, "WIDTH": 1, "SUM": tl.float32}
    compiled(pairs._bags, 90, {"RUN": 0, "ORDERED": False, **sizes}, sums)
    compiled(pairs._bags, 90, {"RUN": pairs.RUN, "ORDERED": True, **sizes}, sums)
    compiled(pairs._parts, 90, {"RUN": pairs.RUN, **sizes}, sums)
    compiled(pairs._join, 90, {"RUN": pairs.RUN, "WIDTH": 1, "n_bags": 1, "n_pairs": 1, "d": 1}, sums)
    compiled(pairs._dots, 90, dot, {"left": "*fp32", "right": "*fp32"})
    constants = dict.fromkeys(("n_rows", "n", "d", "n_tiles", "x_row", "x_d", "w_d", "w_n"), 1)
    constants |= {"KEEP": 1, "ROWS": 16, "COLUMNS": encoder.COLUMNS, "DEPTH": 32, "PRECISION": "tf32", "UPCAST": False}
    compiled(encoder._candidates, 90, constants, {"x": "*fp32", "weight": "*fp32", "columns": "*i32"}, num_warps=8)
