"""Do clipped softmax and gates keep outliers away, and does that help quantization? Small OPTs on the Atlas, several seeds.

    python experiments/quantizable_transformers.py             # reads the trained runs -> experiments/results/attention-variants.json
    python experiments/quantizable_transformers.py --train     # trains those that are missing first (about ten minutes each)
    python experiments/quantizable_transformers.py --smoke     # the bundled models alone, few prompts, nothing written to results

Measures after Bondarenko et al. 2023 (arXiv 2306.12929): inf-norm, kurtosis and W8A8 loss, with the sink rate of Gu et al. 2025 and its
length. Every variant has the same recipe, seeds and first weights. Control: vanilla models with a variant switched on at inference alone.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import typer

import interp
from experiments.runs import ROOT, as_plain, open_run, run_folder
from interp import Prompts, quant
from interp.atlas import Corpus, encode
from interp.safefiles import write_text
from interp.zoo import bundled

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

RESULTS = Path(__file__).parent / "results" / "attention-variants.json"
VARIANTS = {"vanilla": "softmax", "clipped": "clipped(gamma=-0.03, zeta=1)", "gated": "gated-linear"}
UNTRAINED = ("clipped(gamma=-0.03, zeta=1)", "normalized-clipped(alpha=2)", "softmax-1")
BUNDLED = ("demo-opt", "demo-opt-clipped", "demo-opt-gated")
SCHEMES = ("w8a8", "w8a8-percentile", "w6a6", "w4a8")


@dataclass(frozen=True)
class Config:
    """What is compared, and on what."""

    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 2560
    """Of 32 documents: 10 pools, the learning rate falls over the last 2."""
    stages: str = "warm 8, full"
    mixture: str = "full"
    """Of the held-out documents; their pools were read by no training."""
    prompts: int = 512
    calibration: int = 64
    """Prompts that static ranges are found on ..."""
    draws: int = 3
    """... so many times, on other prompts."""
    length: int = 32
    """Tokens of the prompts for sink rates: documents that are as long, cut there."""
    heads: int = 128
    """Prompts for sink rates."""


SMOKE = Config(seeds=(), prompts=16, calibration=8, draws=1, heads=8)
POOL = 5000  # of held-out documents; the next ones calibrate


def training(config: Config, variant: str, seed: int) -> Any:
    """The recipe of one run, as the trainer takes it."""
    from experiments.train_demo_models import Config as Training

    return Training("opt", steps=config.steps, seed=seed, lr_decay=0.2, stages=config.stages, attention=VARIANTS[variant])


def folder_of(variant: str, seed: int, root: Path = ROOT) -> Path:
    return root / f"attention-{variant}-{seed}"


def trained(config: Config, root: Path, train: bool) -> Iterator[tuple[str, int, Path]]:
    """Variant, seed and model folder of every run that is trained to its end."""
    from experiments.train_demo_models import train as train_model

    for seed in config.seeds:
        for variant in VARIANTS:
            folder, recipe = folder_of(variant, seed, root), training(config, variant, seed)
            if train and not (folder / "finished").is_file():
                train_model(recipe, folder, resume=(folder / "checkpoint").is_dir())
                (folder / "finished").touch()
            if (folder / "finished").is_file():
                yield variant, seed, folder / "model"


def held_out(config: Config, pool: int, n: int, length: int | None = None) -> Prompts:
    """The first documents of a pool that no training read; with `length` those that are as long, cut there."""
    rows = [encode(document) for document in Corpus(0).pool(pool, config.mixture)]
    rows = [row[: length or len(row)] for row in rows if len(row) >= (length or 2)]
    return Prompts.from_ids(rows[:n])


def measure(model: interp.Model, config: Config) -> dict[str, float]:
    """One row of the table: loss, outliers, sinks and what rounding costs."""
    prompts = held_out(config, POOL, config.prompts)
    statistics = quant.activation_statistics(model, prompts)
    heads = quant.head_report(model, held_out(config, POOL, config.heads, config.length))
    tensors = statistics.tensors
    row = {f"inf_norm_{name}": norm for name, norm in statistics.inf_norm.items()}
    row |= {
        "kurtosis": sum(t.kurtosis for t in tensors) / len(tensors), "paper_kurtosis": statistics.mean_kurtosis,
        "feature_kurtosis": max(t.feature_kurtosis for t in tensors if t.kind == "out"),
        "outlier_dimensions": len(statistics.outlier_dimensions),
    }  # fmt: skip
    row |= {name: float(heads[name].mean()) for name in ("sink_rate", "sink_mass", "no_op", "score_range")}
    for scheme in SCHEMES:
        found = [
            quant.evaluate(model, prompts, scheme, calibration=held_out(config, POOL + 1 + draw, config.calibration))
            for draw in range(config.draws)
        ]
        row["loss"] = found[0].loss
        row[f"{scheme}_damage"] = sum(x.damage for x in found) / len(found)
        row[f"{scheme}_kl"] = sum(x.kl for x in found) / len(found)
    return row


def measured(config: Config, root: Path, train: bool, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Every trained run; vanilla ones with variants switched on at inference; the bundled models."""
    for variant, seed, folder in trained(config, root, train):
        say(f"{variant}, seed {seed}")
        yield {"group": "trained", "variant": variant, "seed": seed, **measure(interp.load(folder), config)}
        for attention in UNTRAINED if variant == "vanilla" else ():
            say(f"vanilla, seed {seed}, run with {attention}")
            yield {
                "group": "untrained use",
                "variant": attention,
                "seed": seed,
                **measure(interp.load(folder, attention=attention), config),
            }
    for name in BUNDLED:
        if name in bundled():
            say(name)
            yield {"group": "bundled", "variant": name, "seed": 0, **measure(interp.load(name), config)}


