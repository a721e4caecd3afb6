"""Where a result comes from: code, versions, model, seed, command and machine, saved beside every result."""

import hashlib
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from interp.loading import ATTENTION_TENSORS, weight_files

if TYPE_CHECKING:
    from interp.models import Model

PACKAGES = ("interp-workbench", "torch", "transformers", "transformer-lens", "numpy", "scikit-learn", "safetensors")


def provenance(model: "Model | None" = None, seed: int | None = None, command: Sequence[str] = ()) -> dict[str, Any]:
    """Plain data for provenance.json: git state, versions, model hash, dtype, device, seed, command, machine, time."""
    data: dict[str, Any] = {
        "git": git_state(), "versions": {name: _version(name) for name in PACKAGES}, "python": platform.python_version(),
        "machine": {"system": platform.platform(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "command": list(command), "seed": seed, "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    if model is not None:
        data["model"] = {
            "name": model.name,
            "hash": weights_hash(model),
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": str(model.device),
        }
    return data


def weights_hash(model: "Model") -> str:
    """`model_hash` of its folder; where another attention formula was put in its place, of both."""
    from interp.attention_files import read_variant, variant_tensors

    folder = model_hash(model.path)
    if model.attention == read_variant(model.path):
        return folder
    whole = hashlib.sha256(f"{folder} {model.attention}".encode())
    for name, tensor in variant_tensors(model.anatomy).items():
        whole.update(name.encode() + tensor.double().cpu().numpy().tobytes())
    return whole.hexdigest()[:16]


def model_hash(folder: Path) -> str:
    """SHA-256 of a checkpoint's config, weights and attention variant, 16 digits. Reads the files once per process and change."""
    variant = [file for name in ("attention.json", ATTENTION_TENSORS) if (file := folder / name).is_file()]
    files = [folder / "config.json", *weight_files(folder), *variant]
    return _hash(tuple((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files))


@lru_cache(maxsize=16)
def _hash(files: tuple[tuple[str, int, int], ...]) -> str:
    whole = hashlib.sha256()
    for name, _, _ in files:
        with Path(name).open("rb") as stream:
            while block := stream.read(2**20):
                whole.update(block)
    return whole.hexdigest()[:16]


def git_state() -> dict[str, Any]:
    """Commit and whether files differ from it; None where the package does not lie in a git checkout."""
    root = Path(__file__).parents[1]

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
