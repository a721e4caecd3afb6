"""`saes.evaluate_crosscoder`: how sparse and exact a crosscoder is at each of its sites, and what the model loses with it in place."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.edits import Edit, Plan
from interp.models import Model
from interp.prompts import Prompts
from interp.store import Memory
from saes.crosscoders.blocks import Block, owners
from saes.crosscoders.crosscoder import Crosscoder
from saes.crosscoders.replacing import crosscoder_replacements, targets_of
from saes.crosscoders.training import crosscoder_controls
from saes.evaluation import Ablation, share
from saes.replacing import flat, losses, parts, real_positions

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False)
class CrosscoderEvaluation:
    """One crosscoder on one text. CE and KL are in nats per token; `sites` are those written to, in causal order."""

    model: str
    kind: str
    blocks: tuple[Block, ...]
    tokens: int
    l0: tuple[float, ...]
    """Active features per token, by block."""
    density: tuple[Float[Tensor, " n_features"], ...]
    """Fraction of tokens that activate each feature, by block."""
    sites: tuple[str, ...]
    fvu: tuple[float, ...]
    """By site: E|y - y^|^2 / (E|y|^2 - |E y|^2) over all tokens, float64; features read the clean run."""
    ce_clean: float
    ce_replaced: float
    """With every site replaced, in causal order."""
    ce_ablated: float
    kl: float
    """KL(clean | replaced)."""
    kl_ablated: float
    ce_alone: tuple[float, ...]
    """By site: with this site replaced and no other."""
    ce_ablated_alone: tuple[float, ...]
    ablation: str
    controls: Mapping[str, "CrosscoderEvaluation"] = field(default_factory=dict)

    @property
    def total_l0(self) -> float:
        """Active features per token, all blocks together."""
        return sum(self.l0)

    @property
    def mean_fvu(self) -> float:
        return sum(self.fvu) / len(self.fvu)

    @property
    def ce_recovered(self) -> float:
        """(ablated - replaced) / (ablated - clean), all sites together."""
        return share(self.ce_ablated - self.ce_replaced, self.ce_ablated - self.ce_clean)

    @property
    def dead_fraction(self) -> float:
        """Features that no token activates."""
        return float((torch.cat(self.density) == 0).double().mean())

    def summary(self) -> dict[str, float]:
        names = ("total_l0", "mean_fvu", "ce_clean", "ce_replaced", "ce_ablated", "ce_recovered", "kl", "kl_ablated", "dead_fraction")
        return {name: getattr(self, name) for name in names}

    def table(self) -> "pd.DataFrame":
        """One row per site, and the same of each control. `l0` counts the features that write to the site, `block_l0` and
        `dead_fraction` those of the last block that does."""
        import pandas as pd

        return pd.DataFrame([row for name, each in {self.kind: self, **self.controls}.items() for row in each._rows(name)])

    def _rows(self, name: str) -> list[dict[str, Any]]:
        last, where = owners(self.blocks), {"model": self.model, "coder": name, "tokens": self.tokens}
        rows = []
        for i, site in enumerate(self.sites):
            rows.append(where | {
                "site": site, "fvu": self.fvu[i], "l0": sum(l0 for l0, b in zip(self.l0, self.blocks, strict=True) if site in b.writes),
                "block_l0": self.l0[last[site]], "dead_fraction": float((self.density[last[site]] == 0).double().mean()),
                "ce_alone": self.ce_alone[i], "ce_clean": self.ce_clean, "ce_ablated_alone": self.ce_ablated_alone[i],
                "ce_recovered_alone": share(self.ce_ablated_alone[i] - self.ce_alone[i], self.ce_ablated_alone[i] - self.ce_clean),
            })  # fmt: skip
        return rows

    def figure(self) -> "go.Figure":
        """The fraction of variance unexplained at each site, the controls' beside it."""
        import plotly.graph_objects as go

        figure = go.Figure()
        for name, each in {self.kind: self, **self.controls}.items():
            figure.add_bar(x=list(each.sites), y=list(each.fvu), name=name)
        losses = f"CE {self.ce_clean:.3f} -> {self.ce_replaced:.3f}, KL {self.kl:.3f} nats per token"
        title = f"{self.model}: L0 {self.total_l0:.1f} in all, {losses}"
        return figure.update_layout(title=title, barmode="group", yaxis_title="fraction of variance unexplained")

    def to_json(self) -> str:
        plain = {name: value for name, value in vars(self).items() if name not in ("controls", "density", "blocks")} | self.summary()
        plain |= {"blocks": [vars(block) for block in self.blocks], "density": [d.tolist() for d in self.density]}
        return json.dumps(plain | {"controls": {name: json.loads(each.to_json()) for name, each in self.controls.items()}})


