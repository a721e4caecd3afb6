"""Which components argue for a token: its logit as an exact sum over what every component wrote (direct logit attribution).

    logit[t] = sum over parts p of  <(p - mean(p)) / scale * weight, W_U[:, t]>  +  <bias, W_U[:, t]>  +  b_U[t]

scale is the final LayerNorm's standard deviation in this run, held fixed (frozen), and weight and bias are its own. In a post-norm model
(OPT-350m, no final norm) each part passes in the same way through every later block norm. Elhage et al. 2021; the head attribution of
Yu et al. 2023 is `.heads` with tokens=(in-context, memorised). Only direct effects are counted: what a component does through later
components is theirs here; `interp.sweep_heads` measures total effects.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.edits import Edit, Plan
from interp.engine.anatomy import Anatomy, linear_bias, linear_weight
from interp.models import Model
from interp.prompts import Prompts
from interp.residual import FrozenNorm, Part, Reader, block_norm, frozen_norm, like, picker, precise
from interp.selection import Positions, Tokens, check_head, plan_before_final_norm, positions, row_chunks, token_ids, words

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

BUDGET = 512 * 2**20  # bytes of activations held at once; more prompts run in chunks


@dataclass(frozen=True, eq=False)
class LogitAttribution:
    """A logit (or a difference of two) as a sum of parts, in logits. values.sum(0) == total; positive: for the token."""

    model: str
    components: tuple[Part, ...]
    values: Float[Tensor, "part row"]
    total: Float[Tensor, " row"]
    """What the model itself answers: logit[correct], minus logit[incorrect] where one was given."""
    correct: Int[Tensor, " row"]
    incorrect: Int[Tensor, " row"] | None
    pos: Int[Tensor, " row"]

    @property
    def parts(self) -> tuple[str, ...]:
        """Names, in causal order: "embed", "L0.H0", "L0.attn_bias", "L0.mlp" ... "final_norm_bias", "unembed_bias", "residual".

        "residual" is what rounding (or an edit) left over: the logit minus all other parts.
        """
        return tuple(map(str, self.components))

    @property
    def heads(self) -> Float[Tensor, "row layer head"]:
        """What each head contributes, in logits."""
        return self._by_layer("head")

    @property
    def mlps(self) -> Float[Tensor, "row layer"]:
        """What each MLP contributes with its bias, in logits."""
        layers = [c.layer for c in self.components if c.kind == "head" and c.index == 0]
        chosen = [
            [i for i, c in enumerate(self.components) if c.kind in ("mlp", "neuron", "mlp_bias") and c.layer == layer] for layer in layers
        ]
        return torch.stack([self.values[index].sum(0) for index in chosen], dim=1)

    @property
    def neurons(self) -> Float[Tensor, "row layer neuron"]:
        """What each neuron contributes, in logits; asked for with neurons=True."""
        if not any(c.kind == "neuron" for c in self.components):
            raise ValueError("The MLPs of this attribution were not split: ask with neurons=True.")
        return self._by_layer("neuron")

    def _by_layer(self, kind: str) -> Float[Tensor, "row layer index"]:
        chosen = [i for i, c in enumerate(self.components) if c.kind == kind]
        return self.values[chosen].T.unflatten(1, (-1, 1 + max(self.components[i].index or 0 for i in chosen)))

    @property
    def grid(self) -> Float[Tensor, "layer head"]:
        """Mean over prompts of `heads`."""
        return self.heads.mean(0)

    @property
    def residual(self) -> Float[Tensor, " row"]:
        return self.values[-1]

    def __getitem__(self, part: str) -> Float[Tensor, " row"]:
        """One part by its name."""
        names = self.parts
        if part not in names:
            raise KeyError(f"No part {part!r}; there are {', '.join(names[:6])} ... {', '.join(names[-3:])}.")
        return self.values[names.index(part)]

    def top(self, n: int = 10) -> list[tuple[str, float]]:
        """The parts with the largest absolute mean over prompts, and that mean."""
        means = self.values.mean(1)
        return [(str(self.components[i]), float(means[i])) for i in means.abs().argsort(descending=True)[:n].tolist()]

    def table(self) -> "pd.DataFrame":
        """One row per part and prompt."""
        import pandas as pd

        n = len(self.total)
        columns: dict[str, Any] = {
            "part": [name for name in self.parts for _ in range(n)],
            "kind": [c.kind for c in self.components for _ in range(n)],
            "layer": [c.layer for c in self.components for _ in range(n)],
            "index": [c.index for c in self.components for _ in range(n)],
            "prompt": list(range(n)) * len(self.components),
            "pos": self.pos.tolist() * len(self.components),
            "correct": self.correct.tolist() * len(self.components),
            "incorrect": (self.incorrect.tolist() if self.incorrect is not None else [None] * n) * len(self.components),
            "contribution": self.values.cpu().flatten().tolist(),
        }
        frame = pd.DataFrame(columns).astype({"layer": "Int64", "index": "Int64", "incorrect": "Int64"})
        return frame.assign(unit="logits", model=self.model)

    def figure(self, n: int = 30) -> "go.Figure":
        """Bars of the n largest parts (mean over prompts), and what all the others sum to."""
        from interp import lens_figures

        return lens_figures.attribution(self, n)

    def head_figure(self) -> "go.Figure":
        """The heads as a layer x head map, mean over prompts."""
        from interp import lens_figures

        return lens_figures.attribution_grid(self)

    def to_json(self) -> str:
        plain = {"model": self.model, "unit": "logits", "parts": self.parts}
        plain |= {name: getattr(self, name).tolist() for name in ("values", "total", "correct", "pos")}
        return json.dumps(plain | {"incorrect": None if self.incorrect is None else self.incorrect.tolist()})


def direct_logit_attribution(
    model: Model,
    prompts: "Prompts | str | Sequence[str]",
    tokens: Tokens | tuple[Tokens, Tokens],
    pos: Positions = -1,
    neurons: bool = False,
    edits: Edit | Sequence[Edit] = (),
) -> LogitAttribution:
    """The logit at `pos` of one token per prompt, or the difference of two, split exactly into parts.

    tokens   token ids: one per prompt (or one for all), or a tuple (correct, incorrect) of such
    pos      one position, or one per prompt; negative ones count from the prompt's own end
    neurons  splits every MLP into its neurons (post * W_out) and its bias
    edits    attributes the edited run's logit. What edits of the stream itself (or of hook_result, hook_attn_out) change is in "residual"

        interp.direct_logit_attribution(model, prompts, (task.correct, task.incorrect)).heads     # [row, layer, head]
    """
    prompts = model.check_prompts(prompts)
    correct, incorrect = answer_ids(model, tokens, len(prompts))
    where, plan = positions(prompts, pos), plan_before_final_norm(edits)
    width = model.n_layers * prompts.width * (model.d_model + (model.d_mlp if neurons else model.d_model))
    components: list[Part] = []
    values, totals = [], []
    with torch.no_grad():
        for rows in row_chunks(prompts, width * model.dtype.itemsize, BUDGET, plan):
            rows = rows.to(where.device)
            columns = _columns(model.anatomy, correct[rows], None if incorrect is None else incorrect[rows])
            components, value, total = _attribute(model, prompts[rows.cpu()], where[rows], neurons, plan, *columns)
            values.append(value)
            totals.append(total)
    return LogitAttribution(model.name, tuple(components), torch.cat(values, 1), torch.cat(totals), correct, incorrect, where)


def _attribute(
    model: Model, prompts: Prompts, where: Tensor, neurons: bool, plan: Plan, direction: Tensor, unembed_bias: Tensor
) -> tuple[list[Part], Float[Tensor, "part row"], Float[Tensor, " row"]]:
    """The parts of one chunk: the direction is pulled back from the unembedding, and every write is projected on it."""
    reader = Reader(model, prompts, where, model.n_layers, neurons, plan)
    steps = [*reader.steps(), *_final_norm(model.anatomy, reader.stream)]
    direction, unembed_bias = direction.to(reader.stream), unembed_bias.to(reader.stream)
    total = (_normed(model.anatomy, reader.stream) * direction).sum(-1) + unembed_bias
    components: list[Part] = [Part("unembed_bias")]
    values = [unembed_bias[None]]
    for step in reversed(steps):
        if isinstance(step, FrozenNorm):
            components.insert(0, step.part)
            values.insert(0, (direction @ step.bias)[None])
            direction = step.pull(direction)
        else:
            components[:0] = step.parts
            values.insert(0, step.along(direction))
    summed = torch.cat(values)
    return [*components, Part("residual")], torch.cat([summed, (total - summed.sum(0))[None]]), total


def answer_ids(model: Model, tokens: Tokens | tuple[Tokens, Tokens], n: int) -> tuple[Tensor, Tensor | None]:
    """(correct, incorrect) ids [row]; incorrect is None where one token per prompt was given."""
    if not isinstance(tokens, tuple):
        return token_ids(model, tokens, n, "tokens"), None
    if len(tokens) != 2:
        raise ValueError(
            f"tokens is one id per prompt, or a tuple (correct, incorrect); given a tuple of {len(tokens)}. Give ids as a list."
        )
    return token_ids(model, tokens[0], n, "correct"), token_ids(model, tokens[1], n, "incorrect")


def _columns(anatomy: Anatomy, correct: Tensor, incorrect: Tensor | None) -> tuple[Float[Tensor, "row d_model"], Float[Tensor, " row"]]:
    """W_U[:, correct] - W_U[:, incorrect] and b_U[correct] - b_U[incorrect], in float32 at least."""
    direction, bias = unembedding_columns(anatomy, correct)
    if incorrect is None:
        return direction, bias
    other, other_bias = unembedding_columns(anatomy, incorrect)
    return direction - other, bias - other_bias


def unembedding_columns(anatomy: Anatomy, ids: Int[Tensor, " row"]) -> tuple[Float[Tensor, "row d_model"], Float[Tensor, " row"]]:
    """W_U[:, ids] as rows, with OPT's output projection multiplied in, and b_U[ids], in float32 at least."""
    weight = linear_weight(anatomy.unembed)
    dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    columns = weight.detach()[:, ids.to(weight.device)].to(dtype)
    bias = linear_bias(anatomy.unembed).detach()[ids.to(weight.device)].to(dtype)
    if anatomy.project_out is None:
        return columns.T, bias
    project = linear_weight(anatomy.project_out).detach().to(columns)
    return (project @ columns).T, bias + like(linear_bias(anatomy.project_out), columns) @ columns


