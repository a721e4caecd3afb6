"""Does pruning heads that do nothing cost nothing? Scores of heads and MLPs, and the loss as the lowest ones are removed.

    found = quant.prune(model, prompts)       found.table(): loss per score and number of heads;  found.free("no_op");  found.correlations

    magnitude   sum |W_ij| of the matrix that reads the component's output (a head's W_O, an MLP's second matrix)
    wanda       sum |W_ij| ||x_i||_2, x_i its input over all tokens (Sun et al. 2024, arXiv 2306.11695), summed over the component
    norm        mean norm of what the head writes over that of its layer's heads (AHON, Sandoval-Segura et al. 2025, arXiv 2504.03889)
    no_op       1 - the no-op score (quant.head_report); among equal ones the share of the stream that the head writes decides
    ablation    loss without the component, minus the loss: exact for one, and still a guess for several together

The lowest go first, by every score. Random orders are the control.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from interp.edits import Edit
from interp.engine.anatomy import linear_weight
from interp.metrics import loss
from interp.models import Model
from interp.progress import Report
from interp.prompts import Prompts
from interp.quant.no_op_heads import HeadReport, head_report
from interp.residual import like, precise
from interp.selection import real, row_chunks
from interp.sweeps import sweep

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

SCORES = ("magnitude", "wanda", "norm", "no_op", "ablation")
MLP_SCORES = ("magnitude", "wanda", "ablation")
BUDGET = 256 * 2**20  # bytes of activations held at once


@dataclass(frozen=True, eq=False)
class Pruning:
    """Loss in nats per token, every token counting the same."""

    model: str
    heads: Mapping[str, Float[Tensor, "layer head"]]
    """Score -> every head's; low is pruned first."""
    mlps: Mapping[str, Float[Tensor, " layer"]]
    loss: float
    """Of the whole model on the prompts that the curves are measured on."""
    counts: tuple[int, ...]
    """How many heads are removed."""
    curves: Mapping[str, Float[Tensor, " count"]]
    """Score -> loss with so many heads set to zero, minus the loss; "random": mean over random orders."""
    spread: Float[Tensor, " count"]
    """Standard deviation over the random orders."""
    orders: int
    measured_on: str

    @property
    def correlations(self) -> dict[str, float]:
        """Spearman's, over heads, of each score with the exact ablation effect."""
        from scipy.stats import spearmanr

        exact = self.heads["ablation"].flatten().tolist()
        return {name: float(spearmanr(grid.flatten().tolist(), exact)[0]) for name, grid in self.heads.items() if name != "ablation"}  # type: ignore[arg-type]

    def free(self, score: str, tolerance: float = 0.01) -> int:
        """The most heads of `counts` that can go in this order while the loss never rises by more than `tolerance`."""
        if score not in self.curves:
            raise KeyError(f"No score {score!r}; there are {', '.join(self.curves)}.")
        fine = 0
        for n, effect in zip(self.counts, self.curves[score].tolist(), strict=True):
            if effect > tolerance:
                break
            fine = n
        return fine

    def table(self) -> "pd.DataFrame":
        """One row per score and number of removed heads."""
        import pandas as pd

        rows = [
            {"score": name, "heads_removed": n, "effect": effect, "loss": self.loss + effect}
            for name, curve in self.curves.items() for n, effect in zip(self.counts, curve.tolist(), strict=True)
        ]  # fmt: skip
        return pd.DataFrame(rows).assign(unit="nats/token", measured_on=self.measured_on, model=self.model)

    def scores_table(self) -> "pd.DataFrame":
        """One row per head and per MLP."""
        import pandas as pd

        layers, heads = self.heads["ablation"].shape
        rows = [
            {"component": f"L{i}.H{h}", "layer": i, "head": h} | {name: float(grid[i, h]) for name, grid in self.heads.items()}
            for i in range(layers) for h in range(heads)
        ]  # fmt: skip
        rows += [{"component": f"L{i}.MLP", "layer": i} | {name: float(grid[i]) for name, grid in self.mlps.items()} for i in range(layers)]
        return pd.DataFrame(rows).assign(model=self.model)

    def figure(self) -> "go.Figure":
        """Loss against the number of removed heads, a line per score."""
        import plotly.graph_objects as go

        figure = go.Figure()
        for name, curve in self.curves.items():
            bars = {"type": "data", "array": self.spread.tolist()} if name == "random" else None
            figure.add_scatter(x=list(self.counts), y=curve.tolist(), name=name, mode="lines+markers", error_y=bars)
        return figure.update_layout(
            title=f"{self.model}: what do the heads that a score calls idle cost?", template="plotly_white",
            xaxis_title="heads set to zero, lowest score first", yaxis_title="loss - loss of the whole model (nats/token)",
        )  # fmt: skip

    def to_json(self) -> str:
        plain = {name: getattr(self, name) for name in ("model", "loss", "counts", "orders", "measured_on", "correlations")}
        grids = {"heads": self.heads, "mlps": self.mlps, "curves": self.curves}
        return json.dumps(
            plain | {kind: {k: v.tolist() for k, v in grid.items()} for kind, grid in grids.items()} | {"spread": self.spread.tolist()}
        )


