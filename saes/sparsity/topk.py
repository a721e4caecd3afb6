"""TopK: the k largest pre-activations of a row (Gao et al. 2024, arXiv 2406.04093)."""

import torch
from torch import Tensor, nn

from saes import sparse
from saes.config import Config
from saes.sparse import Codes
from saes.sparsity.rule import Encoder, Outcome, squared
from saes.weights import Weights


class TopK:
    weight, steered = 0.0, False

    def __init__(self, config: Config, weights: Weights, sample: Tensor):
        self.k, self.sparse = config.k, config.k <= config.details.dense_above * config.n_features

    def parameters(self) -> dict[str, nn.Parameter]:
        return {}

    def __call__(self, weights: Weights, x: Tensor, y: Tensor) -> Outcome:
        codes, _ = self.codes(weights, x)
        residual = y - weights.reconstruct(codes, x)
        return Outcome(squared(residual), residual.detach(), codes)

    def codes(self, weights: Weights, x: Tensor) -> tuple[Codes | Tensor, None]:
        return self._sparse(weights, x) if self.sparse else self._dense(weights, x), None

    def _sparse(self, weights: Weights, x: Tensor) -> Codes:
        return sparse.encode_topk(x, weights.W_enc, weights.b_enc, self.k)

    def _dense(self, weights: Weights, x: Tensor) -> Tensor:
        pre = weights.pre(x)
        kept = torch.zeros_like(pre).scatter_(1, sparse.topk(pre.detach(), self.k)[1], 1.0)
        return pre.relu() * kept

    def encoder(self, weights: Weights, sample: Tensor) -> Encoder:
        return weights.W_enc, weights.b_enc, None
