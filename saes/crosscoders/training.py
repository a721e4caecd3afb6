"""`saes.train_crosscoder`: blocks of features over several sites, from the sources that coders are trained from."""

from collections.abc import Sequence
from typing import Any

from interp.models import Model
from saes.config import Config
from saes.crosscoders.blocks import Block, check_blocks, sites_read, sites_written
from saes.crosscoders.crosscoder import Crosscoder
from saes.crosscoders.joint import Joint, check
from saes.training import Rows, Source, Team, device_of, model_name, run, source_of


def train_crosscoder(
    source: "Model | Source",
    blocks: Sequence[Block],
    config: Config | None = None,
    documents: Any = None,
    *,
    drop_bos: bool = False,
    context: int | None = None,
    **options: Any,
) -> Crosscoder:
    """Trains the blocks of a crosscoder or cross-layer transcoder together.

    source   a store, tensors (`interp.store.Memory`, where sites may be those of several models), or a model with `documents`
    blocks   `saes.clt_blocks(model)`, `saes.crosscoder_blocks(sites)`, or others
    config   of each block: n_features and k count for one block (of a cross-layer transcoder: for one layer); no sites.
             kind topk, batchtopk, jumprelu or relu; frozen="decoder" or "encoder", and steps=0, are the controls
    options  progress, metrics, checkpoint, checkpoint_every: as for `saes.train`; an interrupted training ends with the same bits
    """
    blocks, config = check_blocks(blocks), config if config is not None else Config()
    check(blocks, config)
    if given := [site for site in (config.input_site, config.target_site) if site is not None]:
        raise ValueError(f"The blocks say what is read and written; the config names {given[0]} too.")
    sites = tuple(dict.fromkeys((*sites_read(blocks), *sites_written(blocks))))
    rows = source_of(source, sites, documents, drop_bos, context)
    made: list[Joint] = []

    def team(first: Rows) -> Team:
        made.append(Joint(blocks, config, first))
        return made[0].trainers, made[0].step

    what = f"crosscoder of {len(blocks)} block{'s' * (len(blocks) > 1)}"
    run(rows, sites, config, team, what, device=device_of(source), **options)
    steps = next(iter(made[0].trainers.values())).step_count
    return made[0].finish({"model": model_name(source), "steps": steps})


def crosscoder_controls(
    source: "Model | Source", blocks: Sequence[Block], config: Config, documents: Any = None, **options: Any
) -> dict[str, Crosscoder]:
    """What a crosscoder must beat: its training with decoders, or encoders, that stay random, and no training at all."""
    configs = {
        "frozen decoder": config.but(frozen="decoder"),
        "frozen encoder": config.but(frozen="encoder"),
        "random": config.but(steps=0),
    }
    return {name: train_crosscoder(source, blocks, c, documents, **options) for name, c in configs.items()}
