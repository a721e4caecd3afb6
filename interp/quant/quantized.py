"""A model run on fake-quantized weights and activations: a private copy with rounded weights, and one quantizer per activation.

    run = quantize(model, scheme, calibration)       run.logits(prompts);  run.weights, run.activations: what is rounded

The loaded model is not touched. Static ranges are found on the calibration prompts in the order of the forward, with all quantizers on, as
Bondarenko et al. 2023 do. The run goes through the hooked forward, so every site of the attention seam can be rounded.
"""

import copy
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from interp.engine import hooked
from interp.engine.anatomy import Anatomy
from interp.models import Model
from interp.prompts import Prompts
from interp.quant.measures import MASSIVE_ABSOLUTE, massive, outliers
from interp.quant.rounded_weights import give_products, round_weights
from interp.quant.rounding import fake_quant, find_range, round_to_grid
from interp.quant.schemes import ACTIVATIONS, NORMS, Scheme
from interp.selection import real

MATRICES = ("attn.hook_attn_scores", "attn.hook_pattern")
SUMS = ("signal", "noise", "bulk_signal", "bulk_noise")


@dataclass
class Quantizer:
    """Rounds one activation. `low` and `high` are its static range, once calibrated."""

    name: str
    scheme: Scheme
    low: Tensor | None = None
    high: Tensor | None = None
    frozen: bool = False
    measuring: bool = False
    kept: Bool[Tensor, "*features"] | None = None
    """Features that stay in floating point."""
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SUMS, 0.0))
    """Of squares, over what was rounded since `measuring` was switched on."""

    def __call__(self, x: Tensor, counted: Tensor) -> Tensor:
        """`x` rounded. `counted` [n, ...] are its entries at real positions, which alone find the range."""
        bits = self.scheme.activation_bits
        assert bits is not None
        rest = x if self.kept is None else x.masked_fill(self.kept, 0.0)  # a zero widens no range
        if self.scheme.activation_per == "token":
            out = fake_quant(rest, bits, self.scheme.symmetric_activations, "token")
        else:
            if not self.frozen:
                self._observe(counted if self.kept is None else counted[:, ~self.kept])
            assert self.low is not None and self.high is not None
            out = round_to_grid(rest, self.low, self.high, bits, self.scheme.symmetric_activations)
        return out if self.kept is None else torch.where(self.kept, x, out)

    def measure(self, x: Tensor, xq: Tensor) -> None:
        """Adds up signal and noise of rounded entries, all and the bulk: without massive ones (where there are none, without those beyond
        six standard deviations)."""
        if not len(x):  # keep_first, and prompts of one token
            return
        if self.kept is not None:
            x, xq = x[:, ~self.kept], xq[:, ~self.kept]
        noise = (x - xq).double()
        apart = massive(x) if float(x.abs().max()) > MASSIVE_ABSOLUTE else None
        bulk = ~(apart if apart is not None and bool(apart.any()) else outliers(x))
        for name, part in (("", slice(None)), ("bulk_", bulk)):
            self.sums[f"{name}signal"] += float(x[part].double().square().sum())
            self.sums[f"{name}noise"] += float(noise[part].square().sum())

    def _observe(self, x: Tensor) -> None:
        """The running range; this batch is already rounded with it."""
        if not bool(torch.isfinite(x).all()):
            raise ValueError(f"{self.name} holds NaN or infinities on the calibration prompts; a range needs finite numbers.")
        low, high = find_range(
            x, "tensor", self.scheme.activation_range, self.scheme.activation_bits or 8, self.scheme.symmetric_activations
        )
        low, high = low.reshape(()), high.reshape(())
        if self.low is None or self.high is None:
            self.low, self.high = low, high
        else:
            m = self.scheme.momentum
            self.low, self.high = m * self.low + (1 - m) * low, m * self.high + (1 - m) * high


class _Call(hooked.Call):
    """A call whose edits are quantizers."""

    def __init__(self, quantizers: dict[str, Quantizer], counted: Bool[Tensor, "row pos"], real: Bool[Tensor, "row pos"]):
        rows, width = counted.shape
        super().__init__((), {name: [] for name in quantizers}, (rows, width))
        self._quantizers, self._counted, self.real = quantizers, counted, real

    def edit(self, site: str, x: Tensor) -> Tensor:
        if site not in self._quantizers:
            return x
        return _rounded(self._quantizers[site], x, self._counted, site.endswith(MATRICES))


