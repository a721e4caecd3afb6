"""What the readers of all formats share: tensors by name with errors that say what is missing, JSON, folders written whole."""

import json
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.safefiles import read_tensors
from saes.coders import Coder

PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt")
OURS = re.compile(r"(cross)?coder\.(json|safetensors)|cfg\.json|sae_weights\.safetensors|config\.yaml|(layer|W_enc|W_dec)_\d+\.safetensors")
"""What the writers put into a folder."""


def tensors_of(path: Path, needed: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Tensor]:
    """The named tensors of a safetensors file, all finite. ValueError names what is missing, strange or NaN."""
    found = read_tensors(path)
    return chosen(found, path, needed, optional)


def chosen(found: Mapping[str, Tensor], path: Path, needed: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Tensor]:
    if missing := [name for name in needed if name not in found]:
        raise ValueError(f"{path} lacks {', '.join(missing)}; it holds {', '.join(sorted(found)) or 'nothing'}.")
    kept = {name: found[name] for name in (*needed, *optional) if name in found}
    for name, tensor in kept.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} of {path} holds NaN or infinity.")
    return {name: t.float() if t.dtype in (torch.float16, torch.bfloat16) else t for name, t in kept.items()}


def json_of(path: Path, needed: Sequence[str] = ()) -> dict[str, Any]:
    """A JSON object from a file. ValueError if it is none or lacks a key."""
    if not path.is_file():
        raise FileNotFoundError(f"No file {path}.")
    try:
        data = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds {type(data).__name__}; expected a JSON object.")
    if missing := [key for key in needed if key not in data]:
        raise ValueError(f"{path} lacks {', '.join(missing)}; it has {', '.join(data)}.")
    return data


def refuse_pickles(path: Path) -> None:
    """ValueError if what lies here is a pickle, saying what to do."""
    files = [path] if path.is_file() else sorted(path.iterdir())
    if pickles := [file for file in files if file.suffix in PICKLES]:
        raise ValueError(
            f"{pickles[0]} is a pickle, which can run any code when it is opened; it is not read. Convert it once, which runs nothing: "
            f"saes.convert({str(pickles[0])!r}, 'NEW FOLDER')."
        )


def average_threshold(coder: Coder) -> Tensor:
    """A top-k coder's stand-in for formats without top-k: the level above which k features lie on average, once for each feature."""
    level = coder.info.get("threshold")
    if level is None:
        raise ValueError(
            "This top-k transcoder was not trained here, so the threshold that the format needs is unknown; set coder.info['threshold'] "
            "to the pre-activation above which k features lie on average."
        )
    return torch.full_like(coder.b_enc, level)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`, which takes its place when the block ends well and vanishes when it does not.

    ValueError if something else than a coder lies there: it would be deleted.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        raise ValueError(f"{path} is a file; a coder is saved as a folder.")
    if path.is_dir() and (strange := sorted(file.name for file in path.iterdir() if not OURS.fullmatch(file.name))):
        raise ValueError(f"{path} holds {', '.join(strange[:4])}, no part of a coder; saving would delete it. Name another folder.")
    made, aside = (path.with_name(f".{path.name}.{secrets.token_hex(8)}.{end}") for end in ("part", "old"))
    made.mkdir()  # with the permissions that the user gives new folders
    try:
        yield made
        if path.exists():
            path.rename(aside)
            made.rename(path)
            shutil.rmtree(aside)
        else:
            made.rename(path)
    finally:
        shutil.rmtree(made, ignore_errors=True)
