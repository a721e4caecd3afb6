"""Fake quantization: round to a grid of 2^bits values and back, in floating point.

    symmetric    step = absmax / (2^(bits-1) - 1),  integers in [-2^(bits-1), 2^(bits-1) - 1]
    asymmetric   step = (max - min) / (2^bits - 1),  the range widened to include 0, integers in [0, 2^bits - 1]

Rounding is half to even; zeros stay zeros; a range of zero width stays what it is. Libraries differ in the symmetric step: absmax / 127
here, in bitsandbytes, SmoothQuant and Bondarenko et al. 2023; absmax / 127.5 in torchao (`half_step=True`). Mixing the two costs tens of
dB of agreement.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Per = Literal["tensor", "token", "channel", "group"]
CANDIDATES = 100
"""How many ranges the MSE search tries, from 1 % to 100 % of the min-max range."""
FP8_MAX = 448.0


def fake_quant(
    x: Tensor, bits: int = 8, symmetric: bool = True, per: Per = "tensor", range: str | float = "minmax", *, group: int = 32,
    half_step: bool = False,
) -> Tensor:  # fmt: skip
    """`x` rounded to the grid and back, same shape and dtype.

    per        "tensor": one scale; "token": one per row of the last axis; "channel": one per index of the last axis;
               "group": one per `group` neighbours of the last axis (which must divide into them)
    range      "minmax"; a percentile such as 99.99: the range holds that share of the values on either side; or "mse": of 100 shrunk
               min-max ranges the one with the least squared error
    half_step  the symmetric step is absmax / (2^(bits-1) - 0.5), as in torchao
    """
    check_bits(bits)
    if per not in ("tensor", "token", "channel", "group"):
        raise ValueError(f"per is 'tensor', 'token', 'channel' or 'group'; given {per!r}.")
    check_finite(x)
    if per == "group":
        if group < 1 or x.shape[-1] % group:
            raise ValueError(f"The last axis has {x.shape[-1]} entries, which do not divide into groups of {group}.")
        return fake_quant(x.unflatten(-1, (-1, group)), bits, symmetric, "token", range, half_step=half_step).flatten(-2)
    low, high = find_range(x, per, range, bits, symmetric)
    return round_to_grid(x, low, high, bits, symmetric, half_step)


def fake_fp8(x: Tensor, per: Per = "tensor") -> Tensor:
    """`x` scaled to absmax 448, rounded to the 8-bit float e4m3 and back."""
    check_finite(x)
    low, high = find_range(x, per, "minmax", 8, True)
    absmax = _wide(torch.maximum(low.abs(), high.abs()))
    scale = torch.where(absmax > 0, FP8_MAX / absmax, torch.ones_like(absmax))
    return ((x * scale).to(torch.float8_e4m3fn).to(x.dtype) / scale).to(x.dtype)


def check_bits(bits: int) -> int:
    if not isinstance(bits, int) or isinstance(bits, bool) or not 2 <= bits <= 16:
        raise ValueError(f"bits are a whole number from 2 to 16; given {bits!r}.")
    return bits


def check_finite(x: Tensor) -> Tensor:
    if not x.numel():
        raise ValueError(f"The tensor {tuple(x.shape)} is empty; there is nothing to quantize.")
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"The tensor {tuple(x.shape)} holds NaN or infinities; a range needs finite numbers.")
    return x


def find_range(x: Tensor, per: Per, range: str | float, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """(low, high) that broadcast against x."""
    axes = {"tensor": tuple(_dims(x.ndim)), "token": (-1,), "channel": tuple(_dims(x.ndim - 1))}[per]
    low, high = (x.amin(axes, keepdim=True), x.amax(axes, keepdim=True)) if axes else (x, x)
    if range == "minmax":
        return low, high
    if range == "mse":
        return _least_error(x, low, high, axes, bits, symmetric)
    if isinstance(range, int | float) and not isinstance(range, bool) and 50 < range <= 100:
        return percentile_range(x, per, float(range))
    raise ValueError(f"range is 'minmax', 'mse' or a percentile above 50 and up to 100; given {range!r}.")


def percentile_range(x: Tensor, per: Per, percentile: float) -> tuple[Tensor, Tensor]:
    """The values below and above which 100 - percentile per cent of the entries lie, linearly interpolated."""
    flat = {
        "tensor": lambda: x.reshape(1, -1),
        "token": lambda: x.reshape(-1, x.shape[-1]),
        "channel": lambda: x.reshape(-1, x.shape[-1]).T,
    }[per]()
    ordered = flat.sort(dim=-1).values
    at = (flat.shape[-1] - 1) * (percentile / 100)
    below, share = int(at), at - int(at)
    above = min(below + 1, flat.shape[-1] - 1)
    high = torch.lerp(ordered[:, below], ordered[:, above], share)
    low = torch.lerp(ordered[:, -1 - below], ordered[:, -1 - above], share)
    shape = {"tensor": [1] * x.ndim, "token": [*x.shape[:-1], 1], "channel": [1] * (x.ndim - 1) + [x.shape[-1]]}[per]
    return low.reshape(shape), high.reshape(shape)


def _least_error(x: Tensor, low: Tensor, high: Tensor, axes: tuple[int, ...], bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """The shrunk range with the least squared error, for each scale on its own."""
    best = torch.full_like(low, torch.inf, dtype=torch.float64)
    chosen = torch.ones_like(low)
    for share in torch.linspace(1 / CANDIDATES, 1, CANDIDATES, dtype=torch.float64).tolist():
        error = (round_to_grid(x, low * share, high * share, bits, symmetric) - x).double().square()
        total = error.sum(axes, keepdim=True) if axes else error
        chosen = torch.where(total < best, torch.full_like(low, share), chosen)
        best = torch.minimum(total, best)
    return low * chosen, high * chosen


def round_to_grid(x: Tensor, low: Tensor, high: Tensor, bits: int, symmetric: bool, half_step: bool = False) -> Tensor:
    """`x` on the grid that covers [low, high]; the bounds broadcast against x, and what lies beyond them is clipped."""
    given, (x, low, high) = x.dtype, map(_wide, (x, low, high))
    if symmetric:
        step = torch.maximum(low.abs(), high.abs()) / (2 ** (bits - 1) - (0.5 if half_step else 1))
        bottom, top, zero = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, torch.zeros_like(step)
    else:
        low, high = low.clamp(max=0), high.clamp(min=0)
        step = (high - low) / (2**bits - 1)
        bottom, top = 0, 2**bits - 1
        zero = torch.round(-low / torch.where(step > 0, step, torch.ones_like(step)))
    safe = torch.where(step > 0, step, torch.ones_like(step))
    steps = x * (1 / safe) if half_step else x / safe  # torchao's product: with half a step the largest entry lies on a tie
    grid = torch.clamp(torch.round(steps) + zero, bottom, top)
    return torch.where(step > 0, (grid - zero) * safe, x).to(given)


def _wide(x: Tensor) -> Tensor:
    """In float32 at least: half precision holds neither 16-bit integers nor small steps."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def integers(x: Float[Tensor, "*axes"], low: Tensor, high: Tensor, bits: int, symmetric: bool) -> Tensor:
    """The integers themselves (zero point subtracted), for counting and for comparison with real integer kernels."""
    rounded = round_to_grid(x, low, high, bits, symmetric)
    step = (
        torch.maximum(low.abs(), high.abs()) / (2 ** (bits - 1) - 1)
        if symmetric
        else (high.clamp(min=0) - low.clamp(max=0)) / (2**bits - 1)
    )
    return torch.round(rounded / torch.where(step > 0, step, torch.ones_like(step))).to(torch.int32)


def _dims(n: int) -> list[int]:
    return list(torch.arange(n).tolist())