def evaluate_crosscoder(
    model: Model,
    crosscoder: Crosscoder,
    prompts: "Prompts | str | Sequence[str]",
    *,
    ablation: Ablation = "zero",
    controls: bool | Mapping[str, Crosscoder] = False,
    rows: int = 64,
) -> CrosscoderEvaluation:
    """Measures a crosscoder, or cross-layer transcoder, on prompts, `rows` of them at a time; all tokens count.

    controls  True trains the same blocks with a frozen random decoder, a frozen random encoder, and not at all, on these very prompts
              (which favours them); or give trained ones by name (`saes.crosscoder_controls`)
    """
    if ablation not in ("zero", "mean"):
        raise ValueError(f"ablation={ablation!r}: zero or mean.")
    prompts = model.check_prompts(prompts)
    targets = targets_of(crosscoder, model)
    if controls is True:
        controls = _controls(model, crosscoder, prompts, rows)
    beside = {name: evaluate_crosscoder(model, c, prompts, ablation=ablation, rows=rows) for name, c in (controls or {}).items()}
    removed = {t: Edit(t, "zero") if ablation == "zero" else Edit(t, "mean", value=model.mean(prompts, t, rows)) for t in targets}
    plans: list[Callable[[Prompts], Plan]] = [lambda part: crosscoder_replacements(model, part, crosscoder)]
    plans += [lambda part: tuple(removed.values())]
    plans += [lambda part, t=t: crosscoder_replacements(model, part, crosscoder, [t]) for t in targets]
    plans += [lambda part, t=t: (removed[t],) for t in targets]
    clean, (whole, none, *each) = losses(model, prompts, plans, rows)
    alone, alone_removed = each[: len(targets)], each[len(targets) :]
    return CrosscoderEvaluation(
        model=model.name, kind=crosscoder.coders[0].config.kind, blocks=crosscoder.blocks, tokens=clean.tokens, sites=tuple(targets),
        ce_clean=clean.mean_ce, ce_replaced=whole.mean_ce, ce_ablated=none.mean_ce, kl=whole.mean_kl, kl_ablated=none.mean_kl,
        ce_alone=tuple(x.mean_ce for x in alone), ce_ablated_alone=tuple(x.mean_ce for x in alone_removed),
        ablation=ablation, controls=beside, **_fidelity(model, crosscoder, prompts, targets, rows),
    )  # fmt: skip


def real_rows(model: Model, prompts: Prompts, sites: Sequence[str]) -> dict[str, Float[Tensor, "token d"]]:
    """Every real token's row at several sites of one clean run."""
    captured, real = model.capture(prompts, list(sites)), real_positions(prompts)
    return {site: flat(captured[site])[real] for site in sites}


@torch.no_grad()
def _fidelity(model: Model, crosscoder: Crosscoder, prompts: Prompts, targets: Sequence[str], rows: int) -> dict[str, Any]:
    """What needs activations alone. Rows are shifted by the first part's mean, which changes no variance."""
    sites = list(dict.fromkeys((*crosscoder.reads, *targets)))
    fired = [torch.zeros(c.n_features, dtype=torch.float64, device=c.W_dec.device) for c in crosscoder.coders]
    sums = {site: _Unexplained() for site in targets}
    n = 0
    for part in parts(prompts, rows):
        found = real_rows(model, part, sites)
        codes = crosscoder.encode_sparse(found)
        outputs = [_output(crosscoder, i, found, z) for i, z in enumerate(codes)]
        for i, z in enumerate(codes):
            fired[i] += torch.bincount(z.pattern.columns, minlength=len(fired[i]))
        for site, out in crosscoder.added(outputs).items():
            sums[site].add(found[site], out)
        n += len(found[sites[0]])
    l0 = tuple(float(each.sum()) / n for each in fired)
    return {"l0": l0, "density": tuple((each / n).cpu() for each in fired), "fvu": tuple(sums[site].fvu() for site in targets)}


def _output(crosscoder: Crosscoder, block: int, rows: Mapping[str, Tensor], codes: Any) -> Tensor:
    """What a block writes, from codes that are known."""
    coder = crosscoder.coders[block]
    decoded = coder.decode(codes)
    return decoded if coder.W_skip is None else decoded + crosscoder.side_by_side(block, rows) @ coder.W_skip.T


class _Unexplained:
    """Sums in float64 over parts: error, square and total of centred rows."""

    def __init__(self) -> None:
        self.n, self.error, self.square = 0, 0.0, 0.0
        self.shift: Tensor | None = None
        self.total: Tensor | float = 0.0

    def add(self, y: Tensor, out: Tensor) -> None:
        y64 = y.double()
        self.shift = y64.mean(0) if self.shift is None else self.shift
        centred = y64 - self.shift
        self.n += len(y)
        self.error += float((y64 - out.double()).square().sum())
        self.square += float(centred.square().sum())
        self.total = self.total + centred.sum(0)

    def fvu(self) -> float:
        assert isinstance(self.total, Tensor)
        return share(self.error / self.n, self.square / self.n - float((self.total / self.n).square().sum()))


def _controls(model: Model, crosscoder: Crosscoder, prompts: Prompts, rows: int) -> dict[str, Crosscoder]:
    sites = list(dict.fromkeys((*crosscoder.reads, *crosscoder.writes)))
    found = [real_rows(model, part, sites) for part in parts(prompts, rows)]
    memory = Memory({site: torch.cat([part[site] for part in found]).cpu() for site in sites})
    config = crosscoder.coders[0].config
    n = len(memory.tensors[sites[0]])
    trained = crosscoder_controls(memory, crosscoder.blocks, replace(config, batch_size=min(config.batch_size, n)))
    return {name: each.to(crosscoder.coders[0].W_dec.device) for name, each in trained.items()}
