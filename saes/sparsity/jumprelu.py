"""JumpReLU: each feature has its own threshold, learned through straight-through estimators (Rajamanoharan et al. 2024, arXiv 2407.14435).

The derivative of a step is taken as a window of the bandwidth around the threshold (equations 10 to 12). The penalty is (L0 / k - 1)^2 on
the batch's mean L0, which aims at k by itself, or the mean of tanh(4 a), whose weight is steered.
"""

from typing import Any

import torch
from torch import Tensor, nn

from saes.config import Config
from saes.sparsity.rule import Encoder, Outcome, squared, threshold_for
from saes.weights import Weights


class JumpReLU:
    def __init__(self, config: Config, weights: Weights, sample: Tensor):
        self.k, self.quadratic, self.bandwidth = config.k, config.details.l0_loss == "quadratic", config.details.bandwidth
        self.weight = 1.0 if self.quadratic else 0.1 / config.k
        self.steered = not self.quadratic
        start = max(threshold_for(weights.pre(sample), min(2 * config.k, config.n_features)), 0.01)
        self.log_threshold = nn.Parameter(torch.full_like(weights.b_enc, start).log())

    def parameters(self) -> dict[str, nn.Parameter]:
        return {"log_threshold": self.log_threshold}

    def __call__(self, weights: Weights, x: Tensor, y: Tensor) -> Outcome:
        codes, penalty = self.codes(weights, x)
        residual = y - weights.reconstruct(codes, x)
        return Outcome(squared(residual), residual.detach(), codes, penalty)

    def codes(self, weights: Weights, x: Tensor) -> tuple[Tensor, Tensor]:
        pre, threshold = weights.pre(x).float() if weights.b_enc.dtype == torch.float32 else weights.pre(x), self.log_threshold.exp()
        codes = jumprelu(pre, threshold, self.bandwidth)
        if self.quadratic:
            penalty = (step(pre, threshold, self.bandwidth).sum(1).mean() / self.k - 1).square()
        else:
            penalty = torch.tanh(4 * codes).sum(1).mean()
        return codes, penalty

    def encoder(self, weights: Weights, sample: Tensor) -> Encoder:
        return weights.W_enc, weights.b_enc, self.log_threshold.exp()


def jumprelu(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """pre where it is above the threshold, else 0."""
    return _JumpReLU.apply(pre, threshold, bandwidth)  # type: ignore[no-any-return]


def step(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """1 where pre is above the threshold, else 0."""
    return _Step.apply(pre, threshold, bandwidth)  # type: ignore[no-any-return]


def _window(pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """A rectangle of width `bandwidth` and area 1 around the threshold."""
    return ((pre - threshold).abs() < bandwidth / 2).to(pre.dtype) / bandwidth


class _JumpReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return pre * (pre > threshold)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        pre, threshold = ctx.saved_tensors
        to_threshold = -(grad * _window(pre, threshold, ctx.bandwidth)).sum(0) * threshold
        return grad * (pre > threshold), to_threshold, None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(pre, threshold)
        ctx.bandwidth = bandwidth
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:  # type: ignore[override]
        pre, threshold = ctx.saved_tensors
        return None, -(grad * _window(pre, threshold, ctx.bandwidth)).sum(0), None
