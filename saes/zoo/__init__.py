"""The bundled transcoders: one of each MLP of each demo model, in the workbench's own format, each set with a card of what it is worth."""

import copy
from collections.abc import Sequence
from pathlib import Path

import torch

from saes.coders import Coder
from saes.formats import load, save

HERE = Path(__file__).parent


def bundled_models() -> list[str]:
    """The models that transcoders are bundled of."""
    return sorted(folder.name for folder in HERE.iterdir() if (folder / "0" / "coder.json").is_file())


def bundled(model_name: str) -> list[Coder]:
    """The transcoders of a bundled model, one for each MLP, layer after layer, in float32.

    KeyError names the models that there are some of.
    """
    if model_name not in (known := bundled_models()):
        raise KeyError(f"No transcoders of {model_name!r} are bundled; there are some of {', '.join(known) or 'no model'}.")
    layers = sorted(int(folder.name) for folder in (HERE / model_name).iterdir() if folder.name.isdigit())
    return [load(HERE / model_name / str(layer)) for layer in layers]


def bundle(coders: Sequence[Coder], folder: Path, dtype: torch.dtype = torch.float16) -> list[Path]:
    """Writes a model's coders, layer after layer, rounded to `dtype`; they are read as float32. ValueError where a number does not fit."""
    written = []
    for layer, coder in enumerate(coders):
        small = copy.deepcopy(coder).to(dtype)
        wrong = [name for name, tensor in small.state_dict().items() if tensor is not None and not bool(torch.isfinite(tensor).all())]
        if wrong:
            raise ValueError(f"{wrong[0]} of layer {layer} has numbers that {dtype} cannot hold.")
        written.append(save(small, folder / str(layer)))
    return written
