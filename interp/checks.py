"""The honesty checks: proofs on the loaded weights that hooks read and write what their names say.

The failure to fear is not the hook that crashes but the one that lies: an edit that is silently discarded, a "score" that is a
probability, a padded row that differs from the same row alone. Each check is one line of the report, with its error and tolerance.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from interp.edits import Edit
from interp.engine.anatomy import Block
from interp.engine.seam import causal_mask
from interp.prompts import Prompts
from interp.sites import Site
from interp.sweeps import sweep

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from interp.models import Model


@dataclass(frozen=True)
class Check:
    """One law, what it was tried on, and how far it was missed."""

    law: str
    scope: str
    error: float
    tolerance: float
    passed: bool
    note: str = ""


@dataclass(frozen=True)
class CheckReport:
    model: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def failures(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if not check.passed)

    def table(self) -> "pd.DataFrame":
        """One row per check."""
        import pandas as pd

        return pd.DataFrame([asdict(check) for check in self.checks])

    def figure(self) -> "go.Figure":
        """Each check's error beside its tolerance."""
        import plotly.graph_objects as go

        names = [f"{c.law} ({c.scope})" for c in self.checks]
        figure = go.Figure()
        figure.add_scatter(x=[max(c.error, 1e-17) for c in self.checks], y=names, mode="markers", name="error")
        figure.add_scatter(
            x=[max(c.tolerance, 1e-17) for c in self.checks], y=names, mode="markers", marker_symbol="line-ns-open", name="tolerance"
        )
        figure.update_layout(
            title=f"{self.model}: do its hooks tell the truth?", xaxis_type="log", xaxis_title="largest error (logits or activations)"
        )
        return figure

    def to_json(self) -> str:
        return json.dumps({"model": self.model, "passed": self.passed, "checks": [asdict(c) for c in self.checks]})


def check_model(model: "Model", prompts: Prompts | None = None) -> CheckReport:
    """All checks, on two short random prompts unless others are given."""
    prompts = _random_prompts(model) if prompts is None else model.check_prompts(prompts)
    with torch.no_grad():
        logits = model.logits(prompts)
        every = model.capture(prompts, "*")
        checks = [
            *_reading(model, prompts, logits),
            *_editing(model, prompts),
            _surgery(model, prompts),
            *_sums(model, every, prompts),
            _padding(model, prompts, logits),
            _against_hf(model, prompts, logits),
        ]
    return CheckReport(model.name, tuple(checks))


def _random_prompts(model: "Model") -> Prompts:
    generator = torch.Generator().manual_seed(0)
    lengths = [min(9, model.n_ctx), min(6, model.n_ctx)]
    return model.check_prompts(Prompts.from_ids([torch.randint(0, model.d_vocab, (n,), generator=generator).tolist() for n in lengths]))


def _tolerance(model: "Model", scale: Tensor) -> float:
    """Rounding of sums of the size of `scale` in the model's dtype."""
    return 100 * torch.finfo(model.dtype).eps * (1 + float(scale.abs().max()))


def _real(prompts: Prompts, x: Tensor) -> Tensor:
    """The tokens of x [row, pos, ...] that are not padding."""
    return x[torch.arange(prompts.width, device=x.device) < prompts.lengths[:, None]]


def _check(law: str, scope: str, difference: Tensor | float, tolerance: float, note: str = "") -> Check:
    error = float(torch.as_tensor(difference).abs().max())
    return Check(law, scope, error, tolerance, error <= tolerance, note)


def _reading(model: "Model", prompts: Prompts, logits: Tensor) -> Iterator[Check]:
    for kind in dict.fromkeys(site.kind for site in model.sites()):
        reads = [site for site in model.sites() if site.kind == kind]
        _, read = model._run(prompts, {}, reads, grad=False, want_logits=True)
        yield _check("reading leaves the logits bit-equal", kind, _real(prompts, read - logits), 0.0)


def _editing(model: "Model", prompts: Prompts) -> Iterator[Check]:
    """An edit at every site changes the last logits, and the forked batch gives what the hooked forward gives."""
    direction = torch.randn(model.d_vocab, generator=torch.Generator().manual_seed(1)).to(model.device, model.dtype)

    def projected(logits: Tensor, _: Tensor) -> Tensor:
        return logits @ direction

    plans = [(_strong_edit(site),) for site in model.sites()]
    forked, hooked = (sweep(model, prompts, plans, projected, path=path) for path in ("auto", "hooked"))
    tolerance = _tolerance(model, hooked.values)
    half = model.dtype in (torch.float16, torch.bfloat16)
    rounding = 0.0 if half else 8 * torch.finfo(model.dtype).eps * float(1 + hooked.values.abs().max())
    for kind in dict.fromkeys(site.kind for site in model.sites()):
        index = [i for i, site in enumerate(model.sites()) if site.kind == kind]
        moved = hooked.effects[index].abs().amax(1)  # of every layer
        still = [model.sites()[index[i]].name for i in torch.nonzero(moved <= rounding).flatten().tolist()]
        yield Check(
            "an edit changes the logits", kind, float(len(still)), 0.0, not still, f"no effect: {', '.join(still)}" if still else ""
        )
        yield _check("forked sweep equals the hooked forward", kind, forked.values[index] - hooked.values[index], tolerance)


def _strong_edit(site: Site) -> Edit:
    return Edit(site.name, "scale", 2.0) if site.kind.endswith(("scale", "scores")) else Edit(site.name, "zero")


