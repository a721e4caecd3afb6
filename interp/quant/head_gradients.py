"""What would the loss do without each head? An estimate of all heads from one forward and one backward.

    loss(z_h = 0) - loss  ~  - sum over positions <z_h, dloss/dz_h>        (Michel et al. 2019, arXiv 1905.10650, signed)

First order: a head whose effect is large or saturated is estimated badly. quant.head_report's `loss_zero` is the exact number.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from interp.metrics import loss_per_token
from interp.models import Model
from interp.prompts import Prompts
from interp.quant.evaluation import predicting
from interp.selection import row_chunks

BUDGET = 512 * 2**20  # bytes of activations and logits held at once


def head_gradient(model: Model, prompts: "Prompts | str | Sequence[str]") -> Float[Tensor, "layer head"]:
    """Estimated loss without each head minus the loss, nats per token (every token counts the same), in float64 on the CPU."""
    prompts = model.check_prompts(prompts)
    if prompts.shortest < 2:
        raise ValueError(f"Prompt {int(prompts.lengths.argmin())} has one token; a loss needs at least two.")
    total = torch.zeros(model.n_layers, model.n_heads, dtype=torch.float64)
    per_row = prompts.width * (3 * model.d_vocab + model.n_layers * (10 * model.d_model + 3 * model.d_mlp)) * model.dtype.itemsize
    for rows in row_chunks(prompts, per_row, BUDGET):
        part = prompts[rows]
        capture = model.capture(part, "blocks.*.attn.hook_z", grad=True)
        assert capture.logits is not None
        summed = loss_per_token(capture.logits, part)[predicting(part)].sum()
        z = list(capture.values())
        gradients = torch.autograd.grad(summed, z)
        total -= torch.stack([(a.detach().double() * g.double()).sum((0, 1, 3)) for a, g in zip(z, gradients, strict=True)]).cpu()
    return total / int((prompts.lengths - 1).sum())
