"""A plan made part of the weights: a new checkpoint whose forward equals the plan's run.

    interp.bake(model, [Edit("blocks.3.attn.hook_z", "scale", 0.5, head=1)], "runs/halved")

An edit can be baked where it is an affine map of what a matrix writes or reads, the same for all prompts and positions:

    x -> x * scale + (x @ left) @ right + shift

    matrix writes x    W -> W M,  b -> b M + shift         hook_q, hook_k, hook_v, mlp.hook_pre, hook_attn_out, hook_mlp_out, hook_result
    matrix reads x     W -> M W,  b -> b + shift W         hook_z, mlp.hook_post
"""

import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.attention_files import plain_state, write_variant
from interp.convert import KEPT
from interp.edits import Edit, Plan, as_plan, plan_to_json
from interp.engine.anatomy import Block
from interp.engine.operations import canonical_value
from interp.models import Model
from interp.safefiles import write_text
from interp.sites import Site

READ = {"attn.hook_z": "out", "mlp.hook_post": "mlp_out"}
WRITTEN = {
    "attn.hook_q": "qkv", "attn.hook_k": "qkv", "attn.hook_v": "qkv", "mlp.hook_pre": "mlp_in",
    "attn.hook_result": "out", "hook_attn_out": "out", "hook_mlp_out": "mlp_out",
}  # fmt: skip
SITES = (*WRITTEN, *READ)
"""Kinds of sites whose edits can be baked."""


@dataclass(frozen=True, eq=False)
class Affine:
    """x -> x * scale + (x @ left) @ right + shift over the last axis, in float64."""

    scale: Float[Tensor, " d"]
    left: Float[Tensor, "d rank"]
    right: Float[Tensor, "rank d"]
    shift: Float[Tensor, " d"]

    def after(self, x: Float[Tensor, "*any d"]) -> Float[Tensor, "*any d"]:
        """x M: the linear part applied to what a matrix writes."""
        return x * self.scale + (x @ self.left) @ self.right

    def then(self, other: "Affine") -> "Affine":
        """This map, and after it the other."""
        left = torch.cat([self.scale[:, None] * other.left, self.left], dim=1)
        right = torch.cat([other.right, other.after(self.right)])
        return Affine(self.scale * other.scale, left, right, other.after(self.shift) + other.shift)

    def before(self, weight: Float[Tensor, "d out"]) -> Float[Tensor, "d out"]:
        """M W: the linear part applied to what a matrix reads."""
        return self.scale[:, None] * weight + self.left @ (self.right @ weight)


def bake(model: Model, plan: "Edit | Sequence[Edit]", out: str | Path) -> Path:
    """Writes the folder `out`: the checkpoint with the plan in its weights, its config and tokenizer, and a card of what was baked.

    Weights are changed in float64 and stored in the model's dtype; those of `model` stay. The folder appears whole or not at all.
    ValueError if `out` is not empty, or quoting an edit that is no affine map of a matrix's input or output (positions, patches ...).
    """
    plan, target = as_plan(plan), Path(out)
    if not plan:
        raise ValueError("The plan is empty: there is nothing to bake.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} exists and is not empty; name a new folder.")
    state = plain_state(model.hf) | bake_weights(model, plan)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{secrets.token_hex(8)}.part")
    part.mkdir()  # with the permissions that the user gives new folders
    try:
        model.hf.save_pretrained(part, state_dict=state)
        for pattern in KEPT:
            for file in model.path.glob(pattern):
                if not (part / file.name).exists() and not file.name.endswith(".index.json"):
                    shutil.copyfile(file, part / file.name)
        write_variant(part, model.anatomy)
        (part / "baked").mkdir()
        write_text(part / "baked" / "plan.json", plan_to_json(plan, part / "baked") + "\n")
        write_text(part / "README.md", _card(model, plan))
        part.replace(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def bake_weights(model: Model, plan: "Edit | Sequence[Edit]") -> dict[str, Tensor]:
    """The parameters that the plan changes, by their names in `model.hf`, in the model's dtype."""
    plan = as_plan(plan)
    for edit in plan:
        _refuse(model, edit)
    with torch.no_grad():
        work = _Weights(model)
        results_first = sorted(model.sites(), key=lambda site: site.kind != "attn.hook_result")  # what z is shifted by passes through them
        for site in results_first:
            for head, affine in _composed(site, [edit for edit in plan if edit.site == site.name], model).items():
                work.apply(model.anatomy.blocks[site.layer], site, head, affine)
    return work.changed()


class _Weights:
    """Float64 copies of the matrices and biases that edits touch."""

    def __init__(self, model: Model):
        self._names = {id(p): name for name, p in model.hf.named_parameters()}
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}

    def _copy(self, parameter: Tensor) -> Tensor:
        if id(parameter) not in self._copies:
            self._copies[id(parameter)] = parameter, parameter.detach().double().clone()
        return self._copies[id(parameter)][1]

    def changed(self) -> dict[str, Tensor]:
        return {self._names[key]: new.to(old.dtype) for key, (old, new) in self._copies.items()}

    def apply(self, block: Block, site: Site, head: int, affine: Affine) -> None:
        module, index = _place(block, site.kind, head)
        reads = site.kind in READ
        by_rows = reads or site.kind == "attn.hook_result"  # else by columns
        stored = self._copy(module.weight)  # type: ignore[arg-type]
        weight = stored.T if isinstance(module, nn.Linear) else stored
        part = (index,) if by_rows else (slice(None), index)
        old = weight[part]
        shift = affine.shift @ old if reads else affine.shift
        weight[part] = affine.before(old) if reads else affine.after(old)
        if module.bias is None:
            if bool(shift.any()):
                raise ValueError(f"The plan adds a constant at {site.name}, and the projection that it would go into has no bias.")
            return
        bias = self._copy(module.bias)  # type: ignore[arg-type]
        if by_rows:
            bias += shift
        else:
            bias[index] = affine.after(bias[index]) + shift


