"""One feature, logit or head as the sum of what reaches it directly: features and heads in the residual stream of its own position.

    pre-activation = sum of  z_i (W_dec[i] . v)            features of earlier MLPs at this position
                           + pattern (value W_O[h] . v)    each head and each position it looks at
                           + embeddings, errors, skip terms, biases

v is the direction that the target reads in the stream (its encoder, through the frozen norm). What a head brings is a reading of another
position in its turn: the pulled-back direction pattern W_V W_O v. So is what a feature brings: its own encoder, weighed. Unlike the edges
of a graph, which sum over all routes through attention, each step here takes one named route (Dunefsky et al. 2024, section 4).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.features.backward import Readouts, feature_readouts
from circuits.features.replacement import FrozenLayer, LocalReplacement, pull_at

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

KINDS = ("feature", "head", "embed", "pos_embed", "error", "mlp", "skip", "dec_bias", "out_bias", "norm1_bias", "norm2_bias", "constant")
EXPANDABLE = ("feature", "head", "skip")


@dataclass(frozen=True)
class Part:
    """One addend. `pos` is where it was read: for a head the position that it looks at. `index`: feature or head."""

    kind: str
    layer: int | None
    pos: int
    index: int | None
    contribution: float

    @property
    def id(self) -> str:
        return ".".join(str(x) for x in (self.kind, self.layer, self.pos, self.index) if x is not None)


@dataclass(frozen=True, eq=False)
class Decomposition:
    """All direct addends of one target; `values.sum()` is the target's value. In units of the target's activation, or logits."""

    model: str
    target: str
    value: float
    kinds: tuple[str, ...]
    layer: Int[Tensor, " part"]
    """-1 where a part has none."""
    pos: Int[Tensor, " part"]
    index: Int[Tensor, " part"]
    values: Float[Tensor, " part"]

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, i: int) -> Part:
        layer, index = int(self.layer[i]), int(self.index[i])
        return Part(self.kinds[i], layer if layer >= 0 else None, int(self.pos[i]), index if index >= 0 else None, float(self.values[i]))

    def top(self, n: int = 10, sign: int = 0) -> list[Part]:
        """The n largest: sign 1 those that raise the target, -1 those that lower it, 0 by size."""
        size = self.values.abs() if sign == 0 else (self.values * sign)
        order = size.argsort(descending=True, stable=True)[:n]
        return [self[i] for i in order.tolist() if float(size[i]) > 0]

    def of(self, kind: str) -> Float[Tensor, " part"]:
        """The values of one kind."""
        if kind not in KINDS:
            raise KeyError(f"No kind {kind!r}; there are {', '.join(KINDS)}.")
        return self.values[[i for i, own in enumerate(self.kinds) if own == kind]]

    def heads(self, n_layers: int, n_heads: int, n_pos: int) -> Float[Tensor, "layer head source"]:
        """What every head brings from every position; 0 where it does not look or lies above the target."""
        out = self.values.new_zeros(n_layers, n_heads, n_pos)
        chosen = torch.tensor([i for i, own in enumerate(self.kinds) if own == "head"], dtype=torch.long)
        out[self.layer[chosen], self.index[chosen], self.pos[chosen]] = self.values[chosen]
        return out

    def table(self) -> "pd.DataFrame":
        """One row per part, the largest first."""
        import pandas as pd

        rows = [vars(part) for part in self.top(len(self))]
        whole = {"layer": "Int64", "index": "Int64"}
        return pd.DataFrame(rows, columns=["kind", "layer", "pos", "index", "contribution"]).astype(whole).assign(target=self.target)

    def figure(self, n: int = 20) -> "go.Figure":
        """Bars of the n largest parts."""
        from circuits.features import figures

        return figures.bars([part.id for part in self.top(n)], [part.contribution for part in self.top(n)], self.target, len(self))

    def to_json(self) -> str:
        plain = {"model": self.model, "target": self.target, "value": self.value, "kinds": self.kinds}
        return json.dumps(plain | {name: getattr(self, name).tolist() for name in ("layer", "pos", "index", "values")})


@torch.no_grad()
def decompose(run: LocalReplacement, reading: Readouts, name: str = "target") -> Decomposition:
    """The direct addends of one readout (`feature_readouts`, `logit_readouts`, or `expand`)."""
    if len(reading) != 1:
        raise ValueError(f"One target is decomposed at a time; given {len(reading)}.")
    blocks = [("constant", -1, reading.pos, torch.tensor([-1]), reading.constants), *_walk(run, reading)]
    kinds = tuple(kind for kind, *_, values in blocks for _ in range(len(values)))
    layer = torch.cat([torch.full((len(values),), layer) for _, layer, *_, values in blocks])
    pos, index, values = (torch.cat([x.cpu() for x in column]) for column in list(zip(*blocks, strict=True))[2:])
    return Decomposition(run.model.name, name, float(reading.values), kinds, layer, pos, index, values)


Block = tuple[str, int, Tensor, Tensor, Tensor]


def _walk(run: LocalReplacement, reading: Readouts) -> Iterator[Block]:
    """(kind, layer, positions, indices, values), from the target down the stream of its position."""
    point, pos, v = int(reading.point), reading.pos, reading.vectors
    here = run.stream.new_zeros(1, dtype=torch.long) + pos
    none = torch.full_like(here, -1)
    for layer in reversed(run.layers):
        if point >= 2 * layer.layer + 2:
            if layer.norm2 is not None:
                yield "norm2_bias", layer.layer, here, none, v @ layer.norm2.bias
                v = pull_at(layer.norm2, v, pos)
            yield from _mlp(layer, int(pos), v[0], here, none)
        if point >= 2 * layer.layer + 1:
            if layer.wiring == "post-norm":
                yield "norm1_bias", layer.layer, here, none, v @ layer.norm1.bias
                v = pull_at(layer.norm1, v, pos)
            yield "out_bias", layer.layer, here, none, v @ layer.out_bias
            yield _heads(layer, int(pos), v[0])
    for kind, x in run.embeds.items():
        yield kind, -1, here, none, x[pos] @ v[0]


def _mlp(layer: FrozenLayer, pos: int, v: Float[Tensor, " d_model"], here: Tensor, none: Tensor) -> Iterator[Block]:
    yield "mlp" if layer.coder is None else "error", layer.layer, here, none, layer.constant[here] @ v
    if layer.dec_bias is None:
        return
    yield "dec_bias", layer.layer, here, none, (layer.dec_bias @ v)[None]
    own = (layer.active.pos == pos).nonzero().flatten()
    active = layer.active
    yield "feature", layer.layer, active.pos[own], active.feature[own], active.activation[own] * (active.decoder[own] @ v)
    if layer.W_skip is not None and layer.x is not None:
        yield "skip", layer.layer, here, none, layer.x[here] @ (layer.W_skip.T @ v)


def _heads(layer: FrozenLayer, pos: int, v: Float[Tensor, " d_model"]) -> Block:
    n_heads = len(layer.pattern)
    read = torch.einsum("hdm,m->hd", layer.W_O, v)
    each = layer.pattern[:, pos, : pos + 1] * torch.einsum("khd,hd->hk", layer.values[: pos + 1], read)
    sources = torch.arange(pos + 1, device=v.device).repeat(n_heads)
    return "head", layer.layer, sources, torch.arange(n_heads, device=v.device).repeat_interleave(pos + 1), each.flatten()


@torch.no_grad()
def expand(run: LocalReplacement, reading: Readouts, part: Part) -> Readouts:
    """What a feature, head or skip term among the parts of `reading` is itself a reading of; its value is the part's contribution."""
    if part.kind not in EXPANDABLE or part.layer is None:
        raise ValueError(f"{part.id} has no input to be traced to; there is one of {', '.join(EXPANDABLE)}.")
    layer, at = run.layers[part.layer], reading.pos.new_tensor([part.pos])
    value = reading.values.new_tensor([part.contribution])
    if part.kind == "feature":
        own = feature_readouts(run, part.layer, at, at.new_tensor([part.index]))
        share = value / own.values
        return Readouts(own.point, at, own.vectors * share, own.constants * share, value)
    v = _direction_below(run, reading, part)
    if part.kind == "skip":
        assert layer.W_skip is not None
        vector = pull_at(layer.read, v @ layer.W_skip, at)
        return Readouts(at.new_tensor([layer.point]), at, vector, torch.zeros_like(value), value)
    head = part.index
    assert head is not None
    weight = layer.pattern[head, int(reading.pos), part.pos]
    read = v @ layer.W_O[head].T * weight  # [1, d_head]
    vector = read @ layer.W_V[head].T
    vector = vector if layer.wiring == "post-norm" else pull_at(layer.norm1, vector, at)
    return Readouts(at.new_tensor([2 * layer.layer]), at, vector, read @ layer.value_bias[head], value)


def _direction_below(run: LocalReplacement, reading: Readouts, part: Part) -> Float[Tensor, "one d_model"]:
    """The reading's direction where the part writes: before the norms that a post-norm stream passes on the way up."""
    v = reading.vectors
    for layer in reversed(run.layers[part.layer :]):
        if layer.wiring != "post-norm":
            continue
        if int(reading.point) >= 2 * layer.layer + 2:
            v = pull_at(layer.norm2, v, reading.pos)
        if int(reading.point) >= 2 * layer.layer + 1 and (layer.layer != part.layer or part.kind == "head"):
            v = pull_at(layer.norm1, v, reading.pos)
    return v
