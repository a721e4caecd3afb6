"""Weights of a private copy, rounded; and LLM.int8's matrix product (Dettmers et al. 2022, arXiv 2208.07339)."""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from interp.engine import seam
from interp.engine.anatomy import Anatomy, Block, linear_bias, linear_weight
from interp.models import Model
from interp.quant.rounding import fake_quant, find_range, round_to_grid
from interp.quant.schemes import Scheme

Kept = Mapping[str, Bool[Tensor, "*features"]]


def round_weights(twin: Model, scheme: Scheme, kept: Kept) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Rounds the copy's weights in place: name -> the copy's tensor, its numbers before, its rounded numbers.

    The unembedding keeps its own numbers. So do rows of linear layers that read a `kept` feature (activation -> mask) and the entries of
    embeddings and norms that give one.
    """
    if scheme.weight_bits is None:
        return {}
    anatomy = twin.anatomy
    twin.hf.lm_head.weight = nn.Parameter(twin.hf.get_output_embeddings().weight.detach().clone(), requires_grad=False)
    found: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    with torch.no_grad():
        for name, weight, outputs_last, features in _weights(anatomy):
            before = weight.detach().clone()
            if not bool(torch.isfinite(before).all()):
                raise ValueError(f"The weight {name} of {twin.name} holds NaN or infinities; a range needs finite numbers.")
            after = _rounded_weight(before, scheme, outputs_last, kept.get(features))
            found[f"{name}.weight"] = (weight, before, after)
            weight.copy_(after)
    return found


def _weights(anatomy: Anatomy) -> list[tuple[str, Tensor, bool | None, str]]:
    """Name, weight, whether its last axis is the outputs (None: a table or a vector, which has one scale), and the activation whose
    features it has: what a linear layer reads, what others give."""
    own = "hook_embed" if anatomy.embed is anatomy.token_embed else ""  # else a projection follows, and features are others
    found: list[tuple[str, Tensor, bool | None, str]] = [("embed", anatomy.token_embed.weight, None, own)]
    if anatomy.pos_embed is not None:
        found.append(("pos_embed", anatomy.pos_embed.weight, None, "hook_pos_embed"))
    for block in anatomy.blocks:
        for name, module, features in _modules(block):
            if isinstance(module.weight, Tensor):
                last = None if isinstance(module, nn.LayerNorm) else linear_weight(module) is module.weight
                found.append((f"blocks.{block.layer}.{name}", module.weight, last, features))
    if anatomy.final_norm is not None and isinstance(anatomy.final_norm.weight, Tensor):
        found.append(("ln_final", anatomy.final_norm.weight, None, "ln_final"))
    return found


def _modules(block: Block) -> list[tuple[str, nn.Module, str]]:
    """The norms and linear layers of a block, and the activation that each norm gives or linear layer reads."""
    name = f"blocks.{block.layer}."
    after_norm = block.wiring == "post-norm"
    stream = f"blocks.{block.layer - 1}.ln2" if block.layer else "blocks.0.hook_resid_pre"
    reads, mlp_reads = (stream, name + "ln1") if after_norm else (name + "ln1", name + "ln2")
    qkv = [(f"qkv{i}" if len(block.qkv) > 1 else "qkv", module, reads) for i, module in enumerate(block.qkv)]
    rest = [
        ("out", block.out, name + "attn.hook_z"),
        ("mlp_in", block.mlp_in, mlp_reads),
        ("mlp_out", block.mlp_out, name + "mlp.hook_post"),
    ]
    return [("ln1", block.norm1, name + "ln1"), ("ln2", block.norm2, name + "ln2"), *rest, *qkv]


def _rounded_weight(weight: Tensor, scheme: Scheme, outputs_last: bool | None, kept: Tensor | None) -> Tensor:
    assert scheme.weight_bits is not None
    per = "tensor"
    if scheme.weight_per == "channel" and outputs_last is not None:
        per = "channel" if outputs_last else "token"  # one scale per output, whichever axis it is
    if kept is None:
        return fake_quant(weight, scheme.weight_bits, True, per, scheme.weight_range)
    rows = kept.flatten()[:, None] if outputs_last else kept.flatten()
    return torch.where(rows, weight, fake_quant(weight.masked_fill(rows, 0.0), scheme.weight_bits, True, per, scheme.weight_range))


def give_products(anatomy: Anatomy, scheme: Scheme) -> list[str]:
    """Gives the linear layers of the copy LLM.int8's product; their names."""
    names = []
    for block in anatomy.blocks:
        modules = {"out": block.out, "mlp_in": block.mlp_in, "mlp_out": block.mlp_out, **{f"qkv{i}": m for i, m in enumerate(block.qkv)}}
        for name, module in modules.items():
            module.forward = _product(linear_weight(module), linear_bias(module), scheme)  # type: ignore[method-assign]
            names.append(f"blocks.{block.layer}.{name}")
    return names


def _product(weight: Float[Tensor, "d_in d_out"], bias: Tensor, scheme: Scheme) -> Callable[[Tensor], Tensor]:
    threshold, symmetric = scheme.decompose, scheme.product != "zeropoint"
    assert threshold is not None
    rounded = fake_quant(weight, 8, symmetric, "channel" if scheme.product == "vector" else "tensor")

    def forward(x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        real = getattr(seam.active.get(), "real", None)
        seen = x.flatten(0, -2) if real is None else x.flatten(0, -2)[real.flatten()]  # padding decides nothing
        apart = (seen.abs() > threshold).any(0)  # input dimensions with an entry beyond the threshold in this batch
        inside = x.masked_fill(apart, 0.0)
        if scheme.product in ("vector", "row"):
            regular = fake_quant(inside, 8, True, "token")
        else:
            low, high = find_range(seen.masked_fill(apart, 0.0), "tensor", "minmax", 8, symmetric)
            regular = round_to_grid(inside, low.reshape(()), high.reshape(()), 8, symmetric)
        # bitsandbytes keeps the weights in int8 alone: the outlier product reads the rounded ones
        return (regular + x.masked_fill(~apart, 0.0)) @ rounded + bias

    return forward
