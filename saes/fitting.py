"""`saes.fit`: a coder from rows of activations that are in memory."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.progress import Report, reporting
from interp.safefiles import write_text
from saes import checkpoints
from saes.coders import Coder
from saes.config import Config
from saes.randomness import generator
from saes.trainer import Metrics, Trainer
from saes.weights import ROWS, Scaling

SAMPLE = 4096
"""Rows that set thresholds."""
EVERY = 100
"""Steps between two metrics."""
Sink = str | Path | Callable[[dict[str, Any]], Any]
"""Where metrics go: a JSONL file, or a function that is given them."""


def fit(
    x: Float[Tensor, "row d_in"],
    y: Float[Tensor, "row d_out"] | None = None,
    config: Config | None = None,
    *,
    progress: Report | bool | None = None,
    metrics: Sink | tuple[Sink, ...] | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 1000,
) -> Coder:
    """Trains a coder on rows x, or a transcoder from x to rows y.

    progress    True for a bar, or a function of steps done and steps in all
    metrics     a JSONL file, or a function that is given the metrics of every 100th step and of the last (`saes.loggers`), or several
    checkpoint  a file that holds the state every `checkpoint_every` steps; if it is there, training goes on from it,
                and ends with the same bits as one that was never interrupted (on one CPU), its JSONL file included: with a checkpoint
                that file is this training's own, and lines of steps that it will do are cut

    Rows are drawn in an order shuffled anew for each pass. ValueError for rows that are not finite, or that do not pair up.
    """
    config = config if config is not None else Config()
    x, target = _checked(x, "x"), None if y is None else _checked(y, "y")
    if target is not None and len(target) != len(x):
        raise ValueError(f"x has {len(x)} rows and y {len(target)}: each target belongs to one input.")
    y = target.to(x.dtype) if target is not None else None
    inputs = Scaling.of(x, config.details.normalize)
    targets = inputs if y is None else Scaling.of(y, config.details.normalize)
    trainer = Trainer(config, inputs, targets, x[_order(len(x), config.seed, -1)[:SAMPLE]], transcoder=y is not None)
    last: Metrics | None = None
    if checkpoint is not None:
        if Path(checkpoint).exists():
            position = checkpoints.read(checkpoint, {"coder": trainer})
            last = Metrics(**position) if position else None
        rewind(metrics, trainer.step_count)
    with reporting(progress, f"{config.kind} coder") as report:
        for step in range(trainer.step_count, config.steps):
            rows = batch_rows(len(x), config.batch_size, config.seed, step).to(x.device)
            last = trainer.step(x[rows], None if y is None else y[rows])
            if last.step % EVERY == 0 or last.step == config.steps:
                log(metrics, asdict(last))
            if checkpoint is not None and last.step % checkpoint_every == 0:
                checkpoints.write(checkpoint, {"coder": trainer}, asdict(last))
            report(last.step, config.steps)
    return trainer.finish({"final": asdict(last)} if last else None)


def fit_many(x: Float[Tensor, "row d_in"], y: Float[Tensor, "row d_out"] | None, configs: Iterable[Config], **options: Any) -> list[Coder]:
    """One coder for each config, such as `[config.but(seed=s) for s in range(3)]`, from the same rows. Options are those of `fit`."""
    return [fit(x, y, config, **options) for config in configs]


def controls(
    x: Float[Tensor, "row d_in"], y: Float[Tensor, "row d_out"] | None, config: Config, progress: Report | bool | None = None
) -> dict[str, Coder]:
    """What a coder must beat: its training with a decoder, or an encoder, that stays random, and no training at all.

    (Random dictionaries match trained ones on some popular metrics: "Sanity Checks for Sparse Autoencoders", arXiv 2602.14111.)
    """
    frozen = {f"frozen {part}": replace(config, frozen=part) for part in ("decoder", "encoder")}
    return {name: fit(x, y, c, progress=progress) for name, c in {**frozen, "random": replace(config, steps=0)}.items()}


def batch_rows(n: int, size: int, seed: int, step: int) -> Tensor:
    """The rows of a step: slices of a permutation for each pass. They depend on nothing else, so any step can be resumed."""
    size = min(size, n)
    per_pass = n // size
    epoch, place = divmod(step, per_pass)
    return _order(n, seed, epoch)[place * size : (place + 1) * size]


_permutations: dict[str, tuple[tuple[int, int, int], Tensor]] = {}


def _order(n: int, seed: int, epoch: int) -> Tensor:
    key = (n, seed, epoch)
    if _permutations.get("last", (None,))[0] != key:
        _permutations["last"] = (key, torch.randperm(n, generator=generator("rows", *key)))
    return _permutations["last"][1]


def log(metrics: Sink | tuple[Sink, ...] | None, values: dict[str, Any]) -> None:
    if isinstance(metrics, tuple):
        for each in metrics:
            log(each, values)
    elif callable(metrics):
        metrics(values)
    elif metrics is not None:
        path = Path(metrics)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as stream:
            stream.write(json.dumps(values) + "\n")


def rewind(metrics: Sink | tuple[Sink, ...] | None, step: int) -> None:
    """Cuts from a JSONL file what an interrupted training logged after `step`, from where it goes on: no step stands there twice.

    Only for a training with a checkpoint, whose file is its own. A line that was cut short by the interruption goes as well.
    ValueError for a file that is no such log.
    """
    if isinstance(metrics, tuple):
        for each in metrics:
            rewind(each, step)
        return
    if metrics is None or callable(metrics) or not (path := Path(metrics)).is_file():
        return
    lines = path.read_text().splitlines(keepends=True)
    try:
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is no log of a training, which has a step in each line; name another file for metrics.") from None
    if kept != lines:
        write_text(path, "".join(kept))


def _checked(rows: Tensor, name: str) -> Tensor:
    """Rows [row, d] in float32 or float64, all finite."""
    if not isinstance(rows, Tensor) or rows.ndim != 2 or not rows.is_floating_point():
        shown = f"{tuple(rows.shape)} of {rows.dtype}" if isinstance(rows, Tensor) else repr(rows)[:60]
        raise ValueError(f"{name} is a floating-point tensor [row, d]; given {shown}.")
    if len(rows) < 2 or not rows.shape[1]:
        raise ValueError(f"{name} has shape {tuple(rows.shape)}: training needs at least two rows of at least one dimension.")
    for start in range(0, len(rows), ROWS):
        finite = torch.isfinite(rows[start : start + ROWS]).all(1)
        if not bool(finite.all()):
            bad = start + int((~finite).nonzero()[0])
            raise ValueError(f"Row {bad} of {name} holds NaN or infinity; drop such rows, or harvest in float32.")
    return rows.detach() if rows.dtype in (torch.float32, torch.float64) else rows.detach().float()