def _place(block: Block, kind: str, head: int) -> tuple[nn.Module, Tensor]:
    """The module whose weight an edit changes, and which of its rows (what it reads) or columns (what it writes)."""
    if kind not in ("attn.hook_q", "attn.hook_k", "attn.hook_v"):
        module = getattr(block, READ.get(kind) or WRITTEN[kind])
        rows, columns = module.weight.shape if not isinstance(module, nn.Linear) else module.weight.shape[::-1]
        if kind in ("attn.hook_z", "attn.hook_result"):
            return module, torch.arange(rows, device=module.weight.device).unflatten(0, (block.n_heads, -1))[head]
        return module, torch.arange(rows if kind in READ else columns, device=module.weight.device)
    which = "qkv".index(kind[-1])
    if len(block.qkv) == 1:
        module = block.qkv[0]
        columns = torch.arange(module.bias.numel() if module.bias is not None else max(module.weight.shape), device=module.weight.device)  # type: ignore[union-attr,arg-type]
        return module, block.unpack(columns)[which][head]
    module = block.qkv[which]
    return module, block.split_heads(torch.arange(module.weight.shape[0], device=module.weight.device))[head]  # type: ignore[union-attr,arg-type]


def _composed(site: Site, edits: list[Edit], model: Model) -> dict[int, Affine]:
    """The maps of all edits of a site, one after another, by head (head 0 alone at a site without heads)."""
    found: dict[int, Affine] = {}
    for edit in edits:
        for head, affine in _affine(site, edit, model):
            found[head] = found[head].then(affine) if head in found else affine
    return found


def _affine(site: Site, edit: Edit, model: Model) -> Iterator[tuple[int, Affine]]:
    """The map of each head that the edit changes."""
    sizes = dict(site.sizes)
    d, device = sizes[site.axes[-1]], model.device
    every = range(sizes.get("head", 1))
    heads = [edit.head] if isinstance(edit.head, int) else list(edit.head if edit.head is not None else every)
    one, none = torch.ones(d, dtype=torch.float64, device=device), torch.zeros(d, dtype=torch.float64, device=device)
    left, right = none[:, None][:, :0], none[None][:0]
    if edit.op == "project_out":
        svd = torch.linalg.svd(edit.value.to(one).reshape(-1, d), full_matrices=False)
        basis = svd.Vh[svd.S.max() * 1e-12 < svd.S]
        yield from ((head, Affine(one, -basis.T, basis, none)) for head in heads)
        return
    if edit.op == "rank_one":
        yield from ((head, Affine(one, edit.value[0].to(one)[:, None], edit.value[1:].to(one), none)) for head in heads)
        return
    value = 0.0 if edit.op == "zero" else edit.value
    if isinstance(value, Tensor):
        value = canonical_value(site, edit, 1, 1)[0, 0].to(one)  # [head or 1, d or 1]
    else:
        value = one[None] * value
    value = value.expand(len(heads), d)
    for head, x in zip(heads, value, strict=True):
        scale, shift = {"scale": (x, none), "add": (one, x)}.get(edit.op, (none, x))
        yield head, Affine(scale, left, right, shift)


def _refuse(model: Model, edit: Edit) -> None:
    """ValueError for an edit that no weights can do."""
    site = model.sites().get(edit.site)
    if site.kind not in SITES:
        raise ValueError(f"{edit!r} cannot be baked: {site.name} is not what one matrix reads or writes, such as {', '.join(SITES)}.")
    if edit.pos is not None:
        raise ValueError(f"{edit!r} cannot be baked: it acts at chosen positions, and weights act at all positions.")
    reason = {
        "patch": "it copies another run's activations, which differ between prompts",
        "noise": "it is drawn anew for each prompt",
        "quantize": "rounding is not linear",
    }.get(edit.op)
    if edit.op == "mean" and edit.value is None:
        reason = "the mean of the batch depends on the prompts; give it as value=model.mean(prompts, site)"
    if reason:
        raise ValueError(f"{edit!r} cannot be baked: {reason}.")
    _check_value(model, site, edit)


def _check_value(model: Model, site: Site, edit: Edit) -> None:
    heads = dict(site.sizes).get("head")
    for head in [edit.head] if isinstance(edit.head, int) else edit.head or ():
        if heads is None or not 0 <= head < heads:
            raise ValueError(
                f"{edit!r}: {site.name} of {model.name} " + ("has no heads." if heads is None else f"has heads 0-{heads - 1}.")
            )
    if not isinstance(edit.value, Tensor):
        return
    d = dict(site.sizes)[site.axes[-1]]
    if edit.op in ("project_out", "rank_one"):
        if edit.value.shape[-1] != d:
            raise ValueError(f"{edit!r}: a direction at this site has {d} entries; given {tuple(edit.value.shape)}.")
        return
    try:
        canonical_value(site, edit, 1, 1)
    except ValueError as error:
        raise ValueError(f"{edit!r} cannot be baked: its value must be the same for all prompts and positions. {error}") from None


def _card(model: Model, plan: Plan) -> str:
    lines = [
        f"# {model.name}, with a plan of edits baked in", "",
        f"The weights of `{model.name}` ({model.family}) with these edits made part of them by `interp.bake`: its logits equal those of",
        "`model.logits(prompts, edits=plan)` up to rounding. The plan is stored in `baked/plan.json`.", "",
        *(f"    {edit!r}" for edit in plan), "",
        "The other files are those of the original. Its licence holds.", "",
    ]  # fmt: skip
    return "\n".join(lines)
