"""Which known variables of the corpus do features of the demo models' MLPs tell? Coders, neurons, random controls and probes side by side.

    python -m experiments.feature_variables                    # runs/feature-variables-<hash>/, experiments/results/feature-variables.json
    python -m experiments.feature_variables --model demo-opt   # one model's run; a call for all reads it
    python -m experiments.feature_variables --documents 600    # fewer documents, fewer variables

Documents are new to model and coders. For each variable the best feature (of all layers) and level are chosen on half of the documents and
measured on the other half. The ceiling is a logistic regression on what the coder reads and on the stream, fitted on three quarters of the
first half, its level and layer chosen on the last quarter. Coders come from the runs of experiments/demo_transcoders.py.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from jaxtyping import Bool, Float

import interp
import saes
from experiments import demo_transcoders
from experiments.runs import ROOT, Run, as_plain
from experiments.studies import DEMO, summary_of
from interp.atlas import encode
from interp.safefiles import write_text
from interp.store.documents import Documents, as_documents
from saes import features
from saes.replacing import flat, real_positions

RESULTS = Path(__file__).parent / "results" / "feature-variables.json"
CODERS = ("transcoder", "autoencoder", "frozen decoder", "frozen encoder", "random")
PROBES = ("probe of the MLP's input", "probe of the stream")


@dataclass(frozen=True)
class Config:
    """What is measured."""

    model: str = "demo-gpt2"
    documents: int = 2048
    corpus_seed: int = 2
    """Training used 0 (models and coders)."""
    least: int = 20
    """Tokens of which a variable holds, and of which it does not, in each half."""
    probe_steps: int = 200
    probe_rows: int = 2048
    seed: int = 0


SMOKE = {"documents": 200, "least": 5, "probe_steps": 20}


def coders_of(config: Config, root: Path = ROOT) -> dict[str, list[saes.Coder]]:
    """By role, layer after layer, from the run that trained them; roles that it did not keep are left out. FileNotFoundError without it."""
    wanted = next(as_plain(c) for c in demo_transcoders.MODELS if c.model == config.model)
    n_layers = interp.load(config.model).n_layers
    for path in sorted(root.glob("demo-transcoders-*/config.json")):  # read, not named by its hash: configs gain fields with new defaults
        made = json.loads(path.read_text())
        if (path.parent / "done").is_file() and agrees(made, wanted):
            run = path.parent
            break
    else:
        raise FileNotFoundError(
            f"No run of this config in {root}: `python -m experiments.demo_transcoders --model {config.model}` makes it."
        )
    folders = {role: [demo_transcoders.coder_folder(run, role, i) for i in range(n_layers)] for role in CODERS}
    return {role: [saes.load(folder) for folder in some] for role, some in folders.items() if some[0].is_dir()}


def agrees(made: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether a run's config says nothing else than `wanted`, where both speak."""
    both = (set(made) & set(wanted)) - {"study"}
    return all(agrees(made[k], wanted[k]) if isinstance(made[k], dict) else made[k] == _plain(wanted[k]) for k in both)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def work(config: Config, model: interp.Model, run: Run) -> dict[str, Any]:
    """One row per variable and way of telling it goes into the run folder; the summary is over groups of variables."""
    import pandas as pd

    sample = features.atlas_sample(config.documents, config.corpus_seed)
    documents = as_documents(model, [encode(document) for document in sample])
    here, there = features.halves(documents.lengths)
    variables = features.atlas_variables(sample).frequent(config.least, (here, there))
    frames = [row.assign(how=how) for how, row in detected(config, model, documents, variables, here, there)]
    frames += [row.assign(how=how) for how, row in probed(config, model, documents, variables.of_kind("class", "context"), here, there)]
    frame = pd.concat(frames, ignore_index=True).assign(model=config.model)
    run.table(frame)
    counts = {"documents": len(documents), "tokens": len(documents.ids), "variables": len(variables)}
    left_out = [role for role in CODERS if role not in set(frame["how"])]
    return {"model": config.model, **counts, "left_out": left_out, "groups": groups(frame), "kinds": kinds(frame), "best": best(frame)}


