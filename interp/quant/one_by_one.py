"""Which tensor hurts? Each one quantized alone, each one left out, and an estimate from one backward pass.

    found = quant.sensitivity(model, prompts, "w8a8")       found.table();  found.rank_correlation;  found.additive

    only      quantize this tensor alone:      loss(only it) - loss
    without   quantize all tensors but it:     loss(all) - loss(all but it), what leaving it in full precision would win back
    predicted first order, from gradients:     sum over entries of dloss/dx (Q(x) - x)

and the same without signs, by KL(model || model with it alone quantized):

    only_kl       measured
    predicted_kl  second order, from gradients: 1/2 sum over tokens of E_y (dlog p(y)/dx (Q(x) - x))^2, y drawn from the model

Predictions cost one forward and backward for all tensors (`predicted_kl`: per prompt and draw); `only` and `only_kl`, one forward per
tensor, are their exact checks. Loss differences of 8-bit rounding are small numbers of either sign, while KL adds up what changes: rank
by KL.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.metrics import loss, loss_per_token
from interp.models import Model
from interp.progress import Report, reporting
from interp.prompts import Prompts
from interp.quant.evaluation import predicting, token_divergence
from interp.quant.quantized import MATRICES, QuantizedRun, quantize
from interp.quant.schemes import NORMS, Scheme, scheme_of
from interp.results import HeadSweep
from interp.sweeps import sweep_heads

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@dataclass(frozen=True)
class TensorSensitivity:
    """One quantized tensor; losses in nats per token."""

    tensor: str
    role: str
    """"weight" or "activation"."""
    layer: int | None
    kind: str
    only: float
    only_kl: float
    """KL(model || model with this tensor alone quantized), nats per token."""
    without: float
    predicted: float
    predicted_kl: float


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """Every quantized tensor of a scheme."""

    model: str
    scheme: str
    tensors: tuple[TensorSensitivity, ...]
    loss: float
    loss_quantized: float
    kl: float
    """KL(model || all tensors quantized), nats per token."""

    @property
    def additive_kl(self) -> float:
        """The sum of all `only_kl`."""
        return sum(t.only_kl for t in self.tensors)

    @property
    def additive(self) -> float:
        """The sum of all `only`: what the total damage would be if tensors did not interact."""
        return sum(t.only for t in self.tensors)

    @property
    def damage(self) -> float:
        """loss_quantized - loss."""
        return self.loss_quantized - self.loss

    @property
    def rank_correlation(self) -> float:
        """Spearman's, between `predicted` and `only`, over tensors."""
        return self._rank_correlation("predicted", "only")

    @property
    def kl_rank_correlation(self) -> float:
        """Spearman's, between `predicted_kl` and `only_kl`, over tensors."""
        return self._rank_correlation("predicted_kl", "only_kl")

    def _rank_correlation(self, predicted: str, measured: str) -> float:
        from scipy.stats import spearmanr

        columns = ([getattr(t, name) for t in self.tensors] for name in (predicted, measured))
        return float(spearmanr(*columns)[0])  # type: ignore[arg-type]

    def table(self) -> "pd.DataFrame":
        """One row per tensor, the most harmful (by KL) first."""
        import pandas as pd

        rows = [asdict(t) for t in sorted(self.tensors, key=lambda t: -t.only_kl)]
        return pd.DataFrame(rows).assign(model=self.model, scheme=self.scheme)

    def figure(self) -> "go.Figure":
        """KL of every tensor quantized alone: kind of tensor by layer."""
        import plotly.graph_objects as go

        kinds = list(dict.fromkeys((t.role, t.kind) for t in self.tensors))
        layers = sorted({-1 if t.layer is None else t.layer for t in self.tensors})
        found = {(t.role, t.kind, -1 if t.layer is None else t.layer): t.only_kl for t in self.tensors}
        values = [[found.get((*kind, layer)) for layer in layers] for kind in kinds]
        names = ["outside blocks" if layer == -1 else f"layer {layer}" for layer in layers]
        figure = go.Figure(go.Heatmap(z=values, x=names, y=[f"{kind} ({role})" for role, kind in kinds], colorbar={"title": "nats/token"}))
        title = f"{self.model}, {self.scheme}: which tensor hurts when it alone is quantized (KL)?"
        return figure.update_layout(title=title, template="plotly_white")

    def to_json(self) -> str:
        names = ("model", "scheme", "loss", "loss_quantized", "damage", "additive", "kl", "additive_kl")
        found = {name: getattr(self, name) for name in (*names, "rank_correlation", "kl_rank_correlation")}
        plain = {name: None if value != value else value for name, value in found.items()}  # of one tensor there is no correlation
        return json.dumps(plain | {"tensors": [asdict(t) for t in self.tensors]})


