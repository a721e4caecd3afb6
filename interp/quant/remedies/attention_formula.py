"""Another attention formula, switched on after training: the remedy that has to be trained with, tried without.

Clipped softmax and softmax-1 let a head attend to nothing, so a model trained with them need not write massive activations (Bondarenko et
al. 2023). A model trained without them relies on the attention that they take away: a row's `kl_float` is what that costs before anything
is rounded.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from interp.attention_variants import AttentionVariant
from interp.quant.remedies.setup import Setup


@dataclass(frozen=True)
class AttentionFormula:
    """All heads attend by this formula, in a model that was trained with another: it hurts, and is here to show how much.

    formula  "clipped" (with gamma and zeta), "normalized-clipped" (with alpha) or "softmax-1"; None settings take their defaults
    """

    formula: str = "softmax-1"
    gamma: float | None = None
    zeta: float | None = None
    alpha: float | None = None
    kind: ClassVar[str] = "attention formula"

    def __post_init__(self) -> None:
        if self.variant.is_learned:
            raise ValueError(f"{self.formula} has parameters, which have to be trained; untrained there are clipped ones and softmax-1.")

    @property
    def variant(self) -> AttentionVariant:
        return AttentionVariant(self.formula, gamma=self.gamma, zeta=self.zeta, alpha=self.alpha)

    @property
    def name(self) -> str:
        return f"{self.variant} attention, untrained"

    def apply(self, setup: Setup) -> Setup:
        if self.variant == setup.model.attention:
            return setup.noting("the model's own attention: nothing changed")
        return replace(setup, model=setup.model.with_attention(self.variant))
