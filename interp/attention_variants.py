"""Attention of other formulas, at the one seam: softmaxes that let a head attend to nothing, gates that let it write nothing.

    softmax             plain attention
    clipped             clip((zeta - gamma) softmax(x) + gamma, 0, 1)                       Bondarenko et al. 2023, arXiv 2306.12929, eq. 4
    normalized-clipped  the same with zeta = 1, gamma = -alpha / (keys that a query sees)   Liao & Monz 2024, arXiv 2402.12102
    softmax-1           exp(x) / (1 + sum exp(x))                                           a key of score 0 and value 0
    sink-logit          exp(x) / (exp(s) + sum exp(x)), s learned per head                  the same with a learned score
    key-bias            exp(x) / (exp(q k') + sum exp(x)), k' learned per head              a learned key; Gu et al., arXiv 2410.10781
    gated-linear        z sigmoid(w h_head + b), h_head the head's slice of h               Bondarenko et al. 2023, eq. 5
    gated-mlp           z sigmoid(w' relu(W h_head + b) + b')
    gated-all-heads     z sigmoid(w h + b)

h is what the attention block reads: the first norm's output, or the stream in a post-norm block. One gate per head and token. k' is
not turned by rotary embeddings.

What the sites hold: `hook_pattern` the weights that values are mixed with. Clipped rows need not sum to 1; with softmax-1, sink-logit and
key-bias rows sum to less than 1 (the extra key's column is left out). `hook_gate` [row, pos, head, 1] the gate, in models that have one;
`hook_z` is pattern @ v times the gate, so W_O reads it as ever.

A variant belongs to training. Switched on in a model that was trained without it, it takes attention away that the model relies on. How
much depends on the rows: gamma = -0.03 leaves nothing of 35 equal weights, so long texts lose nearly all. Measured in
`experiments/notes/attention-variants.md`.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from interp.quant.softmax import clipped_softmax, normalized_clipped_softmax, softmax_one

SETTINGS: Mapping[str, Mapping[str, float]] = {
    "softmax": {}, "clipped": {"gamma": -0.03, "zeta": 1.0}, "normalized-clipped": {"alpha": 2.0}, "softmax-1": {}, "sink-logit": {},
    "key-bias": {}, "gated-linear": {"opening": 0.25}, "gated-mlp": {"opening": 0.25, "hidden": 4}, "gated-all-heads": {"opening": 0.25},
}  # fmt: skip
"""Every kind with its settings and their defaults."""


@dataclass(frozen=True)
class AttentionVariant:
    """Which formula, and its settings; a setting left out takes its default. ValueError for settings that the kind does not have."""

    kind: str = "softmax"
    gamma: float | None = None
    """clipped: at most 0; probabilities below -gamma / (zeta - gamma) become exactly 0."""
    zeta: float | None = None
    """clipped: at least 1; probabilities above (1 - gamma) / (zeta - gamma) become exactly 1."""
    alpha: float | None = None
    """normalized-clipped: gamma times the number of keys; a query that sees at most alpha keys is not clipped."""
    opening: float | None = None
    """gates: how far they stand open at the start of training, as a fraction."""
    hidden: int | None = None
    """gated-mlp: neurons per head."""

    def __post_init__(self) -> None:
        if self.kind not in SETTINGS:
            raise ValueError(f"Unknown kind of attention {self.kind!r}: there are {', '.join(SETTINGS)}.")
        own = SETTINGS[self.kind]
        for name in ("gamma", "zeta", "alpha", "opening", "hidden"):
            given = getattr(self, name)
            if given is not None and name not in own:
                raise ValueError(f"{self.kind} attention has no {name} (given {given!r}); its settings: {', '.join(own) or 'none'}.")
            if given is None and name in own:
                object.__setattr__(self, name, own[name])
            elif given is not None and (isinstance(given, bool) or not isinstance(given, int | float) or not math.isfinite(given)):
                raise ValueError(f"{name} is a finite number; given {given!r}.")
        self._check_ranges()

    def _check_ranges(self) -> None:
        if self.gamma is not None and self.zeta is not None and not (self.gamma <= 0 and self.zeta >= 1):
            raise ValueError(f"Clipped softmax stretches the unit interval: gamma <= 0 and zeta >= 1; given {self.gamma}, {self.zeta}.")
        if self.alpha is not None and not self.alpha >= 0:
            raise ValueError(f"alpha is at least 0; given {self.alpha}.")
        if self.opening is not None and not 0 < self.opening < 1:
            raise ValueError(f"opening lies between 0 and 1; given {self.opening}.")
        if self.hidden is not None and (not isinstance(self.hidden, int) or self.hidden < 1):
            raise ValueError(f"hidden is a number of neurons; given {self.hidden!r}.")

    @classmethod
    def clipped(cls, alpha: float, length: int) -> "AttentionVariant":
        """Clipped softmax with the paper's gamma = -alpha / length, the same for every row."""
        return cls("clipped", gamma=-alpha / length)

    @property
    def is_gate(self) -> bool:
        return self.kind.startswith("gated")

    @property
    def is_learned(self) -> bool:
        """Whether the kind has parameters of its own."""
        return self.is_gate or self.kind in ("sink-logit", "key-bias")

    @property
    def settings(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in SETTINGS[self.kind]}

    def __str__(self) -> str:
        shown = ", ".join(f"{name}={value:g}" for name, value in self.settings.items())
        return f"{self.kind}({shown})" if shown else self.kind

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind} | self.settings

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "AttentionVariant":
        """The inverse of `to_json`; ValueError for unknown keys."""
        known = ("kind", "gamma", "zeta", "alpha", "opening", "hidden")
        if unknown := [key for key in data if key not in known]:
            raise ValueError(f"Attention variants have no {', '.join(map(repr, unknown))}; there are {', '.join(known)}.")
        return cls(**data)


