"""LLM.int8 on small models: which dimensions are outliers, what each rounding of matrix products costs, and where the threshold matters.

    python -m experiments.llm_int8                      # the bundled models -> runs/, experiments/results/llm-int8.json
    python -m experiments.llm_int8 facebook/opt-125m --text a.txt    # a model with a tokenizer on lines of text: runs/ alone

Linear layers of the blocks are rounded to 8 bits, all else stays in floating point (Dettmers et al. 2022, arXiv 2208.07339): one scale per
tensor (absmax, zeropoint), per row of the input, or per row and column (vector); then with input columns beyond a threshold left alone. The
same on the model with a planted outlier dimension, which changes nothing before rounding.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer

from experiments.quant_remedies import documents
from experiments.runs import ROOT, Run
from experiments.studies import DEMO, summary_of

if TYPE_CHECKING:
    from interp import Model, Prompts

STUDY = "llm-int8"
RESULTS = Path(__file__).parent / "results" / "llm-int8.json"
PUBLISHED = {
    "source": "Dettmers et al. 2022, table 1: perplexity on C4 of fairseq's models",
    "sizes": ["125M", "1.3B", "2.7B", "6.7B", "13B"],
    "32-bit float": [25.65, 15.91, 14.43, 13.30, 12.45],
    "LLM.int8, absmax vector-wise + decomposition": [25.83, 15.93, 14.44, 13.24, 12.45],
}
"""What users with weights can compare with."""


@dataclass(frozen=True)
class Config:
    """What one run does."""

    model: str = "demo-gpt2"
    text: str | None = None
    """A file of prompts, one per line; None: documents of the corpus that the bundled models know."""
    prompts: int = 16
    thresholds: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0)
    factor: float = 100.0
    """Of the planted outlier dimension."""
    seed: int = 0


def study(config: Config, model: "Model", run: Run) -> dict[str, Any]:
    """Runs the study into a folder; the summary."""
    from interp import quant

    prompts = documents(config.prompts) if config.text is None else _lines(model, Path(config.text), config.prompts)
    stats = quant.activation_statistics(model, prompts)
    models = {"as it is": model, "planted": quant.plant_dimension(model, model.d_model // 2, config.factor)}
    rows = []
    for name, each in models.items():
        rows += [row | {"weights": name} for row in losses(each, prompts, config.thresholds)]
        run.log(step=name)
    import pandas as pd

    run.table(pd.DataFrame(rows))
    return {
        "model": model.name, "prompts": len(prompts), "tokens": stats.n_tokens,
        "outlier_dimensions": {str(d): list(shares) for d, shares in stats.outlier_dimensions.items()},
        "largest_norm_output": max(t.absmax for t in stats.tensors if t.kind in ("ln1", "ln2")), "rows": rows,
    }  # fmt: skip


def losses(model: "Model", prompts: "Prompts", thresholds: tuple[float, ...]) -> list[dict[str, Any]]:
    """One row per way of rounding products, and per threshold with decomposition."""
    from interp import quant

    nothing = quant.Scheme(weight_bits=None, activation_bits=None)
    ways = [(product, float("inf")) for product in ("absmax", "zeropoint", "row", "vector")]
    ways += [("absmax", 6.0), *(("vector", threshold) for threshold in thresholds)]
    rows = []
    for product, threshold in ways:
        found = quant.evaluate(model, prompts, replace(nothing, decompose=threshold, product=product))  # type: ignore[arg-type]
        rows.append({
            "product": product, "threshold": threshold if threshold < float("inf") else None, "loss": found.loss,
            "loss_quantized": found.loss_quantized, "damage": found.damage, "kl": found.kl, "layers": len(found.weights),
            "kept": kept_share(model, prompts, threshold),
        })  # fmt: skip
    return rows


def kept_share(model: "Model", prompts: "Prompts", threshold: float) -> float:
    """The fraction of input dimensions, over all linear layers, with an entry beyond the threshold: what stays in floating point.

    On the activations of the model in floating point, all prompts as one batch.
    """
    from interp.selection import real

    if threshold == float("inf"):
        return 0.0
    sites = [f"blocks.{i}.{kind}" for i in range(model.n_layers) for kind in ("attn.hook_z", "mlp.hook_post")]
    norms = [(b.layer, kind, norm) for b in model.anatomy.blocks for kind, norm in (("ln1", b.norm1), ("ln2", b.norm2))]
    capture = model.capture(prompts, [*sites, *(f"blocks.{i}.{kind}.hook_normalized" for i, kind, _ in norms)])
    at = real(prompts)
    inputs = [capture[site][at].flatten(1) for site in sites]
    inputs += [capture[f"blocks.{i}.{kind}.hook_normalized"][at] * norm.weight + norm.bias for i, kind, norm in norms]
    beyond = torch.cat([(x.abs() > threshold).any(0) for x in inputs])
    return round(float(beyond.double().mean()), 5)


def _lines(model: "Model", path: Path, n: int) -> "Prompts":
    lines = [line for line in path.read_text().splitlines() if len(line.split()) > 1]
    if not lines:
        raise ValueError(f"{path} has no line of two words or more.")
    return model.encode(lines[:n])


def main(
    models: Annotated[list[str] | None, typer.Argument(metavar="[MODEL]...", help="Default: the bundled models.")] = None,
    text: Annotated[Path | None, typer.Option(help="Prompts, one per line.")] = None,
    prompts: Annotated[int, typer.Option(min=1)] = Config.prompts,
    root: Annotated[Path, typer.Option(help="Where run folders go.")] = ROOT,
) -> None:
    """Compares roundings of matrix products."""
    torch.set_num_threads(1)
    config = Config(text=str(text) if text else None, prompts=prompts)
    summaries = []
    for name in models or DEMO:
        summaries.append(s := summary_of(STUDY, replace(config, model=name), study, root))
        print(f"{s['model']}: outlier dimensions {s['outlier_dimensions'] or 'none'}; norms reach {s['largest_norm_output']:.1f}")
        for row in s["rows"]:
            beyond = "" if row["threshold"] is None else f", {row['kept']:.1%} beyond {row['threshold']:g} kept"
            print(f"  {row['weights']:9} {row['product']:9} KL {row['kl']:.6f}  loss {row['damage']:+.5f}{beyond}")
    if models is None and config == Config():
        RESULTS.write_text(json.dumps({"models": summaries, "published": PUBLISHED}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
