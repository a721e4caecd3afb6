"""Greater-than by features: which transcoder features make "The war lasted from the year 17 32 to the year 17" go on with a later year?

    python -m experiments.greater_than                            # the bundled models -> runs/, experiments/results/greater-than.json
    python -m experiments.greater_than gpt2 --coders FOLDER       # transcoders of your own: FOLDER/0, FOLDER/1 ...
    python -m experiments.greater_than gpt2 --coders FOLDER --published experiments/configs/greater_than_gpt2.json     # pass or fail

The metric is P(later years) - P(not later years), averaged over start years (Hanna et al. 2023; Dunefsky et al. 2024, section 5). Measured:
MLPs replaced by their transcoders; one MLP's output at the last position made of its k features, or neurons, of largest variance alone;
features found by their total contribution on some sentences and ablated on others, beside random active features.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from torch import Tensor

from experiments.recall_steps import rounded
from experiments.runs import ROOT, Run
from experiments.studies import DEMO, summary_of

if TYPE_CHECKING:
    import interp
    import saes

STUDY = "greater-than"
RESULTS = Path(__file__).parent / "results" / "greater-than.json"
TEMPLATE = "The {event} lasted from the year {century}{start} to the year {century}"


@dataclass(frozen=True)
class Config:
    """What one run does."""

    model: str = "demo-gpt2"
    coders: str | None = None
    """A folder with one coder for each MLP, named by layer; None: the bundled ones."""
    coder_digest: str = ""
    """Of the coders' weights, so that other coders make another run; filled in by `main`."""
    found_on: tuple[str, str] = ("project", "13")
    """Event and century of the sentences that features are found on."""
    judged_on: tuple[str, str] = ("voyage", "16")
    """Of those that ablations are judged on, and of the curves."""
    sizes: tuple[int, ...] = (0, 1, 2, 4, 8, 16, 20, 21, 22, 23, 24, 32, 64, 128, 256)
    """Features, or neurons, that are kept; all of them is added."""
    traced: int = 16
    """Sentences that features are traced on, spread over the start years."""
    max_nodes: int = 400
    ablated: tuple[int, ...] = (1, 2, 4, 8, 16)
    draws: int = 10
    """Random sets of active features of each size."""
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Sentences:
    """One for each start year 02-97."""

    prompts: "interp.Prompts"
    starts: tuple[int, ...]
    years: Tensor
    """Token of every two-digit year, [100]."""

    def metric(self, logits: Tensor, rows: Tensor) -> Tensor:
        """P(later) - P(not later)."""
        p = logits.softmax(-1)[:, self.years.to(logits.device)]
        later = torch.arange(100, device=p.device) > torch.tensor(self.starts, device=p.device)[rows][:, None]
        return (p * later).sum(1) - (p * ~later).sum(1)


def sentences(model: "interp.Model", event: str, century: str) -> Sentences:
    """Every start year of one sentence; ValueError where the tokenizer has no single tokens for years."""
    from circuits.tasks import demo
    from circuits.tasks.words import token, tokenizer_of
    from interp.atlas.words import YEARS

    tokenizer = tokenizer_of(model)
    spaced = demo.speaks_atlas(tokenizer)
    starts = tuple(range(2, 98))
    slots = [{"event": event, "century": century, "start": " " * spaced + YEARS[y]} for y in starts]
    texts = [(TEMPLATE if spaced else TEMPLATE.replace("the year ", "")).format(**s) for s in slots]
    years = torch.tensor([token(tokenizer, YEARS[y]) for y in range(100)])
    return Sentences(model.encode(texts), starts, years)


def study(config: Config, model: "interp.Model", run: Run) -> dict[str, Any]:
    coders = coders_of(config)
    judged = sentences(model, *config.judged_on)
    found: dict[str, Any] = {
        "model": model.name,
        "seed": config.seed,
        "sentences": len(judged.starts),
        "found_on": config.found_on,
        "judged_on": config.judged_on,
    }
    found["coders"] = [{"n_features": c.n_features, "k": c.config.k, "kind": c.config.kind} for c in coders]
    found |= {"layers": replaced(model, coders, judged)}
    run.log(step="replaced")
    layer = most_important(found["layers"])
    found["curves"] = {"layer": layer, **curves(config, model, coders[layer], layer, judged)}
    run.log(step="curves")
    traced = trace(config, model, coders, sentences(model, *config.found_on))
    found["features"] = [describe(model, coders, judged, *row) for row in traced["order"][:10]]
    found["graphs"], found["paths"] = traced["graphs"], traced["paths"]
    run.log(step="traced")
    found["ablations"] = ablations(config, model, coders, judged, traced["order"])
    return rounded(found)


