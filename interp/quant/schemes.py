"""How a model is quantized, as data. Named schemes: quant.SCHEMES."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from interp.quant.rounding import check_bits

ACTIVATIONS: Mapping[str, str] = {
    "embed": "hook_embed", "pos_embed": "hook_pos_embed", "embed_sum": "blocks.0.hook_resid_pre",
    "q": "attn.hook_q", "k": "attn.hook_k", "v": "attn.hook_v", "scores": "attn.hook_attn_scores", "pattern": "attn.hook_pattern",
    "z": "attn.hook_z", "attn_out": "hook_attn_out", "resid_mid": "hook_resid_mid", "mlp_post": "mlp.hook_post", "mlp_out": "hook_mlp_out",
    "resid_post": "hook_resid_post",
}  # fmt: skip
"""Quantized activation -> site. Beside these: "ln1", "ln2" and "ln_final", the outputs of the norms with weight and bias."""
NORMS = ("ln1", "ln2", "ln_final")
WEIGHTS = ("embed", "pos_embed", "ln1", "ln2", "ln_final", "qkv", "out", "mlp_in", "mlp_out")
"""Quantized weights; the unembedding stays in floating point, as in Bondarenko et al. 2023 (also where it shares the embedding's
numbers)."""

CHOICES: Mapping[str, tuple[str, ...]] = {
    "weight_per": ("tensor", "channel"), "activation_per": ("tensor", "token"), "product": ("vector", "row", "absmax", "zeropoint"),
}  # fmt: skip


@dataclass(frozen=True)
class Scheme:
    """What is rounded, to how many bits, and how ranges are found."""

    weight_bits: int | None = 8
    """None leaves the weights alone."""
    weight_per: Literal["tensor", "channel"] = "tensor"
    """"channel": one scale per output of a linear layer."""
    weight_range: str | float = "minmax"
    """"minmax", "mse" or a percentile."""
    activation_bits: int | None = 8
    """None leaves the activations alone."""
    activation_per: Literal["tensor", "token"] = "tensor"
    """"tensor": one static range per tensor, found on calibration prompts; "token": a range of its own for every token, dynamic."""
    activation_range: str | float = "minmax"
    """Of one calibration batch: "minmax" or a percentile."""
    symmetric_activations: bool = False
    momentum: float = 0.9
    """Static ranges are running averages over calibration batches: range <- momentum * range + (1 - momentum) * batch. The first batch
    starts it."""
    batches: int = 16
    """Calibration batches."""
    skip_first: bool = False
    """Leave position 0 out of the calibration (its activations may be massive); it is quantized, and clipped, all the same."""
    keep_first: bool = False
    """Leave position 0 out of the calibration and its activations in floating point: what caching a prefix's keys and values does."""
    keep: int = 0
    """So many features of every activation stay in floating point, those with the largest entries on the calibration prompts, and with them
    the weights that read them (as in QUIK, Ashkboos et al. 2023) and their entries of norms and embeddings."""
    decompose: float | None = None
    """LLM.int8: inputs of linear layers with an entry beyond this stay in floating point, the rest is rounded; `inf`: no input does."""
    product: Literal["vector", "row", "absmax", "zeropoint"] = "vector"
    """How LLM.int8 rounds: "vector", a scale per row of the input and per column of the weights; "row", per row of the input and one of the
    weights; "absmax", one of each; "zeropoint", one of each with a range that is not symmetric."""
    activations: tuple[str, ...] = (*ACTIVATIONS, *NORMS)
    """Which activations are rounded."""

    def __post_init__(self) -> None:
        for name in ("weight_bits", "activation_bits"):
            if getattr(self, name) is not None:
                check_bits(getattr(self, name))
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is one of {', '.join(choices)}; given {getattr(self, name)!r}.")
        known = (*ACTIVATIONS, *NORMS)
        if isinstance(self.activations, str):
            raise ValueError(f"activations is a tuple of names; given the name {self.activations!r} alone: write ({self.activations!r},).")
        for name in self.activations:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                raise ValueError(f"No activation {name!r}{f'; did you mean {near[0]!r}' if near else ''}? There are {', '.join(known)}.")
        if not 0 <= self.momentum < 1 or self.batches < 1:
            raise ValueError(f"momentum lies in [0, 1) and batches is at least 1; given {self.momentum} and {self.batches}.")
        if isinstance(self.keep, bool) or not isinstance(self.keep, int) or self.keep < 0:
            raise ValueError(f"keep is how many features stay in floating point, 0 or more; given {self.keep!r}.")
        if self.decompose is None:
            return
        if not self.decompose > 0:
            raise ValueError(f"decompose is above 0; given {self.decompose}.")
        if self.keep or self.keep_first:
            raise ValueError("decompose keeps columns in floating point by their size; it goes with neither keep nor keep_first.")


SCHEMES: Mapping[str, Scheme] = {
    "w8a8": Scheme(),
    "w8a8-percentile": Scheme(activation_range=99.99),
    "w8a8-token": Scheme(weight_per="channel", activation_per="token"),
    "w8": Scheme(activation_bits=None),
    "a8": Scheme(weight_bits=None),
    "w6a6": Scheme(weight_bits=6, activation_bits=6),
    "w4a8": Scheme(weight_bits=4, weight_range="mse"),
    "w4": Scheme(weight_bits=4, weight_range="mse", activation_bits=None),
    "llm.int8": Scheme(weight_bits=None, activation_bits=None, decompose=6.0),
}
"""w8a8 is the protocol of Bondarenko et al. 2023 (arXiv 2306.12929) with min-max weights: everything per tensor, activations static and
asymmetric; llm.int8 that of Dettmers et al. 2022 (arXiv 2208.07339)."""


def plain_scheme(scheme: Scheme) -> dict[str, Any]:
    """Its fields as JSON values; infinity, which JSON lacks, as text."""
    return {name: str(value) if value == math.inf else value for name, value in asdict(scheme).items()}


def scheme_of(scheme: "str | Scheme", **changes: Any) -> Scheme:
    """A named scheme, or a Scheme, with some fields changed."""
    if isinstance(scheme, str):
        if scheme not in SCHEMES:
            near = difflib.get_close_matches(scheme, SCHEMES, n=1)
            raise ValueError(f"No scheme {scheme!r}{f'; did you mean {near[0]!r}' if near else ''}? There are {', '.join(SCHEMES)}.")
        scheme = SCHEMES[scheme]
    if not isinstance(scheme, Scheme):
        raise ValueError(f"scheme is a name ({', '.join(SCHEMES)}) or a quant.Scheme; given {scheme!r:.60}.")
    names = [f.name for f in fields(Scheme)]
    for name in changes:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            raise ValueError(f"A scheme has no field {name!r}{f'; did you mean {near[0]!r}' if near else ''}? It has {', '.join(names)}.")
    return replace(scheme, **changes)
