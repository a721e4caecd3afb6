"""A model whose activations are replaced by what coders make of them, as data: edits that the engine runs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.edits import Edit, Plan
from interp.models import Model
from interp.prompts import Prompts
from saes.coders import Coder


def sites_of(coder: Coder, model: Model) -> tuple[str, str]:
    """Input and target site; ValueError if the coder does not say, KeyError if the model lacks them."""
    if coder.input_site is None or coder.target_site is None:
        raise ValueError("This coder does not know where it belongs: train it with Config(input_site=..., target_site=...).")
    for site in (coder.input_site, coder.target_site):
        model.sites().get(site)
    return coder.input_site, coder.target_site


def mlp_sites(model: Model, layer: int) -> tuple[str, str]:
    """What a layer's MLP reads and what it adds to the stream. Its input is the second norm's output, before weight and bias; in a
    post-norm block, whose norms come after the additions, it is the stream itself. KeyError for a layer that the model lacks."""
    name = f"blocks.{layer}"
    target = model.sites().get(f"{name}.hook_mlp_out").name
    return f"{name}.{'hook_resid_mid' if model.anatomy.blocks[layer].wiring == 'post-norm' else 'ln2.hook_normalized'}", target


def in_order(coders: Sequence[Coder], model: Model) -> list[Coder]:
    """The coders in the causal order of their targets. ValueError if two replace the same site."""
    order = {site.name: i for i, site in enumerate(model.sites())}
    targets = [sites_of(coder, model)[1] for coder in coders]
    if repeated := {site for site in targets if targets.count(site) > 1}:
        raise ValueError(f"Several coders replace {', '.join(sorted(repeated))}.")
    return [coders[i] for i in sorted(range(len(coders)), key=lambda i: order[targets[i]])]


def replacements(model: Model, prompts: Prompts, coders: Sequence[Coder]) -> Plan:
    """Edits that put each coder's reconstruction at its target.

    A later coder reads the stream as the earlier replacements leave it, so the plan is exactly the model with all of them in place.
    """
    plan: Plan = ()
    for coder in in_order(coders, model):
        source, target = sites_of(coder, model)
        x = model.capture(prompts, [source], edits=plan)[source]
        plan = (*plan, Edit(target, "patch", value=reconstruction(model, coder, x, prompts)))
    return plan


@torch.no_grad()
def reconstruction(model: Model, coder: Coder, x: Tensor, prompts: Prompts) -> Tensor:
    """The coder's output [row, pos, ...] in the target's axes, 0 on padding."""
    out = coder(flat(x).to(coder.W_dec.dtype)).to(x.dtype)
    return placed(model, str(coder.target_site), out, prompts)


def placed(model: Model, site: str, rows: Float[Tensor, "row pos d"], prompts: Prompts) -> Tensor:
    """Rows in a site's axes, 0 on padding."""
    rows = torch.where(real_positions(prompts)[:, :, None], rows, 0.0)
    return rows.unflatten(-1, (model.n_heads, -1)) if model.sites().get(site).has_heads else rows


def flat(x: Tensor) -> Float[Tensor, "row pos d"]:
    """Heads side by side, where a site has heads."""
    return x.flatten(2)


def real_positions(prompts: Prompts) -> Bool[Tensor, "row pos"]:
    return torch.arange(prompts.width, device=prompts.lengths.device) < prompts.lengths[:, None]


def parts(prompts: Prompts, rows: int) -> Iterator[Prompts]:
    """The prompts, `rows` at a time."""
    for start in range(0, len(prompts), rows):
        yield prompts[torch.arange(start, min(start + rows, len(prompts)))]


@torch.no_grad()
def activations(model: Model, prompts: Prompts, source: str, target: str, rows: int = 64) -> tuple[Tensor, Tensor]:
    """Input and target of every real token: [token, d_in], [token, d_out]."""
    found = []
    for part in parts(prompts, rows):
        cap, real = model.capture(part, [source, target]), real_positions(part)
        found.append((flat(cap[source])[real], flat(cap[target])[real]))
    return torch.cat([x for x, _ in found]), torch.cat([y for _, y in found])


@dataclass(frozen=True)
class Loss:
    """Sums over tokens, in nats: of the next token's cross-entropy, and of KL(clean | edited) at every position."""

    ce: float = 0.0
    kl: float = 0.0
    predicted: int = 0
    tokens: int = 0

    def __add__(self, other: "Loss") -> "Loss":
        return Loss(self.ce + other.ce, self.kl + other.kl, self.predicted + other.predicted, self.tokens + other.tokens)

    @property
    def mean_ce(self) -> float:
        return self.ce / self.predicted

    @property
    def mean_kl(self) -> float:
        return self.kl / self.tokens


@torch.no_grad()
def losses(model: Model, prompts: Prompts, plans: Sequence[Callable[[Prompts], Plan]], rows: int = 64) -> tuple[Loss, list[Loss]]:
    """(clean, one for each plan) over all prompts; a plan is made for each part of the prompts."""
    clean, edited = Loss(), [Loss() for _ in plans]
    for part in parts(prompts, rows):
        log_p = model.logits(part).log_softmax(-1)
        clean = clean + _loss(log_p, log_p, part)
        for i, plan in enumerate(plans):
            edited[i] = edited[i] + _loss(model.logits(part, plan(part)).log_softmax(-1), log_p, part)
    if not clean.predicted:
        raise ValueError("No prompt has a second token, so there is no next token to predict.")
    return clean, edited


def _loss(log_q: Tensor, log_p: Tensor, prompts: Prompts) -> Loss:
    real = real_positions(prompts)
    nexts = real[:, 1:]
    ce = -log_q[:, :-1].gather(2, prompts.ids[:, 1:, None]).squeeze(2)[nexts].double().sum()
    kl = torch.zeros(()) if log_q is log_p else (log_p.exp() * (log_p - log_q)).sum(-1)[real].double().sum()
    return Loss(float(ce), float(kl), int(nexts.sum()), int(real.sum()))
