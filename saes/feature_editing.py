"""Edits of features as edits of the model: a feature is ablated, clamped, scaled or added to, and the engine runs what that changes.

    target = the site's own value + (z' - z) W_dec

The coder's error stays: only what the edit changes in the codes is written. So an edit that leaves a code as it was changes no bit, and
`interp.sweep` gives it an effect of exactly 0. With errors=False the coder's output stands in for the site, as in `replacements`.

    plan = saes.feature_edits(model, prompts, [saes.FeatureEdit(coder, 17, "clamp", 4.0, pos=-1)])      # Edits, for any sweep or run
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from interp.edits import Edit, Plan
from interp.metrics import AnyMetric
from interp.models import Model
from interp.prompts import Prompts
from interp.sweeps import sweep
from saes.coders import Coder
from saes.replacing import flat, in_order, real_positions, sites_of

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

Op = Literal["ablate", "clamp", "scale", "add"]
OPS: tuple[str, ...] = get_args(Op)


@dataclass(frozen=True, eq=False)
class FeatureEdit:
    """One change of one feature, or of several, of a coder.

    op       ablate: 0; clamp: value; scale: z * value; add: z + value. Codes may become negative: that is what was asked for
    value    a number, or a tensor [row, pos] (of several features [row, pos, feature]) of the prompts that it is used with
    pos      None (all positions), one, or a list; negative ones count from each prompt's own end
    """

    coder: Coder
    feature: int | tuple[int, ...]
    op: Op
    value: float | Tensor | None = None
    pos: int | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.op not in OPS:
            raise ValueError(f"Unknown op {self.op!r} of a feature: there are {', '.join(OPS)}.")
        for name in ("feature", "pos"):
            given = getattr(self, name)
            if isinstance(given, list | range):
                object.__setattr__(self, name, tuple(given))
            several = getattr(self, name) if isinstance(getattr(self, name), tuple) else (getattr(self, name),)
            whole = all(isinstance(i, int) and not isinstance(i, bool) for i in several)
            if not (whole and several and len(set(several)) == len(several)) and not (name == "pos" and given is None):
                raise ValueError(f"{name} of a feature edit is a whole number or several different ones; given {given!r}.")
        n = self.coder.n_features
        if outside := [i for i in self.features if not 0 <= i < n]:
            raise ValueError(f"Feature {outside[0]}: this coder has features 0-{n - 1}.")
        _check_value(self)

    @property
    def features(self) -> tuple[int, ...]:
        return self.feature if isinstance(self.feature, tuple) else (self.feature,)


def _check_value(edit: FeatureEdit) -> None:
    value = edit.value
    if edit.op == "ablate":
        if value is not None:
            raise ValueError(f"ablate takes no value; given {value!r:.60}.")
        return
    good = isinstance(value, Tensor) and value.is_floating_point() and bool(torch.isfinite(value).all())
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")
    if not (good or number):
        raise ValueError(f"{edit.op} of feature {edit.feature} takes a finite number, or a tensor [row, pos]; given {value!r:.60}.")


def feature_edits(
    model: Model, prompts: "Prompts | str | Sequence[str]", edits: "FeatureEdit | Sequence[FeatureEdit]", errors: bool = True
) -> Plan:
    """The edits as a plan for these prompts. A later coder reads the stream as the earlier edits leave it, so the plan is exactly that run.

    errors  keep what the coders miss of their sites; False: each edited coder's output stands in for its site

    Edits of one coder are applied in the order given. ValueError if two coders write to one site.
    """
    prompts = model.check_prompts(prompts)
    given = [edits] if isinstance(edits, FeatureEdit) else list(edits)
    plan: Plan = ()
    for coder in in_order(list({id(e.coder): e.coder for e in given}.values()), model):
        source, _ = sites_of(coder, model)
        x = model.capture(prompts, [source], edits=plan)[source]
        plan = (*plan, _edit(model, prompts, coder, [e for e in given if e.coder is coder], x, errors))
    return plan


@torch.no_grad()
def _edit(model: Model, prompts: Prompts, coder: Coder, edits: Sequence[FeatureEdit], x: Tensor, errors: bool) -> Edit:
    """What edits of one coder do at its target."""
    rows = flat(x).to(coder.W_dec.dtype)
    z = coder.encode(rows)
    edited = z
    for edit in edits:
        edited = _applied(edit, edited, prompts)
    written = (edited - z) @ coder.W_dec
    if not errors:
        written = coder(rows) + written
    site = model.sites()[str(coder.target_site)]
    real = real_positions(prompts)
    value = torch.where(real[:, :, None], written.to(x.dtype), 0.0)
    touched = (edited != z).any(2).logical_and(real).any(0).nonzero().flatten()
    value = value.unflatten(-1, (model.n_heads, -1)) if site.has_heads else value
    if not errors:
        return Edit(site.name, "patch", value=value)
    if len(touched) and int(touched.max()) < prompts.shortest:  # a sweep computes nothing before the first position of a plan
        return Edit(site.name, "add", value=value[:, touched], pos=tuple(touched.tolist()))
    return Edit(site.name, "add", value=value)


def _applied(edit: FeatureEdit, z: Float[Tensor, "row pos feature"], prompts: Prompts) -> Float[Tensor, "row pos feature"]:
    own = z[:, :, list(edit.features)]
    value = torch.zeros_like(own) if edit.op == "ablate" else _full(edit, own)
    new = {"ablate": lambda: value, "clamp": lambda: value, "scale": lambda: own * value, "add": lambda: own + value}[edit.op]()
    out = z.clone()
    out[:, :, list(edit.features)] = torch.where(_where(edit, prompts)[:, :, None], new, own)
    return out


def _full(edit: FeatureEdit, own: Tensor) -> Tensor:
    """The value for every row, position and feature."""
    if not isinstance(edit.value, Tensor):
        return torch.full_like(own, float(edit.value or 0.0))
    value = edit.value.to(own)
    value = value[..., None] if value.ndim == 2 else value
    try:
        return value.expand_as(own)
    except RuntimeError:
        raise ValueError(
            f"The value of feature {edit.feature} is {tuple(edit.value.shape)}; these prompts take [row, pos] {tuple(own.shape[:2])}, "
            f"of several features {tuple(own.shape)}."
        ) from None


def _where(edit: FeatureEdit, prompts: Prompts) -> Tensor:
    """[row, pos]: where the edit acts. ValueError for a position outside a prompt."""
    real = real_positions(prompts)
    if edit.pos is None:
        return real
    chosen = torch.zeros_like(real)
    for pos in edit.pos if isinstance(edit.pos, tuple) else (edit.pos,):
        if not -prompts.shortest <= pos < prompts.shortest:
            raise ValueError(f"Position {pos} of an edit of feature {edit.feature} lies outside a prompt of {prompts.shortest} tokens.")
        at = prompts.lengths + pos if pos < 0 else torch.full_like(prompts.lengths, pos)
        chosen[torch.arange(len(prompts), device=at.device), at] = True
    return chosen


@dataclass(frozen=True, eq=False)
class FeatureDose:
    """A metric as one feature takes several values."""

    model: str
    site: str
    feature: int | tuple[int, ...]
    op: str
    doses: Float[Tensor, " value"]
    values: Float[Tensor, "value prompt"]
    clean: Float[Tensor, " prompt"]
    metric: str
    unit: str

    @property
    def effects(self) -> Float[Tensor, "value prompt"]:
        return self.values - self.clean

    def table(self) -> "pd.DataFrame":
        """One row per value and prompt."""
        import pandas as pd

        n_doses, n_prompts = self.values.shape
        columns: dict[str, Any] = {
            "value": self.doses.repeat_interleave(n_prompts).tolist(), "prompt": list(range(n_prompts)) * n_doses,
            "clean": self.clean.cpu().repeat(n_doses).tolist(), "edited": self.values.cpu().flatten().tolist(),
            "effect": self.effects.cpu().flatten().tolist(),
        }  # fmt: skip
        about = {"feature": str(self.feature), "site": self.site, "op": self.op, "metric": self.metric, "unit": self.unit}
        return pd.DataFrame(columns).assign(**about, model=self.model)

    def figure(self) -> "go.Figure":
        """The metric's mean over prompts, and the band between the 10th and 90th percentile."""
        import plotly.graph_objects as go

        from interp.figures import GREY, LINE

        values, doses = self.values.detach().cpu().double(), self.doses.tolist()
        low, high = (values.quantile(q, dim=1).tolist() for q in (0.1, 0.9))
        figure = go.Figure()
        band = {"fill": "toself", "line": {"width": 0}, "fillcolor": "rgba(37,99,235,0.15)", "hoverinfo": "skip"}
        figure.add_scatter(x=[*doses, *doses[::-1]], y=[*high, *low[::-1]], name="10-90 % of prompts", **band)
        figure.add_scatter(x=doses, y=values.mean(1).tolist(), mode="lines+markers", line={"color": LINE}, name="mean")
        figure.add_hline(y=float(self.clean.mean()), line={"color": GREY, "dash": "dot"}, annotation_text="clean")
        title = f"{self.model}: how does the {self.metric} answer to feature {self.feature} of {self.site}?"
        return figure.update_layout(
            title={"text": title}, template="plotly_white", xaxis_title=f"{self.op} value", yaxis_title=f"{self.metric} ({self.unit})"
        )

    def to_json(self) -> str:
        plain = {"model": self.model, "site": self.site, "feature": self.feature, "op": self.op, "metric": self.metric, "unit": self.unit}
        return json.dumps(plain | {name: getattr(self, name).tolist() for name in ("doses", "values", "clean")})


def feature_dose_response(
    model: Model, prompts: "Prompts | str | Sequence[str]", coder: Coder, feature: int | tuple[int, ...],
    values: Sequence[float] | Tensor, metric: AnyMetric, *, op: Op = "clamp", pos: int | tuple[int, ...] | None = None,
    errors: bool = True, **options: Any,
) -> FeatureDose:  # fmt: skip
    """The metric as a feature is clamped to (scaled by, increased by) each value: all of them in one sweep. `options` are the sweep's."""
    prompts = model.check_prompts(prompts)
    doses = torch.as_tensor(values, dtype=torch.float64).flatten()
    if not len(doses) or op == "ablate":
        raise ValueError(f"A dose response takes at least one value, and op clamp, scale or add; given {values!r:.60} and {op!r}.")
    first = FeatureEdit(coder, feature, op, float(doses[0]), pos)
    source, target = sites_of(coder, model)
    x = model.capture(prompts, [source])[source]
    plans = [(_edit(model, prompts, coder, [replace(first, value=float(v))], x, errors),) for v in doses]
    found = sweep(model, prompts, plans, metric, **options)
    return FeatureDose(model.name, target, first.feature, op, doses, found.values, found.clean, found.metric, found.unit)
