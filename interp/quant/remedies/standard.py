"""The remedies that are tried where nobody names any: those that a model and a scheme allow."""

from interp.models import Model
from interp.quant.remedies.plans import RemedyPlan
from interp.quant.remedies.ranges import Clip, FirstPosition, Granularity, KeepFeatures
from interp.quant.remedies.rotation import Rotate
from interp.quant.remedies.setup import refuse_other_readers
from interp.quant.remedies.smoothing import Smooth
from interp.quant.schemes import Scheme, scheme_of


def standard_remedies(model: Model, scheme: str | Scheme = "w8a8") -> tuple[tuple[RemedyPlan, ...], tuple[str, ...]]:
    """(plans to give to `quant.remedy`, why others are left out)."""
    chosen = scheme_of(scheme)
    if chosen.decompose is not None:
        raise ValueError("Remedies are for schemes that round tensors one by one; LLM.int8 is a remedy itself.")
    plans: list[RemedyPlan] = [(KeepFeatures(1),), (KeepFeatures(4),)]
    left_out = []
    if chosen.activation_per == "tensor" and chosen.activation_bits is not None:
        plans = [(Clip(99.99),), (Clip(99.9),), (FirstPosition(keep=True),), *plans, (Granularity("token"),)]
    else:
        left_out.append("clipping, position 0 and scales per token: this scheme has no static ranges of activations")
    try:
        refuse_other_readers(model, "It")
        if model.anatomy.project_out is not None:
            raise ValueError(f"{model.name} has embeddings of another width than its stream.")
    except ValueError as error:
        left_out.append(f"smoothing and rotation: {error}")
    else:
        plans += [(Smooth(0.5),), (Rotate(),), (Rotate(), Smooth(0.5))]
    return tuple(plans), tuple(left_out)
