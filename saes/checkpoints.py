"""A training that was interrupted goes on bit for bit: its whole state in one file, written whole or not at all."""

import json
from glob import escape
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from interp.safefiles import read_tensors, write_tensors
from saes.config import Config
from saes.trainer import Trainer

MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def write(path: str | Path, trainers: dict[str, Trainer], position: dict[str, Any]) -> None:
    """The state of trainers by name, and where their reader of rows stands."""
    tensors: dict[str, torch.Tensor] = {}
    states: dict[str, Any] = {}
    for name, trainer in trainers.items():
        tensors |= {f"{name}/{key}": p for key, p in trainer.parameters.items()}
        tensors |= {f"{name}/last_fired": trainer.last_fired, f"{name}/generator": trainer.generator.get_state()}
        tensors[f"{name}/data"] = _data(trainer)
        for key, parameter in trainer.parameters.items():
            moments = trainer.optimizer.state.get(parameter, {})
            tensors |= {f"{name}/{moment}/{key}": moments[moment] for moment in MOMENTS if moment in moments}
        states[name] = {
            "config": trainer.config.to_json(),
            "step": trainer.step_count,
            "rows": trainer.rows_seen,
            "penalty": trainer.penalty,
            "pressure": trainer.pressure,
        }
    path = Path(path)
    for unfinished in path.parent.glob(f".{escape(path.name)}.*.part"):  # a kill left it: one training writes here, and it is this one
        unfinished.unlink(missing_ok=True)
    write_tensors(path, tensors, {"state": json.dumps({"trainers": states, "position": position})})


def read(path: str | Path, trainers: dict[str, Trainer]) -> dict[str, Any]:
    """Puts the state into trainers of the same names, configs and data; returns the reader's position. ValueError if they differ."""
    tensors, state = read_tensors(path), _state(path)
    if set(state["trainers"]) != set(trainers):
        raise ValueError(f"{path} holds {', '.join(state['trainers'])}; this training has {', '.join(trainers)}. Give another folder.")
    for name, trainer in trainers.items():
        saved = state["trainers"][name]
        if (config := Config.from_file(saved["config"])) != trainer.config:
            there, here = _plain(config), _plain(trainer.config)
            differs = [f"{k} ({there[k]!r} there, {here[k]!r} here)" for k in there if there[k] != here[k]]
            raise ValueError(f"{path} is of another training of {name}: {', '.join(differs)} differ. Give another folder or delete it.")
        was, now = tensors.get(f"{name}/data"), _data(trainer)
        if was is None or was.shape != now.shape or not torch.allclose(was.to(now), now, rtol=1e-3, atol=1e-3 * float(now.abs().max())):
            raise ValueError(f"{path} is of a training of {name} on other rows. Give another folder or delete it.")
        with torch.no_grad():
            for key, parameter in trainer.parameters.items():
                parameter.copy_(tensors[f"{name}/{key}"])
                trainer.optimizer.state[parameter] = _moments(tensors, name, key, parameter)
        trainer.last_fired.copy_(tensors[f"{name}/last_fired"])
        trainer.generator.set_state(tensors[f"{name}/generator"])
        trainer.step_count, trainer.rows_seen = saved["step"], saved["rows"]
        trainer.penalty, trainer.pressure = saved["penalty"], saved["pressure"]
    return state["position"]


def _plain(config: Config) -> dict[str, Any]:
    """Fields, those of the details among them."""
    data = config.to_json()
    details = data.pop("details")
    return data | details


def _data(trainer: Trainer) -> torch.Tensor:
    """What tells data apart: some rows, and the targets' mean and scale. Compared up to rounding, which threads and devices change."""
    rows = trainer.sample[:8] * trainer.inputs.scale + trainer.inputs.mean
    return torch.cat([rows.flatten(), trainer.targets.mean, trainer.targets.mean.new_tensor([trainer.targets.scale])])


def _moments(tensors: dict[str, torch.Tensor], name: str, key: str, parameter: torch.nn.Parameter) -> dict[str, torch.Tensor]:
    """Adam's state of a parameter, laid out in memory as the parameter is."""
    found = {m: tensors[f"{name}/{m}/{key}"] for m in MOMENTS if f"{name}/{m}/{key}" in tensors}
    return {m: t.to(parameter.device) if m == "step" else torch.empty_like(parameter).copy_(t) for m, t in found.items()}


def _state(path: str | Path) -> dict[str, Any]:
    try:
        with safe_open(path, "pt") as file:
            return json.loads(file.metadata()["state"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no checkpoint of a training: {error}.") from None
