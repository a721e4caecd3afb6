"""Blocks that are trained together: a `Trainer` for each, and one loss over the sites that they write to.

    loss = sum over sites of |y_s - y^_s|^2 / variance_s  +  sum over blocks of sparsity penalty and AuxK

Rows are centred and scaled site by site. The rows of a block's concatenated decoder have norm 1, so its penalties on codes are those on
codes times that norm, whatever a feature's scale (as in Ameisen et al. 2025). AuxK lets a block's dead features reconstruct what
remains at all sites that they write to. A site's bias is trained once, by the last block that writes it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saes.coders import Coder
from saes.config import Config
from saes.crosscoders.blocks import Block, owners, sites_read, sites_written
from saes.crosscoders.crosscoder import Crosscoder, add_up
from saes.fitting import SAMPLE
from saes.sparsity import Outcome
from saes.sparsity.rule import squared
from saes.trainer import Metrics, Trainer, precision
from saes.weights import Scaling

KINDS = ("topk", "batchtopk", "jumprelu", "relu")


@dataclass(frozen=True, eq=False)
class Pass:
    """One batch through all blocks, in training units."""

    inputs: list[Tensor]
    errors: dict[str, Float[Tensor, ""]]
    """By site: the squared error as a fraction of the variance of its rows."""
    outcomes: list[Outcome]
    """By block; its residual is that of the sites it writes to, side by side."""

    def fvu(self) -> Float[Tensor, ""]:
        """Summed over sites."""
        return torch.stack(list(self.errors.values())).sum()


class Joint:
    """The blocks in training. `first`: rows of every site, that set scales and thresholds."""

    def __init__(self, blocks: Sequence[Block], config: Config, first: Mapping[str, Float[Tensor, "row d"]]):
        check(blocks, config)
        self.blocks, self.config, self.owners = tuple(blocks), config, owners(blocks)
        self.sites = tuple(dict.fromkeys((*sites_read(blocks), *sites_written(blocks))))
        self.scalings = {site: Scaling.of(first[site], config.details.normalize) for site in self.sites}
        self.widths = {site: first[site].shape[1] for site in self.sites}
        sample = {site: self.scalings[site].apply(first[site][:SAMPLE]) for site in self.sites}
        self.trainers = {f"block {i}": self._trainer(i, block, sample) for i, block in enumerate(self.blocks)}

    def _trainer(self, i: int, block: Block, sample: Mapping[str, Tensor]) -> Trainer:
        """Block i starts from seed + i. What it is given is scaled already, so its own scaling changes nothing."""
        writes = [self.widths[site] for site in block.writes]
        aux_k = self.config.details.aux_k or max(1, sum(writes) // len(writes) // 2)
        names = {"input_site": " + ".join(block.reads), "target_site": " + ".join(block.writes)}  # by which a checkpoint knows the block
        config = self.config.but(seed=self.config.seed + i, aux_k=aux_k, **names)
        x = torch.cat([sample[site] for site in block.reads], 1)
        inputs, targets = (Scaling(x.new_zeros(d), 1.0, float(d)) for d in (x.shape[1], sum(writes)))
        trainer = Trainer(config, inputs, targets, x, transcoder=block.reads != block.writes)
        owned = torch.cat([x.new_full((self.widths[site],), float(self.owners[site] == i)) for site in block.writes])
        trainer.weights.b_dec.register_hook(lambda grad: grad * owned)
        return trainer

    def forward(self, rows: Mapping[str, Float[Tensor, "row d"]]) -> Pass:
        """Rows of every site in training units."""
        trainers = list(self.trainers.values())
        inputs = [torch.cat([rows[site] for site in block.reads], 1) for block in self.blocks]
        coded = [t.rule.codes(t.weights, x) for t, x in zip(trainers, inputs, strict=True)]  # type: ignore[attr-defined]
        written = [t.weights.reconstruct(codes, x) for t, (codes, _), x in zip(trainers, coded, inputs, strict=True)]
        rebuilt = add_up(self.blocks, self.widths, written)
        residuals = {site: rows[site] - y for site, y in rebuilt.items()}
        errors = {site: squared(residual) / self.scalings[site].variance for site, residual in residuals.items()}
        outcomes = []
        for block, (codes, penalty) in zip(self.blocks, coded, strict=True):
            residual = torch.cat([residuals[site].detach() for site in block.writes], 1)
            outcomes.append(Outcome(squared(residual), residual, codes, penalty))
        return Pass(inputs, errors, outcomes)

    def loss(self, done: Pass, dead: Sequence[Int[Tensor, " dead"]]) -> Float[Tensor, ""]:
        """The sum over sites of the fraction of variance unexplained, with the penalties and AuxK of all blocks."""
        loss = done.fvu()
        for trainer, outcome, x, features in zip(self.trainers.values(), done.outcomes, done.inputs, dead, strict=True):
            loss = trainer.sparser(loss, outcome, x, features)
        return loss

    def step(self, rows: Mapping[str, Float[Tensor, "row d"]]) -> dict[str, Metrics]:
        """One batch in the data's own units. ValueError if the loss is not finite."""
        scaled = {site: self.scalings[site].apply(rows[site]) for site in self.sites}
        trainers = list(self.trainers.values())
        lr = [trainer.set_learning_rate() for trainer in trainers][0]
        dead = [trainer.dead() for trainer in trainers]
        with precision(self.config.details.precision, scaled[self.sites[0]].device):
            done = self.forward(scaled)
            loss = self.loss(done, dead)
        if not math.isfinite(value := float(loss.detach())):
            bad = [site for site in self.sites if not bool(torch.isfinite(scaled[site]).all())]
            given = f"bad rows of {bad[0]}" if bad else f"a learning rate of {self.config.learning_rate:g} that is too high"
            raise ValueError(f"The loss of step {trainers[0].step_count} of the {self.config.kind} crosscoder is {value}: {given}.")
        for trainer in trainers:
            trainer.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        l0 = [trainer.update(outcome, x) for trainer, outcome, x in zip(trainers, done.outcomes, done.inputs, strict=True)]
        return {
            name: Metrics(trainer.step_count, value, self._fvu(done, i), l0[i], len(dead[i]), lr, trainer.penalty)
            for i, (name, trainer) in enumerate(self.trainers.items())
        }

    def _fvu(self, done: Pass, block: int) -> float:
        """Mean over the sites whose last writer is this block."""
        own = [float(error.detach()) for site, error in done.errors.items() if self.owners[site] == block]
        return sum(own) / len(own) if own else float("nan")

    def finish(self, info: Mapping[str, Any] | None = None) -> Crosscoder:
        """The crosscoder as it stands, in the data's own units. ValueError if a block has no feature that is active on the sample."""
        coders = [trainer.finish() for trainer in self.trainers.values()]
        known = {"scales": {site: scaling.scale for site, scaling in self.scalings.items()}, **(info or {})}
        return Crosscoder(self.blocks, unscaled(self.blocks, coders, self.scalings), self.widths, known)


