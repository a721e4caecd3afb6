"""SmoothQuant (Xiao et al. 2023, arXiv 2211.10438): large activations after a norm are divided down, weights that read them multiplied up.

    s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)       norm's weight and bias / s,   rows of q, k, v or of the MLP's first layer * s

X: the norm's output on calibration prompts. Attention's output projection and the MLP's second layer read no norm and stay.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.engine.anatomy import Block, linear_weight
from interp.models import Model
from interp.prompts import Prompts
from interp.quant.evaluation import evaluate
from interp.quant.remedies.setup import Setup, private_copy, refuse_other_readers
from interp.selection import real, row_chunks

SMALLEST = 1e-5  # of s, and of the maxima that it is made of
BUDGET = 256 * 2**20  # bytes of activations held at once
GRID = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Smooth:
    """SmoothQuant at one alpha, or at that of several with the smallest KL on the calibration prompts."""

    alpha: float | tuple[float, ...] = 0.5
    kind: ClassVar[str] = "smooth"

    def __post_init__(self) -> None:
        if isinstance(self.alpha, list):
            object.__setattr__(self, "alpha", tuple(self.alpha))
        if not self.alphas:
            raise ValueError("alpha is a number from 0 to 1 or several of them; given none.")
        for alpha in self.alphas:
            check_alpha(alpha)

    @property
    def alphas(self) -> tuple[float, ...]:
        """The values that are tried."""
        return self.alpha if isinstance(self.alpha, tuple) else (self.alpha,)

    @property
    def name(self) -> str:
        return "smooth, alpha " + (f"from {min(self.alphas):g}-{max(self.alphas):g}" if len(self.alphas) > 1 else f"{min(self.alphas):g}")

    def apply(self, setup: Setup) -> Setup:
        peaks = norm_peaks(setup.model, setup.calibration)
        if len(self.alphas) == 1:
            return replace(setup, model=_smoothed(setup.model, peaks, self.alphas[0]))
        models = {alpha: _smoothed(setup.model, peaks, alpha) for alpha in self.alphas}
        cost = {alpha: evaluate(model, setup.calibration, setup.scheme).kl for alpha, model in models.items()}
        best = min(cost, key=lambda alpha: cost[alpha])
        return replace(setup, model=models[best]).noting(f"alpha {best:g}")


def check_alpha(alpha: object) -> float:
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 <= alpha <= 1:
        raise ValueError(f"alpha lies from 0 (weights as even as can be) to 1 (activations as even as can be); given {alpha!r}.")
    return float(alpha)


def smooth(model: Model, calibration: Prompts, alpha: float = 0.5) -> Model:
    """A model with the same logits, whose norms give smaller outliers. ValueError for post-norm models."""
    return _smoothed(model, norm_peaks(model, model.check_prompts(calibration)), check_alpha(alpha))


def norm_peaks(model: Model, calibration: Prompts) -> dict[tuple[int, str], Float[Tensor, " d_model"]]:
    """(layer, "ln1" or "ln2") -> the largest size of each entry of the norm's output, with weight and bias."""
    refuse_other_readers(model, "Smoothing")
    found: dict[tuple[int, str], Tensor] = {}
    sites = ["blocks.*.ln1.hook_normalized", "blocks.*.ln2.hook_normalized"]
    per_row = 2 * model.n_layers * calibration.width * model.d_model * model.dtype.itemsize
    with torch.no_grad():
        for part in row_chunks(calibration, per_row, BUDGET):
            batch = calibration[part]
            capture = model.capture(batch, sites)
            for block in model.anatomy.blocks:
                for kind, norm, _ in read_norms(block):
                    x = capture[f"blocks.{block.layer}.{kind}.hook_normalized"][real(batch)].double()
                    size = (x * norm.weight.double() + norm.bias.double()).abs().amax(0)
                    key = (block.layer, kind)
                    found[key] = torch.maximum(found[key], size) if key in found else size
    for (layer, kind), size in found.items():
        if not bool(torch.isfinite(size).all()):
            raise ValueError(f"blocks.{layer}.{kind} holds NaN or infinities on the calibration prompts; smoothing needs finite numbers.")
    return found


def read_norms(block: Block) -> Iterator[tuple[str, nn.LayerNorm, tuple[nn.Module, ...]]]:
    """Each norm of a pre-norm block and the linear layers that read it."""
    yield "ln1", block.norm1, block.qkv
    yield "ln2", block.norm2, (block.mlp_in,)


def _smoothed(model: Model, peaks: dict[tuple[int, str], Tensor], alpha: float) -> Model:
    twin = private_copy(model)
    with torch.no_grad():
        for block in twin.anatomy.blocks:
            for kind, norm, readers in read_norms(block):
                weight = torch.stack([linear_weight(module).double().abs().amax(1) for module in readers]).amax(0)
                size = peaks[block.layer, kind]
                s = (size.clamp(min=SMALLEST).pow(alpha) / weight.clamp(min=SMALLEST).pow(1 - alpha)).clamp(min=SMALLEST)
                s = torch.where((size == 0) | (weight == 0), torch.ones_like(s), s)  # nothing to trade
                norm.weight.copy_(norm.weight.double() / s)
                norm.bias.copy_(norm.bias.double() / s)
                for module in readers:
                    linear_weight(module).copy_(linear_weight(module).double() * s[:, None])
    return twin
