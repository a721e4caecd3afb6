"""Edges of the local replacement model: what each source brings to many targets, through every route at once.

    edge(source -> target) = (what the source writes) . (the target's reading, pulled back to where it is written)

The pull-back goes once through the blocks, from the highest target to the embeddings, for all targets together: by attention with its
frozen pattern (hence all paths through heads of several layers), by frozen norms, by skip terms. For T targets, P positions, a stream of d
and n active features of a layer that takes about 4 T P d^2 + 4 T P^2 d + 2 T n d multiplications and additions a layer, and memory for
4 T P d numbers; targets go in chunks that fit `BUDGET`. It is the transpose of running the linear model T times.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuits.features.replacement import FrozenLayer, LocalReplacement, pull_at
from interp.contributions import unembedding_columns
from interp.engine.anatomy import Anatomy, linear_bias, linear_weight
from interp.residual import like, precise

BUDGET = 512 * 2**20
"""Bytes of directions held at once."""


@dataclass(frozen=True, eq=False)
class Readouts:
    """Linear readings of the stream: value = stream[point, pos] . vector + constant."""

    point: Int[Tensor, " target"]
    pos: Int[Tensor, " target"]
    vectors: Float[Tensor, "target d_model"]
    constants: Float[Tensor, " target"]
    """Of the target alone: the encoder's bias, or the unembedding's and the final norm's."""
    values: Float[Tensor, " target"]
    """What the target is in the run, in units of an activation or in logits."""

    def __len__(self) -> int:
        return len(self.pos)

    def __getitem__(self, chosen: Tensor) -> "Readouts":
        return Readouts(self.point[chosen], self.pos[chosen], self.vectors[chosen], self.constants[chosen], self.values[chosen])

    @staticmethod
    def join(parts: "Sequence[Readouts]") -> "Readouts":
        names = ("point", "pos", "vectors", "constants", "values")
        return Readouts(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def feature_readouts(run: LocalReplacement, layer: int, pos: Int[Tensor, " target"], feature: Int[Tensor, " target"]) -> Readouts:
    """Pre-activations of features, active or not: x . W_enc[:, feature] + b_enc at a position."""
    frozen = run.layers[layer]
    if frozen.coder is None or frozen.x is None:
        raise ValueError(f"Layer {layer} has no transcoder here; there are some for layers {_covered(run)}.")
    pos, feature = pos.to(run.stream.device), feature.to(run.stream.device)
    encoder, b_enc = like(frozen.coder.W_enc, run.stream).T[feature], like(frozen.coder.b_enc, run.stream)[feature]
    values = (frozen.x[pos] * encoder).sum(-1) + b_enc
    return Readouts(torch.full_like(pos, frozen.point), pos, pull_at(frozen.read, encoder, pos), b_enc, values)


def _covered(run: LocalReplacement) -> str:
    return ", ".join(str(layer.layer) for layer in run.layers if layer.coder is not None)


def logit_readouts(
    run: LocalReplacement,
    tokens: Int[Tensor, " target"],
    minus: Int[Tensor, " target"] | None,
    pos: Int[Tensor, " target"],
    centred: bool = False,
) -> Readouts:
    """logit[token], or logit[token] - logit[minus], at positions; centred: minus the mean over the vocabulary."""
    directions, constants = unembedding_columns(run.model.anatomy, tokens)
    if minus is not None:
        less, less_constants = unembedding_columns(run.model.anatomy, minus)
        directions, constants = directions - less, constants - less_constants
    if centred:
        mean, mean_constant = _mean_logit(run.model.anatomy)
        directions, constants = directions - mean.to(directions), constants - mean_constant.to(constants)
    return direction_readouts(run, directions.to(run.stream), constants.to(run.stream), pos)


def _mean_logit(anatomy: Anatomy) -> tuple[Float[Tensor, " d_model"], Float[Tensor, ""]]:
    """The mean over the vocabulary of W_U's columns (with OPT's output projection) and of b_U."""
    weight, bias = precise(linear_weight(anatomy.unembed).detach()).mean(1), precise(linear_bias(anatomy.unembed).detach()).mean()
    project = anatomy.project_out
    if project is None:
        return weight, bias
    return like(linear_weight(project), weight) @ weight, bias + like(linear_bias(project), weight) @ weight


def direction_readouts(
    run: LocalReplacement,
    directions: Float[Tensor, "target d_model"],
    constants: Float[Tensor, " target"],
    pos: Int[Tensor, " target"],
) -> Readouts:
    """Any linear functions of what the unembedding reads (after the final norm)."""
    pos = pos.to(run.stream.device)
    stream, norm = run.stream[pos], run.final
    if norm is None:
        vectors, values = directions, (stream * directions).sum(-1) + constants
    else:
        vectors = pull_at(norm, directions, pos)
        constants = constants + directions @ norm.bias
        values = (stream * vectors).sum(-1) + constants
    return Readouts(torch.full_like(pos, 2 * len(run.layers)), pos, vectors, constants, values)


@torch.no_grad()
def edges(run: LocalReplacement, readouts: Readouts) -> Float[Tensor, "target source"]:
    """What every source of `run.blocks` brings to each target. A row and the target's constant sum to its value."""
    out = run.stream.new_zeros(len(readouts), run.n_sources)
    order = readouts.point.argsort(descending=True, stable=True)
    size = max(1, BUDGET // (4 * run.stream.numel() * run.stream.element_size()))
    for chosen in order.split(size):
        for key, block in _pull_back(run, readouts[chosen]).items():
            out[chosen[: len(block)], run.blocks[key]] = block
    return out


def _pull_back(run: LocalReplacement, readouts: Readouts) -> dict[tuple[str, int], Tensor]:
    """(kind, layer) -> [target, ...] for the targets that have joined by then; `readouts` begin with the highest."""
    g = run.stream.new_zeros(0, run.n_pos, run.stream.shape[1])
    found: dict[tuple[str, int], Tensor] = {}
    for layer in reversed(run.layers):
        g = _joined(g, readouts, 2 * layer.layer + 2)
        if layer.norm2 is not None:
            found["norm2_bias", layer.layer] = g @ layer.norm2.bias
            g = layer.norm2.pull(g)
        skipped = _mlp(layer, g, found)
        if layer.wiring != "parallel":
            g = _joined(g if skipped is None else g + skipped, readouts, 2 * layer.layer + 1)
        if layer.wiring == "post-norm":
            found["norm1_bias", layer.layer] = g @ layer.norm1.bias
            g = layer.norm1.pull(g)
        found["attn_bias", layer.layer] = (g * layer.attn_bias).sum(-1)
        g = g + layer.pull_attention(g)
        if layer.wiring == "parallel" and skipped is not None:
            g = g + skipped
    g = _joined(g, readouts, 0)
    return found | {(kind, -1): (g * x).sum(-1) for kind, x in run.embeds.items()}


def _joined(g: Tensor, readouts: Readouts, point: int) -> Tensor:
    """The directions so far, and below them those of the targets that read at this point."""
    new = readouts[(readouts.point == point).nonzero().flatten()]
    if not len(new):
        return g
    own = g.new_zeros(len(new), *g.shape[1:])
    own[torch.arange(len(new)), new.pos] = new.vectors
    return torch.cat([g, own])


def _mlp(layer: FrozenLayer, g: Float[Tensor, "target pos d_model"], found: dict[tuple[str, int], Tensor]) -> Tensor | None:
    """Notes what the MLP's parts bring; the directions that its skip term reads, or None."""
    name, active = layer.layer, layer.active
    found["mlp" if layer.coder is None else "error", name] = (g * layer.constant).sum(-1)
    if layer.dec_bias is None:
        return None
    found["dec_bias", name] = g @ layer.dec_bias
    written = active.decoder * active.activation[:, None]
    counts = torch.bincount(active.pos, minlength=g.shape[1]).tolist()
    each = [g[:, pos] @ rows.T for pos, rows in enumerate(written.split(counts))]
    found["feature", name] = torch.cat(each, dim=1)
    return None if layer.W_skip is None else layer.pull_read(g @ layer.W_skip)