def as_variant(given: "AttentionVariant | str") -> AttentionVariant:
    """A variant; or one by its kind, with default settings or those that follow it as `str` writes them: "clipped(gamma=-0.02)"."""
    if isinstance(given, AttentionVariant):
        return given
    if isinstance(given, str):
        return _parse(given)
    raise ValueError(f"attention is an AttentionVariant or one of {', '.join(SETTINGS)}; given {given!r:.60}.")


def _parse(text: str) -> AttentionVariant:
    kind, _, rest = text.partition("(")
    settings: dict[str, float] = {}
    for part in rest.removesuffix(")").split(",") if rest else ():
        name, _, value = (word.strip() for word in part.partition("="))
        try:
            settings[name] = int(value) if name == "hidden" else float(value)
        except ValueError:
            raise ValueError(f"{text!r}: {part.strip()!r} is no setting; write them as in clipped(gamma=-0.02, zeta=1).") from None
    return AttentionVariant.from_json({"kind": kind.strip()} | settings)


class VariantAttention(nn.Module):
    """One layer's variant with its parameters, attached to the attention module as `.variant`; float32 or wider inside."""

    def __init__(self, spec: AttentionVariant, n_heads: int, d_head: int, d_model: int):
        super().__init__()
        self.spec, self.n_heads = spec, n_heads
        for name, shape in parameter_shapes(spec, n_heads, d_head, d_model).items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))

    def start(self, generator: torch.Generator | None = None) -> "VariantAttention":
        """Fresh parameters: weights uniform within 1 / sqrt(inputs), gates open by `opening`, extra keys and logits 0."""
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name in ("weight", "weight_in", "weight_out"):
                    inputs = parameter.shape[0] if self.spec.kind == "gated-all-heads" else parameter.shape[1]
                    parameter.uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)
            if self.spec.opening is not None:
                bias = getattr(self, "bias_out" if self.spec.kind == "gated-mlp" else "bias")
                bias.fill_(math.log(self.spec.opening / (1 - self.spec.opening)))
        return self

    def pattern(
        self, scores: Float[Tensor, "row head query key"], keep: Bool[Tensor, "*mask query key"], q: Tensor, scale: float
    ) -> Float[Tensor, "row head query key"]:
        """The weights that values are mixed with, of scores after the mask; q [row, head, query, d_head] as the scores were made of."""
        x = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
        keep = keep.expand_as(x)
        match self.spec.kind:
            case "clipped":
                assert self.spec.gamma is not None and self.spec.zeta is not None
                weights = clipped_softmax(x, self.spec.gamma, self.spec.zeta, keep)
            case "normalized-clipped":
                assert self.spec.alpha is not None
                weights = normalized_clipped_softmax(x, self.spec.alpha, keep)
            case "softmax-1":
                weights = softmax_one(x)
            case "sink-logit":
                weights = softmax_one(x, like(self.logit, x)[:, None, None])
            case "key-bias":
                weights = softmax_one(x, torch.einsum("rhqd,hd->rhq", q.to(x), like(self.key, x))[..., None] * scale)
            case _:
                weights = torch.softmax(x, -1)
        return weights.to(scores.dtype)

    def gate(self, h: Float[Tensor, "*token d_model"]) -> Float[Tensor, "*token head one"]:
        """How much of each head's z goes on, 0 to 1, of what the attention block reads."""
        x = h.float() if h.dtype in (torch.float16, torch.bfloat16) else h
        if self.spec.kind == "gated-all-heads":
            opening = x @ like(self.weight, x) + like(self.bias, x)
        else:
            x = x.unflatten(-1, (self.n_heads, -1))
            if self.spec.kind == "gated-linear":
                opening = (x * like(self.weight, x)).sum(-1) + like(self.bias, x)
            else:
                x = torch.einsum("...hd,hdn->...hn", x, like(self.weight_in, x)) + like(self.bias_in, x)
                opening = (torch.relu(x) * like(self.weight_out, x)).sum(-1) + like(self.bias_out, x)
        return opening.sigmoid().unsqueeze(-1).to(h.dtype)


def like(parameter: Any, x: Tensor) -> Tensor:
    return parameter.to(device=x.device, dtype=x.dtype)


def parameter_shapes(spec: AttentionVariant, n_heads: int, d_head: int, d_model: int) -> dict[str, tuple[int, ...]]:
    """One layer's parameters and their shapes."""
    n = int(spec.hidden or 0)
    return {
        "sink-logit": {"logit": (n_heads,)},
        "key-bias": {"key": (n_heads, d_head)},
        "gated-linear": {"weight": (n_heads, d_head), "bias": (n_heads,)},
        "gated-mlp": {
            "weight_in": (n_heads, d_head, n), "bias_in": (n_heads, n), "weight_out": (n_heads, n), "bias_out": (n_heads,),
        },
        "gated-all-heads": {"weight": (d_model, n_heads), "bias": (n_heads,)},
    }.get(spec.kind, {})  # fmt: skip


def of_module(attention: nn.Module) -> VariantAttention | None:
    """What is attached to an attention module, None for plain attention."""
    found = attention._modules.get("variant")
    return found if isinstance(found, VariantAttention) else None


def tensor_names(spec: AttentionVariant, n_layers: int) -> Iterable[tuple[int, str, str]]:
    """(layer, parameter, name on disk) of every parameter."""
    names = parameter_shapes(spec, 1, 1, 1)
    return [(layer, name, f"blocks.{layer}.attn.{name}") for layer in range(n_layers) for name in names]
