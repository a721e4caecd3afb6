"""The linear layers of a model's blocks as integer products (torchao, extra `int8`), and the same products on fake-quantized floats.

torchao's symmetric step is absmax / 127.5, so half a step more than the largest integer: the largest entry lies on a tie between two.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from interp.engine.anatomy import linear_bias, linear_weight
from interp.models import Model
from interp.quant.quantized import Quantizer
from interp.quant.rounding import fake_quant, round_to_grid
from interp.quant.schemes import Scheme

PER_BLOCK = {"gpt2": 4, "opt": 6, "gpt_neox": 4}
"""Linear layers of a block: a fused or three separate projections, the output projection, and the MLP's two."""


def with_linears(model: Model) -> Model:
    """A private copy in which every Conv1D is the nn.Linear of the same function."""
    hf = copy.deepcopy(model.hf)
    for parent in list(hf.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Conv1D):
                linear = nn.Linear(child.weight.shape[0], child.weight.shape[1], device=child.weight.device, dtype=child.weight.dtype)
                linear.weight = nn.Parameter(child.weight.detach().T.contiguous(), requires_grad=False)
                linear.bias = nn.Parameter(child.bias.detach().clone(), requires_grad=False)
                setattr(parent, name, linear)
    return Model(hf, model.tokenizer, model.path)


def linears_of(twin: Model, lm_head: bool) -> dict[str, nn.Linear]:
    """Name -> linear layer, those of the blocks (and the unembedding); ValueError if their number is not the family's."""
    found: dict[str, nn.Linear] = {}
    for block in twin.anatomy.blocks:
        modules = {"out": block.out, "mlp_in": block.mlp_in, "mlp_out": block.mlp_out}
        modules |= {f"qkv{i}" if len(block.qkv) > 1 else "qkv": m for i, m in enumerate(block.qkv)}
        found |= {f"blocks.{block.layer}.{name}": m for name, m in modules.items() if isinstance(m, nn.Linear)}
    expected = PER_BLOCK[twin.family] * twin.n_layers
    if len(found) != expected:
        raise ValueError(f"{len(found)} linear layers in the blocks of {twin.name}, where a {twin.family} of its depth has {expected}.")
    return found | ({"lm_head": twin.hf.lm_head} if lm_head else {})


@dataclass(eq=False)
class FakeProduct:
    """What an int8 linear layer computes, in floating point."""

    weight: Float[Tensor, "d_in d_out"]
    bias: Tensor
    scheme: Scheme
    dynamic: bool
    half_step: bool
    quantizer: Quantizer | None
    counted: Tensor | None = None
    """[row, pos] real positions, while static ranges are being found."""
    ndim: int = 3
    """Of the last input: OPT's MLP reads [row * pos, d]."""

    def __call__(self, x: Tensor) -> Tensor:
        self.ndim = x.ndim
        if self.counted is not None and self.quantizer is not None:
            self.quantizer(x, x.reshape(-1, x.shape[-1])[self.counted.flatten()])
        return self._rounded(x) @ self.weight + self.bias

    def _rounded(self, x: Tensor) -> Tensor:
        if self.scheme.activation_bits is None:
            return x
        symmetric = self.scheme.symmetric_activations
        if self.dynamic or self.scheme.activation_per == "token":
            return fake_quant(x, 8, symmetric, self.scheme.activation_per, half_step=self.half_step)
        assert self.quantizer is not None and self.quantizer.low is not None and self.quantizer.high is not None
        return round_to_grid(x, self.quantizer.low, self.quantizer.high, 8, symmetric, self.half_step)


def fake_product(module: nn.Linear, scheme: Scheme, dynamic: bool, half_step: bool, quantizer: Quantizer | None) -> FakeProduct:
    weight = fake_quant(linear_weight(module).detach(), 8, True, scheme.weight_per, half_step=half_step)
    return FakeProduct(weight, linear_bias(module).detach(), scheme, dynamic, half_step, quantizer)


def torchao_config(scheme: Scheme, dynamic: bool) -> tuple[str, Callable[["FakeProduct"], Any]]:
    """The library's name and version, and its config for a linear layer."""
    try:
        import torchao  # pyright: ignore[reportMissingImports]
        from torchao.quantization import PerRow, PerTensor, quant_api  # pyright: ignore[reportMissingImports]
        from torchao.quantization.quant_primitives import MappingType  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(f"Real int8 needs torchao ({error}): pip install 'interp-workbench[int8]'.") from error
    weights = PerRow() if scheme.weight_per == "channel" else PerTensor()
    inputs = PerRow() if scheme.activation_per == "token" else PerTensor()
    mapping = MappingType.SYMMETRIC if scheme.symmetric_activations else MappingType.ASYMMETRIC

    def config(product: FakeProduct) -> Any:
        if scheme.activation_bits is None:
            return quant_api.Int8WeightOnlyConfig(granularity=weights, set_inductor_config=False)
        if dynamic or scheme.activation_per == "token":
            return quant_api.Int8DynamicActivationInt8WeightConfig(
                granularity=[inputs, weights], act_mapping_type=mapping, set_inductor_config=False
            )
        assert product.quantizer is not None
        scale, zero = _static_scale(product.quantizer, product.ndim)
        return quant_api.Int8StaticActivationInt8WeightConfig(
            act_quant_scale=scale, act_quant_zero_point=zero, granularity=[inputs, weights], act_mapping_type=mapping,
            set_inductor_config=False,
        )  # fmt: skip

    return f"torchao {torchao.__version__}", config


def _static_scale(quantizer: Quantizer, ndim: int) -> tuple[Tensor, Tensor | None]:
    """Scale and zero point of signed integers from the calibrated range, with as many axes as the input has."""
    assert quantizer.low is not None and quantizer.high is not None
    low, high = (x.float().reshape([1] * ndim) for x in (quantizer.low, quantizer.high))
    if quantizer.scheme.symmetric_activations:
        return torch.maximum(low.abs(), high.abs()) / 127.5, None
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = (high - low) / 255
    return scale, (-128 - torch.round(low / scale)).to(torch.int8)


def quantize_module(module: nn.Linear, name: str, config: Any) -> None:
    """torchao's int8 weight in place; ValueError where it would stay, or where CUDA has no kernel for its shape."""
    from torchao.quantization import Int8Tensor, quantize_  # pyright: ignore[reportMissingImports]

    if module.weight.is_cuda and any(size % 8 for size in module.weight.shape):
        raise ValueError(f"{name} is {tuple(module.weight.shape)}: int8 products on CUDA need multiples of 8; load the model on the CPU.")
    quantize_(module, config, filter_fn=lambda _, __: True)
    if not isinstance(module.weight, Int8Tensor):
        raise ValueError(f"torchao left {name} in floating point.")
