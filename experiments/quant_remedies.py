"""What helps against the damage of quantization, and can the damage be foreseen? Remedies on three models, plain and with planted outliers.

    python -m experiments.quant_remedies                     # the bundled models -> runs/, experiments/results/quant-remedies.json
    python -m experiments.quant_remedies my-model --smoke    # seconds, writes no result

Per model: every remedy under every scheme; remedies on the same model with an outlier dimension and with a massive first token planted into
it, which change nothing before quantization; rank correlation of predicted and measured damage over tensors, and of the sum of what tensors
do alone with what groups of them do together. Ranges and remedies are fitted on documents of the corpus, measured on others.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer

from experiments.runs import ROOT, Run
from experiments.studies import DEMO, summary_of

if TYPE_CHECKING:
    from interp import Model, Prompts
    from interp.quant import RemedyReport, Sensitivity

STUDY = "quant-remedies"
RESULTS = Path(__file__).parent / "results" / "quant-remedies.json"
CORPUS_SEED = 20_261_121  # documents that no model was trained on
COLUMNS = ("remedy", "loss_float", "loss_quantized", "damage", "kl", "recovered", "kl_float", "agreement", "sqnr", "bulk_sqnr", "inf_norm",
           "kurtosis", "n_weights", "n_activations", "notes")  # fmt: skip


@dataclass(frozen=True)
class Config:
    """What one run does."""

    model: str = "demo-gpt2"
    """Bundled name or folder of a model with the words of the corpus."""
    schemes: tuple[str, ...] = ("w8a8", "w8a8-token", "w4a8")
    prompts: int = 32
    """Documents to measure on."""
    calibration: int = 16
    """Documents to fit on."""
    sensitivity_prompts: int = 16
    """Of those to measure on, for sensitivities."""
    draws: int = 4
    """Of next tokens per prompt, for predicted KL."""
    factor: float = 300.0
    """Of the planted outlier dimension."""
    size: float = 3000.0
    """Of the planted massive token."""
    random_groups: int = 12
    """Random halves of the tensors, beside layers and kinds."""
    seed: int = 0


def study(config: Config, model: "Model", run: Run) -> dict[str, Any]:
    """Runs the study into a folder; the summary."""
    measured, fitted = documents(config.prompts), documents(config.calibration, 1)
    found: dict[str, Any] = {"model": model.name, "prompts": len(measured), "calibration": len(fitted)}
    tables = {}
    for scheme in config.schemes:
        tables[scheme] = _remedies(model, measured, fitted, scheme, scheme == config.schemes[0])
        run.log(step=f"remedies, {scheme}")
    planted = _planted(config, model)
    tables |= {name: _remedies(twin, measured, fitted, scheme) for name, (twin, scheme) in planted.items()}
    run.log(step="planted")
    for name, report in tables.items():
        run.table(report.table(), name.replace(" ", "-").replace(",", ""))
        run.figure(name.replace(" ", "-").replace(",", ""), report.figure())
    found["remedies"] = {name: summarise(report) for name, report in tables.items()}
    few = measured[: config.sensitivity_prompts]
    found["sensitivity"] = {}
    for scheme in ("w8a8", "w4a8"):
        found["sensitivity"][scheme] = _foreseen(config, model, few, fitted, scheme, run)
        run.log(step=f"sensitivity {scheme}")
    return found


def documents(n: int, pool: int = 0) -> "Prompts":
    """Documents of the corpus, of the last mixture of training, from a seed that training does not use."""
    from interp import Prompts
    from interp.atlas.corpus import Corpus, encode

    drawn = Corpus(seed=CORPUS_SEED, pool_size=n).pool(pool)
    return Prompts.from_ids([encode(document)[:128] for document in drawn])


def plans(scheme: str, whole: bool) -> list[Any]:
    """Remedies that go with the scheme, and combinations; `whole`: all there are."""
    from interp import quant

    static = [] if scheme == "w8a8-token" else [quant.Clip(99.9), quant.Granularity()]
    short = [*static, quant.FirstPosition(keep=True), quant.KeepFeatures(4), quant.Smooth(0.5), quant.Rotate(),
             (quant.Rotate(), quant.Smooth(0.5))]  # fmt: skip
    if not whole:
        return short
    return [
        *short, quant.Clip(99.99), quant.FirstPosition(keep=False), quant.KeepFeatures(1), quant.Smooth((0.3, 0.5, 0.7)),
        quant.Rotate(heads=False), quant.Leave(("resid_mid", "resid_post")), quant.EditHeads("no-op", "zero"),
        quant.EditHeads("no-op", "mean"), quant.AttentionFormula("softmax-1"), quant.AttentionFormula("clipped", gamma=-0.03),
        (quant.Rotate(), quant.Smooth(0.5), quant.KeepFeatures(4), quant.FirstPosition(keep=True)),
    ]  # fmt: skip


def _remedies(model: "Model", measured: "Prompts", fitted: "Prompts", scheme: str, whole: bool = False) -> "RemedyReport":
    from interp import quant

    return quant.remedy(model, measured, plans(scheme, whole), scheme, calibration=fitted)


def _planted(config: Config, model: "Model") -> dict[str, tuple["Model", str]]:
    """Name -> a model with a planted outlier, and its scheme. A massive token also widens the range of the embedding table,
    so it is tried with activations alone rounded as well."""
    from interp import quant
    from interp.atlas.tokenizer import BOS, vocabulary

    token = quant.plant_token(model, config.size, token=vocabulary()[BOS])
    return {
        "planted dimension, w8a8": (quant.plant_dimension(model, model.d_model // 2, config.factor), "w8a8"),
        "planted token, w8a8": (token, "w8a8"),
        "planted token, a8": (token, "a8"),
    }


def _foreseen(config: Config, model: "Model", prompts: "Prompts", fitted: "Prompts", scheme: str, run: Run) -> dict[str, Any]:
    """Rank correlations of predicted with measured damage."""
    from interp import quant

    found = quant.sensitivity(model, prompts, scheme, calibration=fitted, draws=config.draws, seed=config.seed)
    run.table(found.table(), f"sensitivity-{scheme}")
    run.figure(f"sensitivity-{scheme}", found.figure())
    groups = together(config, model, prompts, fitted, scheme, found)
    run.json(f"groups-{scheme}", groups)
    from scipy.stats import spearmanr

    def correlation(rows: Any, predicted: str, measured: str) -> float:
        return round(float(spearmanr([r[predicted] for r in rows], [r[measured] for r in rows])[0]), 4)  # type: ignore[arg-type]

    tensors = [t.__dict__ for t in found.tensors]
    effects = sorted(abs(t.only) for t in found.tensors)
    signs = sum((t.only > 0) == (t.predicted > 0) for t in found.tensors) / len(tensors)
    return {
        "tensors": len(tensors), "loss": found.loss, "loss_quantized": found.loss_quantized, "kl": found.kl,
        "additive": found.additive, "additive_kl": found.additive_kl, "rank_loss": round(found.rank_correlation, 4),
        "rank_kl": round(found.kl_rank_correlation, 4), "rank_size_of_loss_change_by_predicted_kl": correlation(
            [{**t, "size": abs(t["only"])} for t in tensors], "predicted_kl", "size"),
        "signs_right": round(signs, 4), "median_loss_change": effects[len(effects) // 2], "groups": len(groups),
        "rank_groups_loss": correlation(groups, "only", "together"), "rank_groups_kl": correlation(groups, "only_kl", "together_kl"),
        "worst": [(t["tensor"], round(t["only_kl"], 6), round(t["predicted_kl"], 6))
                  for t in sorted(tensors, key=lambda t: -t["only_kl"])[:5]],
    }  # fmt: skip


def together(
    config: Config, model: "Model", prompts: "Prompts", fitted: "Prompts", scheme: str, found: "Sensitivity"
) -> list[dict[str, Any]]:
    """Groups of tensors quantized together, beside the sum of what each does alone."""
    from interp import quant
    from interp.quant.evaluation import predicting, token_divergence

    run = quant.quantize(model, quant.SCHEMES[scheme], fitted)
    counted, clean = predicting(prompts), model.logits(prompts)
    before = model_loss(clean, prompts)
    rows = []
    for name, members in _groups(config, found):
        with run.only_weights(members):
            logits = run.logits(prompts, only=members)
        chosen = [t for t in found.tensors if t.tensor in members]
        rows.append({
            "group": name, "tensors": len(members), "only": sum(t.only for t in chosen), "together": model_loss(logits, prompts) - before,
            "only_kl": sum(t.only_kl for t in chosen), "together_kl": float(token_divergence(clean, logits)[counted].double().mean()),
        })  # fmt: skip
    return rows


def model_loss(logits: torch.Tensor, prompts: "Prompts") -> float:
    import interp

    return float(interp.loss_per_token(logits, prompts).double().nanmean())


def _groups(config: Config, found: "Sensitivity") -> Iterator[tuple[str, set[str]]]:
    """Layers, kinds of tensors, and random sets of tensors of many sizes."""
    for layer in sorted({t.layer for t in found.tensors if t.layer is not None}):
        yield f"layer {layer}", {t.tensor for t in found.tensors if t.layer == layer}
    for role, kind in dict.fromkeys((t.role, t.kind) for t in found.tensors):
        yield f"{kind} ({role})", {t.tensor for t in found.tensors if (t.role, t.kind) == (role, kind)}
    generator = torch.Generator().manual_seed(config.seed)
    for i in range(config.random_groups):
        order = torch.randperm(len(found.tensors), generator=generator).tolist()
        size = max(2, round(len(order) * (i + 1) / (config.random_groups + 1)))
        yield f"random {size}", {found.tensors[j].tensor for j in order[:size]}


def summarise(report: "RemedyReport") -> dict[str, Any]:
    """The report's rows, rounded."""
    rows = json.loads(report.table()[list(COLUMNS)].round(5).to_json(orient="records"))
    return {"loss": report.loss, "best": report.best.name, "n_tokens": report.n_tokens, "left_out": report.left_out, "rows": rows}