def coders_of(config: Config) -> list["saes.Coder"]:
    """One coder for each layer, in order."""
    import saes

    if config.coders is None:
        return saes.bundled(config.model)
    folders = sorted((f for f in Path(config.coders).iterdir() if f.name.isdigit()), key=lambda f: int(f.name))
    if not folders:
        raise FileNotFoundError(f"{config.coders} has no folders 0, 1 ... with coders.")
    return [saes.load(folder) for folder in folders]


def coder_digest(coders: Sequence["saes.Coder"]) -> str:
    """A short name for the coders' weights."""
    from interp.edits import digest

    return digest(torch.cat([x.detach().cpu().flatten() for coder in coders for x in (coder.W_enc, coder.b_enc, coder.W_dec, coder.b_dec)]))


def replaced(model: "interp.Model", coders: Sequence["saes.Coder"], given: Sentences) -> dict[str, Any]:
    """The metric with one MLP, and all, replaced or zero."""
    import interp
    from saes import replacements

    plans = {"clean": (), "all replaced": replacements(model, given.prompts, coders)}
    for layer, coder in enumerate(coders):
        plans[f"{layer} replaced"] = replacements(model, given.prompts, [coder])
        plans[f"{layer} zero"] = (interp.Edit(f"blocks.{layer}.hook_mlp_out", "zero"),)
    plans["all zero"] = tuple(interp.Edit(f"blocks.{layer}.hook_mlp_out", "zero") for layer in range(model.n_layers))
    values = interp.sweep(model, given.prompts, list(plans.values()), given.metric).values.mean(1)
    return dict(zip(plans, values.tolist(), strict=True))


def most_important(layers: dict[str, Any]) -> int:
    """The layer whose MLP the metric needs most, the first left out: it stands for the token itself."""
    zero = {int(name.split()[0]): value for name, value in layers.items() if name.endswith(" zero") and name[0].isdigit()}
    return min((layer for layer in zero if layer > 0), key=lambda layer: zero[layer])


def curves(config: Config, model: "interp.Model", coder: "saes.Coder", layer: int, given: Sentences) -> dict[str, Any]:
    """The metric with the MLP's output at the last position made of k units, the others at zero or at their mean over sentences."""
    import interp
    from interp.engine.anatomy import linear_bias, linear_weight

    site = f"blocks.{layer}.hook_mlp_out"
    capture = model.capture(given.prompts, [str(coder.input_site), f"blocks.{layer}.mlp.hook_post"])
    x, post = (given.prompts.last(capture[name]).detach() for name in (str(coder.input_site), f"blocks.{layer}.mlp.hook_post"))
    out = model.anatomy.blocks[layer].mlp_out
    kinds = {
        "features": (coder.encode(x).detach(), coder.W_dec.detach(), coder.b_dec.detach()),
        "neurons": (post, linear_weight(out).detach(), linear_bias(out).detach()),
    }
    skip = 0 if coder.W_skip is None else x @ coder.W_skip.detach().T
    found: dict[str, Any] = {}
    for kind, (codes, write, bias) in kinds.items():
        order = codes.var(0).argsort(descending=True, stable=True)
        sizes = [k for k in config.sizes if k < codes.shape[1]] + [codes.shape[1]]
        for fill, rest in (("zero", torch.zeros_like(codes[0])), ("mean", codes.mean(0))):
            plans = []
            for k in sizes:
                kept = rest.expand_as(codes).clone()
                kept[:, order[:k]] = codes[:, order[:k]]
                plans.append((interp.Edit(site, "set", kept @ write + bias + (skip if kind == "features" else 0), pos=-1),))
            values = interp.sweep(model, given.prompts, plans, given.metric).values.mean(1).tolist()
            found[f"{kind}, others {fill}"] = dict(zip(map(str, sizes), values, strict=True))
    return found