def detected(
    config: Config, model: interp.Model, documents: Documents, variables: features.Variables, here: np.ndarray, there: np.ndarray
) -> Iterator[tuple[str, Any]]:
    """(how, the best feature of any layer for each variable); for the transcoder also with the level fixed at 0."""
    found = coders_of(config)
    everything = [coder for coders in found.values() for coder in coders]
    with features.recorded(model, everything, documents) as codes:
        for i, role in enumerate(found):
            layers = range(i * model.n_layers, (i + 1) * model.n_layers)
            by_layer = [features.detect(codes.matrix(c), variables, here, there).table() for c in layers]
            yield role, best_layer(by_layer)
            if role in ("transcoder", "autoencoder"):
                fixed = [features.detect(codes.matrix(c), variables, here, there, levels=(0.0,)).table() for c in layers]
                yield f"{role}, active > 0", best_layer(fixed)
    neurons = [features.detect(neuron_codes(model, documents, layer), variables, here, there).table() for layer in range(model.n_layers)]
    yield "neuron", best_layer(neurons)


def best_layer(tables: Sequence[Any]) -> Any:
    """Of each variable the layer whose choice was best where it was chosen."""
    import pandas as pd

    whole = pd.concat([table.assign(layer=layer) for layer, table in enumerate(tables)], ignore_index=True)
    chosen = whole.groupby("variable", sort=False)["chosen_f1"].idxmax()
    return whole.loc[chosen].reset_index(drop=True)


def neuron_codes(model: interp.Model, documents: Documents, layer: int) -> Any:
    """The MLP's neurons where they are positive, as a coder's codes would be."""
    from scipy.sparse import csr_array, vstack

    site = f"blocks.{layer}.mlp.hook_post"
    return vstack([csr_array(rows.relu().numpy()) for rows in token_rows(model, documents, site)]).tocsr()


def token_rows(model: interp.Model, documents: Documents, site: str, at_once: int = 64) -> Iterator[Float[torch.Tensor, "token d"]]:
    """A site's rows of all tokens, in order."""
    for start in range(0, len(documents), at_once):
        prompts = documents.prompts(range(start, min(start + at_once, len(documents))))
        yield flat(model.capture(prompts, [site])[site])[real_positions(prompts)]


def probed(
    config: Config, model: interp.Model, documents: Documents, variables: features.Variables, here: np.ndarray, there: np.ndarray
) -> Iterator[tuple[str, Any]]:
    """(how, the probe of the best layer for each variable)."""
    held = torch.from_numpy(variables.values.toarray())
    document = np.repeat(np.arange(len(documents)), documents.lengths)
    last = document[here] % 8 == 6  # of the even documents every fourth
    fitted, chosen = here[~last], here[last]
    for how, kind in zip(PROBES, ("ln2.hook_normalized", "hook_resid_post"), strict=True):
        tables = []
        for layer in range(model.n_layers):
            x = torch.cat(list(token_rows(model, documents, f"blocks.{layer}.{kind}")))
            scores = logistic(x[fitted], held[fitted], x, config)
            tables.append(probe_table(scores, held, variables, chosen, there))
        yield how, best_layer(tables)


def logistic(
    x: Float[torch.Tensor, "row d"], held: Bool[torch.Tensor, "row variable"], asked: Float[torch.Tensor, "other d"], config: Config
) -> Float[torch.Tensor, "other variable"]:
    """Log odds of a logistic regression for each variable, fitted together by Adam on standardised inputs, a little decay."""
    mean, deviation = x.mean(0), x.std(0).clamp_min(1e-6)
    generator = torch.Generator().manual_seed(config.seed)
    weight = torch.zeros(x.shape[1], held.shape[1], requires_grad=True)
    bias = torch.logit(held.float().mean(0).clamp(1e-5, 1 - 1e-5)).requires_grad_(True)
    optimizer = torch.optim.AdamW([weight, bias], lr=0.05, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.probe_steps)
    for _ in range(config.probe_steps):
        rows = torch.randint(len(x), (config.probe_rows,), generator=generator)
        scores = (x[rows] - mean) / deviation @ weight + bias
        loss = torch.nn.functional.binary_cross_entropy_with_logits(scores, held[rows].float(), reduction="none").mean(0).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return torch.cat([(part - mean) / deviation @ weight + bias for part in asked.split(8192)])


