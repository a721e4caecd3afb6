"""What a training step of a top-k coder costs on a CUDA device: with the kernels, without, in dense loops, and what arithmetic allows.

    python -m experiments.benchmarks.coder_kernels            # on CUDA: measures, writes experiments/results/coder-kernels.json
    python -m experiments.benchmarks.coder_kernels --smoke    # small, prints only

Without a CUDA device it says so and prints the limit alone, for published peaks of named devices: no time is measured then. The limit of a
part is the longer of its multiplications at the peak of that precision and its bytes at the peak of memory. Results are written once and
operands read once; but rows that are gathered are read once for each pair where the operand is larger than the cache (gathering from the
cache is counted as free, so the limit is below what can be reached). The two dense loops are what one would write without sparse
products: codes scattered into a matrix, dense decoding and backward, with TensorFloat-32 or bfloat16 autocast and fused Adam.
"""

import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn

import saes
from experiments.benchmarks.machine import describe_machine
from saes import kernels, sparse
from saes.trainer import Trainer, precision
from saes.weights import Scaling

RESULTS = Path(__file__).parents[1] / "results" / "coder-kernels.json"
TILE, KEPT = 128, 3
"""Of the fused encoder, for the limit: features to a tile and the candidates that it writes of each (saes.kernels.encoder)."""


@dataclass(frozen=True)
class Case:
    d: int
    m: int
    k: int
    batch: int
    repeats: int = 20


@dataclass(frozen=True)
class Peak:
    """A device as its maker describes it: TFLOP/s of dense products, TB/s of memory, MB of its second cache."""

    bfloat16: float
    tf32: float
    float32: float
    memory: float
    cache: float


@dataclass(frozen=True)
class Cost:
    """`flops` are multiplications and additions of matrix products; `loose` ones run outside of tensor cores."""

    flops: float
    bytes: float
    loose: bool = False

    def milliseconds(self, peak: Peak, name: str) -> float:
        speed = peak.float32 if self.loose else getattr(peak, name)
        return 1e3 * max(self.flops / (speed * 1e12), self.bytes / (peak.memory * 1e12))


CASES = (Case(768, 24576, 32, 4096), Case(768, 24576, 32, 16384, 10), Case(2048, 65536, 64, 4096, 5))
SMOKE = (Case(64, 2048, 8, 256, 2),)
PEAKS = {"H200": Peak(989, 495, 67, 4.8, 50), "H100": Peak(989, 495, 67, 3.35, 50), "A100": Peak(312, 156, 19.5, 2.0, 40)}
PRECISIONS = ("bfloat16", "tf32", "float32")


