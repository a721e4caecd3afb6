"""Codes of documents, written down as they are made: one pass of the model serves all coders, and every later question reads the file.

Documents run in batches of like length. Each batch is one safetensors file of sparse codes, so memory holds one batch at a time.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from interp.models import Model
from interp.progress import Report, reporting
from interp.safefiles import write_tensors
from interp.store.documents import Documents, as_documents
from saes.coders import Coder
from saes.features.variables import Sparse
from saes.replacing import flat, real_positions, sites_of


@dataclass(frozen=True, eq=False)
class Block:
    """Sparse codes of a batch of documents: one pair for each active feature of each token."""

    document: Int[np.ndarray, " pair"]
    pos: Int[np.ndarray, " pair"]
    feature: Int[np.ndarray, " pair"]
    value: Float[np.ndarray, " pair"]


@dataclass(frozen=True, eq=False)
class Recorded:
    """Codes of `documents` under `coders`, in files of `folder`. `batches`: the documents of each file, in the order of its rows."""

    documents: Documents
    coders: tuple[Coder, ...]
    folder: Path
    batches: tuple[Int[np.ndarray, " document"], ...]

    def blocks(self, coder: int = 0) -> Iterator[Block]:
        """One coder's codes, a batch of documents at a time. Every document comes once."""
        from safetensors import safe_open

        for i, batch in enumerate(self.batches):
            lengths = self.documents.lengths[batch]
            document = np.repeat(batch, lengths)
            pos = np.arange(len(document)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            with safe_open(_file(self.folder, i), "np") as file:
                feature, value, counts = (file.get_tensor(f"{coder}.{name}") for name in ("feature", "value", "counts"))
            yield Block(np.repeat(document, counts), np.repeat(pos, counts), feature.astype(np.int64), value)

    def matrix(self, coder: int = 0) -> Sparse:
        """One coder's codes as a sparse matrix [token, feature], in the order of the documents' tokens. In memory as a whole."""
        from scipy.sparse import coo_array

        blocks = list(self.blocks(coder))
        token = np.concatenate([self.documents.starts[b.document] + b.pos for b in blocks])
        feature, value = (np.concatenate([getattr(b, name) for b in blocks]) for name in ("feature", "value"))
        return coo_array((value, (token, feature)), shape=(len(self.documents.ids), self.coders[coder].n_features)).tocsr()


@contextmanager
def recorded(
    model: Model, coders: Coder | Sequence[Coder], documents: Any, rows: int = 64, progress: Report | bool | None = None
) -> Iterator[Recorded]:
    """The codes of texts, lists of ids, prompts or `Documents` under coders, in a temporary folder that goes when the block ends."""
    coders = [coders] if isinstance(coders, Coder) else list(coders)
    if not coders:
        raise ValueError("Give at least one coder.")
    found = as_documents(model, documents)
    sites = list(dict.fromkeys(sites_of(coder, model)[0] for coder in coders))
    order = np.argsort(found.lengths, kind="stable")
    batches = tuple(order[i : i + rows] for i in range(0, len(order), rows))
    with tempfile.TemporaryDirectory(prefix="codes-") as name, reporting(progress, "codes of documents") as report:
        for i, batch in enumerate(batches):
            prompts = model.check_prompts(found.prompts(batch))
            cap, real = model.capture(prompts, sites), real_positions(prompts)
            tensors = {}
            for c, coder in enumerate(coders):
                codes = coder.encode_sparse(flat(cap[str(coder.input_site)])[real].to(coder.W_enc))
                named = {"feature": codes.pattern.columns.int(), "value": codes.values, "counts": codes.pattern.counts.int()}
                tensors |= {f"{c}.{key}": tensor for key, tensor in named.items()}
            write_tensors(_file(Path(name), i), tensors)
            report(i + 1, len(batches))
        yield Recorded(found, tuple(coders), Path(name), batches)


def _file(folder: Path, i: int) -> Path:
    return folder / f"{i:06d}.safetensors"
