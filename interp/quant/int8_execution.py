"""Real int8 matrix products in the linear layers, beside fake quantization of the same layers: does the simulation say what int8 does?

    found = quant.real_int8(model, prompts, "w8a8-token")       found.damage, found.damage_fake, found.kl_between; found.table()

torchao (extra `int8`) rounds the weights of the blocks' linear layers and what they read, and multiplies integers; all else stays in
floating point. The fake twin rounds the same tensors on the same grid and multiplies floats. Both are private copies. torchao knows
nn.Linear alone and skips GPT-2's Conv1D in silence, so these become nn.Linear first, and what was quantized is counted.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.metrics import loss_per_token
from interp.models import Model
from interp.prompts import Prompts
from interp.quant.evaluation import predicting, token_divergence
from interp.quant.linear_products import FakeProduct, fake_product, linears_of, quantize_module, torchao_config, with_linears
from interp.quant.quantized import Quantizer
from interp.quant.schemes import Scheme, scheme_of
from interp.selection import real

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


EXECUTED = (
    "weight_bits", "weight_per", "activation_bits", "activation_per", "activation_range", "symmetric_activations", "momentum", "batches",
    "skip_first", "activations",
)  # fmt: skip
"""Fields of a scheme that may differ from the default. Which `activations` it names does not matter: linear layers' inputs are rounded."""


@dataclass(frozen=True)
class LinearCheck:
    """One linear layer: the integer product against the fake one, of the same input."""

    module: str
    sqnr: float
    """dB; inf where no bit differs."""
    static_range: tuple[float, float] | None
    """Of its input, where ranges are static."""


@dataclass(frozen=True, eq=False)
class RealInt8:
    """The model, its fake-quantized twin and its int8 twin on the same prompts; losses and KLs in nats per token."""

    model: str
    scheme: Scheme
    dynamic: bool
    half_step: bool
    loss: float
    loss_real: float
    loss_fake: float
    kl_real: float
    """KL(model || int8)."""
    kl_fake: float
    """KL(model || fake)."""
    kl_between: float
    """KL(int8 || fake)."""
    agreement: float
    """Fraction of tokens for which int8 and fake have the same most likely next token."""
    linears: tuple[LinearCheck, ...]
    skipped: tuple[str, ...]
    """Linear layers that stay in floating point."""
    library: str

    @property
    def n_quantized(self) -> int:
        return len(self.linears)

    @property
    def damage(self) -> float:
        """loss_real - loss."""
        return self.loss_real - self.loss

    @property
    def damage_fake(self) -> float:
        """loss_fake - loss."""
        return self.loss_fake - self.loss

    def table(self) -> "pd.DataFrame":
        """One row per linear layer."""
        import pandas as pd

        return pd.DataFrame([asdict(check) for check in self.linears]).assign(unit="dB", model=self.model, library=self.library)

    def figure(self) -> "go.Figure":
        """How well the fake product of each layer equals the integer one."""
        import plotly.graph_objects as go

        figure = go.Figure(go.Bar(x=[c.module for c in self.linears], y=[c.sqnr for c in self.linears]))
        title = f"{self.model}: damage {self.damage:.4f} (int8), {self.damage_fake:.4f} (fake) nats/token; does each layer agree?"
        return figure.update_layout(title=title, template="plotly_white", yaxis_title="SQNR of int8 against fake (dB)")

    def to_json(self) -> str:
        names = ("model", "dynamic", "half_step", "loss", "loss_real", "loss_fake", "damage", "damage_fake", "kl_real", "kl_fake")
        plain: dict[str, Any] = {name: getattr(self, name) for name in (*names, "kl_between", "agreement", "n_quantized", "library")}
        linears = [asdict(c) | {"sqnr": c.sqnr if c.sqnr < float("inf") else None} for c in self.linears]
        return json.dumps(plain | {"scheme": asdict(self.scheme), "skipped": list(self.skipped), "linears": linears})