def probe_table(scores: torch.Tensor, held: torch.Tensor, variables: features.Variables, chosen: np.ndarray, there: np.ndarray) -> Any:
    """One row per variable: the level of the highest F1 on the rows `chosen`, and the F1 on the others."""
    import pandas as pd

    rows = []
    for v, name in enumerate(variables.names):
        level, f1 = best_level(scores[chosen, v], held[chosen, v])
        said, true = scores[there, v] >= level, held[there, v]
        both = int((said & true).sum())
        rows.append(
            {"variable": name, "kind": variables.kinds[v], "group": variables.groups[v], "feature": -1, "level": level, "chosen_f1": f1,
             "f1": 2 * both / max(1, int(said.sum()) + int(true.sum())), "precision": both / max(1, int(said.sum())),
             "recall": both / max(1, int(true.sum())), "count": int(true.sum())}
        )  # fmt: skip
    return pd.DataFrame(rows)


def best_level(scores: Float[torch.Tensor, " row"], held: Bool[torch.Tensor, " row"]) -> tuple[float, float]:
    """The score from which on (it included) "true" has the highest F1, and that F1; all scores are tried."""
    order = scores.argsort(descending=True)
    both = held[order].cumsum(0)
    f1 = 2 * both / (torch.arange(1, len(order) + 1) + held.sum())
    values = scores[order]
    f1[:-1][values[:-1] == values[1:]] = -1.0  # a level takes all rows of its score
    return float(values[f1.argmax()]), float(f1.max())


def groups(frame: Any) -> list[dict[str, Any]]:
    """Mean held-out F1 of each group of variables that are not trivial, by how they are told."""
    some = frame[frame["kind"].isin(["class", "context"])]
    table = some.pivot_table(index=["kind", "group"], columns="how", values="f1", aggfunc="mean")
    table.insert(0, "variables", some.groupby(["kind", "group"])["variable"].nunique())
    return json.loads(table.reset_index().round(4).to_json(orient="records"))


def kinds(frame: Any) -> list[dict[str, Any]]:
    """By kind of variable: mean held-out F1, and the share of variables above 0.8."""
    made = (
        frame.assign(high=frame["f1"] >= 0.8)
        .groupby(["kind", "how"])
        .agg(f1=("f1", "mean"), above=("high", "mean"), variables=("f1", "size"))
    )
    return json.loads(made.reset_index().round(4).to_json(orient="records"))


def best(frame: Any, n: int = 40) -> list[dict[str, Any]]:
    """The context variables that a transcoder's feature tells best, with the feature, and what the other ways reach."""
    some = frame[frame["kind"] == "context"]
    wide = some.pivot_table(index="variable", columns="how", values="f1")
    mine = some[some["how"] == "transcoder"].set_index("variable").sort_values("f1", ascending=False).head(n)
    rows = mine[["layer", "feature", "level", "f1", "precision", "recall", "count"]].join(wide.drop(columns="transcoder"))
    return json.loads(rows.reset_index().round(4).to_json(orient="records"))


def main(smoke: bool = False, model: str = "", documents: int = Config.documents, root: Path = ROOT) -> None:
    import pandas as pd

    configs = [Config(name, documents) for name in DEMO if model in ("", name)]
    configs = [replace(configs[0], **SMOKE)] if smoke else configs
    found = [summary_of("feature-variables", config, work, root) for config in configs]
    for one in found:
        print(one["model"], one["tokens"], "tokens", one["variables"], "variables")
        print(pd.DataFrame(one["kinds"]).pivot(index="how", columns="kind", values="f1").to_string())
        print(pd.DataFrame(one["groups"]).round(2).to_string(), flush=True)
    if not smoke and not model:
        write_text(RESULTS, json.dumps({"config": vars(configs[0]), "models": found}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