def limit(case: Case, name: str, cache: float) -> dict[str, Cost]:
    """FLOPs and bytes of the parts of a step, by part, with a cache of so many MB. Parameters, gradients, Adam's moments are float32."""
    d, m, k, rows = case.d, case.m, case.k, case.batch
    size = 2 if name == "bfloat16" else 4
    candidates = rows * -(-m // TILE) * (8 * KEPT + 4)
    from_decoder, from_rows = (4 * d * (n if 4e-6 * n * d <= cache else rows * k) for n in (m, rows))
    pairs = 2 * rows * k * d
    encoder = Cost(2 * rows * d * m, size * (d * m + rows * d) + candidates)
    return {
        "encoder, fused": encoder,
        "encoder, dense and search": Cost(encoder.flops, size * (d * m + rows * d + 2 * rows * m)),
        "decoding": Cost(pairs, from_decoder + 4 * rows * d, loose=True),
        "gradient of codes": Cost(pairs, from_decoder + 4 * rows * d, loose=True),
        "decoder gradient": Cost(pairs, from_rows + 4 * m * d, loose=True),
        "encoder gradient": Cost(pairs, from_rows + 4 * m * d, loose=True),
        "Adam": Cost(0, 28 * 2 * m * d),
        "decoder norms": Cost(0, 12 * m * d),
        "parallel gradient": Cost(0, 16 * m * d),
    }


def steps(case: Case, name: str, cache: float) -> dict[str, list[Cost]]:
    """What a whole step is made of: ours, and the dense loop (one product each for encoding, decoding, and three backwards)."""
    parts = limit(case, name, cache)
    size = 2 if name == "bfloat16" else 4
    dense = Cost(2 * case.batch * case.d * case.m, size * (case.d * case.m + case.batch * (case.d + case.m)))
    ours = [cost for part, cost in parts.items() if part != "encoder, dense and search"]
    return {"ours": ours, "dense": [parts["encoder, dense and search"], *[dense] * 4, parts["Adam"]]}


def limit_table(case: Case, peaks: dict[str, Peak], measured: dict[str, dict[str, float]] | None = None) -> Table:
    """Rows: parts and whole steps. Columns: GFLOP and MB (bfloat16, first device) and milliseconds, for each device and precision."""
    title = f"d={case.d}, m={case.m}, k={case.k}, {case.batch} rows: limit in ms" + (" | measured" if measured else "")
    table = Table("", "GFLOP", "MB", *[f"{device} {name}" for device in peaks for name in PRECISIONS], title=title)
    costs = {(device, name): costs_of(case, name, peak.cache) for device, peak in peaks.items() for name in PRECISIONS}
    first = next(iter(costs.values()))
    for part, parts in first.items():
        cells = [f"{sum(c.flops for c in parts) / 1e9:.1f}", f"{sum(c.bytes for c in parts) / 1e6:.0f}"]
        for (device, name), found in costs.items():
            least = f"{sum(cost.milliseconds(peaks[device], name) for cost in found[part]):.3f}"
            time = (measured or {}).get(name, {}).get(part)
            cells.append(least if time is None else f"{least} | {time:.3f}")
        table.add_row(part, *cells)
    return table


def costs_of(case: Case, name: str, cache: float) -> dict[str, list[Cost]]:
    whole = {f"step, {who}": costs for who, costs in steps(case, name, cache).items()}
    return {part: [cost] for part, cost in limit(case, name, cache).items()} | whole


# --- on a device ------------------------------------------------------------------------------------------------------------


def timed(call: Callable[[], object], repeats: int) -> float:
    """Milliseconds between two events on the device: the median of some calls, each alone, after two that warm up (and compile)."""
    found = []
    for turn in range(repeats + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        if turn > 1:
            found.append(start.elapsed_time(end))
    return statistics.median(found)


def our_trainer(case: Case, name: str, x: torch.Tensor) -> Trainer:
    sizes = {"n_features": case.m, "k": case.k, "batch_size": case.batch, "details": saes.Details(precision=name)}
    return Trainer(saes.Config(steps=10**6, dead_after=10**9, **sizes), Scaling.of(x), Scaling.of(x), x[:64], transcoder=False)


def dense_step(case: Case, name: str, x: torch.Tensor) -> Callable[[], object]:
    """Codes as a dense matrix, five dense products, fused Adam; no statistics that ours would not keep."""
    W_dec = nn.Parameter(nn.functional.normalize(torch.randn(case.m, case.d, device=x.device), dim=1))
    W_enc, b_enc = nn.Parameter(W_dec.detach().T.contiguous()), nn.Parameter(torch.zeros(case.m, device=x.device))
    b_dec = nn.Parameter(torch.zeros(case.d, device=x.device))
    optimizer = torch.optim.Adam([W_enc, b_enc, W_dec, b_dec], 3e-4, fused=True)

    def step() -> None:
        with precision(name, x.device):
            pre = torch.addmm(b_enc, x - b_dec, W_enc)
            top = pre.topk(case.k, dim=1, sorted=False)
            codes = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
            loss = (codes @ W_dec + b_dec - x).square().sum(1).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measured_parts(case: Case, name: str, trainer: Trainer, x: torch.Tensor) -> tuple[dict[str, float], float]:
    """Milliseconds of the parts; and the fraction of rows that the fused encoder could not prove."""
    from saes.kernels import encoder

    weights, k, rows = trainer.weights, case.k, trainer.inputs.apply(x)
    W_enc, b_enc, W_dec = weights.W_enc.detach(), weights.b_enc.detach(), weights.W_dec.detach()
    codes = sparse.encode_topk(rows, W_enc, b_enc, k)
    values, pattern = codes.values.detach(), codes.pattern
    with torch.no_grad(), kernels.use(True):
        fused = encoder.largest(rows, W_enc, b_enc, k)
    unproven = 1.0 if fused is None else 1 - float(fused[2].float().mean())
    calls: dict[str, Callable[[], object]] = {
        "encoder, fused": lambda: sparse._fused(rows, W_enc, b_enc, k),
        "encoder, dense and search": lambda: sparse._dense(rows, W_enc, b_enc, k),
        "sorting by column": lambda: sparse.Pattern(pattern.columns, pattern.offsets, case.m).transposed,
        "decoding": lambda: sparse.gather(values, pattern, W_dec),
        "gradient of codes": lambda: sparse.dots(rows, W_dec, pattern),
        "decoder gradient": lambda: sparse.transposed_gather(values, pattern, rows),
        "encoder gradient": lambda: sparse.transposed_gather(values, pattern, rows),
        "Adam": trainer.optimizer.step,
        "decoder norms": weights.normalize_decoder,
        "parallel gradient": weights.remove_parallel_gradient,
    }
    with torch.no_grad(), precision(name, x.device), kernels.use(name == "float32" or None):
        return {part: timed(call, case.repeats) for part, call in calls.items()}, unproven


def measure(case: Case) -> dict[str, object]:
    x = torch.randn(case.batch, case.d, generator=torch.Generator().manual_seed(0)).cuda()
    out: dict[str, dict[str, float]] = {}
    unproven: dict[str, float] = {}
    for name in PRECISIONS:
        trainer = our_trainer(case, name, x)
        found = {"step, ours": timed(lambda t=trainer: t.step(x), case.repeats)}
        with kernels.use(False):
            found["step, pure torch"] = timed(lambda t=trainer: t.step(x), case.repeats)
        parts, unproven[name] = measured_parts(case, name, trainer, x)
        del trainer
        found["step, dense"] = timed(dense_step(case, name, x), case.repeats)
        out[name] = found | parts
    return {**asdict(case), "milliseconds": out, "rows_unproven": unproven}


def main(smoke: bool = False) -> None:
    console = Console(width=170)
    cases = SMOKE if smoke else CASES
    if not torch.cuda.is_available():
        console.print("No CUDA device: NOTHING IS MEASURED. What arithmetic allows on devices as their makers describe them:")
        for case in cases:
            console.print(limit_table(case, PEAKS))
        return
    if not kernels.installed():
        raise SystemExit("triton is not installed (extra `gpu`): there are no kernels to measure.")
    device = torch.cuda.get_device_name(0)
    peaks = {name: peak for name, peak in PEAKS.items() if name in device}
    if not peaks:
        console.print(f"{device}: its peaks are not among {', '.join(PEAKS)}; the limit is shown for these.")
    found = []
    for case in cases:
        found.append(measure(case))
        milliseconds = found[-1]["milliseconds"]
        assert isinstance(milliseconds, dict)
        console.print(limit_table(case, peaks or PEAKS, milliseconds if peaks else None))
        console.print(f"ms: {milliseconds}; rows not proven: {found[-1]['rows_unproven']}")
        if not smoke:  # what is measured is kept if the rest is stopped
            RESULTS.write_text(json.dumps({"machine": describe_machine(), "cases": found}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(typer.run(main))
