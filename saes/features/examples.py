"""Which documents show what a feature is: the strongest, and some of every band of its range. Exact; memory does not grow with text.

A document's activation is that of its strongest token (the first one, where several are equal). The range (0, maximum] of a feature is cut
into bands of equal width; of each band's documents some are drawn evenly, by a hash of seed, feature and document, so that the same
documents always give the same choice, however they are batched.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from saes.features.recording import Block, Recorded

TOP = -1
"""The band of the strongest examples."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """Of each feature, over all tokens. `histogram` counts active tokens in bins of equal width from 0 to the maximum."""

    tokens: int
    documents: int
    active: Int[np.ndarray, " feature"]
    """Tokens that activate it."""
    active_documents: Int[np.ndarray, " feature"]
    maximum: Float[np.ndarray, " feature"]
    mean: Float[np.ndarray, " feature"]
    """Over the tokens that activate it; 0 for a dead feature."""
    histogram: Int[np.ndarray, "feature bin"]
    band_documents: Int[np.ndarray, "feature band"]
    """Documents whose activation lies in each band, the weakest first."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Windows of documents by feature, then band (`TOP` first, then the strongest band), then activation.

    Example e shows `length[e]` tokens from position `start[e]` on; its part of the flat arrays begins at `offset[e]`.
    """

    feature: Int[np.ndarray, " example"]
    band: Int[np.ndarray, " example"]
    document: Int[np.ndarray, " example"]
    pos: Int[np.ndarray, " example"]
    """The strongest token."""
    value: Float[np.ndarray, " example"]
    start: Int[np.ndarray, " example"]
    length: Int[np.ndarray, " example"]
    ids: Int[np.ndarray, " shown"]
    activations: Float[np.ndarray, " shown"]

    @property
    def offset(self) -> Int[np.ndarray, " example"]:
        return np.cumsum(self.length) - self.length

    def of(self, feature: int) -> range:
        """The examples of a feature."""
        first, last = np.searchsorted(self.feature, [feature, feature + 1])
        return range(int(first), int(last))


@dataclass(frozen=True, eq=False)
class _Peaks:
    """The strongest token of each pair of feature and document."""

    feature: Int[np.ndarray, " pair"]
    document: Int[np.ndarray, " pair"]
    pos: Int[np.ndarray, " pair"]
    value: Float[np.ndarray, " pair"]

    def take(self, chosen: np.ndarray) -> "_Peaks":
        return _Peaks(self.feature[chosen], self.document[chosen], self.pos[chosen], self.value[chosen])

    def beside(self, other: "_Peaks") -> "_Peaks":
        return _Peaks(*(np.concatenate([getattr(self, n), getattr(other, n)]) for n in ("feature", "document", "pos", "value")))


def collect(
    codes: Recorded, coder: int, top: int, bands: int, per_band: int, context: int, bins: int, seed: int
) -> tuple[Statistics, Examples]:
    """Statistics and examples of all features of one of the recorded coders; see `feature_reports` for the numbers."""
    n_features = codes.coders[coder].n_features
    active, reach = np.zeros(n_features, dtype=np.int64), np.zeros(n_features, dtype=np.int64)
    total, maximum = np.zeros(n_features), np.zeros(n_features)
    strongest = _none()
    for block in codes.blocks(coder):
        peaks = _peaks(block)
        active += np.bincount(block.feature, minlength=n_features)
        total += np.bincount(block.feature, weights=block.value, minlength=n_features)
        reach += np.bincount(peaks.feature, minlength=n_features)
        np.maximum.at(maximum, peaks.feature, peaks.value)
        strongest = _first(strongest.beside(peaks), top, lambda p: (p.document, -p.value))
    histogram = np.zeros((n_features, bins), dtype=np.int64)
    counts = np.zeros((n_features, bands), dtype=np.int64)
    drawn = _none()
    for block in codes.blocks(coder):
        np.add.at(histogram, (block.feature, bin_of(block.value, maximum[block.feature], bins)), 1)
        peaks = _peaks(block)
        band = bin_of(peaks.value, maximum[peaks.feature], bands)
        np.add.at(counts, (peaks.feature, band), 1)
        # a band is a group of its own while documents are drawn: the group's number stands where the feature's does
        grouped = _Peaks(peaks.feature * bands + band, peaks.document, peaks.pos, peaks.value)
        drawn = _first(drawn.beside(grouped), per_band, lambda p: (p.document, draw(p.feature // bands, p.document, seed)))
    mean = np.divide(total, active, out=np.zeros(n_features), where=active > 0)
    found = Statistics(len(codes.documents.ids), len(codes.documents), active, reach, maximum, mean, histogram, counts)
    return found, _examples(codes, coder, strongest, drawn, bands, context)


def bin_of(value: Float[np.ndarray, " n"], maximum: Float[np.ndarray, " n"], bins: int) -> Int[np.ndarray, " n"]:
    """The bin of equal width of (0, maximum] that each value lies in."""
    return np.minimum((value.astype(np.float64) / maximum * bins).astype(np.int64), bins - 1)


def draw(feature: Int[np.ndarray, " n"], document: Int[np.ndarray, " n"], seed: int) -> Int[np.ndarray, " n"]:
    """A number for each pair that looks random (splitmix64): the smallest ones of a group are an even draw."""
    with np.errstate(over="ignore"):
        x = (feature.astype(np.uint64) << np.uint64(40)) ^ document.astype(np.uint64) ^ (np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15))
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
        return x ^ (x >> np.uint64(31))


def _none() -> _Peaks:
    nothing = np.zeros(0, dtype=np.int64)
    return _Peaks(nothing, nothing, nothing, np.zeros(0))


def _peaks(block: Block) -> _Peaks:
    order = np.lexsort((block.pos, -block.value, block.document, block.feature))
    pairs = _Peaks(block.feature[order], block.document[order], block.pos[order], block.value[order])
    return pairs.take(_starts(pairs.feature, pairs.document))


def _starts(*keys: np.ndarray) -> np.ndarray:
    """Where a run of equal keys begins, in sorted pairs."""
    new = np.ones(len(keys[0]), dtype=bool)
    new[1:] = np.any([key[1:] != key[:-1] for key in keys], axis=0) if len(keys[0]) else []
    return new.nonzero()[0]


def _first(peaks: _Peaks, n: int, keys) -> _Peaks:
    """Of each feature (or group) the first n pairs in the order of `keys` (as lexsort: the last key decides first)."""
    order = np.lexsort((*keys(peaks), peaks.feature))
    peaks = peaks.take(order)
    starts = _starts(peaks.feature)
    sizes = np.diff(np.append(starts, len(order)))
    return peaks.take(np.arange(len(order)) - np.repeat(starts, sizes) < n)


def _examples(codes: Recorded, coder: int, strongest: _Peaks, drawn: _Peaks, bands: int, context: int) -> Examples:
    band = np.concatenate([np.full(len(strongest.feature), TOP), drawn.feature % bands])
    chosen = strongest.beside(_Peaks(drawn.feature // bands, drawn.document, drawn.pos, drawn.value))
    rank = np.where(band == TOP, 0, bands - band)
    order = np.lexsort((chosen.document, -chosen.value, rank, chosen.feature))
    chosen, band = chosen.take(order), band[order]
    starts, lengths = codes.documents.starts, codes.documents.lengths[chosen.document]
    start = np.maximum(chosen.pos - context, 0)
    length = np.minimum(chosen.pos + context + 1, lengths) - start
    flat = np.repeat(starts[chosen.document] + start - (np.cumsum(length) - length), length) + np.arange(length.sum())
    activations = np.zeros(len(flat), dtype=codes.coders[coder].W_enc.detach().cpu().numpy().dtype)
    for places, value in _hits(codes, coder, chosen, start, length):
        activations[places] = value
    return Examples(
        chosen.feature,
        band,
        chosen.document,
        chosen.pos,
        chosen.value,
        start,
        length,
        codes.documents.ids[flat].astype(np.int32),
        activations,
    )


def _hits(
    codes: Recorded, coder: int, chosen: _Peaks, start: np.ndarray, length: np.ndarray
) -> Iterator[tuple[Int[np.ndarray, " hit"], Float[np.ndarray, " hit"]]]:
    """Where in the flat arrays activations of the chosen documents belong, and what they are. A document may be chosen twice."""
    size = len(codes.documents)
    keys = chosen.feature * size + chosen.document
    order = np.argsort(keys, kind="stable")
    keys, offset = keys[order], np.cumsum(length) - length
    for block in codes.blocks(coder):
        wanted = block.feature * size + block.document
        first, last = np.searchsorted(keys, wanted, "left"), np.searchsorted(keys, wanted, "right")
        for turn in range(int((last - first).max(initial=0))):
            pairs = (first + turn < last).nonzero()[0]
            example = order[first[pairs] + turn]
            place = block.pos[pairs] - start[example]
            inside = (place >= 0) & (place < length[example])
            yield (offset[example] + place)[inside], block.value[pairs][inside]
