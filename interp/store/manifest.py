"""What a store says about itself: the plan (what is harvested from what), its shards, and the refusals that name what is wrong."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.loading import _TOKENIZER_FILES
from interp.provenance import weights_hash
from interp.safefiles import write_text

if TYPE_CHECKING:
    from interp.store.sources import Live

FORMAT, VERSION = "interp-store", 1
MANIFEST, PLAN, FINISHED = "manifest.json", "plan.json", "finished.jsonl"
DOCUMENTS, STATISTICS = "documents.safetensors", "statistics.safetensors"


class StoreError(ValueError):
    """A store that cannot be used or written: of another model, unfinished, incomplete, corrupt, or the disk is full."""


@dataclass(frozen=True)
class Shard:
    """One file: the rows of consecutive documents at all sites."""

    file: str
    first_document: int
    n_documents: int
    first_row: int
    n_rows: int


@dataclass(frozen=True)
class Finished:
    """What is known of a shard once it is written."""

    file: str
    bytes: int
    sha256: str


def plan_shards(lengths: np.ndarray, rows_per_shard: int) -> tuple[Shard, ...]:
    """Whole documents, in order, at most `rows_per_shard` rows in each shard; no document has more."""
    ends = np.cumsum(lengths)
    shards: list[Shard] = []
    first = 0
    while first < len(lengths):
        row = int(ends[first - 1]) if first else 0
        last = int(np.searchsorted(ends, row + rows_per_shard, side="right"))
        shards.append(Shard(f"{len(shards):05d}.safetensors", first, last - first, row, int(ends[last - 1]) - row))
        first = last
    return tuple(shards)


def make_plan(live: "Live", shapes: Mapping[str, Sequence[int]], dtype: str, scale: str | None, rows_per_shard: int) -> dict[str, Any]:
    """Everything that decides the bytes of a harvest, as JSON data. The same plan on the same machine writes the same files."""
    import torch
    import transformers

    model, documents = live.model, live.documents
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": {"name": model.name, "hash": weights_hash(model), "dtype": str(model.dtype).removeprefix("torch."),
                  "device": model.device.type, "tokenizer": tokenizer_hash(model.path)},
        "sites": {name: {"shape": list(shape), "width": int(np.prod(shape))} for name, shape in shapes.items()},
        "dtype": dtype,
        "scale": scale,
        "n_rows": int(live.lengths.sum()),
        "documents": {"number": len(documents), "tokens": int(documents.lengths.sum()), "sha256": documents.sha256,
                      "dropped_token": live.dropped, "source": dict(documents.source)},
        "rows_per_shard": rows_per_shard,
        "batch_tokens": live.batch_tokens,
        "software": {"torch": torch.__version__, "transformers": transformers.__version__},
    }  # fmt: skip


def tokenizer_hash(folder: Path) -> str | None:
    """SHA-256 of a folder's tokenizer files, 16 digits; None where it has none."""
    whole, found = hashlib.sha256(), False
    for name in (*_TOKENIZER_FILES, "merges.txt", "tokenizer_config.json"):
        if (folder / name).is_file():
            whole.update(name.encode() + (folder / name).read_bytes())
            found = True
    return whole.hexdigest()[:16] if found else None


def differences(asked: Mapping[str, Any], found: Mapping[str, Any], path: str = "") -> list[str]:
    """Where two plans differ, such as "model.dtype: float32, asked float64"."""
    lines: list[str] = []
    for key in {**found, **asked}:
        a, b, name = asked.get(key), found.get(key), f"{path}{key}"
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, f"{name}.")
        elif a != b:
            lines.append(f"{name}: {b!r:.60}, asked {a!r:.60}")
    return lines


def write_json(path: Path, data: Any) -> None:
    write_text(path, json.dumps(data, indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{path} cannot be read ({error}); the store it describes is of no use. Harvest again into another folder."
        ) from None
    if not isinstance(data, dict) or data.get("format") != FORMAT or data.get("version") != VERSION:
        raise StoreError(f"{path} is no manifest of an activation store (format {FORMAT}, version {VERSION}).")
    return data


def read_finished(folder: Path) -> dict[str, Finished]:
    """The journal of finished shards. A line cut short by a kill is left out: its shard is written again."""
    path = folder / FINISHED
    found: dict[str, Finished] = {}
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            entry = Finished(**json.loads(line))
        except (ValueError, TypeError):
            continue
        found[entry.file] = entry
    return found


def append_finished(folder: Path, entry: Finished) -> None:
    with (folder / FINISHED).open("a") as stream:
        stream.write(json.dumps(asdict(entry)) + "\n")


def write_finished(folder: Path, entries: Sequence[Finished]) -> None:
    """The journal anew, without what was cut short."""
    write_text(folder / FINISHED, "".join(json.dumps(asdict(entry)) + "\n" for entry in entries))
