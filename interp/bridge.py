"""The exit to TransformerLens: a TransformerBridge of the same weights."""

import copy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp.models import Model


def to_bridge(model: "Model") -> Any:
    """A TransformerBridge on a copy of the model, since TransformerLens rewrites the module that it wraps.

    Raw Hugging Face numerics. TransformerLens 4 discards edits of attention patterns and scores on OPT; make those here instead.
    """
    if model.attention.kind != "softmax":
        raise ValueError(
            f"model.bridge() refuses {model.name}: its attention is {model.attention}, and TransformerLens would run it with softmax, "
            "which is another model."
        )
    try:
        from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
    except ImportError as error:
        raise ValueError(f"model.bridge() needs transformer-lens 4.3 or later: pip install 'transformer-lens>=4.3,<5' ({error}).") from None
    hf: Any = copy.deepcopy(model.hf)
    hf.set_attn_implementation("eager")
    return build_bridge_from_module(hf, type(hf).__name__, hf_config=hf.config, tokenizer=model.tokenizer)
