"""What does quantizing a model cost, end to end?

found = quant.evaluate(model, prompts, scheme="w8a8")       found.loss, found.loss_quantized, found.kl; found.table()
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.metrics import loss_per_token
from interp.models import Model
from interp.prompts import Prompts
from interp.quant.quantized import QuantizedRun, quantize
from interp.quant.schemes import Scheme, plain_scheme, scheme_of
from interp.selection import row_chunks

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

BUDGET = 256 * 2**20  # bytes of logits held at once


@dataclass(frozen=True, eq=False)
class QuantEvaluation:
    """A model on fake-quantized numbers against the same model without. Every token counts the same."""

    model: str
    scheme: Scheme
    loss: float
    """Of the model itself, nats per token."""
    loss_quantized: float
    kl: float
    """KL(model || quantized), nats per token."""
    agreement: float
    """Fraction of tokens with the same most likely next token."""
    per_prompt: Float[Tensor, "prompt measure"]
    """Loss, quantized loss and KL of every prompt."""
    n_tokens: Int[Tensor, " prompt"]
    """Tokens of each prompt that have a loss."""
    weights: tuple[str, ...]
    activations: tuple[str, ...]
    sqnr: dict[str, float]
    """Of every rounded activation, dB, given what was rounded before it; all entries."""
    bulk_sqnr: dict[str, float]
    """The same without massive entries; where there are none, without those beyond six standard deviations. Which they are is found anew in
    every chunk of prompts that is held at once (`BUDGET`), so with other chunks it is another number by up to a few dB."""
    calibrated_on: str

    def __repr__(self) -> str:
        counts = f"{len(self.weights)} weights and {len(self.activations)} activations rounded"
        return f"QuantEvaluation({self.model}, loss {self.loss:.4f} -> {self.loss_quantized:.4f} nats/token, KL {self.kl:.4g}; {counts})"

    @property
    def damage(self) -> float:
        """loss_quantized - loss, nats per token."""
        return self.loss_quantized - self.loss

    @property
    def n_quantized(self) -> int:
        """How many tensors were rounded; a number to check, since tools skip layers silently."""
        return len(self.weights) + len(self.activations)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Normal interval around the damage, nats per token: a ratio estimate with prompts drawn at random, longer ones counting more."""
        from scipy.stats import norm

        weight = self.n_tokens.double() / self.n_tokens.double().mean()
        change = (self.per_prompt[:, 1] - self.per_prompt[:, 0]).double()
        spread = float((weight * (change - self.damage)).square().sum())
        n = len(change)
        half = float(norm.ppf(0.5 + level / 2)) * math.sqrt(spread / (n * (n - 1))) if n > 1 else math.nan
        return self.damage - half, self.damage + half

    def table(self) -> "pd.DataFrame":
        """One row per rounded activation."""
        import pandas as pd

        rows = [{"activation": name, "sqnr": self.sqnr[name], "bulk_sqnr": self.bulk_sqnr[name], "unit": "dB"} for name in self.activations]
        return pd.DataFrame(rows, columns=["activation", "sqnr", "bulk_sqnr", "unit"]).assign(model=self.model)

    def figure(self) -> "go.Figure":
        """SQNR of every activation in the order of the forward, all entries and bulk."""
        import plotly.graph_objects as go

        names = list(self.activations)
        figure = go.Figure(go.Scatter(x=names, y=[self.bulk_sqnr[n] for n in names], mode="markers", name="bulk"))
        figure.add_scatter(x=names, y=[self.sqnr[n] for n in names], mode="markers", name="all entries")
        title = f"{self.model}: loss {self.loss:.3f} -> {self.loss_quantized:.3f} nats/token; where is precision lost?"
        return figure.update_layout(title=title, template="plotly_white", yaxis_title="SQNR (dB)")

    def to_json(self) -> str:
        def plain(value: float) -> float | None:
            return value if math.isfinite(value) else None

        return json.dumps(
            {
                "model": self.model, "scheme": plain_scheme(self.scheme), "loss": plain(self.loss),
                "loss_quantized": plain(self.loss_quantized), "kl": plain(self.kl), "agreement": self.agreement,
                "n_weights": len(self.weights), "n_activations": len(self.activations),
                "sqnr": {k: plain(v) for k, v in self.sqnr.items()}, "bulk_sqnr": {k: plain(v) for k, v in self.bulk_sqnr.items()},
                "calibrated_on": self.calibrated_on,
            }
        )  # fmt: skip


