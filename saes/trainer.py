"""One coder in training: the step, and a state that can be written down and taken up again bit for bit."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saes.coders import ROWS, Coder
from saes.config import Config
from saes.dead import auxiliary, resample
from saes.randomness import generator
from saes.sparsity import RULES, Outcome, Rule
from saes.sparsity.rule import threshold_for
from saes.weights import Scaling, Weights, folded


@dataclass(frozen=True)
class Metrics:
    """One step, measured on its batch. `fvu` is a fraction of the variance of the whole data; `dead` and `l0` count features."""

    step: int
    loss: float
    fvu: float
    l0: float
    dead: int
    lr: float
    penalty: float
    """The weight of the sparsity penalty."""


class Trainer:
    """Trains one coder on batches in the data's own units.

    sample  some rows of the training data: they set a JumpReLU's first thresholds, and at the end BatchTopK's threshold
    """

    def __init__(self, config: Config, inputs: Scaling, targets: Scaling, sample: Float[Tensor, "row d_in"], transcoder: bool):
        self.config, self.inputs, self.targets, self.transcoder = config, inputs, targets, transcoder
        self.sample = inputs.apply(sample)
        self.generator = generator("coder", config.seed)
        d_out = len(targets.mean)
        weights = Weights(sample.shape[1], d_out, config, not transcoder, self.generator, sample.dtype)
        self.weights = weights.to(sample.device)
        self.rule: Rule = RULES[config.kind](config, self.weights, self.sample)
        self.penalty = config.penalty if config.penalty is not None else self.rule.weight
        self.pressure = 0.0
        """Logarithm of what steering has done to the penalty's weight."""
        self.step_count = 0
        self.rows_seen = 0
        self.last_fired: Int[Tensor, " n_features"] = torch.zeros(config.n_features, dtype=torch.long, device=sample.device)
        self.parameters = {**dict(self.weights.named_parameters()), **{f"rule.{n}": p for n, p in self.rule.parameters().items()}}
        trained = [p for p in self.parameters.values() if p.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=config.learning_rate, betas=(0.9, config.details.beta2), fused=True)

    def step(self, x: Float[Tensor, "row d_in"], y: Float[Tensor, "row d_out"] | None = None) -> Metrics:
        """One batch; an autoencoder needs no y. ValueError if the loss is not finite."""
        details, config = self.config.details, self.config
        x = self.inputs.apply(x)
        y = x if y is None else self.targets.apply(y)
        lr = self.set_learning_rate()
        dead = self.dead()
        with precision(details.precision, x.device):
            outcome = self.rule(self.weights, x, y)
            loss, fvu = self._loss(outcome, x, dead)
        if not math.isfinite(value := float(loss.detach())):
            given = "bad rows" if not bool(torch.isfinite(x).all()) else f"a learning rate of {config.learning_rate:g} that is too high"
            raise ValueError(f"The loss of step {self.step_count} of the {config.kind} coder is {value}: {given}.")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        l0 = self.update(outcome, x)
        return Metrics(self.step_count, value, fvu, l0, len(dead), lr, self.penalty)

    def update(self, outcome: Outcome, x: Float[Tensor, "row d_in"]) -> float:
        """What follows the gradient of a batch: the parameters' step, the count of what fired, steering, resampling. The batch's L0."""
        details = self.config.details
        self.weights.remove_parallel_gradient()
        if details.clip:
            torch.nn.utils.clip_grad_norm_([p for p in self.parameters.values() if p.grad is not None], details.clip)
        self.optimizer.step()
        self.weights.normalize_decoder()
        l0 = outcome.l0()
        self._count(outcome, len(x))
        self._steer(l0)
        self.step_count += 1
        if details.resample_every and self.step_count % details.resample_every == 0:
            self._resample(x, outcome.residual)
        return l0

    def dead(self) -> Int[Tensor, " dead"]:
        """The features that no row of the last `dead_after` has activated."""
        return (self.rows_seen - self.last_fired >= self.config.dead_after).nonzero().flatten()

    def finish(self, info: dict[str, Any] | None = None) -> Coder:
        """The coder as it stands, in the data's own units. ValueError if no feature is active on any row of the sample."""
        with torch.no_grad():
            encoder = self.rule.encoder(self.weights, self.sample)
            tensors = folded(self.weights, encoder, self.inputs, self.targets)
            level = threshold_for(self.weights.pre(self.sample), self.config.k) * self.targets.scale if encoder[2] is None else None
        info = {"steps": self.step_count, "rows": self.rows_seen, "dead": len(self.dead()), **(info or {})}
        if level is not None:
            info["threshold"] = level  # for formats that have no top-k transcoder
        coder = Coder(**tensors, config=self.config, transcoder=self.transcoder, info=info)  # type: ignore[arg-type]
        if self.step_count and not bool((coder.encode(self.sample[:ROWS] * self.inputs.scale + self.inputs.mean) != 0).any()):
            raise ValueError(
                f"Every feature of the {self.config.kind} coder is dead: no row activates one. Lower penalty "
                f"({self.penalty:.3g}) or lr ({self.config.learning_rate:g}); aux_coefficient and resample_every revive features."
            )
        return coder.requires_grad_(False).eval()

    # --- parts of a step ----------------------------------------------------------------------------------------------------

    def _loss(self, outcome: Outcome, x: Tensor, dead: Tensor) -> tuple[Tensor, float]:
        """In units of the target's variance, which is its width after normalisation."""
        variance = self.targets.variance
        fvu = outcome.error / variance
        loss = fvu if outcome.extra is None else fvu + outcome.extra / variance
        return self.sparser(loss, outcome, x, dead), float(outcome.residual.square().sum(1).mean()) / variance

    def sparser(self, loss: Tensor, outcome: Outcome, x: Tensor, dead: Tensor) -> Tensor:
        """The loss with the sparsity penalty and AuxK."""
        if outcome.penalty is not None:
            ramp = 1.0 if self._steers() else _ramp(self.step_count, self.config.details.penalty_warmup * self.config.steps)
            loss = loss + self.penalty * ramp * outcome.penalty
        if self.config.aux_coefficient and len(dead):
            loss = loss + self.config.aux_coefficient * auxiliary(self.weights, x, outcome.residual, dead, self.config.details.aux_k)
        return loss

    def set_learning_rate(self) -> float:
        details, steps, now = self.config.details, self.config.steps, self.step_count
        lr = self.config.learning_rate * _ramp(now, details.warmup * steps) * min(1.0, _ramp(steps - now - 1, details.decay * steps))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        return lr

    def _count(self, outcome: Outcome, rows: int) -> None:
        self.rows_seen += rows
        self.last_fired[outcome.fired()] = self.rows_seen

    def _steers(self) -> bool:
        return self.rule.steered and self.config.penalty is None

    def _steer(self, l0: float) -> None:
        """More penalty while more than k features are active: a slow integral of the logarithm, and L0 / k itself, which damps."""
        if self._steers():
            off = min(max(math.log(max(l0, 1e-3) / self.config.k), -2.0), 2.0)
            self.pressure += min(max(10 / self.config.steps, 0.002), 0.05) * off
            self.penalty = self.rule.weight * math.exp(self.pressure + off)

    def _resample(self, x: Tensor, residual: Tensor) -> None:
        dead = self.dead()
        if len(dead):
            resample(self.weights, self.optimizer, x, residual, dead, self.generator)
            self.last_fired[dead] = self.rows_seen


def _ramp(done: float, whole: float) -> float:
    """Grows from 0 to 1 while `done` grows to `whole`; the first step is not lost."""
    return min(1.0, (done + 1) / whole) if whole > 0 else 1.0


@contextmanager
def precision(name: str, device: torch.device) -> Iterator[None]:
    """Matrix products in full float32, TensorFloat-32 or bfloat16, whatever the process has set."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=name == "bfloat16"):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
