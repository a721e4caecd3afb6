"""ReLU with an L1 penalty on the codes (decoder rows have norm 1, so a code cannot hide in its direction's length)."""

from torch import Tensor, nn

from saes.config import Config
from saes.sparsity.rule import Encoder, Outcome, squared
from saes.weights import Weights


class ReLU:
    steered = True

    def __init__(self, config: Config, weights: Weights, sample: Tensor):
        self.weight = 0.1 / len(weights.b_dec)

    def parameters(self) -> dict[str, nn.Parameter]:
        return {}

    def __call__(self, weights: Weights, x: Tensor, y: Tensor) -> Outcome:
        codes, penalty = self.codes(weights, x)
        residual = y - weights.reconstruct(codes, x)
        return Outcome(squared(residual), residual.detach(), codes, penalty)

    def codes(self, weights: Weights, x: Tensor) -> tuple[Tensor, Tensor]:
        codes = weights.pre(x).relu()
        return codes, codes.sum(1).mean()

    def encoder(self, weights: Weights, sample: Tensor) -> Encoder:
        return weights.W_enc, weights.b_enc, weights.b_enc.new_zeros(len(weights.b_enc))
