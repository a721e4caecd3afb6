"""Remedies that change the scheme: how ranges are found, which numbers stay in floating point."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from interp.quant.remedies.setup import Setup
from interp.quant.schemes import ACTIVATIONS, NORMS


@dataclass(frozen=True)
class Clip:
    """Static ranges of activations hold `percentile` per cent of the entries on either side; what lies beyond is clipped."""

    percentile: float = 99.99
    kind: ClassVar[str] = "clip"

    def __post_init__(self) -> None:
        if isinstance(self.percentile, bool) or not isinstance(self.percentile, int | float) or not 50 < self.percentile <= 100:
            raise ValueError(f"percentile lies above 50 and up to 100; given {self.percentile!r}.")

    @property
    def name(self) -> str:
        return f"clip at {self.percentile:g} %"

    def apply(self, setup: Setup) -> Setup:
        if setup.scheme.activation_per == "token" or setup.scheme.activation_bits is None:
            raise ValueError(f"{self!r} is about static ranges of activations, and this scheme has none.")
        return replace(setup, scheme=replace(setup.scheme, activation_range=self.percentile))


@dataclass(frozen=True)
class Granularity:
    """One scale per token (found while running) in place of one per tensor; one per output of a linear layer in place of one for all."""

    activations: Literal["tensor", "token"] = "token"
    weights: Literal["tensor", "channel"] = "tensor"
    kind: ClassVar[str] = "granularity"

    def __post_init__(self) -> None:
        if self.activations not in ("tensor", "token") or self.weights not in ("tensor", "channel"):
            raise ValueError(f"activations are per 'tensor' or 'token', weights per 'tensor' or 'channel'; given {self!r}.")

    @property
    def name(self) -> str:
        return f"scales per {self.activations}, weights per {self.weights}"

    def apply(self, setup: Setup) -> Setup:
        return replace(setup, scheme=replace(setup.scheme, activation_per=self.activations, weight_per=self.weights))


@dataclass(frozen=True)
class FirstPosition:
    """Position 0, where massive activations sit, is left out of the calibration. With keep=True its activations stay in floating point, as
    where a prefix's keys and values are cached before quantization; without, they are clipped to the others' range."""

    keep: bool = True
    kind: ClassVar[str] = "first position"

    def __post_init__(self) -> None:
        if not isinstance(self.keep, bool):
            raise ValueError(f"keep is true or false; given {self.keep!r}.")

    @property
    def name(self) -> str:
        return "position 0 in floating point" if self.keep else "position 0 not in calibration"

    def apply(self, setup: Setup) -> Setup:
        return replace(setup, scheme=replace(setup.scheme, skip_first=True, keep_first=self.keep))


@dataclass(frozen=True)
class KeepFeatures:
    """The `k` features of every activation with the largest entries on the calibration prompts stay in floating point, as do the weights
    that read them (LLM.int8, Dettmers et al. 2022; QUIK, Ashkboos et al. 2023)."""

    k: int = 1
    kind: ClassVar[str] = "keep features"

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise ValueError(f"k is how many features stay in floating point, 1 or more; given {self.k!r}.")

    @property
    def name(self) -> str:
        return f"keep {self.k} feature{'s' * (self.k > 1)}"

    def apply(self, setup: Setup) -> Setup:
        return replace(setup, scheme=replace(setup.scheme, keep=self.k))


@dataclass(frozen=True)
class Leave:
    """These kinds of activations (see quant.Scheme.activations) are not rounded at all."""

    activations: tuple[str, ...] = ("resid_mid", "resid_post")
    kind: ClassVar[str] = "leave"

    def __post_init__(self) -> None:
        given = (self.activations,) if isinstance(self.activations, str) else self.activations
        known = (*ACTIVATIONS, *NORMS)
        if not isinstance(given, list | tuple) or not given or any(name not in known for name in given):
            raise ValueError(f"Leave names activations, of {', '.join(known)}; given {self.activations!r}.")
        object.__setattr__(self, "activations", tuple(given))

    @property
    def name(self) -> str:
        return f"leave {', '.join(self.activations)}"

    def apply(self, setup: Setup) -> Setup:
        rest = tuple(name for name in setup.scheme.activations if name not in self.activations)
        return replace(setup, scheme=replace(setup.scheme, activations=rest))
