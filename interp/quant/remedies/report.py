"""What would help? A model quantized without and with each remedy, and with combinations of them.

    from interp.quant import Clip, Rotate, Smooth, remedy
    found = remedy(model, prompts, [Clip(99.9), Smooth(0.5), Rotate(), (Rotate(), Smooth(0.5))], scheme="w8a8")
    found.table();  found.best.name;  found.figure()

Ranges, smoothing and kept features are found on calibration prompts; everything is measured on others. Each row is compared with the model
as it was given, in floating point: a remedy that changes the model itself pays for it.
"""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from interp.models import Model
from interp.progress import Report, reporting
from interp.prompts import Prompts
from interp.quant.evaluation import QuantEvaluation, compare, evaluate_run
from interp.quant.quantized import quantize
from interp.quant.remedies.plans import RemedyPlan, apply_plan, as_remedies, plan_name, remedies_to_json
from interp.quant.remedies.setup import Remedy, Setup
from interp.quant.schemes import Scheme, plain_scheme, scheme_of
from interp.quant.streaming import activation_statistics

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

NOTHING = Scheme(weight_bits=None, activation_bits=None)


@dataclass(frozen=True, eq=False)
class RemedyRow:
    """One plan of remedies (none: the scheme alone)."""

    remedies: RemedyPlan
    evaluation: QuantEvaluation
    """Of the quantized model against the given one in floating point."""
    loss_float: float
    """Of the remedied model before it is quantized, nats per token: the given model's own where remedies keep its function."""
    kl_float: float
    """KL(model || remedied model before it is quantized), nats per token."""
    inf_norm: float
    """The largest over tensors of the mean over prompts of max |x|, before quantization."""
    kurtosis: float
    """Mean over tensors that are not constant, scale-free (3 for a Gaussian), before quantization."""
    notes: tuple[str, ...]
    """What remedies chose on the calibration prompts."""

    @property
    def name(self) -> str:
        return plan_name(self.remedies)

    @property
    def sqnr(self) -> float:
        """Median over rounded activations, dB, all entries; NaN where none is rounded."""
        return statistics.median(self.evaluation.sqnr.values()) if self.evaluation.sqnr else math.nan

    @property
    def bulk_sqnr(self) -> float:
        """The same without massive entries."""
        return statistics.median(self.evaluation.bulk_sqnr.values()) if self.evaluation.sqnr else math.nan

    @property
    def worst(self) -> str | None:
        """The rounded activation with the smallest bulk SQNR."""
        found = self.evaluation.bulk_sqnr
        return min(found, key=lambda name: found[name]) if found else None


@dataclass(frozen=True, eq=False)
class RemedyReport:
    """Rows in the order asked for; the first is the scheme without remedies."""

    model: str
    scheme: Scheme
    rows: tuple[RemedyRow, ...]
    n_calibration: int
    """Prompts that ranges and remedies were fitted on; none of them is among those measured on."""
    n_evaluated: int
    n_tokens: int
    """Tokens with a loss among the prompts measured on."""
    left_out: int
    """Prompts measured on nowhere because the same text is a calibration prompt."""

    def __repr__(self) -> str:
        best = f"best: {self.best.name}, KL {self.best.evaluation.kl:.4g} of {self.rows[0].evaluation.kl:.4g}"
        return f"RemedyReport({self.model}, {len(self.rows)} rows on {self.n_evaluated} prompts; {best}; .table() has all)"

    def __getitem__(self, name: str) -> RemedyRow:
        found = [row for row in self.rows if row.name == name]
        if not found:
            raise KeyError(f"No row {name!r}; there are {', '.join(repr(row.name) for row in self.rows)}.")
        return found[0]

    @property
    def loss(self) -> float:
        """Of the given model in floating point, nats per token."""
        return self.rows[0].evaluation.loss

    @property
    def best(self) -> RemedyRow:
        """The row with the smallest KL."""
        return min(self.rows, key=lambda row: row.evaluation.kl if row.evaluation.kl == row.evaluation.kl else math.inf)

    def recovered(self, row: RemedyRow, measure: str = "kl") -> float:
        """The fraction of the damage without remedies that is gone with them: 1 all, 0 none, below 0 there is more than before.

        `measure` is "kl", or "damage" (of the loss; NaN where there is none to recover).
        """
        before, after = getattr(self.rows[0].evaluation, measure), getattr(row.evaluation, measure)
        return 1 - after / before if before > 0 else math.nan

    def table(self) -> "pd.DataFrame":
        """One row per plan of remedies. Losses and KL in nats per token, SQNR in dB."""
        import pandas as pd

        rows = []
        for row in self.rows:
            found = row.evaluation
            low, high = found.interval()
            rows.append({
                "remedy": row.name, "loss": found.loss, "loss_float": row.loss_float, "loss_quantized": found.loss_quantized,
                "damage": found.damage, "damage_low": low, "damage_high": high, "recovered_damage": self.recovered(row, "damage"),
                "kl": found.kl, "recovered": self.recovered(row), "kl_float": row.kl_float, "agreement": found.agreement,
                "sqnr": row.sqnr, "bulk_sqnr": row.bulk_sqnr, "worst": row.worst,
                "worst_bulk_sqnr": found.bulk_sqnr[row.worst] if row.worst else math.nan, "inf_norm": row.inf_norm,
                "kurtosis": row.kurtosis, "n_weights": len(found.weights), "n_activations": len(found.activations),
                "notes": "; ".join(row.notes),
            })  # fmt: skip
        return pd.DataFrame(rows).assign(model=self.model, n_calibration=self.n_calibration, n_evaluated=self.n_evaluated)

    def figure(self) -> "go.Figure":
        """KL of every plan, log scale, what the remedies alone cost (before quantization) beside it."""
        import plotly.graph_objects as go

        names = [row.name for row in self.rows]
        figure = go.Figure(go.Bar(y=names, x=[row.evaluation.kl for row in self.rows], orientation="h", name="quantized"))
        figure.add_bar(y=names, x=[max(row.kl_float, 0.0) for row in self.rows], orientation="h", name="remedy alone, not quantized")
        figure.update_yaxes(autorange="reversed")
        title = f"{self.model}: which remedy helps? ({self.n_evaluated} prompts, {self.n_calibration} others to calibrate)"
        return figure.update_layout(title=title, template="plotly_white", xaxis_title="KL from the model (nats/token)", xaxis_type="log")

    def to_json(self) -> str:
        def plain(value: Any) -> Any:
            return None if isinstance(value, float) and not math.isfinite(value) else value

        rows = [
            {k: plain(v) for k, v in record.items() if k != "model"} | {"plan": json.loads(remedies_to_json(row.remedies))}
            for row, record in zip(self.rows, self.table().to_dict("records"), strict=True)
        ]
        counts = {name: getattr(self, name) for name in ("model", "n_calibration", "n_evaluated", "n_tokens", "left_out")}
        return json.dumps(counts | {"scheme": plain_scheme(self.scheme), "rows": rows})


