"""A finished store: its rows, where each comes from, its statistics, and proof that it is whole."""

import fnmatch
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.progress import Report, reporting
from interp.store import manifest as m
from interp.store import packing, shards
from interp.store.documents import Documents
from interp.store.manifest import Shard, StoreError
from interp.store.sources import Piece, row_starts, runs
from interp.store.statistics import Moments, Statistics

if TYPE_CHECKING:
    import pandas as pd

    from interp.models import Model


def open_store(
    path: str | Path, model: "Model | None" = None, sites: str | Sequence[str] | None = None, dtype: str | torch.dtype | None = None
) -> "Store":
    """The store in a folder. With `model`, `sites` (names or patterns) or `dtype` it is refused unless it is of these.

    Presence and size of every file are checked; `Store.verify` checks every byte. FileNotFoundError if there is nothing; StoreError
    (a ValueError) for an unfinished harvest, a missing or damaged shard, or a store of something else.
    """
    folder = Path(path)
    _refuse_unfinished(folder)
    data = m.read_json(folder / m.MANIFEST)
    try:
        store = Store(folder, data, tuple(Shard(**{k: s[k] for k in Shard.__dataclass_fields__}) for s in data["shards"]))
        store._check_files()
    except (KeyError, TypeError) as error:
        raise StoreError(
            f"{folder / m.MANIFEST} lacks {error}: it is no manifest of a whole store. Harvest again into another folder."
        ) from None
    if model is not None:
        store.check_model(model)
    if sites is not None:
        store.select(sites)
    if dtype is not None and str(dtype).removeprefix("torch.") != store.dtype:
        raise StoreError(f"{folder} holds {store.dtype}, asked for {dtype}. Harvest in that dtype into another folder.")
    return store


def _refuse_unfinished(folder: Path) -> None:
    part = folder if (folder / m.PLAN).is_file() else folder.with_name(f".{folder.name}.part")
    if (folder / m.MANIFEST).is_file() and part != folder:
        return
    if part.is_dir():
        raise StoreError(
            f"{part} is an unfinished harvest ({len(m.read_finished(part))} shards so far). Run the same harvest again: it goes on there."
        )
    if not folder.exists():
        raise FileNotFoundError(f"No store {folder}; `interp harvest` makes one.")
    raise StoreError(f"{folder} is no activation store: it has no {m.MANIFEST}.")


