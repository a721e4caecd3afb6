"""A cross-layer transcoder beside per-layer transcoders at the same number of active features, and a crosscoder of the stream; controls.

    python experiments/cross_layer.py             # runs/cross-layer-<hash>/ and experiments/results/cross-layer.json
    python experiments/cross_layer.py --smoke     # a few steps, nothing written to results

All are trained on the same rows, documents of the atlas that the model was not trained on, and measured on other ones. A cross-layer
transcoder has more decoders than transcoders of the same size, so wider transcoders with as many parameters stand beside it. Controls: the
same training with decoders that stay random, and no training.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import typer

import interp
import saes
from experiments.runs import ROOT, Run
from experiments.studies import summary_of
from interp.atlas import Corpus, encode
from interp.safefiles import write_text
from interp.store import Live, Memory

RESULTS = Path(__file__).parent / "results" / "cross-layer.json"


@dataclass(frozen=True)
class Config:
    """What is trained on which model."""

    model: str = "demo-gpt2"
    coder: saes.Config = saes.Config(n_features=512, k=16, steps=200, batch_size=512, dead_after=50_000)
    """Of each layer, and of the one code of the crosscoder."""
    documents: int = 1500
    measured: int = 64
    """Documents to measure on."""
    first_pool: int = 1000
    last_pool: int = 2000
    """The pool that is measured on."""
    seed: int = 0


SMOKE = Config(coder=saes.Config(n_features=64, k=4, steps=4, batch_size=64), documents=40, measured=8)


def rows_of(model: interp.Model, documents: Sequence[Sequence[int]], sites: Sequence[str]) -> Memory:
    """Activations of all documents, in memory, so that every training reads the same."""
    live = Live.of(model, documents, list(sites))
    n = int(live.lengths.sum())
    out = {site: torch.empty(n, live.widths[site]) for site in live.sites}
    for at, tensors in live.pieces(torch.arange(len(live.lengths)).numpy(), live.sites):
        for site, x in tensors.items():
            out[site][at] = x
    return Memory(out, live.lengths.tolist())


def per_layer(model: interp.Model, source: Memory, config: saes.Config) -> saes.Crosscoder:
    """Transcoders trained one by one, as a crosscoder whose blocks write to their own layer alone."""
    configs = saes.mlp_transcoders(model, config)
    coders = saes.train(source, configs)
    assert isinstance(coders, list)
    blocks = tuple(saes.Block((str(c.input_site),), (str(c.target_site),)) for c in coders)
    widths = {site: model.d_model for block in blocks for site in (*block.reads, *block.writes)}
    return saes.Crosscoder(blocks, tuple(coders), widths, {"model": model.name})


def parameters(crosscoder: saes.Crosscoder) -> int:
    return sum(p.numel() for coder in crosscoder.coders for p in coder.parameters())


def transcoders(model: interp.Model, config: Config, source: Memory) -> dict[str, saes.Crosscoder]:
    """By role."""
    base, blocks, layers = config.coder, saes.clt_blocks(model), model.n_layers
    wider = round(base.n_features * (layers + layers * (layers + 1) / 2) / (2 * layers))
    return {
        "cross-layer": saes.train_crosscoder(source, blocks, base),
        "per layer": per_layer(model, source, base),
        "per layer, as many parameters": per_layer(model, source, base.but(n_features=wider)),
        "cross-layer, frozen decoder": saes.train_crosscoder(source, blocks, base.but(frozen="decoder")),
        "cross-layer, random": saes.train_crosscoder(source, blocks, base.but(steps=0)),
    }


def stream(model: interp.Model, config: Config, source: Memory) -> dict[str, saes.Crosscoder]:
    """A crosscoder of the stream after every layer, and the same untrained."""
    blocks = saes.crosscoder_blocks([f"blocks.{layer}.hook_resid_post" for layer in range(model.n_layers)])
    trained = saes.train_crosscoder(source, blocks, config.coder)
    return {"crosscoder": trained, "crosscoder, random": saes.train_crosscoder(source, blocks, config.coder.but(steps=0))}


def shared(crosscoder: saes.Crosscoder) -> dict[str, Any]:
    found = saes.sharing(crosscoder)
    counts = {site: len(found.exclusive(site, 0.7)) for site in found.sites}
    effective = found.effective_sites
    return {
        "effective_sites": float(effective.mean()),
        "shared_by_all": len(found.shared()),
        "of_one_site": counts,
        "features": len(effective),
    }


def work(config: Config, model: interp.Model, run: Run) -> dict[str, Any]:
    clt, sites = saes.clt_blocks(model), [f"blocks.{layer}.hook_resid_post" for layer in range(model.n_layers)]
    wanted = [*(s for b in clt for s in b.reads), *(b.writes[0] for b in clt), *sites]
    documents = [encode(d) for d in Corpus().pool(config.first_pool)[: config.documents]]
    source = rows_of(model, documents, wanted)
    pool = Corpus().pool(config.last_pool)
    prompts = interp.Prompts.from_ids([encode(d) for d in pool[:: max(1, len(pool) // config.measured)][: config.measured]])
    summary: dict[str, Any] = {"rows": len(source.tensors[sites[0]]), "coders": [], "sharing": {}}
    frames = []
    for role, crosscoder in {**transcoders(model, config, source), **stream(model, config, source)}.items():
        found = saes.evaluate_crosscoder(model, crosscoder, prompts)
        frames.append(found.table().assign(coder=role))
        row = {"role": role, "parameters": parameters(crosscoder), "tokens": found.tokens, **found.summary()}
        summary["coders"].append(row | {"fvu": found.fvu, "ce_alone": found.ce_alone, "l0": found.l0})
        if len(crosscoder.blocks) == 1:
            summary["sharing"][role] = shared(crosscoder)
        if role in ("cross-layer", "crosscoder"):
            crosscoder.save(run.folder / role)
    import pandas as pd

    run.table(pd.concat(frames))
    return summary


def main(smoke: bool = False, root: Path = ROOT) -> None:
    import pandas as pd

    config = SMOKE if smoke else Config()
    summary = summary_of("cross-layer", config, work, root)
    frame = pd.DataFrame(summary["coders"])
    columns = ["role", "parameters", "total_l0", "mean_fvu", "ce_clean", "ce_replaced", "ce_recovered", "kl", "dead_fraction"]
    print(frame[columns].round(4).to_string(), flush=True)
    print(json.dumps(summary["sharing"], indent=1), flush=True)
    if not smoke:
        write_text(RESULTS, json.dumps({"model": config.model, **summary}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