def remedy(
    model: Model,
    prompts: "Prompts | str | Sequence[str]",
    remedies: "Sequence[Remedy | Sequence[Remedy]]",
    scheme: str | Scheme = "w8a8",
    *,
    calibration: "Prompts | Sequence[str] | None" = None,
    share: float = 0.25,
    seed: int = 0,
    progress: Report | bool | None = None,
    **changes: Any,
) -> RemedyReport:
    """The scheme without remedies and with each of `remedies`, a combination being a sequence of them in order.

    calibration  prompts to fit on; None: a `share` of `prompts`, drawn with the seed. No calibration prompt is measured on
    changes      replace fields of the scheme, as in quant.evaluate
    """
    plans = [(), *(as_remedies(item) for item in remedies)]
    chosen = scheme_of(scheme, **changes)
    given = model.check_prompts(prompts)
    fitted, measured = _split(given, share, seed) if calibration is None else _apart(given, model.check_prompts(calibration))
    left_out = len(given) - len(measured) - (len(fitted) if calibration is None else 0)
    if int(measured.lengths.max()) < 2:
        raise ValueError("Every prompt to measure on has one token; a loss needs at least two.")
    rows = []
    with reporting(progress, "remedies") as report:
        for i, plan in enumerate(plans):
            rows.append(_row(model, plan, Setup(model, chosen, fitted), measured, rows[0] if rows else None))
            report(i + 1, len(plans))
    return RemedyReport(model.name, chosen, tuple(rows), len(fitted), len(measured), int((measured.lengths - 1).sum()), left_out)


def _row(model: Model, plan: RemedyPlan, setup: Setup, prompts: Prompts, first: RemedyRow | None) -> RemedyRow:
    """One plan measured; `first`, the row without remedies, has what is the same while the model is."""
    ready = apply_plan(plan, setup)
    run = quantize(ready.model, ready.scheme, ready.calibration)
    found = evaluate_run(model, run, prompts, f"{len(ready.calibration)} other prompts")
    if first is not None and ready.model is model:
        return RemedyRow(plan, found, found.loss, 0.0, first.inf_norm, first.kurtosis, ready.notes)
    loss, kl = found.loss, 0.0
    if ready.model is not model:
        _, totals = compare(model, quantize(ready.model, NOTHING), prompts)
        _, loss, kl, _ = (totals / int((prompts.lengths - 1).sum())).tolist()
    stats = activation_statistics(ready.model, prompts)
    kurtosis = [t.kurtosis for t in stats.tensors if t.kurtosis == t.kurtosis]
    mean = sum(kurtosis) / len(kurtosis) if kurtosis else math.nan
    return RemedyRow(plan, found, loss, kl, stats.inf_norm["all"], mean, ready.notes)


def _split(prompts: Prompts, share: float, seed: int) -> tuple[Prompts, Prompts]:
    """Calibration and other prompts; prompts with the same tokens go to the same side."""
    if not 0 < share < 1:
        raise ValueError(f"share is the calibration's fraction of the prompts, between 0 and 1; given {share!r}.")
    texts = [tuple(row) for row in prompts.rows()]
    unique = list(dict.fromkeys(texts))
    if len(unique) < 2:
        raise ValueError(
            "Calibration and evaluation need different prompts, and all that were given are the same. Give more, or calibration=."
        )
    order = torch.randperm(len(unique), generator=torch.Generator().manual_seed(seed)).tolist()
    fitted = {unique[i] for i in order[: min(max(1, round(share * len(unique))), len(unique) - 1)]}
    sides = [[i for i, text in enumerate(texts) if (text in fitted) == wanted] for wanted in (True, False)]
    return prompts[sides[0]], prompts[sides[1]]


def _apart(prompts: Prompts, calibration: Prompts) -> tuple[Prompts, Prompts]:
    """The calibration prompts, and the prompts that are none of them."""
    seen = {tuple(row) for row in calibration.rows()}
    rest = [i for i, row in enumerate(prompts.rows()) if tuple(row) not in seen]
    if not rest:
        raise ValueError("All prompts are calibration prompts; damage is measured on others. Give some, or leave calibration out.")
    return calibration, prompts[rest]