@dataclass(frozen=True, eq=False)
class Store:
    """See the package's text. Rows are numbered over all shards, in document order; a row is one token, flat where a site has heads."""

    folder: Path
    manifest: Mapping[str, Any] = field(repr=False)
    shards: tuple[Shard, ...] = field(repr=False)

    def __repr__(self) -> str:
        return f"Store({self.folder}, {self.n_rows} rows, {self.dtype}, {', '.join(self.sites)})"

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(self.manifest["sites"])

    @cached_property
    def widths(self) -> dict[str, int]:
        return {name: site["width"] for name, site in self.manifest["sites"].items()}

    @property
    def n_rows(self) -> int:
        return self.manifest["n_rows"]

    @property
    def dtype(self) -> str:
        """float32, float16, bfloat16 or int8."""
        return self.manifest["dtype"]

    @property
    def nbytes(self) -> int:
        """On disk."""
        return sum(entry["bytes"] for entry in self._entries().values())

    # --- rows -------------------------------------------------------------------------------------------------------------

    def rows(
        self, site: str, rows: "slice | int | Sequence[int] | Int[Tensor, ' row'] | None" = None, dtype: torch.dtype | None = None
    ) -> Float[Tensor, "row d"]:
        """Rows of a site: all, a slice, or by number. Stored dtype unless `dtype` says otherwise; int8 is given as float32.

        What one shard holds in the dtype asked for is mapped, not read: a slice of a large store costs nothing before it is used.
        """
        self.select([site])
        if rows is None or (isinstance(rows, slice) and rows.step in (None, 1)):
            first, last, _ = (rows or slice(None)).indices(self.n_rows)
            parts = [self._mapped(shard, site, local) for shard, local in self._parts(first, last)]
            parts = parts or [torch.empty(0, self.widths[site], dtype=self._read_dtype)]
            whole = parts[0] if len(parts) == 1 else torch.cat(parts)
            return whole if dtype is None else whole.to(dtype)
        index = self._index(rows)
        shard_of = np.searchsorted(self._shard_ends, index, side="right")
        out = torch.empty(len(index), self.widths[site], dtype=dtype or self._read_dtype)
        for k in np.unique(shard_of):
            mine, shard = np.flatnonzero(shard_of == k), self.shards[k]
            local = torch.from_numpy(index[mine] - shard.first_row)
            out[torch.from_numpy(mine)] = self._mapped(shard, site, local).to(out.dtype)
        return out

    def index(self, rows: "slice | int | Sequence[int] | Int[Tensor, ' row'] | None" = None) -> "pd.DataFrame":
        """Where rows come from: one line per row with row, document, position (in the document) and token id."""
        import pandas as pd

        which = self._index(slice(None) if rows is None else rows)
        document = np.searchsorted(self.row_starts, which, side="right") - 1
        position = which - self.row_starts[document] + self._skip[document]
        token = self.documents.ids[self.documents.starts[document] + position]
        return pd.DataFrame({"row": which, "document": document, "position": position, "token": token})

    @cached_property
    def documents(self) -> Documents:
        """What was harvested, whole documents with BOS: `.prompts([0, 5])` gives some of them to run again."""
        path = self.folder / m.DOCUMENTS
        ids, lengths = (shards.map_rows(path, name).numpy() for name in ("ids", "lengths"))
        return Documents(ids, lengths.astype(np.int64), self.manifest["documents"]["source"])

    @cached_property
    def _skip(self) -> Int[np.ndarray, " document"]:
        return self.documents.skipped(self.manifest["documents"]["dropped_token"])

    @cached_property
    def lengths(self) -> Int[np.ndarray, " document"]:
        """Rows of each document."""
        return self.documents.lengths - self._skip

    @cached_property
    def row_starts(self) -> Int[np.ndarray, " document"]:
        """First row of each document, and the number of rows."""
        return row_starts(self.lengths)

    def pieces(self, documents: Int[np.ndarray, " chosen"], sites: Sequence[str]) -> Iterator[Piece]:
        """For readers; see `interp.store.sources`."""
        scratch = np.empty(0, dtype=np.uint8)
        at = 0
        for first, last in runs(documents):
            a, b = int(self.row_starts[first]), int(self.row_starts[last])
            for shard, local in self._parts(a, b):
                start, n = at + shard.first_row + local.start - a, local.stop - local.start
                with shards.reading(self.folder / shard.file) as read:
                    for site in sites:
                        needed = n * self.widths[site] * packing.DTYPES[self.dtype].itemsize
                        scratch = scratch if len(scratch) >= needed else np.empty(needed, dtype=np.uint8)
                        values = read(site, local.start, local.stop, scratch)
                        yield slice(start, start + n), {site: self._scaled(shard, site, values, local)}
            at += b - a

    def _parts(self, first: int, last: int) -> Iterator[tuple[Shard, slice]]:
        """The rows first..last as shards and slices of them."""
        for shard in self.shards[int(np.searchsorted(self._shard_ends, first, side="right")) :]:
            a, b = max(first, shard.first_row), min(last, shard.first_row + shard.n_rows)
            if a >= b:
                return
            yield shard, slice(a - shard.first_row, b - shard.first_row)

    def _mapped(self, shard: Shard, site: str, local: "slice | Int[Tensor, ' row']") -> Tensor:
        """Rows of a shard, by slice (mapped, not read) or number."""
        path, scale = self.folder / shard.file, self.manifest["scale"]
        values = shards.map_rows(path, site)[local]
        if scale is None:
            return values
        step = shards.map_rows(path, site + ".scale")
        return packing.unpack(values, step[local] if scale == "row" else step)

    def _scaled(self, shard: Shard, site: str, values: Tensor, local: slice) -> Tensor:
        """What stored values of a slice of rows stand for."""
        scale = self.manifest["scale"]
        if scale is None:
            return values
        rows = (local.start, local.stop) if scale == "row" else ()
        return packing.unpack(values, shards.map_rows(self.folder / shard.file, site + ".scale", *rows))

    @cached_property
    def _shard_ends(self) -> Int[np.ndarray, " shard"]:
        return np.cumsum([s.n_rows for s in self.shards])

    @property
    def _read_dtype(self) -> torch.dtype:
        return torch.float32 if self.dtype == "int8" else packing.DTYPES[self.dtype]

    def _index(self, rows: Any) -> Int[np.ndarray, " row"]:
        if isinstance(rows, slice):
            return np.arange(self.n_rows)[rows]
        index = np.atleast_1d(rows.cpu().numpy() if isinstance(rows, Tensor) else np.asarray(rows))
        if index.dtype == bool or not (np.issubdtype(index.dtype, np.integer) or not index.size):
            raise ValueError(f"Rows are given as whole numbers or a slice; given {rows!r:.60}.")
        index = np.where(index < 0, index + self.n_rows, index).astype(np.int64)
        if index.size and (index.min() < 0 or index.max() >= self.n_rows):
            raise ValueError(f"{self.folder} has rows 0-{self.n_rows - 1}; given {rows!r:.60}.")
        return index

    # --- what it is -------------------------------------------------------------------------------------------------------

    def select(self, patterns: str | Sequence[str]) -> tuple[str, ...]:
        """The store's sites that names or patterns select, in causal order; KeyError names what it holds."""
        wanted = [patterns] if isinstance(patterns, str) else [str(p) for p in patterns]
        found = {p: fnmatch.filter(self.sites, p) for p in wanted}
        if missing := [p for p, names in found.items() if not names]:
            raise KeyError(
                f"{self.folder} holds no site {missing[0]!r}; it holds {', '.join(self.sites)}. Harvest that site into another folder."
            )
        return tuple(s for s in self.sites if any(s in names for names in found.values()))

    def check_model(self, model: "Model") -> None:
        """StoreError unless the store was harvested from this checkpoint."""
        of, given = self.manifest["model"], m.weights_hash(model)
        if given != of["hash"]:
            found = f"{of['name']} ({of['hash']}); this is {model.name} ({given})"
            raise StoreError(f"{self.folder} was harvested from {found}. Harvest from that one into another folder.")

    def statistics(self, site: str) -> Statistics:
        """Mean, variance, extremes and kurtosis of every channel over all rows, and what rounding cost."""
        self.select([site])
        moments, rounding = (shards.map_rows(self.folder / m.STATISTICS, f"{site}.{kind}") for kind in ("moments", "rounding"))
        return Statistics(site, Moments.from_tensor(self.n_rows, moments), rounding.clone())

    def verify(self, progress: Report | bool | None = None) -> "Verification":
        """Reads every file and compares its checksum. StoreError names each file that is not as it was written, and what to do."""
        wrong, done, entries = [], 0, self._entries()
        with reporting(progress, "verify") as report:
            for name, entry in entries.items():
                if shards.file_sha256(self.folder / name) != entry["sha256"]:
                    wrong.append(name)
                done += entry["bytes"]
                report(done, self.nbytes)
        if wrong:
            named = ", ".join(str(self.folder / name) for name in wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
            raise StoreError(f"{len(wrong)} of {len(entries)} files are not as they were written: {named}. {self._advice(wrong)}")
        return Verification(len(entries), done)

    def _check_files(self) -> None:
        for name, entry in self._entries().items():
            path = self.folder / name
            if not path.is_file():
                raise StoreError(f"{path} is missing. {self._advice([name])}")
            if (size := path.stat().st_size) != entry["bytes"]:
                raise StoreError(f"{path} has {size} bytes and was written with {entry['bytes']}. {self._advice([name])}")

    def _advice(self, names: Sequence[str]) -> str:
        if all(name in {s.file for s in self.shards} for name in names):
            return "Delete what is damaged and run the same harvest again: it writes these shards anew."
        return "Delete the folder and harvest again."

    def _entries(self) -> dict[str, Any]:
        """Every file beside the manifest, with its size and checksum."""
        return {s["file"]: s for s in self.manifest["shards"]} | self.manifest["files"]

    def table(self) -> "pd.DataFrame":
        """One row per site: width, norm, outliers and what rounding to the dtype cost."""
        import pandas as pd

        found = [self.statistics(site) for site in self.sites]
        return pd.DataFrame(
            {"site": s.site, "width": self.widths[s.site], "rows": s.n_rows, "rms_norm": s.mean_square_norm**0.5,
             "max_abs": float(s.max_abs.max()), "tensor_kurtosis": s.tensor_kurtosis, "fvu": s.fvu,
             "worst_channel_fvu": float(s.channel_fvu.nan_to_num().max()), "largest_error": s.largest_error}
            for s in found
        )  # fmt: skip

    def to_json(self) -> str:
        plan = {k: v for k, v in self.manifest.items() if k not in ("shards", "files")}
        table = self.table().astype(object)
        sites = table.where(table.notna(), None).to_dict("records")
        return json.dumps(plan | {"bytes": self.nbytes, "n_shards": len(self.shards), "statistics": sites})


@dataclass(frozen=True)
class Verification:
    """Every file was read and is as it was written."""

    n_files: int
    bytes: int