def main(
    models: Annotated[list[str] | None, typer.Argument(metavar="[MODEL]...", help="Default: the bundled models.")] = None,
    prompts: Annotated[int, typer.Option(min=8)] = Config.prompts,
    smoke: Annotated[bool, typer.Option("--smoke", help="Few documents and one scheme; writes no result.")] = False,
    root: Annotated[Path, typer.Option(help="Where run folders go.")] = ROOT,
) -> None:
    """Compares remedies and measures how well damage is foreseen."""
    torch.set_num_threads(1)
    config = Config(prompts=prompts)
    if smoke:
        config = replace(config, schemes=("w8a8",), prompts=8, calibration=4, sensitivity_prompts=2, draws=1, random_groups=2)
    summaries = []
    for name in models or DEMO:
        summaries.append(s := summary_of(STUDY, replace(config, model=name), study, root))
        for scheme, table in s["remedies"].items():
            print(f"{s['model']}, {scheme}: loss {table['loss']:.4f}; best: {table['best']}")
            for row in table["rows"]:
                recovered = "" if row["recovered"] is None else f"recovered {row['recovered']:7.3f}"
                print(f"  {row['remedy']:60.60} loss {row['loss_quantized']:.4f}  KL {row['kl']:.5f}  {recovered}")
        for scheme, row in s["sensitivity"].items():
            print(f"  {scheme}: rank correlation over tensors {row['rank_kl']} (KL), {row['rank_loss']} (loss); over groups "
                  f"{row['rank_groups_kl']} (KL), {row['rank_groups_loss']} (loss)")  # fmt: skip
    if not smoke and models is None and config == Config():
        RESULTS.write_text(json.dumps({"models": summaries}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
