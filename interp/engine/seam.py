"""The attention seam: one attention function for GPT-2, OPT and GPT-NeoX, where scores, pattern and z can be read and written.

It is registered with transformers under a private key, in the attention registry and in the mask registry: an unknown key in
the latter yields no mask at all and attention would silently become bidirectional. When nobody asks for scores or pattern
it is PyTorch's fused attention; when they are only read they are computed beside it, so that reading changes no bit. Layers with another
formula than softmax (`interp.attention_variants`) never take the fused path; gates multiply z, whichever path made it.
"""

from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from interp.attention_variants import AttentionVariant, VariantAttention, of_module, tensor_names

KEY = "interp-workbench"


class Visitor(Protocol):
    """What a running call looks at and changes; tensors come in TransformerLens's axes."""

    grad: bool

    def reads(self, site: str) -> bool: ...
    def writes(self, site: str) -> bool: ...
    def edit(self, site: str, x: Tensor) -> Tensor: ...
    def record(self, site: str, x: Tensor) -> Tensor: ...
    def visit(self, site: str, x: Tensor) -> Tensor:
        """`record` of `edit`: what flows on."""
        ...


active: ContextVar[Visitor | None] = ContextVar("interp_active_call", default=None)
"""The call that this thread is in; a hook that fires in another thread finds nothing here and does nothing."""

_read_by_attention: ContextVar[Tensor | None] = ContextVar("interp_read_by_attention", default=None)
"""What the attention block that runs now reads, where it has gates: the seam itself is given q, k and v alone."""


def causal_mask(n_query: int, n_key: int, device: torch.device) -> Bool[Tensor, "query key"]:
    """True where a query may look; the queries are the last n_query of n_key positions."""
    return torch.ones(n_query, n_key, dtype=torch.bool, device=device).tril(n_key - n_query)


def scores_of(q: Tensor, k: Tensor, scale: float, keep: Tensor) -> Float[Tensor, "row head query key"]:
    """Attention scores after the mask: the dtype's lowest finite number where a query may not look."""
    return (q @ k.transpose(-1, -2) * scale).masked_fill(~keep, torch.finfo(q.dtype).min)


def softmax(scores: Tensor) -> Tensor:
    """Softmax over keys, in float32 where the scores are in half precision."""
    half = scores.dtype in (torch.float16, torch.bfloat16)
    return torch.softmax(scores, -1, dtype=torch.float32 if half else scores.dtype).to(scores.dtype)


def explicit_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    keep: Tensor,
    visit_scores: Callable[[Tensor, Tensor], Tensor],
    visit_pattern: Callable[[Tensor, Tensor], Tensor],
    variant: VariantAttention | None = None,
) -> Float[Tensor, "row head query d_head"]:
    """Attention whose scores and pattern pass through the visits, which are given the mask too and must respect it."""
    scores = visit_scores(scores_of(q, k, scale, keep), keep)
    return visit_pattern(pattern_of(scores, keep, q, scale, variant), keep) @ v


def pattern_of(scores: Tensor, keep: Tensor, q: Tensor, scale: float, variant: VariantAttention | None) -> Tensor:
    """The weights that values are mixed with."""
    return softmax(scores) if variant is None or variant.spec.is_gate else variant.pattern(scores, keep, q, scale)


def unvisited(x: Tensor, _: Tensor) -> Tensor:
    """The visit of scores or pattern that nobody asks for."""
    return x


def edit_seen(name: str, x: Tensor, keep: Tensor, edit: Callable[[Tensor], Tensor]) -> Tensor:
    """Scores or pattern, edited where the mask lets a query look. What it hides is not part of the activation and stays hidden."""
    floor = torch.finfo(x.dtype).min if name.endswith("scores") else 0.0
    return edit(x.masked_fill(~keep, 0.0)).masked_fill(~keep, floor)


def seam(
    module: nn.Module,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
):
    """The attention function: q, k, v [row, head, pos, d_head], after rotary -> z [row, pos, head, d_head] and no weights."""
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    call, variant = active.get(), of_module(module)
    site = f"blocks.{module.layer_idx}.attn."
    if call is None:
        z = _mix(q, k, v, scale, attention_mask, dropout, variant).transpose(1, 2)
        return (z if variant is None or not variant.spec.is_gate else z * variant.gate(_take_input())), None

    if call.reads(site + "hook_rot_q") or call.writes(site + "hook_rot_q"):
        q = call.visit(site + "hook_rot_q", q.transpose(1, 2)).transpose(1, 2)
    if call.reads(site + "hook_rot_k") or call.writes(site + "hook_rot_k"):
        k = call.visit(site + "hook_rot_k", k.transpose(1, 2)).transpose(1, 2)

    matrices = [site + "hook_attn_scores", site + "hook_pattern"]
    keep = _keep(q, k, attention_mask)
    if any(map(call.writes, matrices)) or (call.grad and any(map(call.reads, matrices))):
        visit_scores, visit_pattern = (partial(_visit_matrix, call, name) for name in matrices)
        z = explicit_attention(q, k, v, scale, keep, visit_scores, visit_pattern, variant)
    else:
        z = _mix(q, k, v, scale, attention_mask, dropout, variant)
        if any(map(call.reads, matrices)):
            scores = call.record(matrices[0], scores_of(q, k, scale, keep))
            call.record(matrices[1], pattern_of(scores, keep, q, scale, variant))
    z = z.transpose(1, 2)
    if variant is not None and variant.spec.is_gate:
        z = z * call.visit(site + "hook_gate", variant.gate(_take_input()))
    return call.visit(site + "hook_z", z), None


