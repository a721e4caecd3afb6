"""Do clipped softmax and gates keep outliers away, and does that help quantization? Small OPTs on the Atlas, several seeds.

    python -m experiments.quantizable_transformers             # reads the trained runs -> experiments/results/attention-variants.json
    python -m experiments.quantizable_transformers --train     # trains those that are missing first (about ten minutes each)
    python -m experiments.quantizable_transformers --smoke     # the bundled models alone, few prompts, nothing written to results

Measures after Bondarenko et al. 2023 (arXiv 2306.12929): inf-norm, kurtosis and W8A8 loss, with the sink rate of Gu et al. 2025 and its
length. Every variant has the same recipe, seeds and first weights. Control: vanilla models with a variant switched on at inference alone.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import typer

import interp
from experiments.runs import ROOT, Run
from experiments.studies import summary_of
from interp import Prompts, quant
from interp.atlas import Corpus, encode
from interp.metrics import loss_per_token
from interp.safefiles import write_text
from interp.zoo import bundled

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from experiments.train_demo_models import Config as Training

RESULTS = Path(__file__).parent / "results" / "attention-variants.json"
NOTE = Path(__file__).parent / "notes" / "attention-variants.md"
BEGIN, END = "<!-- measured -->", "<!-- end -->"
"""What stands between them in the note is written by this study."""
VARIANTS = {"vanilla": "softmax", "clipped": "clipped(gamma=-0.03, zeta=1)", "gated": "gated-linear"}
UNTRAINED = ("clipped(gamma=-0.03, zeta=1)", "normalized-clipped(alpha=2)", "softmax-1")
BUNDLED = ("demo-opt", "demo-opt-clipped", "demo-opt-gated")
LONG = "attention-long-vanilla-0"
"""The run folder of a vanilla model trained exactly as the bundled variants were (the command of their cards without --attention)."""
SEEDS = (0, 1, 2)
POOL = 5000
"""Of the held-out documents; the pools after it calibrate. Training reads pools from 0 on."""


@dataclass(frozen=True)
class Config:
    """One row of the table: one model, on what it is measured."""

    model: str
    seed: int
    attention: str | None = None
    """Switched on at inference in place of the model's own."""
    mixture: str = "full"
    """Of the held-out documents."""
    prompts: int = 192
    schemes: tuple[str, ...] = ("w8a8", "w6a6")
    rounded: int = 96
    """Prompts for the loss of the rounded model."""
    calibration: int = 32
    """Prompts that static ranges are found on ..."""
    draws: int = 2
    """... so many times, on other prompts."""
    length: int = 32
    """Tokens of the prompts for sink rates: documents that are as long, cut there."""
    heads: int = 128
    """Prompts for sink rates."""


SMOKE = {"prompts": 16, "rounded": 8, "calibration": 8, "draws": 1, "heads": 8}


def training(variant: str, seed: int) -> "Training":
    """The recipe of one run: 10 pools of 8,192 documents, the learning rate falls over the last 2."""
    from experiments.train_demo_models import Config as Recipe

    return Recipe("opt", steps=2560, seed=seed, lr_decay=0.2, stages="warm 8, full", attention=VARIANTS[variant])


def folder_of(variant: str, seed: int, root: Path = ROOT) -> Path:
    return root / f"attention-{variant}-{seed}"


def train_missing(root: Path) -> None:
    """Trains every run that is not trained to its end; a run that was stopped goes on from its checkpoint."""
    from experiments.train_demo_models import train

    for seed in SEEDS:
        for variant in VARIANTS:
            folder = folder_of(variant, seed, root)
            if not (folder / "finished").is_file():
                train(training(variant, seed), folder, resume=(folder / "checkpoint").is_dir())
                (folder / "finished").touch()


def held_out(mixture: str, pool: int, n: int, length: int | None = None) -> Prompts:
    """The first documents of a pool that no training read; with `length` those that are as long, cut there."""
    rows = [encode(document) for document in Corpus(0).pool(pool, mixture)]
    rows = [row[: length or len(row)] for row in rows if len(row) >= (length or 2)]
    return Prompts.from_ids(rows[:n])