def _rounded(quantizer: Quantizer, x: Tensor, at: Bool[Tensor, "row pos"], matrix: bool = False) -> Tensor:
    """`x` [row, pos, ...] (a matrix: [row, head, query, key]) rounded; what `at` marks is counted."""
    if quantizer.scheme.keep_first:
        at = at & (torch.arange(at.shape[1], device=at.device) > 0)
    counted = _seen(x, at) if matrix else x[at]
    out = quantizer(x, counted)
    if quantizer.scheme.keep_first:
        first = (slice(None), slice(None), 0) if matrix else (slice(None), 0)  # of a matrix, the first query's row
        out = out.clone()
        out[first] = x[first]
    if quantizer.measuring:
        quantizer.measure(counted, _seen(out, at) if matrix else out[at])
    return out


def _seen(x: Float[Tensor, "row head query key"], at: Bool[Tensor, "row query"]) -> Float[Tensor, "entry head"]:
    """What these queries see: the zeros at later keys are no part of the activation."""
    query = at.nonzero()[:, 1]
    return x.transpose(1, 2)[at].transpose(1, 2)[torch.arange(x.shape[-1], device=x.device) <= query[:, None]]


@dataclass(frozen=True, eq=False)
class QuantizedRun:
    """A quantized copy of a model."""

    scheme: Scheme
    model: Model
    """The copy, with rounded weights; its activations are rounded in `logits` alone."""
    rounded: dict[str, tuple[Tensor, Tensor, Tensor]]
    """Weight -> the copy's own tensor, its numbers before, its rounded numbers."""
    products: tuple[str, ...]
    """Linear layers whose product is LLM.int8's."""
    quantizers: dict[str, Quantizer]
    """Activation (a site, or "blocks.0.ln1" for a norm's output) -> its quantizer."""

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the weights that are rounded."""
        return (*self.rounded, *self.products)

    @property
    def activations(self) -> tuple[str, ...]:
        return tuple(self.quantizers)

    def logits(self, prompts: Prompts, only: Collection[str] | None = None) -> Float[Tensor, "row pos vocab"]:
        """Logits with the activations rounded; `only` names those to round (None: all)."""
        return self.forward(prompts, real(prompts), only)

    def forward(self, prompts: Prompts, counted: Bool[Tensor, "row pos"], only: Collection[str] | None = None) -> Tensor:
        """The same; `counted` marks the positions that find ranges and are measured."""
        chosen = {name: q for name, q in self.quantizers.items() if only is None or name in only}
        norms = {name: q for name, q in chosen.items() if name.split(".")[-1] in NORMS}
        call = _Call({name: q for name, q in chosen.items() if name not in norms}, counted, real(prompts))
        with self.model.lock, torch.no_grad():
            handles = [_hook_norm(_norm(self.model.anatomy, name), q, counted) for name, q in norms.items()]
            try:
                return hooked.run(self.model.anatomy, call, lambda: self.model.hf(prompts.ids, use_cache=False).logits)
            finally:
                for handle in handles:
                    handle.remove()

    def norm(self, name: str) -> Any:
        """The copy's norm whose output is the activation `name`."""
        return _norm(self.model.anatomy, name)

    @contextmanager
    def only_weights(self, names: Collection[str]) -> Iterator[None]:
        """Within it only these weights are rounded."""
        with self.model.lock:
            try:
                self._fill({name: after if name in names else before for name, (_, before, after) in self.rounded.items()})
                yield
            finally:
                self._fill({name: after for name, (_, _, after) in self.rounded.items()})

    def _fill(self, numbers: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, new in numbers.items():
                self.rounded[name][0].copy_(new)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Within it every quantizer adds up signal and noise, from zero."""
        try:
            for quantizer in self.quantizers.values():
                quantizer.measuring, quantizer.sums = True, dict.fromkeys(SUMS, 0.0)
            yield
        finally:
            for quantizer in self.quantizers.values():
                quantizer.measuring = False


def quantize(model: Model, scheme: Scheme, calibration: Prompts | None = None) -> QuantizedRun:
    """A quantized copy. `calibration`: prompts for static ranges; ValueError without, where the scheme needs them."""
    refuse_quantized(model)
    twin = Model(copy.deepcopy(model.hf), model.tokenizer, model.path)
    names = _activations(twin, scheme)
    static = bool(names) and scheme.activation_per == "tensor"
    if (static or scheme.keep) and (calibration is None or not len(calibration)):
        raise ValueError(
            "Static ranges and kept features need calibration prompts: give some, or take a scheme with activation_per='token' and keep=0."
        )
    batches = list(_batches(scheme, calibration)) if calibration is not None and (static or scheme.keep) else []
    kept = _largest_features(twin, scheme, batches) if scheme.keep else {}
    rounded = round_weights(twin, scheme, kept)
    products = () if scheme.decompose is None else tuple(give_products(twin.anatomy, scheme))
    quantizers = {name: Quantizer(name, scheme, kept=kept.get(name)) for name in names}
    run = QuantizedRun(scheme, twin, rounded, products, quantizers)
    for batch, counted in batches if static else ():
        run.forward(batch, counted)
    for quantizer in quantizers.values():
        quantizer.frozen = True
    return run


def refuse_quantized(model: Model) -> None:
    if any(not p.is_floating_point() for p in model.hf.parameters()) or getattr(model.hf.config, "quantization_config", None):
        raise ValueError(f"{model.name} is quantized already; fake quantization starts from floating-point weights.")


def _batches(scheme: Scheme, calibration: Prompts) -> Iterator[tuple[Prompts, Bool[Tensor, "row pos"]]]:
    """Calibration batches, and which of their positions count."""
    for part in torch.arange(len(calibration)).tensor_split(min(scheme.batches, len(calibration))):
        batch = calibration[part]
        counted = real(batch)
        counted[:, 0] &= not (scheme.skip_first or scheme.keep_first)
        if not bool(counted.any()):
            raise ValueError(
                "skip_first and keep_first leave out position 0, and a calibration batch has prompts of one token alone. Take longer ones."
            )
        yield batch, counted


class _Peaks(Quantizer):
    """Rounds nothing and remembers the largest size of every feature."""

    largest: Tensor | None = None

    def __call__(self, x: Tensor, counted: Tensor) -> Tensor:
        size = counted.abs().amax(0)
        self.largest = size if self.largest is None else torch.maximum(self.largest, size)
        return x


def _largest_features(twin: Model, scheme: Scheme, batches: list[tuple[Prompts, Tensor]]) -> dict[str, Bool[Tensor, "*features"]]:
    """The `keep` largest features of every activation but attention's matrices, on the model in floating point."""
    names = [n for n in _activations(twin, replace(scheme, activation_bits=8)) if not n.endswith(MATRICES)]
    peaks = {name: _Peaks(name, scheme) for name in names}
    run = QuantizedRun(scheme, twin, {}, (), dict(peaks))
    for batch, counted in batches:
        run.forward(batch, counted)
    return {name: _top(name, peak.largest, scheme.keep) for name, peak in peaks.items() if peak.largest is not None}


def _top(name: str, size: Float[Tensor, "*features"], k: int) -> Bool[Tensor, "*features"]:
    if k >= size.numel():
        raise ValueError(f"keep={k} leaves nothing to round: {name} has {size.numel()} features.")
    flat = torch.zeros(size.numel(), dtype=torch.bool, device=size.device)
    flat[size.flatten().topk(k).indices] = True
    return flat.reshape(size.shape)


def _activations(model: Model, scheme: Scheme) -> list[str]:
    """Names of the activations that the scheme rounds and the model has."""
    if scheme.activation_bits is None:
        return []
    found = []
    for name in scheme.activations:
        layers = range(model.n_layers)
        if name in NORMS:
            absent = f"blocks.0.{name}.hook_normalized" not in model.sites() and f"{name}.hook_normalized" not in model.sites()
            found += [] if absent else [name] if name == "ln_final" else [f"blocks.{i}.{name}" for i in layers]
        else:
            site = ACTIVATIONS[name]
            sites = [site] if site.startswith(("hook_embed", "hook_pos", "blocks.")) else [f"blocks.{i}.{site}" for i in layers]
            found += [s for s in sites if s in model.sites()]
    return found


def _norm(anatomy: Anatomy, name: str) -> nn.Module:
    if name == "ln_final":
        assert anatomy.final_norm is not None
        return anatomy.final_norm
    _, layer, which = name.split(".")
    block = anatomy.blocks[int(layer)]
    return block.norm1 if which == "ln1" else block.norm2


def _hook_norm(norm: nn.Module, quantizer: Quantizer, counted: Bool[Tensor, "row pos"]) -> torch.utils.hooks.RemovableHandle:
    """On the private copy, for one forward."""

    def hook(_: nn.Module, __: tuple, out: Tensor) -> Tensor:
        x = out if out.ndim == 3 else out.unflatten(0, counted.shape)  # OPT's MLP norm sees [row * pos, d]
        return _rounded(quantizer, x, counted).reshape(out.shape)

    return norm.register_forward_hook(hook)