def trace(config: Config, model: "interp.Model", coders: Sequence["saes.Coder"], given: Sentences) -> dict[str, Any]:
    """Features by their mean total contribution to (mean logit of later years) - (mean logit of the others)."""
    from circuits.features import direction_readouts, feature_graph, feature_paths, local_replacement
    from interp.contributions import unembedding_columns

    chosen = torch.linspace(0, len(given.starts) - 1, config.traced).round().long().unique()
    columns, constants = unembedding_columns(model.anatomy, given.years)
    total: dict[tuple[int, int, str], float] = {}
    graphs, ways = [], {}
    for i, run in zip(chosen.tolist(), local_replacement(model, given.prompts[chosen], coders), strict=True):
        later = torch.arange(100, device=columns.device) > given.starts[i]
        weights = later / later.sum() - ~later / (~later).sum()
        target = direction_readouts(run, (weights @ columns)[None], (weights @ constants)[None], torch.tensor([run.n_pos - 1]))
        graph = feature_graph(model, run, target=target, max_nodes=config.max_nodes)
        graphs.append({"closure": graph.closure, "features": graph.n_features, "of": graph.n_active, **vars(graph.scores)})
        for node, value in zip(graph.nodes, graph.totals.tolist(), strict=True):
            if node.kind == "feature":
                key = (int(node.layer or 0), int(node.feature or 0), "last" if node.pos == run.n_pos - 1 else "earlier")
                total[key] = total.get(key, 0.0) + value / len(chosen)
        for path in feature_paths(run, target, length=3, branches=8).top(8):
            name = " <- ".join(named(part, run.n_pos) for part in path.parts)
            ways[name] = ways.get(name, 0.0) + path.contribution / len(chosen)
    order = sorted(((*key, value) for key, value in total.items() if key[2] == "last"), key=lambda row: -row[3])
    mean = {name: sum(g[name] for g in graphs) / len(graphs) for name in graphs[0]}
    best = dict(sorted(ways.items(), key=lambda way: -abs(way[1]))[:10])
    return {"order": order, "graphs": mean, "paths": best}


def named(part: Any, n_pos: int) -> str:
    """A part of a path, its position counted from the end."""
    own = "" if part.index is None else f".{part.index}"
    return f"{part.kind}{'' if part.layer is None else part.layer}{own}@{part.pos - n_pos}"


def describe(
    model: "interp.Model", coders: Sequence["saes.Coder"], given: Sentences, layer: int, feature: int, _: str, value: float
) -> dict[str, Any]:
    """What a feature brings, the start years that it is active on, and the years that it argues for."""
    from circuits.features import logit_effects

    x = given.prompts.last(model.capture(given.prompts, [str(coders[layer].input_site)])[str(coders[layer].input_site)])
    z = coders[layer].encode(x)[:, feature].detach()
    on = [given.starts[i] for i in (z > 0).nonzero().flatten().tolist()]
    effects = logit_effects(model, coders, (layer, feature)).weights[given.years.to(z.device)]
    up = effects.topk(10).indices
    spans = {"active_share": len(on) / len(given.starts), "active_from": min(on, default=None), "active_to": max(on, default=None)}
    mean_year = float((z * torch.tensor(given.starts)).sum() / z.sum()) if on else None
    return {
        "layer": layer,
        "feature": feature,
        "total": value,
        **spans,
        "mean_start_year": mean_year,
        "raises_years": up.sort().values.tolist(),
    }


def ablations(
    config: Config, model: "interp.Model", coders: Sequence["saes.Coder"], given: Sentences, order: Sequence[tuple[int, int, str, float]]
) -> dict[str, Any]:
    """Effects on the metric of ablating the best features at the last position, and as many random ones that are active there."""
    import interp

    generator = torch.Generator().manual_seed(config.seed)
    active = active_features(model, coders, given)
    plans, names = [], []
    for size in config.ablated:
        best = [(layer, feature) for layer, feature, *_ in order[:size]]
        worst = [(layer, feature) for layer, feature, *_ in order[::-1][:size]]
        pool = [pair for pair in active if pair not in best]
        draws = [[pool[i] for i in torch.randperm(len(pool), generator=generator)[:size].tolist()] for _ in range(config.draws)]
        like = [[matched(pair, active, best, generator) for pair in best] for _ in range(config.draws)]
        sets = [("found", best), ("lowering", worst), *(("random", d) for d in draws), *(("matched", d) for d in like)]
        plans += [plan_of(model, given.prompts, coders, pairs) for _, pairs in sets]
        names += [(size, role) for role, _ in sets]
    effects = interp.sweep(model, given.prompts, plans, given.metric).effects.mean(1).tolist()
    found: dict[str, Any] = {"active_features": len(active)}
    for size in config.ablated:
        by_role = {role: [e for e, name in zip(effects, names, strict=True) if name == (size, role)] for _, role in names}
        row = {role: sum(some) / len(some) for role, some in by_role.items()}
        found[str(size)] = row | {"random_lowest": min(by_role["random"]), "matched_lowest": min(by_role["matched"])}
    return found


