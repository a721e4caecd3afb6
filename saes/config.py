"""What a coder is and how it is trained: two frozen dataclasses that round-trip through JSON."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

Kind = Literal["topk", "batchtopk", "jumprelu", "relu", "gated", "matryoshka"]
Frozen = Literal["decoder", "encoder"]
KINDS: tuple[str, ...] = get_args(Kind)
BEFORE = {"beta2": 0.999}
"""What was done where a saved config lacks a detail that came later."""


@dataclass(frozen=True)
class Details:
    """What most users leave alone. Lengths of time are fractions of all steps."""

    warmup: float = 0.02
    """The learning rate grows linearly over this fraction of the steps."""
    decay: float = 0.2
    """It falls linearly to zero over this last fraction."""
    penalty_warmup: float = 0.1
    """The sparsity penalty grows linearly over this fraction of the steps."""
    beta2: float = 0.95
    """Adam's memory of squared gradients. A feature's gradient comes with the few rows where it is active; 0.999, a memory of 1000 steps,
    outlasts what was learned since (measured in experiments/notes/coders.md)."""
    clip: float = 1.0
    """The gradient's norm is cut to this; 0 leaves it."""
    aux_k: int | None = None
    """Dead features that reconstruct the residual in AuxK; None: half of the target's width."""
    resample_every: int = 0
    """Steps between resamplings of dead features towards what is reconstructed worst; 0: never."""
    groups: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
    """Matryoshka: the nested prefixes, as growing fractions of the features; the last is 1."""
    l0_loss: Literal["quadratic", "tanh"] = "quadratic"
    """JumpReLU: (L0 / k - 1)^2 through a straight-through step, or the mean of tanh(4 a)."""
    bandwidth: float = 0.5
    """JumpReLU: width of the straight-through window, in units of a pre-activation."""
    normalize: bool = True
    """Train on centred rows of mean squared norm d; folded into the weights at the end."""
    dense_above: float = 0.25
    """Where k / n_features exceeds this, the step uses dense products instead of sparse ones."""
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """Of matrix products in training: full, TensorFloat-32 on CUDA, or bfloat16 autocast. Parameters stay float32."""

    def __post_init__(self) -> None:
        for name in ("warmup", "decay", "penalty_warmup"):
            _require(0 <= getattr(self, name) <= 1, f"{name}={getattr(self, name)!r}: a fraction of the steps, 0 to 1.")
        _require(0 <= self.beta2 < 1, f"beta2={self.beta2!r}: at least 0 and below 1.")
        _require(self.clip >= 0, f"clip={self.clip!r}: a norm, or 0 for none.")
        _require(self.aux_k is None or self.aux_k > 0, f"aux_k={self.aux_k!r}: a positive number of features, or None.")
        _require(self.resample_every >= 0, f"resample_every={self.resample_every!r}: a number of steps, 0 for never.")
        object.__setattr__(self, "groups", tuple(self.groups))
        grows = all(a < b for a, b in zip((0, *self.groups), self.groups, strict=False))
        _require(grows and self.groups[-1:] == (1.0,), f"groups={self.groups!r}: growing fractions of the features that end with 1.")
        _require(self.l0_loss in ("quadratic", "tanh"), f"l0_loss={self.l0_loss!r}: quadratic or tanh.")
        _require(self.bandwidth > 0, f"bandwidth={self.bandwidth!r}: a positive width.")
        _require(self.precision in ("float32", "tf32", "bfloat16"), f"precision={self.precision!r}: float32, tf32 or bfloat16.")