def _surgery(model: "Model", prompts: Prompts) -> Check:
    """Zeroing a head's z equals zeroing its part of W_O, for one head of every layer."""
    worst, largest = torch.zeros(()), torch.zeros(())
    names = {module: name for name, module in model.hf.named_modules()}
    for block in model.anatomy.blocks:
        head = block.layer % model.n_heads
        edited = model.logits(prompts, Edit(f"blocks.{block.layer}.attn.hook_z", "zero", head=head))
        surgery = {f"{names[block.out]}.weight": _without_head(block, head)}
        with model.lock:
            cut = torch.func.functional_call(model.hf, surgery, (prompts.ids,), {"use_cache": False}).logits
        worst = torch.maximum(worst, _real(prompts, edited - cut).abs().max().cpu())
        largest = torch.maximum(largest, cut.abs().max().cpu())
    return _check("zeroing z equals zeroing W_O", "one head of every layer", worst, _tolerance(model, largest))


def _without_head(block: Block, head: int) -> Tensor:
    """The output projection's weight, as its module stores it, without one head."""
    weight = block.weight_out().clone()
    weight[head] = 0.0
    flat = weight.flatten(0, 1)
    return flat if isinstance(block.out, Conv1D) else flat.T


def _sums(model: "Model", x: Mapping[str, Tensor], prompts: Prompts) -> Iterator[Check]:
    softmax, mixed, stream, result = [], [], [], []
    for block in model.anatomy.blocks:
        name = f"blocks.{block.layer}."
        at = {key.removeprefix(name): value for key, value in x.items() if key.startswith(name)}
        softmax.append(_real(prompts, (_weights(block, at) - at["attn.hook_pattern"]).transpose(1, 2)))
        gate = at.get("attn.hook_gate", 1.0)
        mixed.append(_real(prompts, torch.einsum("rhqk,rkhd->rqhd", at["attn.hook_pattern"], at["attn.hook_v"]) * gate - at["attn.hook_z"]))
        bias = block.out.bias if isinstance(block.out.bias, Tensor) else 0.0
        result.append(_real(prompts, at["attn.hook_result"].sum(2) + bias - at["hook_attn_out"]))
        pre, attn, mlp, post = (at[k] for k in ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post"))
        if block.wiring == "parallel":
            stream.append(_real(prompts, pre + attn + mlp - post))
        elif block.wiring == "serial":
            stream += [_real(prompts, pre + attn - at["hook_resid_mid"]), _real(prompts, at["hook_resid_mid"] + mlp - post)]
        else:
            mid = at["hook_resid_mid"]
            stream += [_real(prompts, block.norm1(pre + attn) - mid), _real(prompts, block.norm2(mid + mlp) - post)]
    scale = torch.stack([x[f"blocks.{b.layer}.hook_resid_post"].abs().max() for b in model.anatomy.blocks])
    half = model.dtype in (torch.float16, torch.bfloat16)
    variant = model.attention
    law = (
        "softmax of scores equals the pattern"
        if variant.kind == "softmax" or variant.is_gate
        else f"{variant} of scores equals the pattern"
    )
    yield _check(law, "every layer", _worst(softmax), 1e-2 if half else 1e-6)
    yield _check(
        f"pattern times values{' times the gate' if variant.is_gate else ''} equals z",
        "every layer",
        _worst(mixed),
        _tolerance(model, torch.ones(())),
    )
    yield _check("parts sum to the stream", "every layer", _worst(stream), _tolerance(model, scale))
    yield _check("heads and b_O sum to attention's output", "every layer", _worst(result), _tolerance(model, scale))


def _weights(block: Block, at: Mapping[str, Tensor]) -> Tensor:
    """The pattern anew from the scores that were read, by the layer's formula."""
    scores = at["attn.hook_attn_scores"]
    if block.variant is None or block.variant.spec.is_gate:
        return scores.softmax(-1)
    queries = at.get("attn.hook_rot_q", at["attn.hook_q"]).transpose(1, 2)
    return block.variant.pattern(scores, causal_mask(scores.shape[-2], scores.shape[-1], scores.device), queries, block.score_scale)


def _worst(parts: list[Tensor]) -> Tensor:
    return torch.stack([part.abs().max() for part in parts]).max()


def _padding(model: "Model", prompts: Prompts, logits: Tensor) -> Check:
    """Each row alone gives what it gives in the padded batch."""
    gaps = [(model.logits(prompts[i])[0] - logits[i, : int(prompts.lengths[i])]).abs().max() for i in range(len(prompts))]
    return _check("padded equals unpadded", f"{len(prompts)} prompts", torch.stack(gaps), _tolerance(model, logits))


def _against_hf(model: "Model", prompts: Prompts, logits: Tensor) -> Check:
    """The logits are Hugging Face's own. In float64 its eager attention rounds to float32, so its fused one is the reference there.

    Hugging Face knows softmax alone: of a model with another attention formula, everything but that formula is compared.
    """
    kind, law = "sdpa" if model.dtype == torch.float64 else "eager", "logits equal Hugging Face's"
    if model.attention.kind != "softmax":
        model, law = model.with_attention("softmax"), f"with softmax for {model.attention}, logits equal Hugging Face's"
        logits = model.logits(prompts)
    with model.lock, _attention(model, kind):
        reference = model.hf(prompts.ids, use_cache=False).logits
    return _check(law, f"{kind} attention", _real(prompts, reference - logits), _tolerance(model, logits))


@contextmanager
def _attention(model: "Model", implementation: str) -> Iterator[None]:
    """Another attention implementation while the model's lock is held."""
    config: Any = model.hf.config
    own = config._attn_implementation
    try:
        config._attn_implementation = implementation
        yield
    finally:
        config._attn_implementation = own