def evaluate(
    model: Model,
    prompts: "Prompts | str | Sequence[str]",
    scheme: str | Scheme = "w8a8",
    *,
    calibration: Prompts | None = None,
    **changes: Any,
) -> QuantEvaluation:
    """Loss, KL and per-tensor SQNR of the quantized model on `prompts`.

    scheme       a name of quant.SCHEMES or a Scheme; `changes` replace some of its fields
    calibration  prompts that static ranges are found on; None: `prompts` themselves, which is optimistic and said in `calibrated_on`
    """
    prompts = model.check_prompts(prompts)
    if int(prompts.lengths.max()) < 2:
        raise ValueError("Every prompt has one token; a loss needs at least two.")
    chosen = scheme_of(scheme, **changes)
    run = quantize(model, chosen, prompts if calibration is None else model.check_prompts(calibration))
    return evaluate_run(model, run, prompts, "the same prompts" if calibration is None else f"{len(calibration)} other prompts")


def evaluate_run(model: Model, run: QuantizedRun, prompts: Prompts, calibrated_on: str) -> QuantEvaluation:
    """What `run`, a quantized copy of `model` or of another model in its place, does on these prompts, against `model`."""
    per_prompt, totals = compare(model, run, prompts)
    loss, quantized, kl, same = (totals / int((prompts.lengths - 1).sum())).tolist()
    sums = {name: q.sums for name, q in run.quantizers.items()}
    return QuantEvaluation(
        model.name, run.scheme, loss, quantized, kl, same, per_prompt, prompts.lengths.cpu() - 1, run.weights, run.activations,
        {name: _db(s["signal"], s["noise"]) for name, s in sums.items()},
        {name: _db(s["bulk_signal"], s["bulk_noise"]) for name, s in sums.items()}, calibrated_on,
    )  # fmt: skip


def compare(model: Model, run: QuantizedRun, prompts: Prompts) -> tuple[Float[Tensor, "prompt measure"], Float[Tensor, " measure"]]:
    """Per prompt (loss, quantized loss, KL), and sums over tokens of these and of agreeing tokens."""
    with run.measuring():
        return _compare(model, run, prompts)


def _compare(model: Model, run: QuantizedRun, prompts: Prompts) -> tuple[Tensor, Tensor]:
    rows, totals = [], torch.zeros(4, dtype=torch.float64)
    for part in row_chunks(prompts, 4 * prompts.width * model.d_vocab * model.dtype.itemsize, BUDGET):
        batch = prompts[part]
        with torch.no_grad():
            clean, rounded = model.logits(batch), run.logits(batch)
        counted = predicting(batch).to(clean.device)
        tokens = torch.stack([loss_per_token(clean, batch), loss_per_token(rounded, batch), token_divergence(clean, rounded)]).double()
        tokens = torch.cat([tokens, (clean.argmax(-1) == rounded.argmax(-1)).double()[None]]).masked_fill(~counted, 0).cpu()
        rows.append((tokens[:3].sum(2) / counted.sum(1).clamp(min=1).cpu()).T)  # 0 where a prompt has one token
        totals += tokens.sum((1, 2))
    return torch.cat(rows), totals


def predicting(prompts: Prompts) -> Bool[Tensor, "row pos"]:
    """Positions with a next token. (A loss is NaN at all others; where it is NaN here too, the mean has to show it.)"""
    return torch.arange(prompts.width, device=prompts.lengths.device) < prompts.lengths[:, None] - 1


def token_divergence(clean: Tensor, rounded: Tensor) -> Float[Tensor, "row pos"]:
    """KL(clean || rounded) of the next token at every position, in nats."""
    p, q = (torch.log_softmax(x.float() if x.dtype != torch.float64 else x, -1) for x in (clean, rounded))
    return (p.exp() * (p - q)).sum(-1)


def _db(signal: float, noise: float) -> float:
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else math.inf if noise == 0 else -math.inf