def active_features(model: "interp.Model", coders: Sequence["saes.Coder"], given: Sentences) -> dict[tuple[int, int], float]:
    """(layer, feature) -> mean size of what it writes at the last position, for those that ever do."""
    capture = model.capture(given.prompts, [str(coder.input_site) for coder in coders])
    found = {}
    for layer, coder in enumerate(coders):
        z = coder.encode(given.prompts.last(capture[str(coder.input_site)])).detach()
        size = z.mean(0) * coder.W_dec.detach().norm(dim=1)
        found |= {(layer, i): float(size[i]) for i in size.nonzero().flatten().tolist()}
    return found


def matched(
    pair: tuple[int, int], active: dict[tuple[int, int], float], best: Sequence[tuple[int, int]], generator: torch.Generator
) -> tuple[int, int]:
    """One of the five features of the same layer that write about as much."""
    own = active.get(pair, 0.0)
    near = sorted((p for p in active if p[0] == pair[0] and p not in best), key=lambda p: abs(active[p] - own))[:5]
    return near[int(torch.randint(len(near), (1,), generator=generator))]


def plan_of(
    model: "interp.Model", prompts: "interp.Prompts", coders: Sequence["saes.Coder"], pairs: Sequence[tuple[int, int]]
) -> "interp.Plan":
    """Ablates (layer, feature) pairs at the last position; later coders read what that leaves."""
    from saes.feature_editing import FeatureEdit, feature_edits

    by_layer = {layer: tuple(dict.fromkeys(f for own, f in pairs if own == layer)) for layer in {layer for layer, _ in pairs}}
    return feature_edits(model, prompts, [FeatureEdit(coders[layer], some, "ablate", pos=-1) for layer, some in by_layer.items()])


PAIRS = ((("project", "13"), ("voyage", "16")), (("war", "17"), ("siege", "12")), (("famine", "15"), ("rebellion", "18")))
"""Sentences to find features on and to judge them on, by seed."""
PAPERS = ("war", "17")
"""The sentence of the published numbers."""


def check(published: Path, summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Published numbers beside the measured ones: a row passes within the file's tolerance."""
    data = json.loads(published.read_text())
    if data["model"] != summary["model"]:
        raise ValueError(f"{published} is of {data['model']}, and this run of {summary['model']}.")
    rows = []
    for name, aim in data["metric"].items():
        kind, _, key = name.partition(": ")
        measured = summary["layers"].get(key) if kind == "layers" else summary["curves"].get(kind, {}).get(key)
        passes = measured is not None and abs(measured - aim) <= data["tolerance"]
        rows.append({"what": name, "published": aim, "measured": measured, "passes": passes})
    return rows


def main(
    model: Annotated[str, typer.Argument(help="Bundled name, folder or hub name; none: the bundled models.")] = "",
    coders: Annotated[str | None, typer.Option(help="Folder with one coder for each MLP: 0, 1 ...")] = None,
    published: Annotated[Path | None, typer.Option(help="Published numbers to compare with, as JSON.")] = None,
    seeds: Annotated[int, typer.Option(min=1, max=len(PAIRS), help="Pairs of sentences.")] = 1,
    root: Path = ROOT,
) -> None:
    results = []
    for name in [model] if model else DEMO:
        for seed, (found_on, judged_on) in enumerate(PAIRS[:seeds]):
            config = Config(name, coders, "", found_on, PAPERS if published else judged_on, seed=seed)
            config = replace(config, coder_digest=coder_digest(coders_of(config)))
            results.append(summary_of(STUDY, config, study, root))
            layers, ablated = results[-1]["layers"], results[-1]["ablations"]
            print(name, found_on, judged_on, f"clean {layers['clean']:.3f}, all replaced {layers['all replaced']:.3f}", flush=True)
            print({size: row for size, row in ablated.items() if size != "active_features"}, flush=True)
    if published is not None:
        for row in check(published, results[0]):
            print(row)
    if not model:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
