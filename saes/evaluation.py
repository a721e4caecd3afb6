"""`saes.evaluate`: how sparse, how exact, and how much of the model is lost when a coder stands in for a site."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from interp.edits import Edit, Plan
from interp.models import Model
from interp.prompts import Prompts
from saes.coders import Coder
from saes.fitting import controls as fit_controls
from saes.ground_truth import cosine
from saes.replacing import activations, in_order, losses, parts, replacements, sites_of

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

Ablation = Literal["zero", "mean"]
LIVE = 1e-5
"""Features that fire less often are below the first bar of the histogram."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One coder on one text. CE and KL are in nats per token; fractions are of the whole."""

    model: str
    input_site: str
    target_site: str
    kind: str
    tokens: int
    l0: float
    """Active features per token."""
    fvu: float
    """Fraction of the target's variance that is not explained: E|y - y^|^2 / (E|y|^2 - |E y|^2), all tokens, float64."""
    ce_clean: float
    ce_replaced: float
    """With the reconstruction in the site's place."""
    ce_ablated: float
    ablation: str
    kl: float
    """KL(clean | replaced)."""
    kl_ablated: float
    shrinkage: float
    """Mean of |y^| / |y| over tokens whose y is not 0."""
    reconstruction_bias: float
    """E|y^|^2 / E<y, y^>: 1 where lengths are right (Rajamanoharan et al. 2024, equation 10)."""
    decoder_cosine: float
    """Mean over features of the largest |cosine| to another feature's decoder row."""
    density: Float[Tensor, " n_features"]
    """Fraction of tokens that activate each feature."""
    controls: Mapping[str, "Evaluation"] = field(default_factory=dict)

    @property
    def explained_variance(self) -> float:
        return 1 - self.fvu

    @property
    def ce_recovered(self) -> float:
        """(ablated - replaced) / (ablated - clean), of the averages: 1 if nothing is lost, 0 if all that the site does."""
        return share(self.ce_ablated - self.ce_replaced, self.ce_ablated - self.ce_clean)

    @property
    def kl_recovered(self) -> float:
        return share(self.kl_ablated - self.kl, self.kl_ablated)

    @property
    def dead_fraction(self) -> float:
        """Features that no token activates."""
        return float((self.density == 0).double().mean())

    def summary(self) -> dict[str, Any]:
        losses = ("ce_clean", "ce_replaced", "ce_ablated", "ce_recovered", "kl", "kl_recovered")
        others = ("shrinkage", "reconstruction_bias", "dead_fraction", "decoder_cosine")
        return {name: getattr(self, name) for name in ("l0", "fvu", *losses, *others)}

    def table(self) -> "pd.DataFrame":
        """One row for the coder and one for each control."""
        import pandas as pd

        where = {"model": self.model, "input_site": self.input_site, "target_site": self.target_site, "tokens": self.tokens}
        named = {self.kind: self, **self.controls}
        return pd.DataFrame([where | {"coder": name, "ablation": self.ablation} | each.summary() for name, each in named.items()])

    def figure(self) -> "go.Figure":
        """Histogram of log10 density, the controls' beside it."""
        import plotly.graph_objects as go

        figure = go.Figure()
        for name, each in {self.kind: self, **self.controls}.items():
            logs = each.density.clamp_min(LIVE).log10().tolist()
            figure.add_histogram(x=logs, name=name, xbins={"start": -5, "end": 0.25, "size": 0.25}, opacity=0.6)
        title = f"{self.model}, {self.target_site}: L0 {self.l0:.1f}, {self.dead_fraction:.1%} dead"
        return figure.update_layout(title=title, barmode="overlay", xaxis_title="log10 fraction of tokens", yaxis_title="features")

    def to_json(self) -> str:
        plain = {"model": self.model, "input_site": self.input_site, "target_site": self.target_site, "kind": self.kind}
        plain |= {"tokens": self.tokens, "ablation": self.ablation, **self.summary(), "density": self.density.tolist()}
        return json.dumps(plain | {"controls": {name: json.loads(each.to_json()) for name, each in self.controls.items()}})


def evaluate(
    model: Model,
    coder: Coder,
    prompts: "Prompts | str | Sequence[str]",
    *,
    ablation: Ablation = "zero",
    controls: bool | Mapping[str, Coder] = False,
    rows: int = 64,
) -> Evaluation:
    """Measures a coder on prompts, `rows` of them at a time; all tokens count.

    controls: True trains the coder's config with a frozen random decoder, a frozen random encoder, and not at all, on these very prompts
    (which favours them); or give trained ones by name. ValueError if the coder does not know its sites.
    """
    if ablation not in ("zero", "mean"):
        raise ValueError(f"ablation={ablation!r}: zero or mean.")
    prompts = model.check_prompts(prompts)
    source, target = sites_of(coder, model)
    if controls is True:
        x, y = activations(model, prompts, source, target, rows)
        controls = fit_controls(x.to(coder.W_dec.dtype), y.to(coder.W_dec.dtype) if coder.transcoder else None, coder.config)
    beside = {name: evaluate(model, c, prompts, ablation=ablation, rows=rows) for name, c in (controls or {}).items()}
    ablated = Edit(target, "zero") if ablation == "zero" else Edit(target, "mean", value=model.mean(prompts, target, rows))
    plans = [lambda part: replacements(model, part, [coder]), lambda part: (ablated,)]
    clean, (replaced, removed) = losses(model, prompts, plans, rows)
    return Evaluation(
        model=model.name, input_site=source, target_site=target, kind=coder.config.kind, tokens=clean.tokens, ablation=ablation,
        ce_clean=clean.mean_ce, ce_replaced=replaced.mean_ce, ce_ablated=removed.mean_ce, kl=replaced.mean_kl, kl_ablated=removed.mean_kl,
        decoder_cosine=_decoder_cosine(coder), controls=beside, **_fidelity(model, coder, prompts, rows),
    )  # fmt: skip


