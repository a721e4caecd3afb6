"""Dashboards of features: what activates them, how often and how strongly, what they promote. Frozen data that is saved and read back.

`Reports` holds all features of a coder as arrays; `reports[i]` is one feature's `Report` with the words in place of the ids.
"""

import json
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int

from interp.safefiles import read_tensors, write_tensors, write_text
from saes.features.examples import TOP, Examples, Statistics
from saes.formats.reading import json_of

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

VERSION = 1


@dataclass(frozen=True)
class Label:
    """The known variable that a feature (active or not) tells best. Chosen on half of the documents, measured on the other half; a feature
    that is never active on the first half has none."""

    variable: str
    kind: str
    """"token" and "class" are functions of the token alone; "context" is not."""
    f1: float
    precision: float
    recall: float


@dataclass(frozen=True)
class Example:
    """A window of a document around its strongest token."""

    band: int
    """`TOP` (-1) for the strongest documents, else the band of the range, 0 the weakest."""
    document: int
    pos: int
    """Position of the strongest token in the document."""
    value: float
    start: int
    """Position of the window's first token."""
    tokens: tuple[str, ...]
    activations: tuple[float, ...]


@dataclass(frozen=True)
class Report:
    """One feature. Fractions are of all tokens; logits are up to a positive factor."""

    model: str
    site: str
    feature: int
    tokens: int
    active: int
    """Tokens that activate it, of `tokens`."""
    active_documents: int
    maximum: float
    mean: float
    """Over the tokens that activate it."""
    histogram: tuple[int, ...]
    """Active tokens in bins of equal width from 0 to the maximum."""
    band_documents: tuple[int, ...]
    """Documents of each band, the weakest first."""
    examples: tuple[Example, ...]
    promoted: tuple[tuple[str, float], ...]
    """(token, logit), strongest first; empty where the decoder does not write to the residual stream."""
    suppressed: tuple[tuple[str, float], ...]
    nearest: tuple[tuple[int, float], ...]
    """(feature, cosine of the decoder rows)."""
    encoder_decoder_cosine: float | None
    label: Label | None = None

    @property
    def density(self) -> float:
        """Fraction of tokens that activate it."""
        return self.active / self.tokens

    @property
    def top(self) -> tuple[Example, ...]:
        return tuple(e for e in self.examples if e.band == TOP)

    def band(self, band: int) -> tuple[Example, ...]:
        """The drawn examples of a band."""
        return tuple(e for e in self.examples if e.band == band)

    def shown(self, band: int = TOP) -> str:
        """Such as "12 of 340 documents"."""
        whole = self.active_documents if band == TOP else self.band_documents[band]
        return f"{sum(e.band == band for e in self.examples)} of {whole} documents"

    def limits(self, band: int) -> tuple[float, float]:
        """The activations that a band lies between."""
        n = len(self.band_documents)
        return self.maximum * band / n, self.maximum * (band + 1) / n

    def table(self) -> "pd.DataFrame":
        """One row per token of an example."""
        import pandas as pd

        rows = [
            {"feature": self.feature, "example": i, "band": "top" if e.band == TOP else e.band, "document": e.document, "pos": e.start + j,
             "token": token, "activation": value}
            for i, e in enumerate(self.examples) for j, (token, value) in enumerate(zip(e.tokens, e.activations, strict=True))
        ]  # fmt: skip
        return pd.DataFrame(rows, columns=["feature", "example", "band", "document", "pos", "token", "activation"])

    def figure(self) -> "go.Figure":
        """Histogram of the activations, and the tokens that it promotes and suppresses."""
        from saes.features import figures

        return figures.report(self)

    def to_json(self) -> str:
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("examples", "label")}
        plain |= {"density": self.density, "examples": [vars(e) for e in self.examples]}
        return json.dumps(plain | {"label": vars(self.label) if self.label else None})