def interval(values: list[float]) -> dict[str, float | None]:
    """Mean and 95 % t-interval over seeds; no interval of one seed."""
    from scipy.stats import t

    n, mean = len(values), sum(values) / len(values)
    if n < 2:
        return {"mean": mean, "low": None, "high": None}
    half = float(t.ppf(0.975, n - 1)) * math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)
    return {"mean": mean, "low": mean - half, "high": mean + half}


def summary(config: Config, frame: "pd.DataFrame") -> dict[str, Any]:
    """Means with intervals by variant, differences from vanilla seed by seed, and all rows."""
    numbers = [c for c in frame.columns if c not in ("group", "variant", "seed")]
    means, differences = [], []
    vanilla = frame[(frame.group == "trained") & (frame.variant == "vanilla")].set_index("seed")
    for (group, variant), rows in frame.groupby(["group", "variant"], sort=False):
        own = rows.set_index("seed")
        means.append({"group": group, "variant": variant, "seeds": len(rows)} | {c: interval(own[c].tolist()) for c in numbers})
        paired = [seed for seed in own.index if seed in vanilla.index]
        if group != "bundled" and variant != "vanilla" and paired:
            change = {c: interval([float(own[c][s] - vanilla[c][s]) for s in paired]) for c in numbers}
            differences.append({"group": group, "variant": variant, "seeds": len(paired)} | change)
    return {
        "command": "python experiments/quantizable_transformers.py", "config": as_plain(config), "variants": VARIANTS,
        "calibrated_on": f"{config.draws} draws of {config.calibration} other prompts", "means": means, "minus_vanilla": differences,
        "rows": frame.to_dict("records"),
    }  # fmt: skip


def figure(frame: "pd.DataFrame") -> "go.Figure":
    """Loss that W8A8 costs against the largest inf-norm of a block's output, one point per run."""
    import plotly.graph_objects as go

    plot = go.Figure()
    for (group, variant), rows in frame.groupby(["group", "variant"], sort=False):
        if group != "untrained use":
            plot.add_scatter(x=rows.inf_norm_block, y=rows["w8a8_damage"], mode="markers", name=f"{variant} ({group})")
    return plot.update_layout(
        title="Do smaller outliers make W8A8 cheaper?",
        xaxis_title="max inf-norm of block outputs",
        yaxis_title="W8A8 loss - loss (nats/token)",
    )


def main(train: bool = False, smoke: bool = False, out: Path | None = None, root: Path = ROOT) -> None:
    """Measures every run; writes a run folder and the summary (`out`; --smoke writes none unless told)."""
    import pandas as pd
    from rich.console import Console

    torch.set_num_threads(1)
    console, config = Console(), SMOKE if smoke else Config()
    there = tuple(seed for seed in config.seeds if all((folder_of(v, seed, root) / "finished").is_file() for v in VARIANTS))
    if not train and there != config.seeds:
        console.print(f"trained to the end: seeds {there} of {config.seeds}; --train trains the rest")
        config = replace(config, seeds=there)
    with open_run("attention-variants", config, root=root) as run:
        if run is None:
            console.print(f"done before: {run_folder('attention-variants', config, root=root)}")
            return
        rows = []
        for row in measured(config, root, train, lambda text: console.print(text)):
            run.log(**row)
            rows.append(row)
        frame = pd.DataFrame(rows)
        run.table(frame)
        run.figure("damage", figure(frame))
        path = run.json("summary", summary(config, frame))
        target = out if out is not None else None if smoke else RESULTS
        if target is not None:
            write_text(target, path.read_text())
    shown = ["loss", "inf_norm_block", "kurtosis", "sink_rate", "w8a8_damage", "w6a6_damage"]
    console.print(frame.groupby(["group", "variant"], sort=False)[shown].mean().round(4).to_string())


if __name__ == "__main__":
    typer.run(main)