def check(blocks: Sequence[Block], config: Config) -> None:
    if config.kind not in KINDS:
        raise ValueError(f"Crosscoders are of kind {', '.join(KINDS)}; given {config.kind!r}.")
    if config.skip and any(set(block.reads) & set(block.writes) for block in blocks):
        raise ValueError("A skip connection would copy a site to itself: skip=True is for blocks that write other sites than they read.")


@torch.no_grad()
def unscaled(blocks: Sequence[Block], coders: Sequence[Coder], scalings: Mapping[str, Scaling]) -> tuple[Coder, ...]:
    """Coders of centred and scaled rows, made for rows in their own units. Computed in float64.

    Codes of a block are multiplied by one number, the mean scale of the sites it writes to: which k are largest does not change.
    """
    centre = {site: scalings[site].mean.double().clone() for site in sites_written(blocks)}
    """What is added to a site beside the features: its mean, less what the skip terms make of the means they read."""
    out = []
    for block, coder in zip(blocks, coders, strict=True):
        mean, scale = _side_by_side(block.reads, scalings)
        _, to = _side_by_side(block.writes, scalings)
        unit = sum(scalings[site].scale for site in block.writes) / len(block.writes)
        W_enc = coder.W_enc.double() * (unit / scale)[:, None]
        skip = None if coder.W_skip is None else to[:, None] * coder.W_skip.double() / scale
        if skip is not None:
            for site, part in zip(block.writes, (skip @ mean).split([len(scalings[s].mean) for s in block.writes]), strict=True):
                centre[site] -= part
        tensors = {
            "W_enc": W_enc, "b_enc": unit * coder.b_enc.double() - mean @ W_enc, "W_dec": coder.W_dec.double() * to / unit,
            "b_dec": to * coder.b_dec.double(), "W_skip": skip,
            "threshold": None if coder.threshold is None else unit * coder.threshold.double(),
        }  # fmt: skip
        info = coder.info | ({"threshold": unit * coder.info["threshold"]} if "threshold" in coder.info else {})
        out.append((tensors, coder, info))
    last = owners(blocks)
    for i, (block, (tensors, _, _)) in enumerate(zip(blocks, out, strict=True)):
        tensors["b_dec"] += torch.cat([centre[site] * float(last[site] == i) for site in block.writes])
    return tuple(_coder(tensors, coder, info) for tensors, coder, info in out)


def _side_by_side(sites: Sequence[str], scalings: Mapping[str, Scaling]) -> tuple[Tensor, Tensor]:
    """Mean and scale of every dimension of sites side by side, float64."""
    means = [scalings[site].mean.double() for site in sites]
    return torch.cat(means), torch.cat([torch.full_like(mean, scalings[site].scale) for mean, site in zip(means, sites, strict=True)])


def _coder(tensors: Mapping[str, Tensor | None], like: Coder, info: dict[str, Any]) -> Coder:
    kept = {name: None if t is None else t.to(like.W_enc.dtype).contiguous() for name, t in tensors.items()}
    config = like.config.but(input_site=None, target_site=None)  # it is no coder of one site
    return Coder(**kept, config=config, transcoder=like.transcoder, info=info).requires_grad_(False).eval()  # type: ignore[arg-type]