def _normed(anatomy: Anatomy, stream: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_model"]:
    """What the model's own final norm makes of the stream, so that the total owes nothing to the decomposition."""
    norm = anatomy.final_norm
    if norm is None:
        return stream
    given = stream if norm.weight is None else stream.to(norm.weight)
    return precise(norm(given)).to(stream)


def _final_norm(anatomy: Anatomy, stream: Float[Tensor, "row d_model"]) -> list[FrozenNorm]:
    return [] if anatomy.final_norm is None else [frozen_norm(anatomy.final_norm, stream, Part("final_norm_bias"))]


@dataclass(frozen=True, eq=False)
class SourceAttribution:
    """One head's direct contribution split over the tokens that it attends to, in logits; values.sum(1) is its whole contribution."""

    model: str
    layer: int
    head: int
    values: Float[Tensor, "row source"]
    """pattern * v @ W_O through the frozen norms. Exactly 0 at sources after the position and on padding."""
    pattern: Float[Tensor, "row source"]
    """Attention from the position to each source (fraction 0-1)."""
    ids: Int[Tensor, "row source"]
    pos: Int[Tensor, " row"]
    words: dict[int, str]

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(f"L{self.layer}.H{self.head} from {k}" for k in range(self.values.shape[1]))

    @property
    def total(self) -> Float[Tensor, " row"]:
        return self.values.sum(1)

    def table(self) -> "pd.DataFrame":
        """One row per prompt and source up to the position."""
        import pandas as pd

        rows = [
            {"prompt": row, "pos": pos, "source": k, "token_id": int(self.ids[row, k]), "token": self.words.get(int(self.ids[row, k])),
             "pattern": float(self.pattern[row, k]), "contribution": float(self.values[row, k])}
            for row, pos in enumerate(self.pos.tolist()) for k in range(pos + 1)
        ]  # fmt: skip
        return pd.DataFrame(rows).assign(layer=self.layer, head=self.head, unit="logits", model=self.model)

    def figure(self, row: int = 0) -> "go.Figure":
        """Bars over the sources of one prompt."""
        from interp import lens_figures

        return lens_figures.sources(self, row)

    def to_json(self) -> str:
        plain = {"model": self.model, "layer": self.layer, "head": self.head, "unit": "logits", "words": self.words}
        return json.dumps(plain | {name: getattr(self, name).tolist() for name in ("values", "pattern", "ids", "pos")})


def source_attribution(
    model: Model,
    prompts: "Prompts | str | Sequence[str]",
    layer: int,
    head: int,
    tokens: Tokens | tuple[Tokens, Tokens],
    pos: Positions = -1,
    edits: Edit | Sequence[Edit] = (),
) -> SourceAttribution:
    """How much of a head's direct contribution at `pos` comes from each token it attends to: pattern[pos, k] * v[k] @ W_O (times its gate).

    tokens, pos and edits as in `direct_logit_attribution`; the values of a prompt sum to that head's part there.
    """
    prompts = model.check_prompts(prompts)
    check_head(model, layer, head)
    correct, incorrect = answer_ids(model, tokens, len(prompts))
    where = positions(prompts, pos)
    name = f"blocks.{layer}.attn."
    with torch.no_grad():
        gates = [name + "hook_gate"] if model.attention.is_gate else []
        capture = model.capture(
            prompts, [name + "hook_pattern", name + "hook_v", *gates, *stream_sites(model, layer)], plan_before_final_norm(edits)
        )
        at = picker(capture, prompts, where)
        norms = frozen_after(model, layer, at)
        direction = _columns(model.anatomy, correct, incorrect)[0].to(where.device)
        for norm in reversed(norms):
            direction = norm.pull(direction)
        rows = torch.arange(len(prompts), device=where.device)
        pattern = capture[name + "hook_pattern"][rows, head, where].to(direction)  # [row, source]
        v = capture[name + "hook_v"][:, :, head].to(direction)
        read = direction @ like(model.anatomy.blocks[layer].weight_out()[head], direction).T  # [row, d_head]
        values = pattern * torch.einsum("rkd,rd->rk", v, read)
        for gate in gates:
            values = values * capture[gate][rows, where, head].to(values)
    seen = torch.arange(prompts.width, device=where.device) <= where[:, None]
    return SourceAttribution(
        model.name, layer, head, values.where(seen, 0), pattern.where(seen, 0), prompts.ids, where, words(model, prompts.ids)
    )


def stream_sites(model: Model, layer: int) -> list[str]:
    """What must be read to freeze the norms after a layer's attention."""
    kinds = ("hook_resid_pre", "hook_attn_out", "hook_resid_mid", "hook_mlp_out")
    inside = [f"blocks.{b.layer}.{kind}" for b in model.anatomy.blocks[layer:] if b.wiring == "post-norm" for kind in kinds]
    return [*inside, f"blocks.{model.n_layers - 1}.hook_resid_post"]


def frozen_after(model: Model, layer: int, at: Callable[[str], Tensor]) -> list[FrozenNorm]:
    """The norms from a layer's attention output to the unembedding, in order, frozen at their scales in the run that `at` reads."""
    post = [block for block in model.anatomy.blocks[layer:] if block.wiring == "post-norm"]
    inside = [norm for block in post for norm in (block_norm(block, 1, at), block_norm(block, 2, at))]
    return [*inside, *_final_norm(model.anatomy, at(f"blocks.{model.n_layers - 1}.hook_resid_post"))]