@dataclass(frozen=True, eq=False)
class Reports:
    """All features of a coder over the same documents. `reports[i]` is feature i; `save` and `load_reports` keep all of it."""

    model: str
    kind: str
    transcoder: bool
    input_site: str
    target_site: str
    statistics: Statistics
    examples: Examples
    words: dict[int, str]
    """The text of every token id that occurs."""
    promoted_ids: Int[np.ndarray, "feature k"]
    promoted: Float[np.ndarray, "feature k"]
    suppressed_ids: Int[np.ndarray, "feature k"]
    suppressed: Float[np.ndarray, "feature k"]
    nearest_ids: Int[np.ndarray, "feature near"]
    nearest: Float[np.ndarray, "feature near"]
    encoder_decoder_cosine: Float[np.ndarray, " feature"]
    """NaN where encoder and decoder have different widths."""
    source: dict[str, Any]
    """Where the documents come from, and the settings."""
    labels: tuple[Label | None, ...] = field(default=())
    """One per feature, or none where no variables were given."""

    def __len__(self) -> int:
        return len(self.statistics.active)

    @property
    def density(self) -> Float[np.ndarray, " feature"]:
        return self.statistics.active / self.statistics.tokens

    @cached_property
    def alive(self) -> list[int]:
        """Features that some token activates, the most frequent first."""
        order = np.argsort(-self.statistics.active, kind="stable")
        return [int(i) for i in order if self.statistics.active[i]]

    def __getitem__(self, feature: int) -> Report:
        if not 0 <= feature < len(self):
            raise KeyError(f"There is no feature {feature}: this coder has 0-{len(self) - 1}.")
        s, cosine = self.statistics, float(self.encoder_decoder_cosine[feature])
        return Report(
            self.model, self.target_site, feature, s.tokens, int(s.active[feature]), int(s.active_documents[feature]),
            float(s.maximum[feature]), float(s.mean[feature]), tuple(s.histogram[feature].tolist()),
            tuple(s.band_documents[feature].tolist()), tuple(self._example(e) for e in self.examples.of(feature)),
            self._tokens(self.promoted_ids[feature], self.promoted[feature]),
            self._tokens(self.suppressed_ids[feature], self.suppressed[feature]),
            tuple(zip(self.nearest_ids[feature].tolist(), self.nearest[feature].tolist(), strict=True)),
            None if np.isnan(cosine) else cosine, self.labels[feature] if self.labels else None,
        )  # fmt: skip

    def table(self) -> "pd.DataFrame":
        """One row per feature."""
        import pandas as pd

        s = self.statistics
        frame = pd.DataFrame({"feature": range(len(self)), "density": self.density, "documents": s.active_documents, "maximum": s.maximum})
        frame = frame.assign(mean=s.mean, encoder_decoder_cosine=self.encoder_decoder_cosine)
        frame["promoted"] = [" ".join(self.words[i] for i in row[:5]) for row in self.promoted_ids.tolist()]
        if self.labels:
            for name in ("variable", "kind", "f1"):
                frame["label" if name == "variable" else name] = [getattr(label, name) if label else None for label in self.labels]
        return frame.assign(model=self.model, site=self.target_site)

    def figure(self) -> "go.Figure":
        """How often features are active."""
        from saes.features import figures

        return figures.reports(self)

    def to_json(self) -> str:
        """One object per feature with what the table holds; `save` keeps the examples too."""
        return str(self.table().to_json(orient="records"))

    def save(self, folder: str | Path) -> Path:
        """Writes features.safetensors and features.json; `load_reports` reads them."""
        folder = Path(folder)
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        for group in (self.statistics, self.examples):
            arrays |= {stored: getattr(group, name) for stored, name in _stored(type(group)).items()}
        write_tensors(folder / "features.safetensors", {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in arrays.items()})
        plain = {name: getattr(self, name) for name in _PLAIN}
        plain |= {"format": "interp-workbench features", "version": VERSION, "words": self.words}
        plain |= {"tokens": self.statistics.tokens, "documents": self.statistics.documents}
        plain |= {"labels": [vars(label) if label else None for label in self.labels]}
        write_text(folder / "features.json", json.dumps(plain, ensure_ascii=False) + "\n")
        return folder

    def _example(self, e: int) -> Example:
        x, first = self.examples, int(self.examples_offset[e])
        part = slice(first, first + int(x.length[e]))
        tokens = tuple(self.words[i] for i in x.ids[part].tolist())
        where = int(x.band[e]), int(x.document[e]), int(x.pos[e]), float(x.value[e]), int(x.start[e])
        return Example(*where, tokens, tuple(x.activations[part].tolist()))

    @cached_property
    def examples_offset(self) -> Int[np.ndarray, " example"]:
        return self.examples.offset

    def _tokens(self, ids: np.ndarray, values: np.ndarray) -> tuple[tuple[str, float], ...]:
        return tuple((self.words[i], value) for i, value in zip(ids.tolist(), values.tolist(), strict=True))


_ARRAYS = ("promoted_ids", "promoted", "suppressed_ids", "suppressed", "nearest_ids", "nearest", "encoder_decoder_cosine")
_PLAIN = ("model", "kind", "transcoder", "input_site", "target_site", "source")


def _stored(group: type[Statistics] | type[Examples]) -> dict[str, str]:
    """Name in the file -> field, of the arrays of a group."""
    return {f"{group.__name__.lower()}.{f.name}": f.name for f in fields(group) if f.name not in ("tokens", "documents")}


def load_reports(folder: str | Path) -> Reports:
    """What `Reports.save` wrote. FileNotFoundError or ValueError if it is not there, damaged, or of another version."""
    folder = Path(folder)
    if not (folder / "features.json").is_file():
        raise FileNotFoundError(f"No features.json in {folder}: `Reports.save` writes it.")
    about = json_of(folder / "features.json", ["version", *_PLAIN, "tokens", "documents", "words", "labels"])
    if about["version"] != VERSION:
        raise ValueError(f"{folder}/features.json has version {about['version']!r}; this program reads {VERSION}.")
    arrays = {name: tensor.numpy() for name, tensor in read_tensors(folder / "features.safetensors").items()}
    if missing := [name for name in (*_ARRAYS, *_stored(Statistics), *_stored(Examples)) if name not in arrays]:
        raise ValueError(f"{folder}/features.safetensors lacks {', '.join(missing[:4])}; export the features again.")
    known: dict[str, Any] = {name: about[name] for name in _PLAIN} | {name: arrays[name] for name in _ARRAYS}
    groups = {kind: {name: arrays[stored] for stored, name in _stored(kind).items()} for kind in (Statistics, Examples)}
    statistics = Statistics(tokens=about["tokens"], documents=about["documents"], **groups[Statistics])
    return Reports(
        **known, statistics=statistics, examples=Examples(**groups[Examples]), words={int(i): word for i, word in about["words"].items()},
        labels=tuple(Label(**x) if x else None for x in about["labels"]),
    )  # fmt: skip
