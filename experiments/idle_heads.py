"""Does pruning heads that do nothing cost nothing, and what do a head's keys and values need? On the bundled models.

    python -m experiments.idle_heads                  # every bundled model -> experiments/results/idle-heads.json
    python -m experiments.idle_heads demo-gpt2

Scores on one half of held-out documents of the demo corpus, losses on the other. With torchao (extra `int8`) real int8 products stand
beside the fake ones.
"""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer

from experiments.studies import DEMO

if TYPE_CHECKING:
    from interp import Model, Prompts
    from interp.quant import KVView

RESULTS = Path(__file__).parent / "results" / "idle-heads.json"
SEED, DOCUMENTS, LENGTH = 2, 64, 64
"""Of the corpus (the models were trained on seed 0), documents in all, and tokens at most of each."""


def main(models: Annotated[list[str] | None, typer.Argument()] = None, out: Path = RESULTS) -> None:
    """Measures and writes; results of models that are not named are kept."""
    import interp

    torch.set_num_threads(1)
    for name in models or DEMO:
        found = json.loads(out.read_text()) if out.exists() else {"command": "python -m experiments.idle_heads", "models": {}}
        found["models"][name] = study(interp.load(name, device="cpu"))
        out.write_text(json.dumps(found, indent=1) + "\n")
        print(name, json.dumps(found["models"][name])[:2000])


def study(model: "Model") -> dict[str, Any]:
    """All measures of one model."""
    from interp import quant

    scored, held_out = documents(model)
    stops = [i for i in range(model.d_vocab) if model.decode([i])[0].strip() in (".", ",", "\n")]
    report = quant.head_report(model, scored, delimiters=stops)
    pruned = quant.prune(model, scored, held_out=held_out, report=report, orders=8)
    sparse = quant.sparsify(model, held_out, calibration=scored)
    view = quant.kv_view(model, held_out, budget=16, delimiters=stops)
    estimate = quant.head_gradient(model, scored).flatten()
    return {
        "documents": {"scored": len(scored), "held_out": len(held_out), "longest": held_out.width},
        "pruning": {"loss": pruned.loss, "counts": pruned.counts, "curves": rounded(pruned.curves), "spread": pruned.spread.tolist(),
                    "free_within_0.01": {name: pruned.free(name) for name in pruned.curves}, "rank_correlations": pruned.correlations,
                    "gradient_rank_correlation": rank_correlation(estimate, pruned.heads["ablation"].flatten())},
        "sparsity": {"loss": sparse.loss, "shares": sparse.shares, "losses": rounded(sparse.losses)},
        "cache": cache(view),
        "int8": int8(model, held_out, scored),
    }  # fmt: skip


def cache(view: "KVView") -> dict[str, Any]:
    """Policies, head types and rounding."""
    policies = view.policies().drop(columns=["model", "unit"]).to_dict("records")
    found = {"budget": view.budget, "loss": view.full_loss, "policies": policies, "types": view.types}
    found |= {"heavy_fifth": float(view.heavy_share.mean()), "lost_mass_against_loss": view.correlation}
    return found | {"rounded_to_4_bits": dict(view.quantized)}


def documents(model: "Model") -> "tuple[Prompts, Prompts]":
    """Two halves of held-out documents, cut to LENGTH tokens."""
    from interp import Prompts
    from interp.atlas import Corpus, encode

    rows = [encode(document)[:LENGTH] for document in Corpus(SEED, DOCUMENTS).pool(0, "polish")]
    rows = [row for row in rows if len(row) > 1]
    half = len(rows) // 2
    return model.check_prompts(Prompts.from_ids(rows[:half])), model.check_prompts(Prompts.from_ids(rows[half:]))


def int8(model: "Model", prompts: "Prompts", calibration: "Prompts") -> dict[str, Any] | str:
    """Damage of real and fake int8 products, nats per token."""
    from interp import quant

    if find_spec("torchao") is None:
        return "torchao is not installed"
    runs = {"dynamic, per token": {"scheme": "w8a8-token"}, "static, per tensor": {"scheme": "w8a8", "calibration": calibration},
            "weights alone": {"scheme": "w8"}}  # fmt: skip
    found = {name: quant.real_int8(model, prompts, **options) for name, options in runs.items()}
    return {
        name: {"linear_layers": r.n_quantized, "damage": r.damage, "damage_fake": r.damage_fake, "kl_between": r.kl_between,
               "least_sqnr": min(check.sqnr for check in r.linears), "library": r.library}
        for name, r in found.items()
    }  # fmt: skip


def rounded(curves: Any) -> dict[str, list[float]]:
    return {name: [round(float(x), 5) for x in curve] for name, curve in curves.items()}


def rank_correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    from scipy.stats import spearmanr

    return float(spearmanr(a.tolist(), b.tolist())[0])  # type: ignore[arg-type]


if __name__ == "__main__":
    typer.run(main)
