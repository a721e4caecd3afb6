"""`saes.train`: coders of many sites from one pass over a model's activations, live from the model or from a store."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.models import Model
from interp.progress import Report, reporting
from interp.store import Batches, Live, Memory, Store
from saes import checkpoints
from saes.coders import Coder
from saes.config import Config
from saes.fitting import EVERY, SAMPLE, Sink, log, rewind
from saes.replacing import mlp_sites
from saes.trainer import Metrics, Trainer
from saes.weights import ROWS, Scaling

Source = Store | Memory | Live


def train(
    source: "Model | Source",
    config: "Config | Sequence[Config]",
    documents: Any = None,
    *,
    drop_bos: bool = False,
    context: int | None = None,
    progress: Report | bool | None = None,
    metrics: Sink | tuple[Sink, ...] | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 1000,
) -> "Coder | list[Coder]":
    """Trains the coder of a config, or those of several (layers, seeds, sizes) together: each row is read once for all of them.

    source      a store (`interp.open_store`), tensors (`interp.store.Memory`), or a model with `documents`: texts, lists of ids or prompts
    drop_bos    leave out the first token's row, and `context`: cut texts to so many tokens (both live only; a store has its own)
    progress    True for a bar, or a function of steps done and steps in all
    metrics     a JSONL file or function, given each coder's metrics at every 100th step and the last, or several
    checkpoint  a file that holds the state every `checkpoint_every` steps; a training that was interrupted goes on from it
                and ends with the same bits (on one CPU). The JSONL file is then this training's own: lines of steps that it will do are cut

    Configs name their sites, and agree in steps, batch_size and seed of the rows' order (the first one's). Rows come in shuffled passes.
    Data are scaled by the moments of the first 65536 rows or so of the first pass.
    """
    configs = [config] if isinstance(config, Config) else list(config)
    _check(configs)
    sites = tuple(dict.fromkeys(site for c in configs for site in (c.input_site, c.target_site) if site is not None))
    rows = source_of(source, sites, documents, drop_bos, context)

    def team(first: Rows) -> Team:
        trainers = _trainers(configs, first)
        return trainers, lambda batch: {name: _step(trainer, batch) for name, trainer in trainers.items()}

    options: dict[str, Any] = {"progress": progress, "metrics": metrics, "checkpoint": checkpoint, "checkpoint_every": checkpoint_every}
    trainers, _ = run(rows, sites, configs[0], team, f"{len(configs)} coders", device=device_of(source), **options)
    info = {"model": model_name(source)}
    coders = [trainer.finish(info) for trainer in trainers.values()]
    return coders[0] if isinstance(config, Config) else coders


Rows = Mapping[str, Tensor]
"""Site -> [row, d]."""
Team = tuple[dict[str, Trainer], Callable[[Rows], dict[str, Metrics]]]
"""What is trained, by name, and the step that trains all of it with a batch."""


def run(
    rows: Source,
    sites: tuple[str, ...],
    config: Config,
    team: Callable[[Rows], Team],
    what: str,
    *,
    device: torch.device | None = None,
    progress: Report | bool | None = None,
    metrics: Sink | tuple[Sink, ...] | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 1000,
) -> Team:
    """The loop of every training from a source: `team` is made from the first rows, and goes on from the checkpoint if there is one."""
    options: dict[str, Any] = {"sites": sites, "seed": config.seed, "epochs": None, "drop_last": True, "device": device}
    with closing(Batches(rows, config.batch_size, **options)) as first:  # type: ignore[arg-type]
        trainers, step = team(_first_rows(first))
    state = None
    if checkpoint is not None and Path(checkpoint).exists():
        state = checkpoints.read(checkpoint, trainers)
    before = next(iter(trainers.values())).step_count
    if checkpoint is not None:
        rewind(metrics, before)
    reader = Batches(rows, config.batch_size, state=state, **options)  # type: ignore[arg-type]
    with reporting(progress, what) as report, closing(reader) as read:
        for done in range(before + 1, config.steps + 1):
            found = step(next(read))
            if done % EVERY == 0 or done == config.steps:
                for name, each in found.items():
                    log(metrics, {"coder": name, **asdict(each)})
            if checkpoint is not None and done % checkpoint_every == 0:
                checkpoints.write(checkpoint, trainers, read.state())
            report(done, config.steps)
    return trainers, step


def mlp_transcoders(model: Model, config: Config, layers: Iterable[int] | None = None) -> list[Config]:
    """A config for each layer's MLP: from its normalised input to what it adds to the stream (Dunefsky et al. 2024, arXiv 2406.11944).

    The input of a post-norm block's MLP (OPT-350m) is `hook_resid_mid`. KeyError for a layer that the model lacks.
    """
    sites = [mlp_sites(model, layer) for layer in (range(model.n_layers) if layers is None else layers)]
    return [replace(config, input_site=source, target_site=target) for source, target in sites]


def _check(configs: Sequence[Config]) -> None:
    if not configs:
        raise ValueError("Give at least one config.")
    if any(c.input_site is None for c in configs):
        raise ValueError("Each config says what it reads: Config(input_site='blocks.0.ln2.hook_normalized', target_site=...).")
    if len({(c.steps, c.batch_size) for c in configs}) > 1:
        raise ValueError("Coders that are trained together agree in steps and batch_size.")


def source_of(source: "Model | Source", sites: Sequence[str], documents: Any, drop_bos: bool, context: int | None) -> Source:
    """Rows of the sites, as a reader takes them. ValueError if the source lacks one, if documents are missing, or if a store is given what
    only a model takes."""
    if not isinstance(source, Model):
        if documents is not None or drop_bos or context is not None:
            raise ValueError("A store has its own documents; give documents, drop_bos and context only with a model.")
        if missing := [site for site in sites if site not in source.sites]:
            raise ValueError(f"There are no rows of {missing[0]}; there are some of {', '.join(source.sites)}.")
        return source
    if documents is None:
        raise ValueError("Training live from a model needs documents: texts, lists of token ids, or prompts.")
    return Live.of(source, documents, list(sites), drop_bos=drop_bos, context=context)


def device_of(source: "Model | Source") -> torch.device | None:
    """Where batches are put; None: where the source has them."""
    return source.device if isinstance(source, Model) else None


def _first_rows(batches: Batches) -> dict[str, Tensor]:
    """65536 rows or so of the first pass. ValueError if some are not finite."""
    parts = [next(batches) for _ in range(max(1, min(ROWS // batches.batch_rows, batches.batches_per_epoch)))]
    return {site: _finite(torch.cat([part[site] for part in parts]), site) for site in batches.sites}


def _trainers(configs: Sequence[Config], first: Rows) -> dict[str, Trainer]:
    """One for each config, scaled by the first rows."""
    scalings = {site: Scaling.of(rows) for site, rows in first.items()}
    trainers = {}
    for i, config in enumerate(configs):
        source, target = str(config.input_site), config.target_site or str(config.input_site)
        x, y = first[source], first[target]
        given = (scalings[source], scalings[target]) if config.details.normalize else (Scaling.of(x, False), Scaling.of(y, False))
        trainers[f"{i} {config.kind} {target}"] = Trainer(config, *given, x[:SAMPLE], transcoder=target != source)
    return trainers


def _finite(rows: Tensor, site: str) -> Tensor:
    if not bool(torch.isfinite(rows).all()):
        raise ValueError(f"Rows of {site} hold NaN or infinity; harvest in float32, or choose another site.")
    return rows


def _step(trainer: Trainer, rows: Rows) -> Metrics:
    config = trainer.config
    return trainer.step(rows[str(config.input_site)], rows[str(config.target_site)] if trainer.transcoder else None)


def model_name(source: "Model | Source") -> str | None:
    if isinstance(source, Store):
        return source.manifest["model"]["name"]
    return source.name if isinstance(source, Model) else source.model.name if isinstance(source, Live) else None
