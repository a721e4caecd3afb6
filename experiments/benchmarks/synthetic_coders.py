"""Do coders find a dictionary that is known? Ours beside SAELens's trainer on the same rows, and the transcoder of a known layer.

    python -m experiments.benchmarks.synthetic_coders [--sae-lens-python PYTHON]    # writes experiments/results/synthetic-coders.json
    python -m experiments.benchmarks.synthetic_coders --smoke                       # few rows, prints only

Every coder sees the same rows as often. Recovery is measured on other rows. Three worlds of each kind, each with its own rows and starts.
Learning rates: ours is the default; SAELens has three, since its default (3e-4) is made for far longer trainings.
"""

import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

import saes
from experiments.benchmarks.machine import describe_machine
from interp.safefiles import write_tensors, write_text
from saes.synthetic import Dictionary, Layer, Levers, edge_recovery, layer_recovery

RESULTS = Path(__file__).parents[1] / "results" / "synthetic-coders.json"
WORKER = Path(__file__).with_name("saelens_train.py")
ROWS, MEASURED = 600_000, 20_000
WORLDS = {"plain": (Levers(), 3), "structured": (Levers(roots=16, rank=8, most=0.3), 5)}
"""With k near the true number of active features."""
FEATURES = 256
SEEDS = (0, 1, 2)
KINDS = ("topk", "batchtopk", "matryoshka")
RATES_OF_SAELENS = {"topk": (3e-4, 8e-3, 1.6e-2), "batchtopk": (8e-3,), "matryoshka": (8e-3,)}


def configs(steps: int, k: int, seed: int = 0) -> dict[str, saes.Config]:
    base = saes.Config(n_features=FEATURES, k=k, steps=steps, dead_after=20_000, seed=seed)
    return {kind: base.but(kind=kind) for kind in KINDS} | {"random": base.but(steps=0)}


def dictionaries(n: int, python: str | None, seeds: Sequence[int] = SEEDS) -> list[dict[str, Any]]:
    found = []
    for (name, (levers, k)), seed in product(WORLDS.items(), seeds):
        world = Dictionary.draw(replace(levers, seed=seed))
        x, _ = world.sample(n)
        tests = world.sample(min(n, MEASURED), seed=1)
        for label, config in configs(n // 1024, k, seed).items():
            start = time.process_time()
            coder = saes.fit(x, config=config)
            found.append({"seed": seed} | row(name, f"ours, {label}", coder, world, tests, time.process_time() - start))
        for kind, lr in [(kind, lr) for kind, rates in RATES_OF_SAELENS.items() for lr in rates] if python else ():
            coder, seconds = theirs(x, kind, k, lr, seed, str(python))
            found.append({"seed": seed} | row(name, f"sae-lens, {kind}, lr {lr:g}", coder, world, tests, seconds))
    return found


def means(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and range over seeds of MCC and F1."""
    import pandas as pd

    grouped = pd.DataFrame(rows).groupby(["world", "coder"], sort=False)
    return [
        {"world": world, "coder": coder, "seeds": len(part)}
        | {name: [round(float(x), 4) for x in (part[name].mean(), part[name].min(), part[name].max())] for name in ("mcc", "f1")}
        for (world, coder), part in grouped
    ]  # type: ignore[misc]


def row(
    world: str, label: str, coder: saes.Coder, truth: Dictionary, tests: tuple[torch.Tensor, torch.Tensor], seconds: float
) -> dict[str, Any]:
    found = saes.recovery(coder, truth.directions, *tests)
    return {"world": world, "coder": label, "seconds": round(seconds, 1), **{k: round(v, 4) for k, v in found.summary().items()}}


def theirs(x: torch.Tensor, kind: str, k: int, lr: float, seed: int, python: str) -> tuple[saes.Coder, float]:
    """SAELens's autoencoder, read from its own files, and the processor seconds of its training."""
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder, "rows.safetensors")
        write_tensors(rows, {"x": x})
        command = [python, str(WORKER), str(rows), str(Path(folder, "sae")), str(FEATURES), str(k), str(lr), kind, str(seed)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return saes.load(Path(folder, "sae")), float(done.stdout.split()[-1])


def transcoders(n: int) -> dict[str, float]:
    """Two known layers, one behind the other: encoders, decoders and the edges between them, trained and random."""
    x, _ = Dictionary.draw().sample(n)
    first = Layer.draw(64, 96, x, density=0.03)
    y = first(x)
    second = Layer.draw(64, 96, y, density=0.03, seed=1)
    config = saes.Config(n_features=128, k=4, steps=n // 1024, dead_after=20_000)
    trained = saes.fit(x, y, config), saes.fit(y, second(y), config)
    random = saes.fit(x, y, config.but(steps=0)), saes.fit(y, second(y), config.but(steps=0))
    out = {}
    for name, coders in (("trained", trained), ("random", random)):
        for place, coder, layer in zip(("first", "second"), coders, (first, second), strict=True):
            out |= {f"{name} {place} {k}": round(v, 4) for k, v in layer_recovery(coder, layer).items() if isinstance(v, float)}
        out[f"{name} edges"] = round(edge_recovery(*coders, (first, second)), 4)
    return out


def main(sae_lens_python: Annotated[str | None, typer.Option()] = None, smoke: bool = False) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    n = 4096 if smoke else ROWS
    report: dict[str, Any] = {"machine": describe_machine(), "rows": n, "n_features": FEATURES}
    report["transcoders"] = transcoders(n)
    report["dictionaries"] = dictionaries(n, sae_lens_python, SEEDS[:1] if smoke else SEEDS)
    report["means"] = means(report["dictionaries"])  # [mean, least, largest]
    console = Console(width=160)
    console.print(report["transcoders"])
    for each in report["means"]:
        console.print(each)
    if not smoke:
        write_text(RESULTS, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(typer.run(main))