@dataclass(frozen=True)
class Config:
    """A coder and its training. Unknown keys, and numbers that cannot be, are refused."""

    kind: Kind = "topk"
    """topk, batchtopk, jumprelu, relu, gated or matryoshka."""
    n_features: int = 4096
    """Size of the dictionary."""
    k: int = 32
    """Active features: at most per row (topk), on average (batchtopk, matryoshka), the L0 that the penalty aims at (the others)."""
    steps: int = 10_000
    """Batches seen. 0 leaves the random start: a control."""
    batch_size: int = 1024
    """Rows (tokens) of a step."""
    lr: float | None = None
    """Adam's learning rate; None: 0.128 / sqrt(n_features), at most 0.01."""
    seed: int = 0
    """Of the start and of the order of rows. Same seed, same coder."""
    penalty: float | None = None
    """Weight of the sparsity penalty beside the fraction of variance unexplained; None: steered so that L0 = k."""
    aux_coefficient: float = 1 / 32
    """Weight of AuxK, the loss that revives dead features; 0: off."""
    dead_after: int = 100_000
    """Rows without activation after which a feature counts as dead."""
    frozen: Frozen | None = None
    """Controls: "decoder" or "encoder" keeps its random start."""
    skip: bool = False
    """A linear map from input to output beside the features."""
    input_site: str | None = None
    """Where x was read, such as "blocks.3.ln2.hook_normalized"."""
    target_site: str | None = None
    """Where y was read; None: the input's, for an autoencoder."""
    details: Details = field(default_factory=Details)
    """Schedules, AuxK, JumpReLU, Matryoshka, precision."""

    def __post_init__(self) -> None:
        if isinstance(self.details, Mapping):
            object.__setattr__(self, "details", _make(Details, self.details))
        if self.kind not in KINDS:
            raise ValueError(f"No kind of coder {self.kind!r}: there are {', '.join(KINDS)}.{_near(str(self.kind), KINDS)}")
        for name, least in (("n_features", 1), ("k", 1), ("steps", 0), ("batch_size", 1), ("dead_after", 1)):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            _require(whole and value >= least, f"{name}={value!r}: a whole number, at least {least}.")
        _require(isinstance(self.seed, int), f"seed={self.seed!r}: a whole number.")
        most = f"k={self.k} is more than n_features={self.n_features}: no row can have so many active features."
        _require(self.k <= self.n_features, most)
        for name in ("lr", "penalty", "aux_coefficient"):
            value = getattr(self, name)
            given = value if value is not None or name == "aux_coefficient" else 0.0
            good = isinstance(given, int | float) and math.isfinite(given) and given >= 0
            _require(good, f"{name}={value!r}: a finite number, not negative.")
        _require(self.frozen in (None, "decoder", "encoder"), f"frozen={self.frozen!r}: None, 'decoder' or 'encoder'.")

    @property
    def learning_rate(self) -> float:
        return self.lr if self.lr is not None else min(0.01, 0.128 / self.n_features**0.5)

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` reads it."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Config":
        return _make(cls, data)

    @classmethod
    def from_file(cls, data: Mapping[str, Any]) -> "Config":
        """The config that a coder or checkpoint was saved with. A detail that an older file lacks is what was done then, no default."""
        return cls.from_json({**data, "details": BEFORE | dict(data.get("details", {}))})

    def but(self, **changes: Any) -> "Config":
        """A copy with other values; fields of `details` are given by their own names."""
        inner = {name: changes.pop(name) for name in list(changes) if name in Details.__dataclass_fields__}
        unknown = set(changes) - {f.name for f in fields(Config)}
        if unknown:
            raise ValueError(_unknown("Config", unknown, [f.name for f in (*fields(Config), *fields(Details))]))
        details = replace(changes.pop("details", self.details), **inner)
        return replace(self, **changes, details=details)


def _make(cls: Any, data: Mapping[str, Any]) -> Any:
    names = [f.name for f in fields(cls)]
    if unknown := set(data) - set(names):
        raise ValueError(_unknown(cls.__name__, unknown, names))
    return cls(**data)


def _unknown(what: str, unknown: set[str], names: list[str]) -> str:
    first = sorted(unknown)[0]
    return f"saes.{what} has no field {first!r}.{_near(first, names)} It has {', '.join(names)}."


def _near(given: str, names: Any) -> str:
    near = difflib.get_close_matches(given, list(names), 1, 0.4)
    return f" Did you mean {near[0]!r}?" if near else ""


def _require(truth: bool, message: str) -> None:
    if not truth:
        raise ValueError(message)