def measure(config: Config, model: interp.Model, run: Run) -> dict[str, Any]:
    """Loss (nats per token), outliers, sinks and what rounding costs."""
    model = model if config.attention is None else model.with_attention(config.attention)
    statistics = quant.activation_statistics(model, held_out(config.mixture, POOL, config.prompts))
    tensors = statistics.tensors
    row: dict[str, Any] = {"model": model.name, "loss": loss_of(model, held_out(config.mixture, POOL, config.prompts))}
    row |= {f"inf_norm_{name}": norm for name, norm in statistics.inf_norm.items()}
    row |= {
        "kurtosis": sum(t.kurtosis for t in tensors) / len(tensors), "paper_kurtosis": statistics.mean_kurtosis,
        "feature_kurtosis": max(t.feature_kurtosis for t in tensors if t.kind == "out"),
        "outlier_dimensions": len(statistics.outlier_dimensions),
    }  # fmt: skip
    heads = held_out(config.mixture, POOL, config.heads, config.length)
    with torch.no_grad():
        patterns = model.capture(heads, "blocks.*.attn.hook_pattern")
    rates = {site: quant.sink_rate(pattern) for site, pattern in patterns.items()}
    row["sink_rate"] = float(torch.stack(list(rates.values())).mean())
    row["sink_mass"] = float(torch.stack([quant.sink_mass(pattern).mean() for pattern in patterns.values()]).mean())
    row["sink_rate_by_head"] = [rate.tolist() for rate in rates.values()]
    row |= rounding(config, model)
    run.log(**row)
    return row


def rounding(config: Config, model: interp.Model) -> dict[str, float]:
    """By scheme: loss of the rounded model minus the loss, mean over draws of calibration prompts."""
    prompts = held_out(config.mixture, POOL, config.rounded)
    own, costs = loss_of(model, prompts), {}
    for scheme in config.schemes:
        losses = []
        for draw in range(config.draws):
            rounded = quant.quantize(model, quant.SCHEMES[scheme], held_out(config.mixture, POOL + 1 + draw, config.calibration))
            losses.append(loss_of(rounded, prompts))
        costs[f"{scheme}_damage"] = sum(losses) / len(losses) - own
        costs[f"{scheme}_spread"] = max(losses) - min(losses)
    return costs


def loss_of(model: "interp.Model | quant.QuantizedRun", prompts: Prompts) -> float:
    """Mean next-token loss, nats per token."""
    with torch.no_grad():
        return float(loss_per_token(model.logits(prompts), prompts).double().nanmean())


def rows(root: Path, smoke: bool) -> Iterator[dict[str, Any]]:
    """Every trained run; vanilla ones with variants switched on at inference; the bundled models. A row is measured once."""
    changes: dict[str, Any] = SMOKE if smoke else {}

    def row(group: str, variant: str, config: Config) -> dict[str, Any]:
        about = {"group": group, "variant": variant, "seed": config.seed}
        return about | summary_of("attention-variants", config, measure, root)

    for seed in () if smoke else SEEDS:
        for variant in VARIANTS:
            folder = folder_of(variant, seed, root)
            if not (folder / "finished").is_file():
                continue
            yield row("trained", variant, Config(str(folder / "model"), seed))
            for attention in UNTRAINED if variant == "vanilla" else ():
                yield row("untrained use", attention, Config(str(folder / "model"), seed, attention, schemes=("w8a8",), draws=1))
    for name in BUNDLED:
        if name in bundled():
            yield row("bundled", name, Config(name, 0, **changes))
    if not smoke and (root / LONG / "finished").is_file():
        yield row("trained as the bundled variants", "vanilla", Config(str(root / LONG / "model"), 0))
    for attention in () if smoke else UNTRAINED:
        yield row("untrained use of demo-opt", attention, Config("demo-opt", 0, attention, schemes=("w8a8",), draws=1))


def interval(values: list[float]) -> dict[str, float | None]:
    """Mean and 95 % t-interval over seeds; no interval of one seed."""
    from scipy.stats import t

    n, mean = len(values), sum(values) / len(values)
    if n < 2:
        return {"mean": mean, "low": None, "high": None}
    half = float(t.ppf(0.975, n - 1)) * math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)
    return {"mean": mean, "low": mean - half, "high": mean + half}


