"""The residual stream rotated, so that no dimension stands out (QuaRot, Ashkboos et al. 2024, arXiv 2404.00456), on models with LayerNorm.

    1 fold      weights and biases of norms go into the layers that read them
    2 centre    every writer (embeddings, attention, MLP) loses the mean over d_model of what it writes, which no norm sees: the stream then
                has mean 0, and LayerNorm is RMSNorm there (SliceGPT, Ashkboos et al. 2024, arXiv 2401.15024)
    3 rotate    writers W -> W Q, readers W -> Q^T W

Q maps the vector of ones to itself, so the stream keeps mean 0 and the model's own LayerNorm modules still do: logits stay the same, and
the rotated model is one of the same family, with every site, edit and measure. Tied embeddings are untied. The values of each head can be
rotated too (`heads`): what v writes and z is read by.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from scipy.linalg import hadamard
from torch import Tensor, nn

from interp.engine.anatomy import Anatomy, linear_weight
from interp.models import Model
from interp.quant.remedies.setup import Setup, private_copy, refuse_other_readers
from interp.quant.remedies.smoothing import read_norms


@dataclass(frozen=True)
class Rotate:
    """The stream rotated by a flat orthogonal matrix. It folds norms' weights, so smoothing before it has no effect; after it, it has."""

    seed: int = 0
    heads: bool = True
    """Rotate the values of heads too."""
    kind: ClassVar[str] = "rotate"

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not isinstance(self.heads, bool):
            raise ValueError(f"seed is a whole number and heads true or false; given {self.seed!r} and {self.heads!r}.")

    @property
    def name(self) -> str:
        return "rotate" if self.heads else "rotate the stream alone"

    def apply(self, setup: Setup) -> Setup:
        return replace(setup, model=rotate(setup.model, self.seed, self.heads))


def rotate(model: Model, seed: int = 0, heads: bool = True) -> Model:
    """A model with the same logits and a rotated stream. ValueError for post-norm models and for OPT with narrow embeddings."""
    refuse_other_readers(model, "Rotation")
    if model.anatomy.project_out is not None or model.anatomy.embed is not model.anatomy.token_embed:
        raise ValueError(f"{model.name} has embeddings of another width than its stream; rotation is not built for the projection between.")
    generator = torch.Generator().manual_seed(seed)
    twin = private_copy(model)
    with torch.no_grad():
        _untie(twin)
        for norm, readers in _norms(twin):
            _fold(norm, readers)
        _turn(twin, flat_rotation(twin.d_model, generator).to(twin.device))
        if heads:
            _turn_heads(twin.anatomy, flat_rotation(twin.d_head, generator).to(twin.device))
    return twin


def flat_rotation(d: int, generator: torch.Generator) -> Float[Tensor, "d d"]:
    """A random orthogonal matrix that maps ones to ones and whose entries are all small, so that one large entry spreads over many.

    H diag(s) H / d with the Walsh-Hadamard matrix H and the signs of a bent function s, rows and columns permuted: every entry is
    +-1 / sqrt(d) where d is a power of 4; at most sqrt(2 / d) where it is another power of 2. The odd part of d is a small dense rotation.
    """
    even = d & -d
    spread = torch.eye(1, dtype=torch.float64)
    if even > 1:
        walsh = torch.as_tensor(hadamard(even), dtype=torch.float64)
        bits = [(torch.arange(even) >> i) & 1 for i in range(even.bit_length() - 1)]
        pairs = torch.zeros(even, dtype=torch.long)
        for first, second in zip(bits[::2], bits[1::2], strict=False):
            pairs += first * second
        spread = walsh @ ((-1.0) ** pairs.double())[:, None].mul(walsh) / even
    turned = torch.kron(spread, _small(d // even, generator))
    rows, columns = torch.randperm(d, generator=generator), torch.randperm(d, generator=generator)
    return turned[rows][:, columns]


def _small(m: int, generator: torch.Generator) -> Float[Tensor, "m m"]:
    """A dense rotation of m dimensions that maps ones to ones: up to 5 the reflection 2/m - I, else a random one."""
    if m <= 5:
        return 2 / m - torch.eye(m, dtype=torch.float64) if m > 1 else torch.eye(1, dtype=torch.float64)
    draw = torch.randn(m, m, dtype=torch.float64, generator=generator)
    draw[:, 0] = 1.0
    basis = torch.linalg.qr(draw).Q  # its first column is +-ones / sqrt(m)
    inner = torch.linalg.qr(torch.randn(m - 1, m - 1, dtype=torch.float64, generator=generator)).Q
    return basis @ torch.block_diag(torch.eye(1, dtype=torch.float64), inner) @ basis.T


def _untie(twin: Model) -> None:
    twin.hf.lm_head.weight = nn.Parameter(twin.hf.lm_head.weight.detach().clone(), requires_grad=False)
    twin.hf.config.tie_word_embeddings = False


def _norms(twin: Model) -> Iterator[tuple[nn.LayerNorm, tuple[nn.Module, ...]]]:
    """Each norm and the linear layers that read it."""
    for block in twin.anatomy.blocks:
        for _, norm, readers in read_norms(block):
            yield norm, readers
    assert twin.anatomy.final_norm is not None
    yield twin.anatomy.final_norm, (twin.anatomy.unembed,)


def _fold(norm: nn.LayerNorm, readers: tuple[nn.Module, ...]) -> None:
    """The norm's weight and bias become part of the layers that read it."""
    gain, shift = norm.weight.double(), norm.bias.double()
    for module in readers:
        weight = linear_weight(module)
        constant = shift @ weight.double()
        weight.copy_(gain[:, None] * weight.double())
        if isinstance(module.bias, Tensor):
            module.bias.copy_(module.bias.double() + constant)
        elif bool(constant.any()):
            module.bias = nn.Parameter(constant.to(weight.dtype), requires_grad=False)
    norm.weight.fill_(1.0)
    norm.bias.zero_()


def _turn(twin: Model, q: Float[Tensor, "d_model d_model"]) -> None:
    """Writers centred and rotated, readers rotated back."""
    anatomy = twin.anatomy
    tables = [anatomy.token_embed, *([anatomy.pos_embed] if anatomy.pos_embed is not None else [])]
    for table in tables:
        table.weight.copy_(_centred(table.weight.double()) @ q)
    for block in anatomy.blocks:
        for module in (block.out, block.mlp_out):
            linear_weight(module).copy_(_centred(linear_weight(module).double()) @ q)
            if isinstance(module.bias, Tensor):
                module.bias.copy_(_centred(module.bias.double()) @ q)
    for _, readers in _norms(twin):
        for module in readers:
            linear_weight(module).copy_(q.T @ linear_weight(module).double())


def _centred(x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
    return x - x.mean(-1, keepdim=True)


def _turn_heads(anatomy: Anatomy, q: Float[Tensor, "d_head d_head"]) -> None:
    """What every head's v writes is rotated, and what its z is read by rotated back."""
    for block in anatomy.blocks:
        _, _, value = block.weight_qkv()  # views of the weights
        value.copy_(value.double() @ q)
        if isinstance(block.qkv[-1].bias, Tensor):
            _, _, bias = block.bias_qkv()
            bias.copy_(bias.double() @ q)
        out = block.weight_out()
        out.copy_(q.T @ out.double())
