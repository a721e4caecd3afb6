"""Matryoshka: BatchTopK whose first features must also reconstruct alone, in nested prefixes (Bussmann et al. 2025, arXiv 2503.17547)."""

from torch import Tensor

from saes import sparse
from saes.config import Config
from saes.sparse import Codes
from saes.sparsity.batchtopk import BatchTopK
from saes.sparsity.rule import Outcome, squared
from saes.weights import Weights


class Matryoshka(BatchTopK):
    def __init__(self, config: Config, weights: Weights, sample: Tensor):
        super().__init__(config, weights, sample)
        ends = [max(1, round(fraction * config.n_features)) for fraction in config.details.groups]
        self.ends = sorted(set(ends))
        """Sizes of the prefixes."""

    def __call__(self, weights: Weights, x: Tensor, y: Tensor) -> Outcome:
        codes, _ = self.codes(weights, x)
        residual = y - weights.reconstruct(Codes(codes.values[:0], _nothing(codes)), x)
        errors, start = [], 0
        for end in self.ends:
            inside = (codes.pattern.columns >= start) & (codes.pattern.columns < end)
            residual = residual - sparse.decode(codes.values * inside, codes.pattern, weights.W_dec)
            errors.append(squared(residual))
            start = end
        return Outcome(sum(errors[1:], errors[0]) / len(errors), residual.detach(), codes)


def _nothing(codes: Codes) -> sparse.Pattern:
    """The same rows without active features."""
    pattern = codes.pattern
    return sparse.Pattern(pattern.columns[:0], pattern.offsets * 0, pattern.n_features)