def summary(frame: "pd.DataFrame") -> dict[str, Any]:
    """Means with intervals by variant, differences from vanilla seed by seed, and all rows."""
    numbers = [c for c in frame.columns if c not in ("group", "variant", "seed", "model", "sink_rate_by_head")]
    means, differences = [], []
    vanilla = frame[(frame.group == "trained") & (frame.variant == "vanilla")].set_index("seed")
    for (group, variant), found in frame.groupby(["group", "variant"], sort=False):
        own = found.set_index("seed")
        columns = [c for c in numbers if own[c].notna().all()]
        about = {"group": group, "variant": variant, "seeds": len(found)}
        means.append(about | {c: interval(own[c].tolist()) for c in columns})
        paired = [seed for seed in own.index if seed in vanilla.index]
        if group in ("trained", "untrained use") and variant != "vanilla" and paired:
            differences.append(about | {c: interval([float(own[c][s] - vanilla[c][s]) for s in paired]) for c in columns})
    plain = [{k: v for k, v in row.items() if v == v} for row in frame.to_dict("records")]
    return {
        "command": "python -m experiments.quantizable_transformers", "variants": VARIANTS, "seeds": SEEDS,
        "recipe": "opt, 2560 steps of 32 documents, lr 0.002, lr_decay 0.2, stages 'warm 8, full'",
        "means": means, "minus_vanilla": differences, "rows": plain,
    }  # fmt: skip


def figure(frame: "pd.DataFrame") -> "go.Figure":
    """Loss that W8A8 costs against the largest inf-norm of a block's output, one point per run."""
    import plotly.graph_objects as go

    plot = go.Figure()
    for (group, variant), found in frame.groupby(["group", "variant"], sort=False):
        if not group.startswith("untrained"):
            plot.add_scatter(x=found.inf_norm_block, y=found["w8a8_damage"], mode="markers", name=f"{variant} ({group})")
    return plot.update_layout(
        title="Do smaller outliers make W8A8 cheaper?",
        xaxis_title="max inf-norm of block outputs",
        yaxis_title="W8A8 loss - loss (nats/token)",
    )


def markdown(found: dict[str, Any]) -> str:
    """The table of means with half-widths of the intervals, and the differences from vanilla."""
    columns = {
        "loss": "loss", "inf_norm_block": "inf-norm, blocks", "inf_norm_mlp": "MLPs", "inf_norm_all": "all",
        "paper_kurtosis": "kurtosis (paper)", "kurtosis": "kurtosis (scale-free)", "sink_rate": "sink rate, T=32",
        "w8a8_damage": "W8A8 - loss", "w6a6_damage": "W6A6 - loss",
    }  # fmt: skip

    def cell(row: dict[str, Any], column: str) -> str:
        value = row.get(column)
        if value is None:
            return "-"
        return f"{value['mean']:.4g}" + ("" if value["low"] is None else f" ± {value['mean'] - value['low']:.2g}")

    lines = []
    for title, rows in (("Means over seeds", found["means"]), ("Differences from vanilla, seed by seed", found["minus_vanilla"])):
        lines += ["", f"{title} (± half of the 95 % t-interval; none with one seed):", ""]
        lines += [f"| group | attention | seeds | {' | '.join(columns.values())} |", f"| {' | '.join(['---'] * (3 + len(columns)))} |"]
        for row in rows:
            cells = " | ".join(cell(row, c) for c in columns)
            lines.append(f"| {row['group']} | {row['variant']} | {row['seeds']} | {cells} |")
    return "\n".join(lines[1:])


def write_note(found: dict[str, Any], note: Path = NOTE) -> None:
    """Puts the tables into the note."""
    before, _, rest = note.read_text(encoding="utf-8").partition(BEGIN)
    write_text(note, f"{before}{BEGIN}\n\n{markdown(found)}\n\n{END}{rest.partition(END)[2]}")


def main(train: bool = False, smoke: bool = False, out: Path | None = None, root: Path = ROOT) -> None:
    """Measures every run that is trained to its end; writes run folders and the summary (`out`; --smoke writes none unless told)."""
    import pandas as pd
    from rich.console import Console

    torch.set_num_threads(1)
    console = Console()
    if train:
        train_missing(root)
    missing = [f"{v}-{s}" for s in SEEDS for v in VARIANTS if not (folder_of(v, s, root) / "finished").is_file()]
    console.print(f"not trained to the end: {', '.join(missing)}; --train trains them" if missing else "all runs are there")
    frame = pd.DataFrame(list(rows(root, smoke)))
    target = out if out is not None else None if smoke else RESULTS
    if target is not None:
        found = summary(frame) | {"missing": missing}
        write_text(target, json.dumps(found, indent=1) + "\n")
        if target == RESULTS:
            write_note(found)
        figure(frame).write_html(root / "attention-variants.html", include_plotlyjs=True)
    shown = ["loss", "inf_norm_block", "paper_kurtosis", "sink_rate", "w8a8_damage", "w6a6_damage"]
    console.print(frame.groupby(["group", "variant"], sort=False)[[c for c in shown if c in frame]].mean().round(4).to_string())


if __name__ == "__main__":
    typer.run(main)