@torch.no_grad()
def _fidelity(model: Model, coder: Coder, prompts: Prompts, rows: int) -> dict[str, Any]:
    """What needs activations alone. Sums in float64, on the target's rows shifted by the first part's mean (which changes no variance)."""
    source, target = sites_of(coder, model)
    shift, fired = None, torch.zeros(coder.n_features, dtype=torch.float64, device=coder.W_dec.device)
    sums: dict[str, float] = dict.fromkeys(("tokens", "error", "square", "ratio", "lengths", "own", "cross"), 0.0)
    total: Tensor | float = 0.0
    for part in parts(prompts, rows):
        x, y = (t.to(coder.W_dec.dtype) for t in activations(model, part, source, target, rows))
        z, out = coder.encode(x), coder(x)
        shift = y.double().mean(0) if shift is None else shift
        centred, y64, out64 = y.double() - shift, y.double(), out.double()
        lengths = y64.norm(dim=1)
        nonzero = lengths > 0
        fired += (z != 0).sum(0)
        total = total + centred.sum(0)
        step: dict[str, Any] = {
            "tokens": len(x), "error": (y64 - out64).square().sum(), "square": centred.square().sum(), "own": out64.square().sum(),
            "ratio": (out64.norm(dim=1)[nonzero] / lengths[nonzero]).sum(), "lengths": nonzero.sum(), "cross": (y64 * out64).sum(),
        }  # fmt: skip
        sums = {name: sums[name] + float(step[name]) for name in sums}
    n = sums["tokens"]
    assert isinstance(total, Tensor)
    variance = sums["square"] / n - float((total / n).square().sum())
    return {
        "l0": float(fired.sum()) / n, "fvu": share(sums["error"] / n, variance), "shrinkage": share(sums["ratio"], sums["lengths"]),
        "reconstruction_bias": share(sums["own"], sums["cross"]), "density": (fired / n).cpu(),
    }  # fmt: skip


@torch.no_grad()
def _decoder_cosine(coder: Coder) -> float:
    largest = []
    for start in range(0, coder.n_features, 1024):
        near = cosine(coder.W_dec[start : start + 1024], coder.W_dec).abs()
        near[torch.arange(len(near)), torch.arange(start, start + len(near))] = 0
        largest.append(near.max(1).values)
    return float(torch.cat(largest).mean())


@dataclass(frozen=True, eq=False)
class Together:
    """Several sites replaced at once; nats per token."""

    model: str
    targets: tuple[str, ...]
    tokens: int
    ce_clean: float
    ce_replaced: float
    ce_ablated: float
    kl: float
    kl_ablated: float
    each: tuple[float, ...]
    """CE with the first site replaced, the first two, and so on."""

    @property
    def ce_recovered(self) -> float:
        return share(self.ce_ablated - self.ce_replaced, self.ce_ablated - self.ce_clean)

    def table(self) -> "pd.DataFrame":
        """One row per number of replaced sites."""
        import pandas as pd

        frame = pd.DataFrame({"replaced": range(1, len(self.each) + 1), "last": self.targets, "ce": self.each})
        return frame.assign(ce_increase=frame["ce"] - self.ce_clean, ce_clean=self.ce_clean, tokens=self.tokens, model=self.model)

    def figure(self) -> "go.Figure":
        """CE as site after site is replaced."""
        import plotly.graph_objects as go

        figure = go.Figure(go.Scatter(x=["none", *self.targets], y=[self.ce_clean, *self.each], mode="lines+markers", name="replaced"))
        return figure.update_layout(title=self.model, xaxis_title="replaced up to", yaxis_title="cross-entropy (nats per token)")

    def to_json(self) -> str:
        return json.dumps(vars(self) | {"ce_recovered": self.ce_recovered})


def evaluate_together(model: Model, coders: Sequence[Coder], prompts: "Prompts | str | Sequence[str]", rows: int = 64) -> Together:
    """All coders in place at once, each reading what the ones before it left; beside it all their sites set to zero."""
    prompts = model.check_prompts(prompts)
    coders = in_order(coders, model)
    if not coders:
        raise ValueError("Give at least one coder.")
    targets = tuple(sites_of(coder, model)[1] for coder in coders)
    zero: Plan = tuple(Edit(target, "zero") for target in targets)
    plans = [lambda part, n=n: replacements(model, part, coders[:n]) for n in range(1, len(coders) + 1)]
    clean, (*each, removed) = losses(model, prompts, [*plans, lambda part: zero], rows)
    return Together(
        model.name, targets, clean.tokens, clean.mean_ce, each[-1].mean_ce, removed.mean_ce, each[-1].mean_kl, removed.mean_kl,
        tuple(loss.mean_ce for loss in each),
    )  # fmt: skip


def share(part: float, whole: float) -> float:
    """part / whole; NaN where there is no whole."""
    return part / whole if whole else float("nan")
