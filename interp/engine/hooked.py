"""The hooked run: the Hugging Face forward itself, with what is read and edited at each site.

This is the reference that the fast paths must equal. Hooks are put only on the modules that a call touches and are removed
when it ends, also when it ends in an error; in another thread they do nothing, since the call travels in a ContextVar.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as everywhere

from interp.engine import seam
from interp.engine.anatomy import Anatomy, Block, linear_bias
from interp.engine.operations import Operation, apply
from interp.sites import Site

MATRICES = ("hook_attn_scores", "hook_pattern")


class Call:
    """One forward's reads and edits. `store` holds what was read."""

    def __init__(self, reads: Sequence[Site], operations: Mapping[str, list[Operation]], shape: tuple[int, int], grad: bool = False):
        self.store: dict[str, Tensor] = {}
        self.grad = grad
        self.shape = shape
        self._reads = frozenset(site.name for site in reads)
        self._operations = operations

    def reads(self, site: str) -> bool:
        return site in self._reads

    def writes(self, site: str) -> bool:
        return site in self._operations

    def touches(self, site: str) -> bool:
        return site in self._reads or site in self._operations

    def feeds_back(self, *sites: str) -> bool:
        """Whether what `visit` returns must replace what the model has: after an edit, or to keep gradients flowing through it."""
        return any(s in self._operations or (self.grad and s in self._reads) for s in sites)

    def edit(self, site: str, x: Tensor) -> Tensor:
        operations = self._operations.get(site)
        if not operations:
            return x
        if site.endswith(MATRICES):  # [row, head, query, key] -> one row per query
            rows, queries = x.shape[0], x.shape[2]
            flat = apply(operations, x.transpose(1, 2).flatten(0, 1))
            return flat.unflatten(0, (rows, queries)).transpose(1, 2)
        flat = x.flatten(0, 1)
        edited = apply(operations, flat if x.ndim == 4 else flat.unsqueeze(1))
        return edited.reshape(x.shape)

    def record(self, site: str, x: Tensor) -> Tensor:
        if site in self._reads:
            self.store[site] = x
        return x

    def visit(self, site: str, x: Tensor) -> Tensor:
        return self.record(site, self.edit(site, x))


def foreign_hooks(hf: nn.Module) -> list[str]:
    """Names of modules that somebody else hooked, or whose forward somebody replaced: only a run of the modules themselves sees these."""
    if everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks:  # torch's hooks of every module
        return [type(hf).__name__]
    if not any(_is_foreign(module) for module in hf.modules()):
        return []
    return [name or type(hf).__name__ for name, module in hf.named_modules() if _is_foreign(module)]


def _is_foreign(module: nn.Module) -> bool:
    if "forward" in module.__dict__ and not hasattr(module, "_hf_hook"):  # accelerate's own moves data, nothing else
        return True
    if not (module._forward_hooks or module._forward_pre_hooks):
        return False
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return any(getattr(hook, "__module__", None) not in (__name__, seam.__name__) for hook in hooks)


class _Done(Exception):
    """Raised inside a forward when everything asked for was read."""


def run(anatomy: Anatomy, call: Call, forward: Callable[[], Any], last_layer: int | None = None) -> Any:
    """Runs `forward()` under the call; after block `last_layer` it is broken off and None is returned."""
    token = seam.active.set(call)
    try:
        with _hooks(anatomy, call, last_layer):
            return forward()
    except _Done:
        return None
    finally:
        seam.active.reset(token)


@contextmanager
def _hooks(anatomy: Anatomy, call: Call, last_layer: int | None) -> Iterator[None]:
    handles: list = []

    def mine() -> bool:
        return seam.active.get() is call

    def after(module: nn.Module, change: Callable[[Tensor, tuple], Tensor | None]) -> None:
        def hook(_: nn.Module, args: tuple, out: Tensor) -> Tensor | None:
            return change(out, args) if mine() else None

        handles.append(module.register_forward_hook(hook))

    def before(module: nn.Module, change: Callable[[Tensor], Tensor | None]) -> None:
        # without kwargs where another thread runs the module while this hook is being put or removed
        def hook(_: nn.Module, args: tuple, kwargs: dict[str, Any] = {}) -> Any:  # noqa: B006
            if not mine():
                return None
            x = args[0] if args else kwargs["hidden_states"]
            new = change(x)
            if new is None:
                return None
            return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

        handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    try:
        _hook_ends(anatomy, call, after)
        for block in anatomy.blocks:
            _hook_block(block, call, before, after)
        if last_layer is not None and last_layer + 1 < len(anatomy.blocks):

            def stop(_: Tensor) -> None:
                raise _Done

            before(anatomy.blocks[last_layer + 1].module, stop)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook_ends(anatomy: Anatomy, call: Call, after: Callable) -> None:
    rows = call.shape[0]
    if call.touches("hook_embed"):
        after(anatomy.embed, lambda x, _: _back(call, "hook_embed", x))
    if call.touches("hook_pos_embed"):
        assert anatomy.pos_embed is not None
        after(anatomy.pos_embed, lambda x, _: _back(call, "hook_pos_embed", x.expand(rows, -1, -1)))
    if anatomy.final_norm is not None:
        _hook_norm("ln_final", anatomy.final_norm, call, after)


