"""Outliers planted into a model without changing what it computes: the known truth that remedies are tried on.

plant_dimension   a dimension of every norm's output is `factor` times larger, and the weights that read it as much smaller: the
                  persistent outlier dimension of large models
plant_token       `size` is added to every entry of one token's embedding; norms subtract a mean, so nothing else sees it: a massive token

Both widen the range of a weight as well (the norms' weight, the embedding table): schemes that round activations alone show the other part.
"""

import torch

from interp.engine.anatomy import linear_weight
from interp.models import Model
from interp.quant.remedies.setup import private_copy, refuse_other_readers
from interp.quant.remedies.smoothing import read_norms


def plant_dimension(model: Model, dim: int, factor: float = 100.0) -> Model:
    """A model with the same logits whose norms (but the final one) have an outlier dimension."""
    refuse_other_readers(model, "Planting")
    if not 0 <= dim < model.d_model:
        raise ValueError(f"Dimension {dim}: {model.name} has 0-{model.d_model - 1}.")
    twin = private_copy(model)
    with torch.no_grad():
        for block in twin.anatomy.blocks:
            for _, norm, readers in read_norms(block):
                norm.weight[dim] *= factor
                norm.bias[dim] *= factor
                for module in readers:
                    linear_weight(module)[dim] /= factor
    return twin


def plant_token(model: Model, size: float = 1000.0, token: int | None = None) -> Model:
    """A model with the same logits whose stream is massive at one token; without `token`, at position 0 (if positions are embedded)."""
    refuse_other_readers(model, "Planting")
    anatomy = model.anatomy
    if token is None and anatomy.pos_embed is None:
        raise ValueError(f"{model.name} has rotary positions and no embedding of position 0; name a token, such as its BOS.")
    if token is not None and not 0 <= token < model.d_vocab:
        raise ValueError(f"Token {token}: {model.name} has 0-{model.d_vocab - 1}.")
    twin = private_copy(model)
    with torch.no_grad():
        twin.hf.lm_head.weight = torch.nn.Parameter(twin.hf.lm_head.weight.detach().clone(), requires_grad=False)  # logits do not see it
        twin.hf.config.tie_word_embeddings = False
        if token is not None:
            twin.anatomy.token_embed.weight[token] += size
        else:
            assert twin.anatomy.pos_embed is not None
            twin.anatomy.pos_embed.weight[twin.anatomy.pos_offset] += size
    return twin