def sensitivity(
    model: Model,
    prompts: "Prompts | str | Sequence[str]",
    scheme: str | Scheme = "w8a8",
    *,
    calibration: Prompts | None = None,
    draws: int = 2,
    seed: int = 0,
    progress: Report | bool | None = None,
    **changes: Any,
) -> Sensitivity:
    """Each quantized tensor alone and left out, on `prompts`. Arguments as in quant.evaluate; `draws`: next tokens drawn from the model per
    prompt for `predicted_kl`, with the seed."""
    prompts = model.check_prompts(prompts)
    chosen = scheme_of(scheme, **changes)
    if chosen.decompose is not None:
        raise ValueError("Sensitivity is for schemes that round tensors one by one; LLM.int8 rounds whole products.")
    if int(prompts.lengths.max()) < 2:
        raise ValueError("Every prompt has one token; a loss needs at least two.")
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise ValueError(f"draws is how many next tokens are drawn per prompt, at least 1; given {draws!r}.")
    run = quantize(model, chosen, prompts if calibration is None else model.check_prompts(calibration))
    names = [*run.weights, *run.activations]
    if not names:
        raise ValueError(f"{chosen} rounds no tensor; give weight_bits, or activation_bits with activations.")
    estimates = _first_order(run, prompts)
    divergences = _second_order(run, prompts, draws, seed)
    with torch.no_grad(), reporting(progress, "sensitivity") as report:
        clean = model.logits(prompts)
        base = _mean_loss(clean, prompts)
        everything = _logits(run, prompts, set(names))
        total, total_kl = _mean_loss(everything, prompts), _mean_divergence(clean, everything, prompts)
        found = []
        for i, name in enumerate(names):
            alone = _logits(run, prompts, {name})
            rest = _mean_loss(_logits(run, prompts, set(names) - {name}), prompts)
            kl = _mean_divergence(clean, alone, prompts)
            role = "weight" if name in run.weights else "activation"
            layer, kind = _place(name)
            only = _mean_loss(alone, prompts) - base
            found.append(TensorSensitivity(name, role, layer, kind, only, kl, total - rest, estimates[name], divergences[name]))
            report(i + 1, len(names))
    return Sensitivity(model.name, scheme if isinstance(scheme, str) else "custom", tuple(found), base, total, total_kl)


def head_sensitivity(
    model: Model, prompts: "Prompts | str | Sequence[str]", bits: int = 8, site: str = "hook_z", **options: Any
) -> HeadSweep:
    """Loss with one head's tensor at `site` quantized (its own symmetric range in every prompt), minus the loss, in one sweep."""
    return sweep_heads(model, prompts, loss(), "quantize", bits, site, **options)


def _place(name: str) -> tuple[int | None, str]:
    """ "blocks.3.attn.hook_z" -> (3, "z"), "blocks.3.out.weight" -> (3, "out")."""
    layer = int(name.split(".")[1]) if name.startswith("blocks.") else None
    return layer, name.removesuffix(".weight").split(".")[-1].removeprefix("hook_")


def _logits(run: QuantizedRun, prompts: Prompts, names: set[str]) -> Tensor:
    with run.only_weights(names):
        return run.logits(prompts, only=names)


def _mean_loss(logits: Tensor, prompts: Prompts) -> float:
    return float(loss_per_token(logits, prompts)[predicting(prompts)].double().mean())


def _mean_divergence(clean: Tensor, rounded: Tensor, prompts: Prompts) -> float:
    return float(token_divergence(clean, rounded)[predicting(prompts)].double().mean())


