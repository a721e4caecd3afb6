"""Heads that are edited before quantization: silenced, scaled, or held at their mean. Unlike the other remedies this changes the model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from interp.bake import bake_weights
from interp.edits import Edit, Plan
from interp.models import Model
from interp.prompts import Prompts
from interp.quant.no_op_heads import head_report
from interp.quant.remedies.setup import Setup, private_copy
from interp.selection import check_head


@dataclass(frozen=True)
class EditHeads:
    """The outputs (z) of some heads set to zero, to their mean over the calibration prompts, or scaled.

    heads   ((layer, head), ...) or "no-op": the heads whose no-op score on the calibration prompts is at least `least`
    """

    heads: tuple[tuple[int, int], ...] | Literal["no-op"] = "no-op"
    op: Literal["zero", "mean", "scale"] = "zero"
    factor: float = 0.5
    """Of op "scale"."""
    least: float = 0.5
    kind: ClassVar[str] = "edit heads"

    def __post_init__(self) -> None:
        if self.op not in ("zero", "mean", "scale"):
            raise ValueError(f"Heads are edited by 'zero', 'mean' or 'scale'; given {self.op!r}.")
        for name in ("factor", "least"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{name} is a finite number; given {value!r}.")
        if self.heads == "no-op":
            return
        if not isinstance(self.heads, list | tuple) or not self.heads or not all(map(_is_head, self.heads)):
            raise ValueError(f"heads is 'no-op' or pairs (layer, head) of whole numbers, at least one; given {self.heads!r}.")
        object.__setattr__(self, "heads", tuple((layer, head) for layer, head in self.heads))

    @property
    def name(self) -> str:
        named = "no-op heads" if self.heads == "no-op" else "heads " + " ".join(f"{layer}.{head}" for layer, head in self.heads)
        return f"{named} {f'x {self.factor:g}' if self.op == 'scale' else f'at {self.op}'}"

    def apply(self, setup: Setup) -> Setup:
        chosen: Sequence[tuple[int, int]] = self.heads if self.heads != "no-op" else no_op_heads(setup.model, setup.calibration, self.least)
        if not chosen:
            return setup.noting(f"no head has a no-op score of {self.least:g}: nothing changed")
        for layer, head in chosen:
            check_head(setup.model, layer, head)
        plan = tuple(self._edit(setup, layer, head) for layer, head in chosen)
        noted = setup if self.heads != "no-op" else setup.noting("heads " + " ".join(f"{layer}.{head}" for layer, head in chosen))
        return replace(noted, model=edited_copy(setup.model, plan))

    def _edit(self, setup: Setup, layer: int, head: int) -> Edit:
        site = f"blocks.{layer}.attn.hook_z"
        if self.op == "mean":
            return Edit(site, "set", setup.model.mean(setup.calibration, site)[head], head=head)
        return Edit(site, self.op, self.factor if self.op == "scale" else None, head=head)


def _is_head(given: object) -> bool:
    return isinstance(given, list | tuple) and len(given) == 2 and all(isinstance(i, int) and not isinstance(i, bool) for i in given)


def no_op_heads(model: Model, prompts: Prompts, least: float = 0.5) -> tuple[tuple[int, int], ...]:
    """(layer, head) of the heads with a no-op score (see quant.head_report) of at least `least`, largest first."""
    score = head_report(model, prompts)["no_op"]
    order = score.flatten().argsort(descending=True, stable=True).tolist()
    n = score.shape[1]
    return tuple((i // n, i % n) for i in order if float(score[i // n, i % n]) >= least)


def edited_copy(model: Model, plan: Plan) -> Model:
    """A private copy of the model with the plan baked into its weights."""
    twin, changed = private_copy(model), bake_weights(model, plan)
    with torch.no_grad():
        for name, parameter in twin.hf.named_parameters():
            if name in changed:
                parameter.copy_(changed[name])
    return twin