def _hook_block(block: Block, call: Call, before: Callable, after: Callable) -> None:
    name = f"blocks.{block.layer}."
    resid: list[Tensor] = []  # the block's input, for hook_resid_mid

    def enter(x: Tensor) -> Tensor | None:
        out = _back(call, name + "hook_resid_pre", x)
        resid[:] = [x if out is None else out]
        return out

    serial_mid = block.wiring == "serial" and call.touches(name + "hook_resid_mid")
    if call.touches(name + "hook_resid_pre") or serial_mid:
        before(block.module, enter)
    _hook_norm(name + "ln1", block.norm1, call, after)
    _hook_norm(name + "ln2", block.norm2, call, after)
    _hook_qkv(name + "attn.", block, call, after)

    def attention_out(out: Tensor, args: tuple) -> Tensor | None:
        new = _visit_result(name + "attn.hook_result", block, call, out, args[0])
        new = call.visit(name + "hook_attn_out", new)
        if serial_mid:
            mid = call.visit(name + "hook_resid_mid", new + resid[0])
            if call.feeds_back(name + "hook_resid_mid"):
                new = mid - resid[0]  # the block adds its input again
        return new if new is not out else None

    if serial_mid or call.touches(name + "attn.hook_result") or call.touches(name + "hook_attn_out"):
        after(block.out, attention_out)
    if block.wiring == "post-norm" and call.touches(name + "hook_resid_mid"):
        after(block.norm1, lambda x, _: _back(call, name + "hook_resid_mid", x))

    def unflat(kind: str, x: Tensor) -> Tensor | None:  # OPT's MLP sees [row * pos, d]
        out = _back(call, name + kind, x if x.ndim == 3 else x.unflatten(0, call.shape))
        return None if out is None else out.reshape(x.shape)

    if call.touches(name + "mlp.hook_pre"):
        after(block.mlp_in, lambda x, _: unflat("mlp.hook_pre", x))
    if call.touches(name + "mlp.hook_post"):
        before(block.mlp_out, lambda x: unflat("mlp.hook_post", x))
    if call.touches(name + "hook_mlp_out"):
        after(block.mlp_out, lambda x, _: unflat("hook_mlp_out", x))
    if call.touches(name + "hook_resid_post"):
        after(block.module, lambda x, _: _back(call, name + "hook_resid_post", x))


def _back(call: Call, site: str, x: Tensor) -> Tensor | None:
    """Visits; None where the model's own tensor may stay, so that reading changes no bit and costs no copy."""
    new = call.visit(site, x)
    return new if call.feeds_back(site) else None


def _visit_result(site: str, block: Block, call: Call, out: Tensor, z: Tensor) -> Tensor:
    """Attention's output after visits to each head's part of it."""
    if not call.touches(site):
        return out
    result = torch.einsum("rphd,hdm->rphm", block.split_heads(z), block.weight_out())
    new = call.visit(site, result)
    if not call.feeds_back(site):
        return out
    if not call.grad:
        return out + (new - result).sum(2)
    whole = new.sum(2) + linear_bias(block.out)
    return whole + (out - result.sum(2) - linear_bias(block.out)).detach()


def _hook_qkv(name: str, block: Block, call: Call, after: Callable) -> None:
    sites = [name + "hook_" + x for x in "qkv"]
    if not any(map(call.touches, sites)):
        return
    if len(block.qkv) == 3:
        for site, module in zip(sites, block.qkv, strict=True):
            if call.touches(site):

                def change(x: Tensor, _: tuple, site: str = site) -> Tensor | None:
                    new = _back(call, site, block.split_heads(x))
                    return None if new is None else new.flatten(-2)

                after(module, change)
        return

    def change_all(x: Tensor, _: tuple) -> Tensor | None:
        new = [call.visit(site, part) for site, part in zip(sites, block.unpack(x), strict=True)]
        return block.pack(*new) if call.feeds_back(*sites) else None

    after(block.qkv[0], change_all)


def _hook_norm(name: str, norm: nn.LayerNorm, call: Call, after: Callable) -> None:
    scale_site, normalized_site = name + ".hook_scale", name + ".hook_normalized"
    if not (call.touches(scale_site) or call.touches(normalized_site)):
        return

    def change(out: Tensor, args: tuple) -> Tensor | None:
        x = args[0] if args[0].ndim == 3 else args[0].unflatten(0, call.shape)
        new = visited_norm(norm, x, lambda s: call.visit(scale_site, s), lambda n: call.visit(normalized_site, n))
        return new.reshape(out.shape) if call.feeds_back(scale_site, normalized_site) else None

    after(norm, change)


def visited_norm(
    norm: nn.LayerNorm, x: Tensor, visit_scale: Callable[[Tensor], Tensor], visit_normalized: Callable[[Tensor], Tensor]
) -> Tensor:
    """LayerNorm step by step: (x - mean) / scale, then weight and bias."""
    centred = x - x.mean(-1, keepdim=True)
    scale = visit_scale((centred.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt())
    out = visit_normalized(centred / scale)
    if norm.weight is not None:
        out = out * norm.weight
    return out if norm.bias is None else out + norm.bias
