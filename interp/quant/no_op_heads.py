"""Which heads do nothing, where do they park their attention, and does it matter? One row per head.

    report = quant.head_report(model, prompts)       report.table(), report["sink_mass"]: [layer, head]

A head that has nothing to do attends to a token that carries nothing (BOS, a delimiter) and writes almost nothing. Neither sign alone
proves it: attention to BOS may carry a bias, and a small output may matter. So the no-op score joins both, and what the loss does without
the head stands beside it, always.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from interp.edits import Edit
from interp.metrics import loss
from interp.models import Capture, Model
from interp.progress import Report
from interp.prompts import Prompts
from interp.quant.sinks import sink_mass
from interp.residual import like, precise
from interp.selection import real, row_chunks
from interp.sweeps import sweep

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

BUDGET = 256 * 2**20  # bytes of activations held at once
KINDS = ("attn.hook_attn_scores", "attn.hook_pattern", "attn.hook_v", "attn.hook_z", "hook_resid_pre")

COLUMNS: Mapping[str, tuple[str, str]] = {
    "no_op": (
        "fraction",
        "no-op score: share of tokens whose output is below tau of the stream while over eps of the attention is on sinks",
    ),
    "loss_zero": ("nats/token", "loss with the head's output set to zero, minus the loss"),
    "loss_mean": ("nats/token", "loss with the head's output set to its mean over all real positions, minus the loss"),
    "loss_bos": ("nats/token", "loss with all of the head's attention sent to position 0, minus the loss"),
    "sink_rate": ("fraction", "prompts in which position 0 gets more than eps of the head's attention, averaged over queries"),
    "sink_mass": ("fraction", "attention to position 0, averaged over queries (Gu et al. 2025)"),
    "delimiter_mass": ("fraction", "attention to delimiters (and position 0), averaged over queries from position 1 on"),
    "value_sink_share": ("fraction", "position 0's share of the sum of attention x |value|"),
    "output_norm": ("activation", "|z W_O|, what the head writes, averaged over tokens"),
    "output_to_layer": ("ratio", "output_norm over the mean of the layer's heads (AHON, Sandoval-Segura et al. 2025)"),
    "output_to_stream": ("ratio", "|z W_O| over |residual stream that enters the block|, averaged over tokens"),
    "row_entropy": ("fraction", "entropy of a query's attention over the log of the keys it sees, averaged"),
    "score_range": ("logits", "largest minus smallest attention score of a query before the softmax, averaged"),
}
"""Column -> unit, meaning. Sinks are means over prompts, with every real query; the loss columns over tokens; all others over real
queries from position 1 on, each query counting the same."""


@dataclass(frozen=True, eq=False)
class HeadReport:
    """See COLUMNS for units and meanings."""

    model: str
    values: dict[str, Float[Tensor, "layer head"]]
    loss: float
    """Of the unedited model on these prompts, nats per token."""
    by_family: dict[str, Float[Tensor, "layer head"]]
    """The no-op score within each family of prompts: a head may be dormant on one kind of text alone."""
    n_prompts: int
    longest: int
    """Tokens of the longest prompt: sink rates fall with it."""
    eps: float
    tau: float

    def __repr__(self) -> str:
        n_layers, n_heads = next(iter(self.values.values())).shape
        return f"HeadReport({self.model}, {n_layers} x {n_heads} heads on {self.n_prompts} prompts; columns {', '.join(self.values)})"

    def __getitem__(self, column: str) -> Float[Tensor, "layer head"]:
        if column not in self.values:
            raise KeyError(f"No column {column!r}; there are {', '.join(self.values)}.")
        return self.values[column]

    def table(self) -> "pd.DataFrame":
        """One row per head."""
        import pandas as pd

        n_layers, n_heads = next(iter(self.values.values())).shape
        frame = pd.DataFrame({"layer": [i for i in range(n_layers) for _ in range(n_heads)], "head": list(range(n_heads)) * n_layers})
        for name, grid in self.values.items():
            frame[name] = grid.flatten().tolist()
        for family, grid in self.by_family.items():
            frame[f"no_op[{family}]"] = grid.flatten().tolist()
        return frame.assign(model=self.model, longest=self.longest, eps=self.eps, tau=self.tau)

    def figure(self, column: str = "no_op") -> "go.Figure":
        """The no-op score (or another column) against the loss without the head: no-op heads lie at the lower right."""
        import plotly.graph_objects as go

        x, y = self[column].flatten().tolist(), self["loss_zero"].flatten().tolist()
        n_heads = self[column].shape[1]
        names = [f"{i // n_heads}.{i % n_heads}" for i in range(len(x))]
        figure = go.Figure(go.Scatter(x=x, y=y, text=names, mode="markers+text", textposition="top center"))
        return figure.update_layout(
            title=f"{self.model}: do heads with a high {column} matter?", template="plotly_white",
            xaxis_title=f"{column} ({COLUMNS[column][0]})", yaxis_title="loss without the head - loss (nats/token)",
        )  # fmt: skip

    def to_json(self) -> str:
        """NaN is written as null."""
        plain = {name: [[None if v != v else v for v in row] for row in grid.tolist()] for name, grid in self.values.items()}
        families = {name: grid.tolist() for name, grid in self.by_family.items()}
        return json.dumps(
            {
                "model": self.model, "loss": self.loss, "n_prompts": self.n_prompts, "longest": self.longest, "eps": self.eps,
                "tau": self.tau, "units": {name: COLUMNS[name][0] for name in self.values}, "values": plain, "by_family": families,
            }
        )  # fmt: skip


def head_report(
    model: Model,
    prompts: "Prompts | str | Sequence[str]",
    *,
    eps: float = 0.3,
    tau: float = 0.05,
    delimiters: Sequence[int] = (),
    families: Sequence[str] | None = None,
    progress: Report | bool | None = None,
) -> HeadReport:
    """Every head's COLUMNS on these prompts.

    eps         share of the attention above which a token (or a prompt, for the rate) counts as sunk
    tau         a head's output below this share of the stream's norm counts as nothing
    delimiters  token ids that carry nothing, such as those of "." and "\\n"; position 0 always counts
    families    what kind of text each prompt is, for `by_family`
    """
    prompts = model.check_prompts(prompts)
    if int(prompts.lengths.min()) < 2:
        raise ValueError(f"Prompt {int(prompts.lengths.argmin())} has one token: attention and loss need at least two.")
    if families is not None and len(families) != len(prompts):
        raise ValueError(f"families names one kind of text per prompt: there are {len(prompts)} prompts; given {len(families)}.")
    with torch.no_grad():
        sums = _Sums(model, prompts, eps, tau, torch.tensor(list(delimiters), dtype=torch.long, device=model.device), families)
        for rows in row_chunks(prompts, _row_bytes(model, prompts), BUDGET):
            part = prompts[rows]
            capture = model.capture(part, [f"blocks.*.{kind}" for kind in KINDS])
            for layer in range(model.n_layers):
                sums.add(part, rows, capture, layer)
    values = sums.means()
    ablated, clean = _ablations(model, prompts, progress)
    values = {name: (ablated | values)[name] for name in COLUMNS}
    return HeadReport(model.name, values, clean, sums.by_family(), len(prompts), prompts.width, eps, tau)


class _Sums:
    """Sums over queries, [layer, head], and how many queries there were."""

    def __init__(self, model: Model, prompts: Prompts, eps: float, tau: float, delimiters: Tensor, families: Sequence[str] | None):
        self.model, self.eps, self.tau, self.delimiters = model, eps, tau, delimiters
        self.families = families
        self.sums: dict[str, Tensor] = {}
        self.queries = int((prompts.lengths - 1).sum())
        self.n_prompts = len(prompts)
        self.family_queries: dict[str, int] = {}
        for family, length in zip(families or (), prompts.lengths.tolist(), strict=False):
            self.family_queries[family] = self.family_queries.get(family, 0) + length - 1

    def add(self, part: Prompts, rows: Tensor, capture: Capture, layer: int) -> None:
        scores, pattern, v, z, stream = (precise(capture[f"blocks.{layer}.{kind}"]) for kind in KINDS)
        for name, per_head in self._by_row(part, pattern).items():
            self._count(name, layer, per_head)
        row, query = real(part).nonzero(as_tuple=True)
        row, query = row[query > 0], query[query > 0]
        found = _by_query(self.model, layer, part, row, query, (scores, pattern, v, z, stream), self.delimiters)
        sunk = found["delimiter_mass"] > self.eps
        found["no_op"] = (sunk & (found["output_to_stream"] < self.tau)).to(pattern)
        for name, per_query in found.items():
            self._count(name, layer, per_query.sum(0))
        for family in self.family_queries:
            assert self.families is not None
            mine = torch.tensor([self.families[int(i)] == family for i in rows], device=row.device)[row]
            self._count(f"family {family}", layer, found["no_op"][mine].sum(0))

    def _by_row(self, part: Prompts, pattern: Tensor) -> dict[str, Tensor]:
        mass = sink_mass(pattern, 0, part.lengths)
        return {"sink_mass": mass.sum(0), "sink_rate": (mass > self.eps).to(mass).sum(0)}

    def _count(self, name: str, layer: int, value: Tensor) -> None:
        shape = (self.model.n_layers, self.model.n_heads)
        self.sums.setdefault(name, torch.zeros(shape, dtype=torch.float64, device=value.device))[layer] += value

    def means(self) -> dict[str, Tensor]:
        per_prompt = ("sink_mass", "sink_rate")
        means = {
            name: total / (self.n_prompts if name in per_prompt else self.queries)
            for name, total in self.sums.items()
            if not name.startswith("family ")
        }
        means["output_to_layer"] = means["output_norm"] / means["output_norm"].mean(1, keepdim=True)
        return means

    def by_family(self) -> dict[str, Tensor]:
        return {family: self.sums[f"family {family}"] / n for family, n in self.family_queries.items() if n}


def _by_query(
    model: Model, layer: int, part: Prompts, row: Tensor, query: Tensor, tensors: tuple[Tensor, ...], delimiters: Tensor
) -> dict[str, Float[Tensor, "query head"]]:
    """The columns that are means over queries, for each query."""
    scores, pattern, v, z, stream = tensors
    scores, pattern = scores[row, :, query], pattern[row, :, query]  # [query, head, key]
    seen = torch.arange(part.width, device=row.device) <= query[:, None]
    parked = torch.isin(part.ids, delimiters)[row] & seen
    parked[:, 0] = True
    weighted = pattern * v.norm(dim=-1).transpose(1, 2)[row]  # attention x |value|
    out = like(model.anatomy.blocks[layer].weight_out(), z)
    z = z[row, query]
    norm = torch.einsum("qhd,hde,qhe->qh", z, out @ out.mT, z).clamp(min=0).sqrt()
    hidden = ~seen[:, None]
    return {
        "delimiter_mass": (pattern * parked[:, None]).sum(-1),
        "value_sink_share": weighted[..., 0] / weighted.sum(-1).clamp(min=torch.finfo(weighted.dtype).tiny),
        "output_norm": norm,
        "output_to_stream": norm / stream[row, query].norm(dim=-1, keepdim=True),
        "row_entropy": torch.special.entr(pattern).sum(-1) / (query[:, None] + 1).to(pattern).log(),
        "score_range": scores.masked_fill(hidden, -torch.inf).amax(-1) - scores.masked_fill(hidden, torch.inf).amin(-1),
    }


def _ablations(model: Model, prompts: Prompts, progress: Report | bool | None) -> tuple[dict[str, Tensor], float]:
    """Loss columns, from one sweep of three edits of every head."""
    bos = torch.zeros(prompts.width)
    bos[0] = 1.0
    plans = [plan for layer in range(model.n_layers) for head in range(model.n_heads) for plan in _without(layer, head, bos)]
    result = sweep(model, prompts, plans, loss(), progress=progress)
    weight = (prompts.lengths - 1).double() / (prompts.lengths - 1).sum()  # every token counts the same
    effects = (result.effects.double() * weight.to(result.effects.device)).sum(1).unflatten(0, (model.n_layers, model.n_heads, 3))
    names = ("loss_zero", "loss_mean", "loss_bos")
    return {name: effects[..., i] for i, name in enumerate(names)}, float((result.clean.double() * weight.to(result.clean.device)).sum())


def _without(layer: int, head: int, bos: Tensor) -> Iterator[tuple[Edit, ...]]:
    yield (Edit(f"blocks.{layer}.attn.hook_z", "zero", head=head),)
    yield (Edit(f"blocks.{layer}.attn.hook_z", "mean", head=head),)
    yield (Edit(f"blocks.{layer}.attn.hook_pattern", "set", bos, head=head),)


def _row_bytes(model: Model, prompts: Prompts) -> int:
    per_layer = 4 * model.n_heads * prompts.width**2 + 6 * prompts.width * model.d_model
    return model.n_layers * per_layer * model.dtype.itemsize
