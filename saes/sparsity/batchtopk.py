"""BatchTopK: the largest k x rows pre-activations of a batch, so that rows share the budget (Bussmann et al. 2024, arXiv 2412.06410).

Inference must not depend on the batch: the coder keeps one threshold, the level above which k features per row lie on average.
"""

import torch
from torch import Tensor, nn

from saes import sparse
from saes.config import Config
from saes.sparse import Codes, Pattern
from saes.sparsity.rule import Encoder, Outcome, squared, threshold_for
from saes.weights import Weights


class BatchTopK:
    weight, steered = 0.0, False

    def __init__(self, config: Config, weights: Weights, sample: Tensor):
        self.k = config.k
        self.level = 0.0
        """What the last batch's selection had to exceed: where the search of the next one starts."""

    def parameters(self) -> dict[str, nn.Parameter]:
        return {}

    def __call__(self, weights: Weights, x: Tensor, y: Tensor) -> Outcome:
        codes, _ = self.codes(weights, x)
        residual = y - weights.reconstruct(codes, x)
        return Outcome(squared(residual), residual.detach(), codes)

    def codes(self, weights: Weights, x: Tensor) -> tuple[Codes, None]:
        return sparse.encode(x, weights.W_enc, weights.b_enc, self.select), None

    def select(self, pre: Tensor) -> Pattern:
        """The k x rows largest positive entries. Where the search starts changes its time, not its result."""
        wanted = self.k * len(pre)
        rows, columns = (pre > 0.7 * self.level).nonzero(as_tuple=True)
        if len(rows) < wanted:
            rows, columns = (pre > 0).nonzero(as_tuple=True)
        if len(rows) > wanted:
            values, chosen = pre[rows, columns].topk(wanted, sorted=False)
            self.level = float(values.min())
            chosen = chosen.sort().values  # row after row again
            rows, columns = rows[chosen], columns[chosen]
        counts = torch.bincount(rows, minlength=len(pre))
        return Pattern(columns.contiguous(), counts.cumsum(0) - counts, pre.shape[1])

    def encoder(self, weights: Weights, sample: Tensor) -> Encoder:
        level = threshold_for(weights.pre(sample), self.k)
        return weights.W_enc, weights.b_enc, torch.full_like(weights.b_enc, level)
