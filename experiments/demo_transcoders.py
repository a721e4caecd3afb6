"""Transcoders of every MLP of the demo models, autoencoders of the MLPs' outputs at the same number of active features, and controls.

    python experiments/demo_transcoders.py             # runs/demo-transcoders-<hash>/ and experiments/results/demo-transcoders.json
    python experiments/demo_transcoders.py --model demo-opt      # one model's run; a call for all reads it
    python experiments/demo_transcoders.py --smoke     # one model, a few steps, nothing written to results
    python experiments/demo_transcoders.py --bundle    # puts the runs' transcoders, in half precision, where saes.bundled finds them

All coders of a model are trained together, live, on pools of the atlas that the model was not trained on, and measured on another pool.
Controls: the same training with a decoder or an encoder that stays random, and no training.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import typer

import interp
import saes
from experiments.runs import ROOT, Run, as_plain, open_run, run_folder
from interp.atlas import Corpus, encode
from interp.safefiles import write_text
from saes import zoo
from saes.formats import circuit_tracer

RESULTS = Path(__file__).parent / "results" / "demo-transcoders.json"
POOLS = 4
"""Pools to train on, 8192 documents each."""
TARGETS = {"l0": 16, "fvu": 0.15, "ce_increase": 0.15}


@dataclass(frozen=True)
class Config:
    """What is trained on which model."""

    model: str = "demo-gpt2"
    coder: saes.Config = saes.Config(
        n_features=1024, k=16, steps=1000, batch_size=1024, dead_after=50_000, details=saes.Details(beta2=0.999)
    )
    rows: int = 64
    """Documents of a batch in measuring."""
    measured: int = 6
    """Batches of documents to measure on."""
    first_pool: int = 1000
    last_pool: int = 2000
    """The pool that is measured on."""


SMALL = replace(Config.coder, n_features=512, steps=400, batch_size=512)
MODELS = (Config("demo-gpt2"), Config("demo-opt"), Config("demo-pythia", coder=SMALL))
"""Pythia's MLPs clear the targets with half the features and a fifth of the tokens."""
SMOKE = (Config(coder=saes.Config(n_features=64, k=4, steps=4, batch_size=64), rows=8, measured=2),)


def coder_configs(model: interp.Model, base: saes.Config) -> dict[str, list[saes.Config]]:
    """By role: one config for each layer."""
    transcoders = saes.mlp_transcoders(model, base)
    return {
        "transcoder": transcoders,
        "autoencoder": [replace(c, input_site=c.target_site, target_site=None) for c in transcoders],
        "frozen decoder": [replace(c, frozen="decoder") for c in transcoders],
        "frozen encoder": [replace(c, frozen="encoder") for c in transcoders],
        "random": [replace(c, steps=0) for c in transcoders],
    }


def pool_documents(pools: Iterable[int]) -> list[list[int]]:
    return [encode(document) for pool in pools for document in Corpus().pool(pool)]


def train(model: interp.Model, config: Config, folder: Path) -> dict[str, list[saes.Coder]]:
    """All coders by role, layer after layer."""
    roles = coder_configs(model, config.coder)
    documents = pool_documents(range(config.first_pool, config.first_pool + POOLS))
    trained = [c for role, configs in roles.items() if role != "random" for c in configs]
    together = saes.train(model, trained, documents, metrics=folder / "training.jsonl", progress=True)
    found: list[saes.Coder] = [*as_list(together), *as_list(saes.train(model, roles["random"], documents))]
    size = model.n_layers
    return {role: found[i * size : (i + 1) * size] for i, role in enumerate(roles)}


def as_list(coders: "saes.Coder | list[saes.Coder]") -> list[saes.Coder]:
    return coders if isinstance(coders, list) else [coders]