def real_int8(
    model: Model,
    prompts: "Prompts | str | Sequence[str]",
    scheme: str | Scheme = "w8a8-token",
    *,
    calibration: Prompts | None = None,
    dynamic: bool = False,
    lm_head: bool = False,
    half_step: bool = True,
    **changes: Any,
) -> RealInt8:
    """Runs the scheme's linear layers on integers. Of a scheme, the weights' and the activations' kind of range count.

    scheme       8 bits, min-max weights; activation_bits=None: weights alone; activation_per="token": dynamic, one range per token;
                 "tensor": static ranges, found on `calibration` (None: on `prompts`) as in quant.evaluate
    dynamic      with activation_per="tensor": a range of its own for every prompt instead
    lm_head      quantize the unembedding too
    half_step    the fake twin's symmetric step is torchao's, absmax / 127.5; False: absmax / 127, to see what the convention costs

    Prompts run one by one: torchao counts padding in its ranges. ImportError without torchao; ValueError for what it cannot execute.
    """
    prompts = model.check_prompts(prompts)
    if prompts.shortest < 2:
        raise ValueError(f"Prompt {int(prompts.lengths.argmin())} has one token; a loss needs at least two.")
    chosen = _check_scheme(scheme_of(scheme, **changes), dynamic)
    library, config_of = torchao_config(chosen, dynamic)
    real_twin, fake_twin = with_linears(model), with_linears(model)
    names = list(linears_of(real_twin, lm_head))
    static = chosen.activation_bits is not None and chosen.activation_per == "tensor" and not dynamic
    quantizers = {name: Quantizer(name, chosen) for name in names} if static else {}
    fakes, reals = linears_of(fake_twin, lm_head), linears_of(real_twin, lm_head)
    products = {name: fake_product(m, chosen, dynamic, half_step, quantizers.get(name)) for name, m in fakes.items()}
    if static:
        _calibrate(fake_twin, fakes, products, prompts if calibration is None else model.check_prompts(calibration), chosen)
    for name, module in reals.items():
        quantize_module(module, name, config_of(products[name]))
    agree = {name: _Agreement(product, reals[name]) for name, product in products.items()}
    for name, module in fakes.items():
        module.forward = agree[name]  # type: ignore[method-assign]
    totals = _compare(model, real_twin, fake_twin, prompts) / int((prompts.lengths - 1).sum())
    loss, real, fake, kl_real, kl_fake, between, same = totals.tolist()
    checks = tuple(LinearCheck(name, agree[name].decibels, _range(quantizers.get(name))) for name in names)
    skipped = () if lm_head else ("lm_head",)
    return RealInt8(model.name, chosen, dynamic, half_step, loss, real, fake, kl_real, kl_fake, between, same, checks, skipped, library)


def _check_scheme(scheme: Scheme, dynamic: bool) -> Scheme:
    plain = Scheme()
    beyond = [f.name for f in fields(Scheme) if f.name not in EXECUTED and getattr(scheme, f.name) != getattr(plain, f.name)]
    if beyond or scheme.weight_bits != 8 or scheme.activation_bits not in (None, 8):
        other = f"; {', '.join(beyond)} cannot be changed" if beyond else ""
        raise ValueError(f"torchao executes 8-bit weights with min-max ranges, and 8-bit activations or none{other}; given {scheme}.")
    if dynamic and (scheme.activation_bits is None or scheme.activation_range != "minmax"):
        raise ValueError("Dynamic ranges are min-max ranges of activations; this scheme has others, or leaves activations alone.")
    return scheme


@dataclass(eq=False)
class _Agreement:
    """The fake product, run on; the integer product of the same input is compared with it."""

    fake: FakeProduct
    real: nn.Linear
    signal: float = 0.0
    noise: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        y = self.fake(x)
        self.signal += float(y.double().square().sum())
        self.noise += float((y.double() - self.real(x).double()).square().sum())
        return y

    @property
    def decibels(self) -> float:
        return 10 * math.log10(self.signal / self.noise) if self.noise > 0 else math.inf


def _calibrate(twin: Model, modules: dict[str, nn.Linear], products: dict[str, FakeProduct], prompts: Prompts, scheme: Scheme) -> None:
    """Static ranges, with all products rounded, in the order of the forward."""
    for name, module in modules.items():
        module.forward = products[name]  # type: ignore[method-assign]
    with torch.no_grad():
        for part in torch.arange(len(prompts)).tensor_split(min(scheme.batches, len(prompts))):
            batch = prompts[part]
            counted = real(batch)
            counted[:, 0] &= not scheme.skip_first
            for product in products.values():
                product.counted = counted
            twin.hf(batch.ids, use_cache=False)
    for product in products.values():
        assert product.quantizer is not None
        product.counted, product.quantizer.frozen = None, True


def _compare(model: Model, real_twin: Model, fake_twin: Model, prompts: Prompts) -> Float[Tensor, " measure"]:
    """Sums over tokens: the three losses, KL to int8, KL to fake, KL between them, agreement."""
    totals = torch.zeros(7, dtype=torch.float64)
    for prompt in prompts:
        with torch.no_grad():
            clean = model.logits(prompt)
            integer, fake = (twin.hf(prompt.ids, use_cache=False).logits for twin in (real_twin, fake_twin))
        counted = predicting(prompt)
        losses = [loss_per_token(logits, prompt) for logits in (clean, integer, fake)]
        divergences = [token_divergence(a, b) for a, b in ((clean, integer), (clean, fake), (integer, fake))]
        same = (integer.argmax(-1) == fake.argmax(-1)).to(clean)
        totals += torch.stack([*losses, *divergences, same])[:, counted].double().sum(1).cpu()
    return totals


def _range(quantizer: Quantizer | None) -> tuple[float, float] | None:
    return None if quantizer is None or quantizer.low is None or quantizer.high is None else (float(quantizer.low), float(quantizer.high))
