"""What weights alone say of a feature: which earlier features feed it, which tokens, and which tokens it argues for.

    direct            W_dec[i] . N v                      v = W_enc[:, target], N = centring (and weight) of the norms between
    through a head    W_dec[i] . N' W_V W_O N v           at full attention
    de-embedding      W_E . N v, or through a head        logit effects: W_dec[i] N W_U

Norms are taken without their scale, a positive number of each run: an edge of a run is this weight times the activation, over the scale at
that position (and times the attention) - exactly (Dunefsky et al. 2024, section 4.1). `overlap` compares the two.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuits.features.backward import feature_readouts
from circuits.features.decomposition import decompose
from circuits.features.replacement import coders_by_layer, local_replacement
from interp.models import Model
from interp.ov import linear_part
from interp.prompts import Prompts
from interp.residual import like, norms_after, precise
from interp.selection import check_count, check_head, words
from saes.coders import Coder

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

Head = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Connections:
    """What a feature is connected to by weights, ranked from both ends: what raises it, and what lowers it."""

    model: str
    target: str
    what: str
    names: tuple[str, ...]
    """Of every candidate: "L2 #17", or a token."""
    weights: Float[Tensor, " candidate"]
    k: int

    @property
    def raising(self) -> list[tuple[str, float]]:
        """The k largest positive weights."""
        return self._ends(1)

    @property
    def lowering(self) -> list[tuple[str, float]]:
        """The k largest negative weights."""
        return self._ends(-1)

    def _ends(self, sign: int) -> list[tuple[str, float]]:
        best = (sign * self.weights).topk(min(self.k, len(self.weights)))
        return [(self.names[i], sign * v) for i, v in zip(best.indices.tolist(), best.values.tolist(), strict=True) if v > 0]

    def table(self) -> "pd.DataFrame":
        """One row per name shown, with its direction and rank."""
        import pandas as pd

        rows = [
            {"direction": direction, "rank": rank, "name": name, "weight": weight}
            for direction, some in (("raises", self.raising), ("lowers", self.lowering))
            for rank, (name, weight) in enumerate(some)
        ]
        frame = pd.DataFrame(rows, columns=["direction", "rank", "name", "weight"])
        return frame.assign(target=self.target, what=self.what, candidates=len(self.names), model=self.model)

    def figure(self) -> "go.Figure":
        from circuits.features import figures

        shown = [*self.raising, *reversed(self.lowering)]
        return figures.bars([name for name, _ in shown], [w for _, w in shown], f"{self.target}, {self.what}", len(self.names))

    def to_json(self) -> str:
        plain = {"model": self.model, "target": self.target, "what": self.what, "candidates": len(self.names)}
        return json.dumps(plain | {"raising": self.raising, "lowering": self.lowering})


def connections(model: Model, coders: Sequence[Coder], target: tuple[int, int], k: int = 10, through: Head | None = None) -> Connections:
    """Features of earlier layers by their input-invariant weight on a feature, (layer, feature).

    through  (layer, head): by way of that head at full attention; None: directly through the residual stream
    """
    v, point, name = _target_direction(model, coders, target, through)
    names, found = [], []
    for layer, coder, pulled in _down(model, coders_by_layer(model, coders), v, point):
        if coder is None:
            continue
        names += [f"L{layer} #{i}" for i in range(coder.n_features)]
        found.append(like(coder.W_dec, pulled) @ pulled)
    if not found:
        raise ValueError(f"No transcoder writes before {name}{_via(through)}.")
    return Connections(model.name, name, "features" + _via(through), tuple(names), torch.cat(found), check_count(k, len(names), "k"))


def deembedding(model: Model, coders: Sequence[Coder], target: tuple[int, int], k: int = 10, through: Head | None = None) -> Connections:
    """Tokens by W_E @ (the feature's encoder, pulled back to the embedding): which tokens make it active, directly or through a head.

    The mean over the vocabulary is kept: weights compare tokens with each other.
    """
    v, point, name = _target_direction(model, coders, target, through)
    *_, (_, _, v) = _down(model, {}, v, point)
    ids = torch.arange(model.d_vocab, device=model.device)
    weights = precise(model.anatomy.embed_tokens(ids).detach()) @ v
    return Connections(model.name, name, "tokens" + _via(through), _vocabulary(model), weights, check_count(k, model.d_vocab, "k"))


def logit_effects(model: Model, coders: Sequence[Coder], source: tuple[int, int], k: int = 10) -> Connections:
    """Tokens by W_dec[feature] @ W_U: which logits the feature raises and lowers directly, up to the final norm's scale."""
    layer, feature = source
    coder = _coder(model, coders, layer, feature)
    x = like(coder.W_dec, precise(model.anatomy.token_embed.weight))[feature]
    skipped = 1 if model.anatomy.blocks[layer].wiring == "post-norm" else 0  # norm1 of its own block lies before the MLP
    for norm in norms_after(model.anatomy, layer)[skipped:]:
        x = linear_part(norm, x)
    weights = x @ like(model.anatomy.unembedding(), x)
    name = f"L{layer} #{feature}"
    return Connections(model.name, name, "logits", _vocabulary(model), weights, check_count(k, model.d_vocab, "k"))


def virtual_weights(model: Model, coders: Sequence[Coder], source: int, target: int) -> Float[Tensor, "source target"]:
    """All direct input-invariant weights between the features of two layers: W_dec N W_enc. Units of pre-activation per activation, times
    the norm's scale."""
    by_layer = coders_by_layer(model, coders)
    if source not in by_layer or target not in by_layer or source >= target:
        raise ValueError(f"Layers {source} -> {target}: transcoders of {sorted(by_layer)} are given, and a source lies below its target.")
    v, point = _encoders(model, by_layer[target], target)
    pulled = next(pulled for layer, coder, pulled in _down(model, by_layer, v, point) if coder is not None and layer == source)
    return like(by_layer[source].W_dec, v) @ pulled.T


@dataclass(frozen=True)
class Overlap:
    """How far the weights alone name the features that matter on text: shares of the k strongest that agree."""

    model: str
    target: str
    source: int
    tokens: int
    """Tokens on which the target is active, out of `of`."""
    of: int
    k: tuple[int, ...]
    shares: tuple[float, ...]
    chance: tuple[float, ...]
    """What two random choices of k among the candidates would share."""

    def table(self) -> "pd.DataFrame":
        import pandas as pd

        columns = {"k": self.k, "share": self.shares, "chance": self.chance}
        return pd.DataFrame(columns).assign(target=self.target, source=self.source, tokens=self.tokens, of=self.of, model=self.model)

    def to_json(self) -> str:
        return json.dumps(vars(self))


@torch.no_grad()
def overlap(
    model: Model, prompts: "Prompts | str | Sequence[str]", coders: Sequence[Coder], target: tuple[int, int], source: int,
    k: Sequence[int] = (10, 20, 50),
) -> Overlap:  # fmt: skip
    """The top k features of layer `source` by input-invariant weight on `target`, against the top k by mean direct contribution.

    The mean is over the tokens on which the target is active (ValueError if there is none); ties of zero are left out of both.
    """
    layer, feature = target
    by_weight = virtual_weights(model, coders, source, layer)[:, feature]
    total, tokens, of = torch.zeros_like(by_weight), 0, 0
    for run in local_replacement(model, prompts, coders):
        mine = run.layers[layer].active
        of += run.n_pos
        for pos in mine.pos[mine.feature == feature]:
            whole = decompose(run, feature_readouts(run, layer, pos[None], mine.feature.new_tensor([feature])))
            chosen = [i for i, kind in enumerate(whole.kinds) if kind == "feature" and int(whole.layer[i]) == source]
            total.index_add_(0, whole.index[chosen].to(total.device), whole.values[chosen].to(total))
            tokens += 1
    if not tokens:
        raise ValueError(f"L{layer} #{feature} is active on none of the {of} tokens given.")
    n = len(by_weight)
    sizes = tuple(check_count(size, n, "k") for size in k)
    shares = tuple(_shared(by_weight, total, size) for size in sizes)
    return Overlap(model.name, f"L{layer} #{feature}", source, tokens, of, sizes, shares, tuple(size / n for size in sizes))


def _shared(one: Tensor, other: Tensor, k: int) -> float:
    """Share of the k largest by size that both have."""
    tops = [set(each.abs().topk(k).indices[each.abs().topk(k).values > 0].tolist()) for each in (one, other)]
    return len(tops[0] & tops[1]) / k


def _coder(model: Model, coders: Sequence[Coder], layer: int, feature: int) -> Coder:
    by_layer = coders_by_layer(model, coders)
    if layer not in by_layer:
        raise ValueError(f"Layer {layer} has no transcoder here; there are some for layers {', '.join(map(str, sorted(by_layer)))}.")
    if not 0 <= feature < by_layer[layer].n_features:
        raise ValueError(f"Feature {feature!r}: the transcoder of layer {layer} has features 0-{by_layer[layer].n_features - 1}.")
    return by_layer[layer]


def _encoders(model: Model, coder: Coder, layer: int) -> tuple[Float[Tensor, "feature d_model"], int]:
    """What every feature reads in the stream, and the point where."""
    encoders = like(coder.W_enc, precise(model.anatomy.token_embed.weight)).T
    if str(coder.input_site).endswith("ln2.hook_normalized"):
        encoders = encoders - encoders.mean(-1, keepdim=True)
    return encoders, 2 * layer + (model.anatomy.blocks[layer].wiring != "parallel")


def _target_direction(
    model: Model, coders: Sequence[Coder], target: tuple[int, int], through: Head | None
) -> tuple[Float[Tensor, " d_model"], int, str]:
    """(direction in the stream, point where it is read, name of the target)."""
    layer, feature = target
    encoders, point = _encoders(model, _coder(model, coders, layer, feature), layer)
    v, name = encoders[feature], f"L{layer} #{feature}"
    if through is None:
        return v, point, name
    below, head = through
    check_head(model, below, head)
    if 2 * below + 1 > point:
        raise ValueError(f"Head {head} of layer {below} writes after {name} reads.")
    block = model.anatomy.blocks[below]
    for other in reversed(model.anatomy.blocks[below:]):
        if other.wiring == "post-norm":
            v = _transposed(other.norm2, v) if point >= 2 * other.layer + 2 else v
            v = _transposed(other.norm1, v) if point >= 2 * other.layer + 1 else v
    v = like(block.weight_qkv()[2][head], v) @ (like(block.weight_out()[head], v) @ v)
    return (v if block.wiring == "post-norm" else _transposed(block.norm1, v)), 2 * below, name


def _down(
    model: Model, coders: Mapping[int, Coder], v: Float[Tensor, "*any d_model"], point: int
) -> Iterator[tuple[int, Coder | None, Tensor]]:
    """(layer, coder, the direction where its MLP writes) from a point of the stream down, and last the direction at the embedding."""
    for block in reversed(model.anatomy.blocks):
        post_norm = block.wiring == "post-norm"
        if point >= 2 * block.layer + 2:
            v = _transposed(block.norm2, v) if post_norm else v
            if block.layer in coders:
                yield block.layer, coders[block.layer], v
        if point >= 2 * block.layer + 1 and post_norm:
            v = _transposed(block.norm1, v)
    yield -1, None, v


def _transposed(norm: nn.LayerNorm, v: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any d_model"]:
    """The direction before a norm, without its scale, that reads what v reads after it."""
    weighted = v if norm.weight is None else v * like(norm.weight, v)
    return weighted - weighted.mean(-1, keepdim=True)


def _vocabulary(model: Model) -> tuple[str, ...]:
    known = words(model, torch.arange(model.d_vocab))
    return tuple(known.get(i, str(i)) for i in range(model.d_vocab))


def _via(through: Head | None) -> str:
    return "" if through is None else f" through head {through[0]}.{through[1]}"
