"""What remedies change: the model that is quantized, how, and the prompts that they may look at."""

import copy
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

from interp.models import Model
from interp.prompts import Prompts
from interp.quant.quantized import refuse_quantized
from interp.quant.schemes import Scheme


@dataclass(frozen=True, eq=False)
class Setup:
    """A model about to be quantized."""

    model: Model
    scheme: Scheme
    calibration: Prompts
    notes: tuple[str, ...] = ()
    """What remedies chose on the calibration prompts."""

    def noting(self, note: str) -> "Setup":
        return replace(self, notes=(*self.notes, note))


class Remedy(Protocol):
    """One change. It is plain data (fields of numbers, strings and tuples), so that a plan of remedies round-trips through JSON."""

    kind: ClassVar[str]

    @property
    def name(self) -> str: ...

    def apply(self, setup: Setup) -> Setup:
        """The setup with this change; the given one and its model stay as they are."""
        ...


def private_copy(model: Model) -> Model:
    """A model with the same numbers whose weights may be changed. ValueError if they are quantized already."""
    refuse_quantized(model)
    twin = Model(copy.deepcopy(model.hf), model.tokenizer, model.path)
    for parameter in twin.hf.parameters():
        parameter.requires_grad_(False)
    return twin


def refuse_other_readers(model: Model, what: str) -> None:
    """Models in which a norm's output is read by more than linear layers: by the stream (post-norm) or by gates."""
    if model.anatomy.final_norm is None or any(block.wiring == "post-norm" for block in model.anatomy.blocks):
        raise ValueError(
            f"{what} is for pre-norm models: in {model.name} norms stand after the residual additions (post-norm), so what they give goes "
            "into the stream as well as into the next layer and cannot be scaled or rotated for one of them alone."
        )
    if model.attention.is_gate:
        raise ValueError(f"{what} is not built for {model.attention} attention: the gates of {model.name} read the norm's output as well.")
