"""Unstructured pruning: the smallest weights of every matrix set to zero in a private copy, and the loss.

    found = quant.sparsify(model, prompts)       found.table(): loss per method and share of zeros

    magnitude   |W_ij|, the lowest share of each matrix
    wanda       |W_ij| ||x_i||_2, the lowest share of each output's weights (Sun et al. 2024, arXiv 2306.11695)
    random      the control, of each output's weights

The matrices are those of the blocks; embeddings and norms stay. x are the inputs in the whole model (the paper takes those of the model
pruned so far).
"""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from interp.engine.anatomy import linear_weight
from interp.metrics import loss_per_token
from interp.models import Model
from interp.prompts import Prompts
from interp.quant.evaluation import predicting
from interp.selection import real, row_chunks

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

METHODS = ("magnitude", "wanda", "random")
BUDGET = 256 * 2**20  # bytes of logits held at once


@dataclass(frozen=True, eq=False)
class Sparsity:
    """Losses in nats per token."""

    model: str
    shares: tuple[float, ...]
    loss: float
    losses: Mapping[str, Float[Tensor, " share"]]
    """Method -> loss of the pruned copy."""
    zeros: Mapping[str, Float[Tensor, " share"]]
    """Method -> the share of the blocks' weights that are zero."""
    n_matrices: int
    calibrated_on: str

    def table(self) -> "pd.DataFrame":
        """One row per method and share."""
        import pandas as pd

        rows = [
            {"method": name, "share": share, "zeros": float(self.zeros[name][i]), "loss": float(losses[i]),
             "effect": float(losses[i]) - self.loss}
            for name, losses in self.losses.items() for i, share in enumerate(self.shares)
        ]  # fmt: skip
        return pd.DataFrame(rows).assign(unit="nats/token", matrices=self.n_matrices, model=self.model)

    def figure(self) -> "go.Figure":
        """Loss against the share of zeros."""
        import plotly.graph_objects as go

        figure = go.Figure()
        for name, losses in self.losses.items():
            figure.add_scatter(x=list(self.shares), y=(losses - self.loss).tolist(), name=name, mode="lines+markers")
        return figure.update_layout(
            title=f"{self.model}: what does setting weights to zero cost?", template="plotly_white",
            xaxis_title="share of every block matrix set to zero", yaxis_title="loss - loss of the whole model (nats/token)",
        )  # fmt: skip

    def to_json(self) -> str:
        plain = {name: getattr(self, name) for name in ("model", "shares", "loss", "n_matrices", "calibrated_on")}
        return json.dumps(plain | {name: {k: v.tolist() for k, v in getattr(self, name).items()} for name in ("losses", "zeros")})


def sparsify(
    model: Model,
    prompts: "Prompts | str | Sequence[str]",
    *,
    shares: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
    methods: Sequence[str] = METHODS,
    calibration: Prompts | None = None,
    seed: int = 0,
) -> Sparsity:
    """The loss on `prompts` of copies with a share of the weights set to zero.

    calibration  prompts that wanda's inputs are of; None: `prompts` themselves
    """
    prompts = model.check_prompts(prompts)
    if unknown := [name for name in methods if name not in METHODS]:
        raise ValueError(f"No method {unknown[0]!r}; there are {', '.join(METHODS)}.")
    if not shares or not all(0 <= share < 1 for share in shares):
        raise ValueError(f"shares lie in [0, 1); given {list(shares)}.")
    if prompts.shortest < 2:
        raise ValueError(f"Prompt {int(prompts.lengths.argmin())} has one token; a loss needs at least two.")
    twin = Model(copy.deepcopy(model.hf), model.tokenizer, model.path)
    matrices = _matrices(twin)
    norms = _input_norms(twin, matrices, prompts if calibration is None else model.check_prompts(calibration))
    before = {name: linear_weight(m).detach().clone() for name, m in matrices.items()}
    generator = torch.Generator().manual_seed(seed)
    noise = {name: torch.rand(w.shape, generator=generator).to(w) for name, w in before.items()}
    score: dict[str, Callable[[str], Tensor]] = {
        "magnitude": lambda name: before[name].abs(),
        "wanda": lambda name: before[name].abs() * norms[name][:, None].to(before[name]),
        "random": lambda name: noise[name],
    }
    losses: dict[str, list[float]] = {name: [] for name in methods}
    zeros: dict[str, list[float]] = {name: [] for name in methods}
    for method in methods:
        for share in shares:
            gone = {name: lowest(score[method](name), share, per_output=method != "magnitude") for name in matrices}
            with torch.no_grad():
                for name, module in matrices.items():
                    linear_weight(module).copy_(before[name].masked_fill(gone[name], 0.0))
            losses[method].append(_loss(twin, prompts))
            zeros[method].append(sum(int(g.sum()) for g in gone.values()) / sum(g.numel() for g in gone.values()))
    found, shown = ({name: torch.tensor(v, dtype=torch.float64) for name, v in x.items()} for x in (losses, zeros))
    said = "the same prompts" if calibration is None else f"{len(calibration)} other prompts"
    return Sparsity(model.name, tuple(shares), _loss(model, prompts), found, shown, len(matrices), said)


def lowest(score: Float[Tensor, "d_in d_out"], share: float, per_output: bool) -> Bool[Tensor, "d_in d_out"]:
    """The entries with the lowest scores: `share` of each column (rounded down), or of the whole matrix."""
    flat = score if per_output else score.reshape(-1, 1)
    gone = torch.zeros_like(flat, dtype=torch.bool)
    n = int(share * len(flat))
    gone.scatter_(0, flat.argsort(dim=0, stable=True)[:n], True)
    return gone.reshape(score.shape)


def _matrices(twin: Model) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    for block in twin.anatomy.blocks:
        modules = {f"qkv{i}": m for i, m in enumerate(block.qkv)} | {"out": block.out, "mlp_in": block.mlp_in, "mlp_out": block.mlp_out}
        found |= {f"blocks.{block.layer}.{name}": m for name, m in modules.items()}
    return found


def _input_norms(twin: Model, matrices: dict[str, nn.Module], prompts: Prompts) -> dict[str, Float[Tensor, " d_in"]]:
    """||x_i||_2 over all real tokens, of what each matrix of the private copy reads."""
    sums = {name: torch.zeros((), dtype=torch.float64, device=twin.device) for name in matrices}
    counted = real(prompts)

    def hook_of(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, given: tuple[Any, ...]) -> None:
            x = given[0].reshape(-1, given[0].shape[-1])[counted.flatten()]  # OPT's MLP reads [row * pos, d]
            sums[name] = sums[name] + x.double().square().sum(0)

        return hook

    handles = [module.register_forward_pre_hook(hook_of(name)) for name, module in matrices.items()]
    try:
        with torch.no_grad():
            for rows in row_chunks(prompts, 4 * prompts.width * twin.d_vocab * twin.dtype.itemsize, BUDGET):
                part = prompts[rows]
                counted = real(part)
                twin.hf(part.ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return {name: total.sqrt() for name, total in sums.items()}


def _loss(model: Model, prompts: Prompts) -> float:
    total = 0.0
    with torch.no_grad():
        for rows in row_chunks(prompts, 4 * prompts.width * model.d_vocab * model.dtype.itemsize, BUDGET):
            part = prompts[rows]
            total += float(loss_per_token(model.logits(part), part)[predicting(part)].double().sum())
    return total / int((prompts.lengths - 1).sum())
