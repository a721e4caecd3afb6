"""How cost and quality of a top-k coder grow with the size of its dictionary and the rows it sees, on a world that is known.

    python -m experiments.coder_growth               # writes runs/coder-growth-<hash>/ and experiments/results/coder-growth.json
    python -m experiments.coder_growth --smoke       # two small sizes, prints only

Multiplications and bytes of a step are counted, processor times measured; the profiler says where the time of a step goes. Every size
sees the same rows; its training is as long as its rows (schedules included), so each point is a training of its own.
"""

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from rich.console import Console

import saes
from experiments.benchmarks.machine import describe_machine
from experiments.runs import open_run
from interp.safefiles import write_text
from saes.synthetic import Dictionary, Levers
from saes.trainer import Trainer
from saes.weights import Scaling

RESULTS = Path(__file__).parent / "results" / "coder-growth.json"
WORLD, K, BATCH = Levers(roots=16, rank=8, most=0.3), 5, 1024
SIZES, ROWS = (256, 1024, 4096, 16384), (25_600, 51_200, 102_400, 204_800)
PROFILED, MEASURED, STEPS = (256, 4096, 16384), 8192, 6
"""Sizes that are profiled, rows that quality is measured on, steps that are timed and profiled."""
PARTS = {
    "encoder product": ("aten::addmm", "aten::mm"), "top-k": ("aten::topk", "aten::amax", "aten::gather", "aten::sort"),
    "gathers of decoder and gradients": ("aten::_embedding_bag", "aten::_embedding_bag_forward_only", "aten::index_add_",
                                         "aten::_embedding_bag_per_sample_weights_backward", "aten::index"),
    "Adam": ("aten::_fused_adam_",),
    "decoder norms, clipping": ("aten::linalg_vector_norm", "aten::linalg_vecdot", "aten::div_", "aten::addcmul_", "aten::_foreach_norm",
                                "aten::_foreach_mul_"),
}  # fmt: skip


def counts(m: int, d: int, k: int, batch: int) -> dict[str, float]:
    """Multiply-adds of a step, counted twice as usual, and bytes that Adam moves: 28 a parameter in float32."""
    encoder, sparse = 2 * batch * d * m, 4 * 2 * batch * k * d  # decoding, its two gradients, the encoder's
    return {
        "gflop_encoder": encoder / 1e9,
        "gflop_sparse": sparse / 1e9,
        "gflop_dense_step": 5 * encoder / 1e9,
        "adam_mb": 28 * 2 * m * d / 1e6,
    }


def trainer_of(x: torch.Tensor, m: int) -> Trainer:
    config = saes.Config(n_features=m, k=K, steps=10**4, batch_size=BATCH, dead_after=10**9)
    return Trainer(config, Scaling.of(x), Scaling.of(x), x[:1024], transcoder=False)


def step_milliseconds(x: torch.Tensor, m: int) -> float:
    """Processor time of a step: the median of some, after one that warms up."""
    trainer, times = trainer_of(x, m), []
    for _ in range(STEPS + 1):
        start = time.process_time()
        trainer.step(x[:BATCH])
        times.append(1e3 * (time.process_time() - start))
    return sorted(times[1:])[STEPS // 2]


def shares(x: torch.Tensor, m: int) -> dict[str, float]:
    """Fractions of a step's processor time, by operation (the time inside each, without what it calls)."""
    trainer = trainer_of(x, m)
    trainer.step(x[:BATCH])
    spent: dict[str, float] = {}
    for _ in range(2):  # the profiler's own start falls into the first
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            for _ in range(STEPS):
                trainer.step(x[:BATCH])
        spent = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    whole = sum(spent.values())
    found = {part: sum(spent.get(name, 0) for name in names) / whole for part, names in PARTS.items()}
    return {part: round(share, 3) for part, share in {**found, "everything else": 1 - sum(found.values())}.items()}


def point(world: Dictionary, x: torch.Tensor, tests: tuple[torch.Tensor, torch.Tensor], m: int, rows: int) -> dict[str, Any]:
    start = time.process_time()
    coder = saes.fit(x[:rows], config=saes.Config(n_features=m, k=K, steps=rows // BATCH, batch_size=BATCH, dead_after=20_000))
    seconds = time.process_time() - start
    found = saes.recovery(coder, world.directions, *tests).summary()
    kept = {name: round(found[name], 4) for name in ("mcc", "f1", "uniqueness", "dead", "l0")}
    return {"m": m, "rows": rows, "fvu": round(1 - found["explained_variance"], 4), **kept, "seconds": round(seconds, 2)}


def figure(frame: pd.DataFrame) -> Any:
    """FVU, MCC and F1 over rows, a line for each size."""
    import plotly.express as px

    tall = frame.melt(["m", "rows"], ["fvu", "mcc", "f1"], "measure", "value")
    out = px.line(tall, x="rows", y="value", color="m", facet_col="measure", log_x=True, markers=True)
    return out.update_layout(title=f"Top-k coders (k={K}) of {WORLD.n_features} directions in {WORLD.d} dimensions")


def study(sizes: tuple[int, ...], rows: tuple[int, ...], console: Console) -> dict[str, Any]:
    world = Dictionary.draw(WORLD)
    x, _ = world.sample(max(rows))
    tests = world.sample(MEASURED, seed=1)
    report: dict[str, Any] = {"machine": describe_machine(), "world": vars(WORLD), "k": K, "batch": BATCH}
    report["steps"] = []
    for m in sizes:
        counted = {name: round(value, 3) for name, value in counts(m, WORLD.d, K, BATCH).items()}
        report["steps"].append({"m": m, "milliseconds": round(step_milliseconds(x, m), 2), **counted})
        console.print(report["steps"][-1])
    report["shares"] = {str(m): shares(x, m) for m in PROFILED if m in sizes}
    console.print(report["shares"])
    report["points"] = []
    for m in sizes:
        for n in rows:
            report["points"].append(point(world, x, tests, m, n))
            console.print(report["points"][-1])
    return report


def main(smoke: Annotated[bool, typer.Option("--smoke")] = False, root: Path = Path("runs")) -> None:
    torch.set_num_threads(1)
    console = Console(width=160)
    if smoke:
        study((64, 256), (2048, 4096), console)
        return
    config = {"sizes": SIZES, "rows": ROWS, "k": K, "batch": BATCH, "world": vars(WORLD)}
    with open_run("coder-growth", config, root=root, seed=0) as run:
        if run is None:
            console.print("This config was run before; its folder is in runs/.")
            return
        report = study(SIZES, ROWS, console)
        frame = pd.DataFrame(report["points"])
        run.table(frame)
        run.figure("growth", figure(frame))
        run.json("report", report)
    write_text(RESULTS, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(typer.run(main))