def measured_prompts(config: Config) -> interp.Prompts:
    """Documents that neither model nor coders were trained on."""
    documents = pool_documents([config.last_pool])[:: max(1, 8192 // (config.measured * config.rows))]
    return interp.Prompts.from_ids(documents[: config.measured * config.rows])


def measure(model: interp.Model, config: Config, coders: dict[str, list[saes.Coder]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(one row per role and layer, one row per role with all layers replaced)."""
    prompts = measured_prompts(config)
    each = [
        {"model": config.model, "role": role, "layer": layer, **saes.evaluate(model, coder, prompts, rows=config.rows).summary()}
        for role, found in coders.items()
        for layer, coder in enumerate(found)
    ]
    return each, [together(model, config, role, found, prompts) for role, found in coders.items()]


def together(model: interp.Model, config: Config, role: str, coders: Sequence[saes.Coder], prompts: interp.Prompts) -> dict[str, Any]:
    found = saes.evaluate_together(model, coders, prompts, config.rows)
    row = {"model": config.model, "role": role, "tokens": found.tokens, "ce_clean": found.ce_clean, "ce_replaced": found.ce_replaced}
    return row | {"ce_increase": found.ce_replaced - found.ce_clean, "ce_ablated": found.ce_ablated, "kl": found.kl, "each": found.each}


def coder_folder(run: Path, role: str, layer: int) -> Path:
    """Where a run keeps a coder."""
    return run / role.replace(" ", "-") / str(layer)


def run_one(config: Config, run: Run) -> None:
    import pandas as pd

    model = interp.load(config.model)
    coders = train(model, config, run.folder)
    circuit_tracer.write_set(coders["transcoder"], run.folder / "transcoders-circuit-tracer")
    for role, found in coders.items():
        for layer, coder in enumerate(found):
            coder.save(coder_folder(run.folder, role, layer))
    each, replaced = measure(model, config, coders)
    run.table(pd.DataFrame(each))
    run.json("replaced", replaced)


def verdicts(config: Config, each: Sequence[dict[str, Any]], replaced: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The targets, and what the transcoders reach."""
    mine = [row for row in each if row["role"] == "transcoder"]
    reached = {name: max(row[name] for row in mine) for name in ("l0", "fvu")}
    reached |= {"ce_increase": next(row["ce_increase"] for row in replaced if row["role"] == "transcoder")}
    for name, target in TARGETS.items():
        yield {"model": config.model, "what": name, "reached": reached[name], "target": target, "holds": reached[name] <= target}


COLUMNS = ("l0", "fvu", "ce_recovered", "kl", "dead_fraction")
CARD = """# Transcoders of {model}

One transcoder for each MLP of the bundled model: from its normalised input (`blocks.N.ln2.hook_normalized`) to what it adds
to the stream (`blocks.N.hook_mlp_out`). `saes.bundled("{model}")` reads them, layer after layer.

Trained by `python -m experiments.demo_transcoders` on one CPU core, all layers together: {kind}, {n_features} features, at
most {k} of them active per token, {steps} steps of {batch_size} tokens from {pools} pools of 8,192 documents of the corpus
that the model was not trained on, seed {seed}. Stored in half precision, read as float32.

Measured on {measured:,} tokens of documents that neither model nor coders were trained on. In place of one MLP:

{layers}

As stored, in place of all MLPs at once, they change the cross-entropy by {ce_increase:+.4f} nats per token ({ce_clean:.4f} to
{ce_replaced:.4f} on {tokens:,} tokens; without any MLP {ce_ablated:.4f}), KL {kl:.4f}; before rounding to half precision by
{before:+.4f}. Controls with the same training: by {frozen_decoder:+.3f} with a decoder that stays random, {frozen_encoder:+.3f}
with a random encoder.
"""


def bundle(config: Config, root: Path = ROOT) -> None:
    """Puts a run's transcoders into saes/zoo with a card. ValueError if rounding changes the cross-entropy with 1, 2 ... replaced."""
    import pandas as pd

    model = interp.load(config.model)
    run = run_folder("demo-transcoders", config, model, root)
    coders = [saes.load(coder_folder(run, "transcoder", layer)) for layer in range(model.n_layers)]
    zoo.bundle(coders, zoo.HERE / config.model)
    rows = pd.read_parquet(run / "results.parquet").query("role == 'transcoder'").to_dict("records")
    replaced = {row["role"]: row for row in json.loads((run / "replaced.json").read_text())}
    prompts = measured_prompts(config)
    before, found = (together(model, config, "transcoder", some, prompts) for some in (coders, saes.bundled(config.model)))
    pairs = list(zip(found["each"], before["each"], strict=True))
    if wrong := [pair for pair in pairs if abs(pair[0] - pair[1]) > 5e-4]:
        raise ValueError(f"Half precision changes what {config.model}'s transcoders are worth: CE {wrong[0][1]} became {wrong[0][0]}.")
    lines = [f"| {row['layer']} | " + " | ".join(f"{row[c]:.4f}" for c in COLUMNS) + " |" for row in rows]
    table = "\n".join([f"| layer | {' | '.join(COLUMNS)} |", "| --- " * (len(COLUMNS) + 1) + "|", *lines])
    values = {**found, **vars(config.coder), "measured": replaced["transcoder"]["tokens"], "pools": POOLS, "layers": table}
    values |= {role.replace(" ", "_"): row["ce_increase"] for role, row in replaced.items()} | {"before": before["ce_increase"]}
    write_text(zoo.HERE / config.model / "README.md", CARD.format(**values))


def main(smoke: bool = False, model: str = "", bundled: bool = typer.Option(False, "--bundle"), root: Path = ROOT) -> None:
    import pandas as pd

    if bundled:
        for config in (c for c in MODELS if model in ("", c.model)):
            bundle(config, root)
        return
    report: dict[str, Any] = {"runs": [], "targets": [], "replaced": [], "layers": []}
    for config in SMOKE if smoke else [c for c in MODELS if model in ("", c.model)]:
        loaded = interp.load(config.model)
        with open_run("demo-transcoders", config, loaded, seed=config.coder.seed, root=root) as run:
            if run is not None:
                run_one(config, run)
        folder = run_folder("demo-transcoders", config, loaded, root)
        each = pd.read_parquet(folder / "results.parquet").to_dict("records")
        replaced = json.loads((folder / "replaced.json").read_text())
        report["layers"] += each
        report["replaced"] += replaced
        commit = json.loads((folder / "provenance.json").read_text())["git"]["commit"]
        report["runs"].append({"model": config.model, "commit": commit, **as_plain(config)})
        report["targets"] += list(verdicts(config, each, replaced))  # type: ignore[arg-type]
        print(pd.DataFrame(replaced).drop(columns="each").round(4).to_string(), flush=True)
        print(pd.DataFrame(each)[["role", "layer", "l0", "fvu", "ce_recovered", "kl", "dead_fraction"]].round(4).to_string(), flush=True)
        if not smoke and not model:
            write_text(RESULTS, json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
