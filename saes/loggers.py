"""Metrics of a training sent elsewhere, where it was asked for: TensorBoard or Weights & Biases; neither is installed with this project."""

from collections.abc import Callable
from typing import Any

KINDS = ("tensorboard", "wandb")


def logger(where: str) -> Callable[[dict[str, Any]], None]:
    """What `metrics` of a training takes, for "tensorboard:DIR" or "wandb:PROJECT"; each number goes under "<coder>/<name>" at its step.

    ValueError for another form, or where the package is not installed.
    """
    kind, _, place = where.partition(":")
    if kind not in KINDS or not place:
        raise ValueError(f"{where!r} is no place for metrics; write tensorboard:DIR or wandb:PROJECT.")
    try:
        send = _tensorboard(place) if kind == "tensorboard" else _wandb(place)
    except ImportError as error:
        raise ValueError(f"{where} needs the package {kind}, which is not installed ({error}): pip install {kind}.") from None

    def write(values: dict[str, Any]) -> None:
        coder = values.get("coder", "coder")
        numbers: dict[str, float] = {f"{coder}/{name}": v for name, v in values.items() if isinstance(v, int | float) and name != "step"}
        send(numbers, values["step"])

    return write


def _tensorboard(folder: str) -> Callable[[dict[str, float], int], None]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(folder)

    def send(numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return send


def _wandb(project: str) -> Callable[[dict[str, float], int], None]:
    import wandb  # type: ignore[import-not-found]

    run = wandb.init(project=project)
    return lambda numbers, step: run.log(numbers, step=step)