def _visit_matrix(call: Visitor, name: str, x: Tensor, keep: Tensor) -> Tensor:
    return call.record(name, edit_seen(name, x, keep, lambda seen: call.edit(name, seen)) if call.writes(name) else x)


def _keep(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """True where a query may look."""
    return causal_mask(q.shape[-2], k.shape[-2], q.device) if mask is None else mask[..., : k.shape[-2]]


def _mix(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None, dropout: float, variant: VariantAttention | None) -> Tensor:
    """Attention that nobody looks into: fused where the formula is softmax."""
    if variant is None or variant.spec.is_gate:
        return _fused(q, k, v, scale, mask, dropout)
    if dropout:
        raise ValueError(f"Attention dropout {dropout} with {variant.spec.kind} attention is not supported; set it to 0 in the config.")
    return explicit_attention(q, k, v, scale, _keep(q, k, mask), unvisited, unvisited, variant)


def _fused(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None, dropout: float) -> Tensor:
    if mask is not None:
        return scaled_dot_product_attention(q, k, v, attn_mask=mask[..., : k.shape[-2]], scale=scale, dropout_p=dropout)
    if q.shape[-2] == k.shape[-2] and q.shape[-2] > 1:
        return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, dropout_p=dropout)
    # is_causal aligns the triangle at the top left, which is wrong for cached keys
    keep = None if q.shape[-2] == 1 else causal_mask(q.shape[-2], k.shape[-2], q.device)
    return scaled_dot_product_attention(q, k, v, attn_mask=keep, scale=scale, dropout_p=dropout)


def attach(blocks: Iterable[Any], spec: AttentionVariant, tensors: Mapping[str, Tensor] | None = None, seed: int = 0) -> None:
    """Puts the variant on the attention modules of the blocks (`interp.engine.anatomy.Block`), in place of what was there.

    tensors  its parameters, named `blocks.0.attn.weight` and so on; None: fresh ones from `seed`, as training starts with them
    ValueError naming parameters that are missing, not known, of another shape, or not finite.
    """
    blocks = list(blocks)
    made: list[VariantAttention] = []
    generator = torch.Generator().manual_seed(seed)
    for block in blocks:
        d_head, d_model = block.weight_out().shape[1:]
        made.append(VariantAttention(spec, block.n_heads, d_head, d_model).start(generator))
    if tensors is not None:
        _fill(made, spec, tensors)
    for block, variant in zip(blocks, made, strict=True):
        detach([block])
        if spec.kind == "softmax":
            continue
        block.attention.add_module("variant", variant.to(device=block.out.weight.device, dtype=block.out.weight.dtype))
        if spec.is_gate:
            block.attention.register_forward_pre_hook(_note_input, with_kwargs=True)


def detach(blocks: Iterable[Any]) -> None:
    """Plain attention again."""
    for block in blocks:
        block.attention._modules.pop("variant", None)
        for key in [k for k, hook in block.attention._forward_pre_hooks.items() if hook is _note_input]:
            del block.attention._forward_pre_hooks[key]
            block.attention._forward_pre_hooks_with_kwargs.pop(key, None)


def _fill(made: list[VariantAttention], spec: AttentionVariant, tensors: Mapping[str, Tensor]) -> None:
    names = list(tensor_names(spec, len(made)))
    wanted = {name for *_, name in names}
    if missing := sorted(wanted - set(tensors)):
        raise ValueError(f"{spec} attention of {len(made)} layers lacks {len(missing)} tensors, such as {', '.join(missing[:3])}.")
    if unknown := sorted(set(tensors) - wanted):
        raise ValueError(
            f"{spec} attention has no tensors named {', '.join(unknown[:3])}; it has {', '.join(sorted(wanted)[:6]) or 'none'}."
        )
    for layer, parameter, name in names:
        own, given = made[layer].get_parameter(parameter), tensors[name]
        if given.shape != own.shape:
            raise ValueError(f"Tensor {name} has shape {tuple(given.shape)}; {spec} attention of this model asks for {tuple(own.shape)}.")
        if not bool(torch.isfinite(given).all()):
            raise ValueError(f"Tensor {name} holds NaN or infinities.")
        own.data = given.detach().clone()


def _note_input(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    _read_by_attention.set(args[0] if args else kwargs["hidden_states"])


def _take_input() -> Tensor:
    h = _read_by_attention.get()
    assert h is not None
    _read_by_attention.set(None)  # or it would live on until this thread's next run
    return h


def register() -> None:
    """Makes the seam known to transformers; loading a model does it. (Imported here: these parts of transformers take a second.)"""
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

    AttentionInterface.register(KEY, seam)
    AttentionMaskInterface.register(KEY, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
