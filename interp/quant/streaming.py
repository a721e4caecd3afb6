"""How large do activations get, where, and on which tokens? One streaming pass; no activation is kept.

    stats = quant.activation_statistics(model, prompts)       stats.table(): one row per tensor;  stats.outlier_dimensions;  stats.inf_norm

The tensors are those of Bondarenko et al. 2023 (arXiv 2306.12929, code): per block the outputs of both norms, of attention and of the
MLP, and the block's output, and the output of the final norm. Norm outputs include the norm's weight and bias. Only real positions count.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.models import Model
from interp.progress import Report, reporting
from interp.prompts import Prompts
from interp.quant.measures import MASSIVE_ABSOLUTE, MASSIVE_RATIO, SIGMAS
from interp.residual import like, precise
from interp.selection import real, row_chunks

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

BUDGET = 256 * 2**20  # bytes of activations held at once
KINDS = {
    "ln1": "ln1.hook_normalized",
    "attn_out": "hook_attn_out",
    "ln2": "ln2.hook_normalized",
    "mlp_out": "hook_mlp_out",
    "out": "hook_resid_post",
}
INT8_THRESHOLD, INT8_LAYERS, INT8_POSITIONS = 6.0, 0.25, 0.06
"""Dettmers et al. 2022 (arXiv 2208.07339): |x| >= 6 in the same dimension in a quarter of the layers and 6 % of the positions."""
BINS = 64
"""Histogram bins per octave of |x|; a percentile is right to 1.1 % of its value."""
LOWEST, HIGHEST = -30, 20  # octaves


@dataclass(frozen=True, eq=False)
class TensorStatistics:
    """One tensor over all real tokens."""

    name: str
    layer: int
    kind: str
    entries: int
    absmax: float
    mean: float
    std: float
    kurtosis: float
    """Over all entries, scale-free; 3 for a Gaussian."""
    paper_kurtosis: float
    """Mean over prompts of the mean of ((x - mean) / s)^4 with 1e-6 added to s^4 (Bondarenko et al.'s code): near 0 for small tensors."""
    inf_norm: float
    """Mean over prompts of the largest |x|."""
    percentiles: dict[str, float]
    """Of |x|: p50, p99, p99.9, p99.99; right to 1.1 %."""
    outliers_by_dim: Int[Tensor, " d_model"]
    """Entries more than six standard deviations from the tensor's mean (per chunk of prompts), by dimension."""
    outliers_by_token: dict[int, int]
    """The same by token id."""
    massive: int
    """Entries with |x| > 100 and at least 1000 times the median |x|."""
    dim_absmax: Float[Tensor, " d_model"]
    dim_mean_square: Float[Tensor, " d_model"]

    @property
    def feature_kurtosis(self) -> float:
        """E_j[s_j^2] / E_j[s_j]^2 of the dimensions' mean squares: 1 where all are alike, d where one has everything (He et al. 2024)."""
        s = self.dim_mean_square.double()
        return float(s.square().mean() / s.mean().square())


@dataclass(frozen=True, eq=False)
class ActivationStatistics:
    """All tensors of one model on some prompts."""

    model: str
    tensors: tuple[TensorStatistics, ...]
    n_prompts: int
    n_tokens: int
    outlier_dimensions: dict[int, tuple[float, float]]
    """LLM.int8 outlier dimensions: dimension -> (fraction of layers, fraction of positions) where a norm's output reaches 6."""

    def __getitem__(self, name: str) -> TensorStatistics:
        found = [t for t in self.tensors if t.name == name]
        if not found:
            raise KeyError(f"No tensor {name!r}; there are {', '.join(t.name for t in self.tensors[:6])} ... {self.tensors[-1].name}.")
        return found[0]

    @property
    def inf_norm(self) -> dict[str, float]:
        """The largest mean inf-norm over all tensors, over the MLPs' outputs, over the blocks' outputs (the paper's column for OPT)."""
        kinds: Mapping[str, Sequence[str]] = {"all": [*KINDS, "final"], "mlp": ["mlp_out"], "block": ["out"]}
        return {name: max(t.inf_norm for t in self.tensors if t.kind in chosen) for name, chosen in kinds.items()}

    @property
    def mean_kurtosis(self) -> float:
        """The paper's "average kurtosis": over all tensors, with its epsilon."""
        return sum(t.paper_kurtosis for t in self.tensors) / len(self.tensors)

    def table(self) -> "pd.DataFrame":
        """One row per tensor."""
        import pandas as pd

        rows = []
        for t in self.tensors:
            top = int(t.outliers_by_dim.argmax())
            rows.append(
                {
                    "tensor": t.name, "layer": t.layer, "kind": t.kind, "absmax": t.absmax, "inf_norm": t.inf_norm, "mean": t.mean,
                    "std": t.std, **t.percentiles, "kurtosis": t.kurtosis, "paper_kurtosis": t.paper_kurtosis,
                    "feature_kurtosis": t.feature_kurtosis, "outliers": int(t.outliers_by_dim.sum()), "top_dim": top,
                    "in_top_dim": int(t.outliers_by_dim[top]),
                    "massive": t.massive, "entries": t.entries,
                }
            )  # fmt: skip
        return pd.DataFrame(rows).assign(model=self.model, n_tokens=self.n_tokens)

    def figure(self) -> "go.Figure":
        """The largest |x| of each dimension (columns) in each tensor (rows), log scale: outlier dimensions are vertical lines."""
        import plotly.graph_objects as go

        values = torch.stack([t.dim_absmax.clamp(min=1e-6).log10() for t in self.tensors]).tolist()
        figure = go.Figure(go.Heatmap(z=values, y=[t.name for t in self.tensors], colorscale="Viridis", colorbar={"title": "log10 |x|"}))
        figure.update_yaxes(autorange="reversed")
        return figure.update_layout(
            title=f"{self.model}: how large does each dimension get?", xaxis_title="dimension", yaxis_title="tensor"
        )

    def to_json(self) -> str:
        plain: dict[str, Any] = {name: getattr(self, name) for name in ("model", "n_prompts", "n_tokens", "inf_norm")}
        plain["outlier_dimensions"] = {str(dim): list(shares) for dim, shares in self.outlier_dimensions.items()}
        plain["tensors"] = [{k: None if v != v else v for k, v in row.items()} for row in self.table().to_dict("records")]
        return json.dumps(plain)


def activation_statistics(
    model: Model, prompts: "Prompts | str | Sequence[str]", *, progress: Report | bool | None = None
) -> ActivationStatistics:
    """The statistics of every tensor on these prompts, in one pass over them."""
    prompts = model.check_prompts(prompts)
    tensors = _tensors(model)
    running = {name: _Running(name, layer, kind, model) for name, (layer, kind, _, _) in tensors.items()}
    over = torch.zeros(len(tensors), model.d_model, dtype=torch.long, device=model.device)
    per_row = len(tensors) * prompts.width * model.d_model * model.dtype.itemsize * 2
    done = 0
    with torch.no_grad(), reporting(progress, "activation statistics") as report:
        for rows in row_chunks(prompts, per_row, BUDGET):
            part = prompts[rows]
            mask = real(part)
            ids, row = part.ids[mask], mask.nonzero()[:, 0]
            capture = model.capture(part, [site for _, _, site, _ in tensors.values()])
            for i, (name, (_, kind, site, norm)) in enumerate(tensors.items()):
                x = precise(capture[site][mask])
                if norm is not None:
                    x = x * like(norm.weight, x) + like(norm.bias, x)
                running[name].add(x, ids, row, part.lengths)
                if kind in ("ln1", "ln2"):
                    over[i] += (x.abs() >= INT8_THRESHOLD).sum(0)
            report(done := done + len(rows), len(prompts))
    n_tokens = int(prompts.lengths.sum())
    finished = tuple(r.finish(len(prompts)) for r in running.values())
    read = torch.tensor([t.kind in ("ln1", "ln2") for t in finished], device=over.device)
    return ActivationStatistics(model.name, finished, len(prompts), n_tokens, _outlier_dimensions(over[read] / n_tokens))


def _outlier_dimensions(share: Float[Tensor, "tensor d_model"]) -> dict[int, tuple[float, float]]:
    """Dimensions that reach the threshold at enough positions in enough of the tensors that linear layers read."""
    layers = (share >= INT8_POSITIONS).double().mean(0)
    return {int(d): (float(layers[d]), float(share[:, d].max())) for d in (layers >= INT8_LAYERS).nonzero().flatten()}


def _tensors(model: Model) -> dict[str, tuple[int, str, str, nn.LayerNorm | None]]:
    """Name -> layer, kind, site, and the norm whose weight and bias are still to be applied."""
    found: dict[str, tuple[int, str, str, nn.LayerNorm | None]] = {}
    for block in model.anatomy.blocks:
        for kind, site in KINDS.items():
            norm = {"ln1": block.norm1, "ln2": block.norm2}.get(kind)
            if f"blocks.{block.layer}.{site}" in model.sites():
                found[f"blocks.{block.layer}.{kind}"] = (block.layer, kind, f"blocks.{block.layer}.{site}", norm)
    if model.anatomy.final_norm is not None:
        found["final"] = (model.n_layers, "final", "ln_final.hook_normalized", model.anatomy.final_norm)
    return found


@dataclass
class _Running:
    """Sums of one tensor, in float64 where they are long. Powers are of x - shift (the mean of what came first): raw powers lose the spread
    of a tensor whose mean is far above it."""

    name: str
    layer: int
    kind: str
    model: Model
    entries: int = 0
    shift: Tensor | None = None
    powers: Tensor | None = None
    absmax: Tensor | None = None
    square: Tensor | None = None
    histogram: Tensor | None = None
    by_dim: Tensor | None = None
    by_token: Tensor | None = None
    massive: int = 0
    paper: float = 0.0
    inf: float = 0.0

    def add(self, x: Float[Tensor, "token d_model"], ids: Tensor, row: Tensor, lengths: Tensor) -> None:
        if not bool(torch.isfinite(x).all()):
            raise ValueError(f"{self.name} holds NaN or infinities on these prompts; statistics need finite numbers.")
        size = x.abs()
        if self.powers is None:
            zero = x.new_zeros(x.shape[1])
            self.shift = x.double().mean()
            self.powers = torch.zeros(4, dtype=torch.float64, device=x.device)
            self.absmax, self.square, self.by_dim = zero, zero.double(), zero.long()
            self.by_token = torch.zeros(self.model.d_vocab, dtype=torch.long, device=x.device)
            self.histogram = torch.zeros((HIGHEST - LOWEST) * BINS, dtype=torch.float64, device=x.device)
        assert self.absmax is not None and self.square is not None and self.by_dim is not None and self.by_token is not None
        assert self.histogram is not None and self.shift is not None
        centred = x.double() - self.shift
        squared = centred.square()
        per_token = torch.stack([centred.sum(1), squared.sum(1), (squared * centred).sum(1), squared.square().sum(1)])
        self.powers += per_token.sum(1)
        self.entries += x.numel()
        self.absmax = torch.maximum(self.absmax, size.amax(0))
        self.square += x.double().square().sum(0)
        bins = ((size.clamp(min=2.0**LOWEST).log2() - LOWEST) * BINS).long().clamp(max=len(self.histogram) - 1)
        self.histogram += torch.bincount(bins.flatten(), minlength=len(self.histogram))
        self._per_prompt(x.shape[1], per_token, size.amax(1), row, lengths)
        mean = per_token[0].sum() / x.numel()  # of x - shift
        std = (per_token[1].sum() / x.numel() - mean * mean).clamp(min=0).sqrt()
        out = (centred - mean).abs() > SIGMAS * std
        if bool(out.any()):
            self.by_dim += out.sum(0)
            self.by_token.index_add_(0, ids, out.sum(1))
        if float(size.max()) > MASSIVE_ABSOLUTE:
            self.massive += int(((size > MASSIVE_ABSOLUTE) & (size >= MASSIVE_RATIO * size.median())).sum())

    def _per_prompt(self, d: int, per_token: Tensor, largest: Tensor, row: Tensor, lengths: Tensor) -> None:
        """The paper's kurtosis (unbiased s) and inf-norm, prompt by prompt."""
        n = (lengths * d).double()
        raw = per_token.new_zeros(4, len(lengths)).index_add_(1, row, per_token) / n
        mean = raw[0]
        m2 = raw[1] - mean**2
        m4 = raw[3] - 4 * mean * raw[2] + 6 * mean**2 * raw[1] - 3 * mean**4
        self.paper += float((m4 / ((m2 * n / (n - 1)) ** 2 + 1e-6)).sum())
        top = largest.new_zeros(len(lengths)).scatter_reduce(0, row, largest, "amax")
        self.inf += float(top.double().sum())

    def finish(self, n_prompts: int) -> TensorStatistics:
        assert self.powers is not None and self.square is not None and self.absmax is not None
        assert self.histogram is not None and self.by_dim is not None and self.by_token is not None
        assert self.shift is not None
        p1, p2, p3, p4 = (self.powers / self.entries).tolist()
        m2, mean = p2 - p1**2, float(self.shift) + p1
        m4 = p4 - 4 * p1 * p3 + 6 * p1**2 * p2 - 3 * p1**4
        share = self.histogram.cumsum(0) / self.histogram.sum()
        points = torch.tensor([0.5, 0.99, 0.999, 0.9999], dtype=torch.float64, device=share.device)
        at = (torch.searchsorted(share, points).clamp(max=len(share) - 1) + 0.5) / BINS + LOWEST
        absmax = float(self.absmax.max())
        percentiles = {f"p{name}": min(2.0**v, absmax) for name, v in zip(("50", "99", "99.9", "99.99"), at.tolist(), strict=True)}
        tokens = {int(i): int(self.by_token[i]) for i in self.by_token.nonzero().flatten()}
        return TensorStatistics(
            self.name, self.layer, self.kind, self.entries, absmax, mean, max(m2, 0.0) ** 0.5,
            m4 / m2**2 if m2 > 1e-26 * mean**2 else float("nan"),  # else constant, up to the mean's own rounding
            self.paper / n_prompts, self.inf / n_prompts, percentiles, self.by_dim.cpu(), tokens, self.massive, self.absmax.cpu(),
            (self.square / (self.entries / len(self.square))).cpu(),
        )  # fmt: skip