def prune(
    model: Model,
    prompts: "Prompts | str | Sequence[str]",
    *,
    held_out: Prompts | None = None,
    counts: Sequence[int] | None = None,
    orders: int = 4,
    seed: int = 0,
    report: HeadReport | None = None,
    progress: Report | bool | None = None,
) -> Pruning:
    """Scores on `prompts`, and what removing heads in their order costs on `held_out` (None: the same prompts, which flatters `ablation`).

    counts  numbers of heads to remove; None: eight steps up to all of them
    orders  random orders, the control
    report  of quant.head_report on these prompts, with its eps, tau and delimiters; None: with the default ones
    """
    prompts = model.check_prompts(prompts)
    total = model.n_layers * model.n_heads
    counts = tuple(sorted({max(1, round(total * i / 8)) for i in range(1, 9)})) if counts is None else tuple(counts)
    if not counts or min(counts) < 1 or max(counts) > total or list(counts) != sorted(set(counts)):
        raise ValueError(f"counts are rising numbers of heads from 1 to {total}; given {list(counts)}.")
    if isinstance(orders, bool) or not isinstance(orders, int) or orders < 1:
        raise ValueError(f"orders is how many random orders serve as the control, at least 1; given {orders!r}.")
    report = head_report(model, prompts, progress=progress) if report is None else report
    if report["no_op"].shape != (model.n_layers, model.n_heads) or report.model != model.name:
        raise ValueError(f"The head report is of {report.model}, {tuple(report['no_op'].shape)} heads; the model is {model.name}.")
    heads, mlps = _scores(model, prompts, report)
    generator = torch.Generator().manual_seed(seed)
    ranked = {name: grid.flatten().argsort(stable=True).tolist() for name, grid in heads.items()}
    ranked |= {f"random {i}": torch.randperm(total, generator=generator).tolist() for i in range(orders)}
    where = prompts if held_out is None else model.check_prompts(held_out)
    plans = [[_silence(divmod(i, model.n_heads)) for i in order[:n]] for order in ranked.values() for n in counts]
    effects, clean = _token_effects(model, where, plans, progress)
    curves = dict(zip(ranked, effects.unflatten(0, (len(ranked), len(counts))), strict=True))
    random = torch.stack([curves.pop(f"random {i}") for i in range(orders)])
    spread = random.std(0) if orders > 1 else torch.zeros(len(counts), dtype=torch.float64)
    said = "the prompts of the scores" if held_out is None else f"{len(held_out)} other prompts"
    return Pruning(model.name, heads, mlps, clean, counts, curves | {"random": random.mean(0)}, spread, orders, said)


def _scores(model: Model, prompts: Prompts, report: HeadReport) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """[layer, head] and [layer] scores on the CPU, in float64."""
    norms = _input_norms(model, prompts)
    matrices = [(precise(b.weight_out()).abs().sum(-1), precise(linear_weight(b.mlp_out)).abs().sum(-1)) for b in model.anatomy.blocks]
    heads = {
        "magnitude": torch.stack([out.sum(-1) for out, _ in matrices]),
        "wanda": torch.stack([(out * like(z, out)).sum(-1) for (out, _), (z, _) in zip(matrices, norms, strict=True)]),
        "norm": report["output_to_layer"],
        "no_op": 1 - report["no_op"] + 1e-6 * report["output_to_stream"] / report["output_to_stream"].max(),
        "ablation": report["loss_zero"],
    }
    plans = [[Edit(f"blocks.{layer}.hook_mlp_out", "zero")] for layer in range(model.n_layers)]
    mlps = {
        "magnitude": torch.stack([out.sum() for _, out in matrices]),
        "wanda": torch.stack([(out * like(post, out)).sum() for (_, out), (_, post) in zip(matrices, norms, strict=True)]),
        "ablation": _token_effects(model, prompts, plans, None)[0],
    }
    return ({name: x.detach().double().cpu() for name, x in grid.items()} for grid in (heads, mlps))  # type: ignore[return-value]


def _input_norms(model: Model, prompts: Prompts) -> list[tuple[Float[Tensor, "head d_head"], Float[Tensor, " d_mlp"]]]:
    """Per layer ||x_i||_2 over all real tokens, of z and of the MLP's inner activations."""
    sites = ["attn.hook_z", "mlp.hook_post"]
    sums = [[torch.zeros((), dtype=torch.float64, device=model.device)] * 2 for _ in range(model.n_layers)]
    per_row = model.n_layers * prompts.width * (model.d_model + model.d_mlp) * model.dtype.itemsize
    with torch.no_grad():
        for rows in row_chunks(prompts, per_row, BUDGET):
            part = prompts[rows]
            capture = model.capture(part, [f"blocks.*.{site}" for site in sites])
            for layer, pair in enumerate(sums):
                for i, site in enumerate(sites):
                    pair[i] = pair[i] + capture[f"blocks.{layer}.{site}"][real(part)].double().square().sum(0)
    return [(z.sqrt(), post.sqrt()) for z, post in sums]


def _silence(head: tuple[int, int]) -> Edit:
    return Edit(f"blocks.{head[0]}.attn.hook_z", "zero", head=head[1])


def _token_effects(
    model: Model, prompts: Prompts, plans: Sequence[Sequence[Edit]], progress: Report | bool | None
) -> tuple[Float[Tensor, " plan"], float]:
    """Loss under each plan minus the loss, and the loss, from one sweep; every token counts the same."""
    result = sweep(model, prompts, [tuple(plan) for plan in plans], loss(), progress=progress)
    weight = ((prompts.lengths - 1).double() / (prompts.lengths - 1).sum()).to(result.effects.device)
    return (result.effects.double() @ weight).cpu(), float(result.clean.double() @ weight)
