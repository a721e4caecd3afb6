"""The architectures of the demo models: small plain Hugging Face models, with any of the attention variants."""

import math

import torch
from torch import Tensor
from transformers import (
    AttentionInterface,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
)
from transformers.masking_utils import AttentionMaskInterface

from interp.atlas import vocabulary
from interp.attention_variants import as_variant
from interp.engine import seam
from interp.engine.anatomy import describe

FAMILIES = ("gpt2", "opt", "pythia")


def float32_attention(module: torch.nn.Module, q: Tensor, k: Tensor, v: Tensor, _: object, scaling: float | None = None, **__: object):
    """Causal attention of the workbench's seam in float32: on CPU the bfloat16 gradient is ten times slower."""
    with torch.autocast("cpu", enabled=False):
        return seam.seam(module, q.float(), k.float(), v.float(), None, scaling)


AttentionInterface.register("float32_causal", float32_attention)
AttentionMaskInterface.register("float32_causal", lambda *args, **kwargs: None)


def build_model(family: str, width: int, layers: int, attention: str, seed: int) -> PreTrainedModel:
    """A fresh model of the family: plain Hugging Face class, the attention variant attached, which changes no other first weight."""
    if family not in FAMILIES:
        raise ValueError(f"No family {family!r}: there are {', '.join(FAMILIES)}.")
    torch.manual_seed(seed)
    words = vocabulary()
    shared = {"vocab_size": len(words), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if family == "gpt2":
        model = GPT2LMHeadModel(
            GPT2Config(**shared, n_positions=128, n_embd=width, n_layer=layers, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0,
                       attn_pdrop=0.0, initializer_range=0.05, activation_function="gelu_pytorch_tanh")
        )  # fmt: skip
        _sinusoids(model.transformer.wpe.weight, 0)
    elif family == "opt":
        model = OPTForCausalLM(
            OPTConfig(**shared, max_position_embeddings=128, hidden_size=width, word_embed_proj_dim=width, num_hidden_layers=layers,
                      num_attention_heads=4, ffn_dim=4 * width, dropout=0.0, attention_dropout=0.0, init_std=0.05)
        )  # fmt: skip
        _sinusoids(model.model.decoder.embed_positions.weight, 2)
    else:
        model = GPTNeoXForCausalLM(
            GPTNeoXConfig(**shared, max_position_embeddings=128, hidden_size=width, num_hidden_layers=layers, num_attention_heads=4,
                          intermediate_size=4 * width, initializer_range=0.03, tie_word_embeddings=False)
        )  # fmt: skip
    model.set_attn_implementation("float32_causal")
    seam.attach(describe(model).blocks, as_variant(attention), seed=seed)
    return model


@torch.no_grad()
def _sinusoids(table: Tensor, offset: int, amplitude: float = 0.1) -> None:
    """Learned positions start as sinusoids: of evenly spaced frequencies: positions are nearly orthogonal, a shift is a rotation."""
    rows, width = table.shape
    rate = math.pi * (torch.arange(width // 2) + 0.5) / (width // 2)
    angle = (torch.arange(rows) - offset)[:, None] * rate
    table.copy_(amplitude * torch.stack([angle.sin(), angle.cos()], 2).reshape(rows, width))
