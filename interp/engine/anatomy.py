"""Where the parts of a GPT-2, OPT or GPT-NeoX model are, and how a block is wired.

One small description serves the hooks of the Hugging Face forward and the fast path that runs the blocks itself, so a family
is described once. The modules are those of the loaded model: no weight is copied.

    serial     mid = x + attn(norm1(x));         out = mid + mlp(norm2(mid))          GPT-2, OPT, sequential GPT-NeoX
    parallel   out = x + attn(norm1(x)) + mlp(norm2(x))                               GPT-NeoX, Pythia
    post-norm  mid = norm1(x + attn(x));         out = norm2(mid + mlp(mid))          OPT-350m
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from interp.attention_variants import VariantAttention, of_module

Wiring = Literal["serial", "parallel", "post-norm"]


@dataclass(frozen=True, eq=False)
class Block:
    """One transformer block: its modules and what a forward pass must know to run them."""

    layer: int
    wiring: Wiring
    module: nn.Module
    attention: nn.Module
    norm1: nn.LayerNorm
    norm2: nn.LayerNorm
    qkv: tuple[nn.Module, ...]
    """One fused projection, or q, k, v."""
    qkv_layout: Literal["concatenated", "interleaved", "separate"]
    """How a fused projection orders its outputs: [q|k|v] (GPT-2) or per head (q, k, v) (GPT-NeoX)."""
    out: nn.Module
    mlp_in: nn.Module
    act: nn.Module
    mlp_out: nn.Module
    score_scale: float
    """attention scores = score_scale * q . k, with q and k as TransformerLens's hooks give them."""
    n_heads: int

    @property
    def variant(self) -> VariantAttention | None:
        """The layer's attention where its formula is not plain softmax."""
        return of_module(self.attention)

    def split_heads(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... head d_head"]:
        return x.unflatten(-1, (self.n_heads, -1))

    def unpack(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v [..., head, d_head] as views of a fused projection's output."""
        if self.qkv_layout == "interleaved":
            q, k, v = self.split_heads(projected).chunk(3, dim=-1)
            return q, k, v
        q, k, v = (self.split_heads(x) for x in projected.chunk(3, dim=-1))
        return q, k, v

    def pack(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The inverse of `unpack`."""
        if self.qkv_layout == "interleaved":
            return torch.cat([q, k, v], dim=-1).flatten(-2)
        return torch.cat([q.flatten(-2), k.flatten(-2), v.flatten(-2)], dim=-1)

    def project_qkv(self, x: Float[Tensor, "... d_model"]) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v [..., head, d_head] before rotary and before any scale."""
        if len(self.qkv) == 1:
            return self.unpack(linear(self.qkv[0], x))
        q, k, v = (self.split_heads(linear(project, x)) for project in self.qkv)
        return q, k, v

    def project_last(self, x: Float[Tensor, "token d_model"], last: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q of the tokens `last`, k and v of all tokens."""
        if self.qkv_layout == "separate":
            q, k, v = (self.split_heads(linear(project, part)) for project, part in zip(self.qkv, (x[last], x, x), strict=True))
            return q, k, v
        if self.qkv_layout == "concatenated":
            weight, bias, d = linear_weight(self.qkv[0]), linear_bias(self.qkv[0]), x.shape[-1]
            q = torch.addmm(bias[:d], x[last], weight[:, :d])
            k, v = torch.addmm(bias[d:], x, weight[:, d:]).chunk(2, dim=-1)
            return self.split_heads(q), self.split_heads(k), self.split_heads(v)
        q, k, v = self.project_qkv(x)
        return q[last], k, v

    def activate(self, x: Tensor) -> Tensor:
        """The MLP's activation function; GPT-2's by a faster formula of the same function."""
        if type(self.act).__name__ in ("NewGELUActivation", "GELUTanh", "FastGELUActivation", "PytorchGELUTanh"):
            return gelu_tanh(x)
        return self.act(x)

    def weight_qkv(self) -> tuple[Tensor, Tensor, Tensor]:
        """W_Q, W_K, W_V [head, d_model, d_head]: q = x @ W_Q + b_Q."""
        weights = [linear_weight(m) for m in self.qkv]  # [d_model, out]
        q, k, v = self.unpack(weights[0]) if len(weights) == 1 else (self.split_heads(w) for w in weights)
        return q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)

    def bias_qkv(self) -> tuple[Tensor, Tensor, Tensor]:
        """b_Q, b_K, b_V [head, d_head]; zeros where the model has none."""
        biases = [linear_bias(m) for m in self.qkv]
        q, k, v = self.unpack(biases[0]) if len(biases) == 1 else (self.split_heads(b) for b in biases)
        return q, k, v

    def weight_out(self) -> Float[Tensor, "head d_head d_model"]:
        """W_O: a head's output is z @ W_O[head]; b_O belongs to no head."""
        return linear_weight(self.out).unflatten(0, (self.n_heads, -1))


@dataclass(frozen=True, eq=False)
class Anatomy:
    """A whole model: embeddings, blocks, final norm and unembedding."""

    family: Literal["gpt2", "opt", "gpt_neox"]
    body: nn.Module
    """The HF model without its unembedding."""
    embed: nn.Module
    """The module whose output is `hook_embed` (after OPT's embedding projection)."""
    token_embed: nn.Embedding
    pos_embed: nn.Embedding | None
    pos_offset: int
    """Row of `pos_embed` that belongs to position 0 (OPT: 2)."""
    rotary: nn.Module | None
    blocks: tuple[Block, ...]
    final_norm: nn.LayerNorm | None
    project_out: nn.Module | None
    unembed: nn.Module
    d_model: int
    d_head: int
    d_mlp: int
    n_heads: int
    n_ctx: int
    d_vocab: int

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    def lost(self, hf: nn.Module) -> list[str]:
        """Names of described modules that are no longer part of the model: somebody put others in their place."""
        present = set(hf.modules())
        own = {"embedding": self.embed, "final norm": self.final_norm, "unembedding": self.unembed}
        names = ("module", "attention", "norm1", "norm2", "out", "mlp_in", "act", "mlp_out")
        own |= {f"block {block.layer}'s {name}": getattr(block, name) for block in self.blocks for name in names}
        return [name for name, module in own.items() if module is not None and module not in present]

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """`hook_embed` of token ids, any shape: [..., d_model]."""
        x = self.token_embed(ids)
        return x if self.embed is self.token_embed else self.embed(x)

    def embed_positions(self, positions: Tensor) -> Tensor | None:
        """`hook_pos_embed` of positions, or None for rotary models."""
        return None if self.pos_embed is None else nn.functional.embedding(positions + self.pos_offset, self.pos_embed.weight)

    def unembedding(self) -> Float[Tensor, "d_model d_vocab"]:
        """W_U: logits = final_norm(resid) @ W_U + b_U (with OPT's output projection multiplied in)."""
        weight = linear_weight(self.unembed)
        return weight if self.project_out is None else linear_weight(self.project_out) @ weight

    def logits(self, resid: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_vocab"]:
        """Logits of a final residual stream, before the final norm."""
        return self.unembed_normed(resid if self.final_norm is None else self.final_norm(resid))

    def unembed_normed(self, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_vocab"]:
        return self.unembed(x if self.project_out is None else self.project_out(x))


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh form of GELU, 0.5 x (1 + tanh(u)) with u = sqrt(2/pi) (x + 0.044715 x^3), written as x * sigmoid(2u).

    On a CPU this takes under half the time of tanh; on CUDA one fused kernel is faster still.
    """
    if x.is_cuda or torch.is_grad_enabled():
        return nn.functional.gelu(x, approximate="tanh")
    c = 2 * math.sqrt(2 / math.pi)
    return (x * x).mul_(0.044715 * c).add_(c).mul_(x).sigmoid_().mul_(x)


def linear(module: nn.Module, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
    """What the module computes of a token matrix, without the cost of calling a module (which small models feel).

    A module that somebody hooked or whose forward was replaced is called.
    """
    if x.ndim != 2 or module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__:
        return module(x)
    if isinstance(module, Conv1D):
        return torch.addmm(module.bias, x, module.weight)
    return nn.functional.linear(x, module.weight, module.bias) if type(module) is nn.Linear else module(x)


def linear_weight(module: nn.Module) -> Float[Tensor, "d_in d_out"]:
    """The matrix W of y = x @ W + b, as a view, for nn.Linear and GPT-2's Conv1D."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight if isinstance(module, Conv1D) else weight.T


def linear_bias(module: nn.Module) -> Float[Tensor, " d_out"]:
    bias = module.bias
    return bias if isinstance(bias, Tensor) else linear_weight(module).new_zeros(linear_weight(module).shape[1])


def describe(hf: nn.Module) -> Anatomy:
    """The anatomy of a loaded Hugging Face model. Raises ValueError for other architectures."""
    readers = {"GPT2LMHeadModel": _gpt2, "OPTForCausalLM": _opt, "GPTNeoXForCausalLM": _neox}
    if type(hf).__name__ not in readers:
        raise ValueError(f"{type(hf).__name__} is not supported; there are {', '.join(readers)}.")
    return readers[type(hf).__name__](hf)


def _gpt2(hf: Any) -> Anatomy:
    body, config = hf.transformer, hf.config
    if config.add_cross_attention:
        raise ValueError("This GPT-2 has cross-attention (add_cross_attention=True); only decoder language models are supported.")
    blocks = tuple(
        Block(
            layer=i, wiring="serial", module=b, attention=b.attn, norm1=b.ln_1, norm2=b.ln_2, qkv=(b.attn.c_attn,),
            qkv_layout="concatenated", out=b.attn.c_proj, mlp_in=b.mlp.c_fc, act=b.mlp.act, mlp_out=b.mlp.c_proj,
            score_scale=b.attn.scaling, n_heads=config.n_head,
        )
        for i, b in enumerate(body.h)
    )  # fmt: skip
    return Anatomy(
        family="gpt2", body=body, embed=body.wte, token_embed=body.wte, pos_embed=body.wpe, pos_offset=0, rotary=None, blocks=blocks,
        final_norm=body.ln_f, project_out=None, unembed=hf.lm_head, d_model=config.n_embd, d_head=config.n_embd // config.n_head,
        d_mlp=config.n_inner or 4 * config.n_embd, n_heads=config.n_head, n_ctx=config.n_positions, d_vocab=config.vocab_size,
    )  # fmt: skip


def _opt(hf: Any) -> Anatomy:
    body, config = hf.model.decoder, hf.config
    heads = config.num_attention_heads
    blocks = tuple(
        Block(
            layer=i, wiring="serial" if config.do_layer_norm_before else "post-norm", module=b, attention=b.self_attn,
            norm1=b.self_attn_layer_norm, norm2=b.final_layer_norm, qkv=(b.self_attn.q_proj, b.self_attn.k_proj, b.self_attn.v_proj),
            qkv_layout="separate", out=b.self_attn.out_proj, mlp_in=b.fc1, act=b.activation_fn, mlp_out=b.fc2,
            score_scale=b.self_attn.scaling, n_heads=heads,
        )
        for i, b in enumerate(body.layers)
    )  # fmt: skip
    return Anatomy(
        family="opt", body=hf.model, embed=body.project_in or body.embed_tokens, token_embed=body.embed_tokens,
        pos_embed=body.embed_positions, pos_offset=body.embed_positions.offset, rotary=None, blocks=blocks,
        final_norm=body.final_layer_norm, project_out=body.project_out, unembed=hf.lm_head, d_model=config.hidden_size,
        d_head=config.hidden_size // heads, d_mlp=config.ffn_dim, n_heads=heads,
        n_ctx=config.max_position_embeddings, d_vocab=config.vocab_size,
    )  # fmt: skip


def _neox(hf: Any) -> Anatomy:
    body, config = hf.gpt_neox, hf.config
    heads = config.num_attention_heads
    blocks = tuple(
        Block(
            layer=i, wiring="parallel" if b.use_parallel_residual else "serial", module=b, attention=b.attention, norm1=b.input_layernorm,
            norm2=b.post_attention_layernorm, qkv=(b.attention.query_key_value,), qkv_layout="interleaved", out=b.attention.dense,
            mlp_in=b.mlp.dense_h_to_4h, act=b.mlp.act, mlp_out=b.mlp.dense_4h_to_h, score_scale=b.attention.scaling, n_heads=heads,
        )
        for i, b in enumerate(body.layers)
    )  # fmt: skip
    return Anatomy(
        family="gpt_neox", body=body, embed=body.embed_in, token_embed=body.embed_in, pos_embed=None, pos_offset=0, rotary=body.rotary_emb,
        blocks=blocks, final_norm=body.final_layer_norm, project_out=None, unembed=hf.lm_head, d_model=config.hidden_size,
        d_head=config.hidden_size // heads, d_mlp=config.intermediate_size, n_heads=heads, n_ctx=config.max_position_embeddings,
        d_vocab=config.vocab_size,
    )  # fmt: skip