def _first_order(run: QuantizedRun, prompts: Prompts) -> dict[str, float]:
    """The gradient of the loss at every tensor, times what rounding moves it by: one forward and one backward."""
    with run.only_weights(()):
        return _slopes(run, prompts, lambda logits: loss_per_token(logits, prompts).nanmean())


def _second_order(run: QuantizedRun, prompts: Prompts, draws: int, seed: int) -> dict[str, float]:
    """1/2 sum over tokens of E_y (slope of log p(y))^2, per token: the quadratic form of KL in what rounding moves a tensor by.

    One backward gives the slope of a sum over the prompt's tokens; with a random sign for each, its square has the sum of squares as mean.
    """
    generator = torch.Generator().manual_seed(seed)
    sums = dict.fromkeys((*run.weights, *run.activations), 0.0)
    with run.only_weights(()):
        for row in range(len(prompts)):
            prompt = prompts[row]
            n = int(prompt.lengths) - 1
            for _ in range(draws if n else 0):
                signs = (2 * torch.randint(2, (n,), generator=generator) - 1).to(prompt.ids.device)

                def drawn(logits: Tensor, n: int = n, signs: Tensor = signs) -> Tensor:
                    log_p = logits[0, :n].log_softmax(-1)
                    noise = torch.rand(log_p.shape, generator=generator, dtype=torch.float64).log().neg().log().neg().to(log_p.device)
                    y = (log_p.detach().double() + noise).argmax(-1)  # Gumbel: drawn from the model
                    return (signs * log_p.gather(1, y[:, None])[:, 0]).sum()

                for name, slope in _slopes(run, prompt, drawn).items():
                    sums[name] += slope**2
    n_tokens = int((prompts.lengths - 1).sum())
    return {name: total / (2 * draws * n_tokens) for name, total in sums.items()}


def _slopes(run: QuantizedRun, prompts: Prompts, objective: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """The gradient of `objective(logits)` at every tensor of the model in floating point, times what rounding moves it by."""
    sites = {name: _site(name) for name in run.activations}
    twin = run.model
    weights = {name: weight for name, (weight, _, _) in run.rounded.items()}
    for weight in weights.values():
        weight.requires_grad_(True)
    capture = twin.capture(prompts, sorted(set(sites.values()), key=str) or ["blocks.*.hook_resid_post"], grad=True)
    assert capture.logits is not None
    wanted = [*weights.values(), *(capture[site] for site in sites.values())]
    gradients = torch.autograd.grad(objective(capture.logits), wanted, allow_unused=True)
    for weight in weights.values():
        weight.requires_grad_(False)
    moved = [after - before for _, before, after in run.rounded.values()]
    with torch.no_grad():
        moved += [_moved_by(run, name, capture[site].detach()) for name, site in sites.items()]
    names = [*run.rounded, *sites]
    return {
        name: 0.0 if gradient is None else float((change.double() * gradient.double()).sum())
        for name, change, gradient in zip(names, moved, gradients, strict=True)
    }


def _site(name: str) -> str:
    return f"{name}.hook_normalized" if name.split(".")[-1] in NORMS else name


def _moved_by(run: QuantizedRun, name: str, x: Tensor) -> Tensor:
    """Q(x) - x at a site. A norm's output is rounded after its weight and bias: what moves there is divided by the weight."""
    if name.endswith("attn.hook_attn_scores"):
        x = x.masked_fill(x == torch.finfo(x.dtype).min, 0.0)
    if name.split(".")[-1] not in NORMS:
        return _without_first(run, name, run.quantizers[name](x, x) - x)
    norm = run.norm(name)
    out = x * norm.weight + norm.bias
    change = _without_first(run, name, run.quantizers[name](out, out) - out)
    return torch.where(norm.weight == 0, torch.zeros_like(change), change / norm.weight)


def _without_first(run: QuantizedRun, name: str, change: Tensor) -> Tensor:
    """Without position 0, where the scheme keeps it in floating point (of a matrix, without the first query)."""
    if run.scheme.keep_first:
        change[(slice(None), slice(None), 0) if name.endswith(MATRICES) else (slice(None), 0)] = 0
    return change
