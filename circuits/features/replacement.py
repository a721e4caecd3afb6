"""The local replacement model: on one prompt, a model whose MLPs are written as transcoder features, and which is linear.

    stream = embeddings + sum over layers ( attention(stream) + sum_i z_i W_dec[i] + b_dec + W_skip x + error )

Attention patterns and the scales of norms stay as they were in the run, features keep to the side of their threshold, and what a transcoder
misses of its MLP stands as an error. So a feature's pre-activation x . W_enc + b_enc, and a logit, is a sum of what active features,
embeddings, errors and biases bring to it, with nothing left over (Dunefsky et al. 2024, arXiv 2406.11944; Ameisen et al. 2025, "Circuit
Tracing"). MLPs without a transcoder stand as one node a position.

Points of the stream count from 0: 2l enters block l, 2l + 1 lies between its attention and its MLP, 2 n_layers leaves the last block.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.engine.anatomy import Block, Wiring, linear_bias
from interp.models import Capture, Model
from interp.prompts import Prompts
from interp.residual import FrozenNorm, Part, frozen_norm, like, precise
from saes.coders import Coder
from saes.replacing import sites_of

Kind = Literal["feature", "embed", "pos_embed", "error", "mlp", "attn_bias", "dec_bias", "norm1_bias", "norm2_bias"]
BIASES: tuple[str, ...] = ("attn_bias", "dec_bias", "norm1_bias", "norm2_bias", "constant")
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}


@dataclass(frozen=True, eq=False)
class Active:
    """The active features of one layer, in order of position."""

    pos: Int[Tensor, " active"]
    feature: Int[Tensor, " active"]
    activation: Float[Tensor, " active"]
    decoder: Float[Tensor, "active d_model"]

    def __len__(self) -> int:
        return len(self.pos)


@dataclass(frozen=True, eq=False)
class FrozenLayer:
    """One block as a linear map: its attention with patterns held fixed, its MLP as features or as a constant."""

    layer: int
    wiring: Wiring
    norm1: FrozenNorm
    """Before the attention; in a post-norm block after its addition."""
    norm2: FrozenNorm | None
    """After the MLP's addition, in a post-norm block."""
    pattern: Float[Tensor, "head query key"]
    """Times the gate of the head, where it has one."""
    values: Float[Tensor, "key head d_head"]
    W_V: Float[Tensor, "head d_model d_head"]
    W_O: Float[Tensor, "head d_head d_model"]
    attn_bias: Float[Tensor, "query d_model"]
    """What attention writes whatever the stream is: `value_bias` through the pattern, and `out_bias`."""
    value_bias: Float[Tensor, "head d_head"]
    """The part of every value that does not depend on the stream: b_V, and the norm's bias through W_V."""
    out_bias: Float[Tensor, " d_model"]
    coder: Coder | None
    read: FrozenNorm | None
    """Between the stream and the coder's input; None: the coder reads the stream itself."""
    x: Float[Tensor, "pos d_in"] | None
    """The coder's input."""
    active: Active
    constant: Float[Tensor, "pos d_model"]
    """The error of the coder; without a coder the MLP's whole output."""
    dec_bias: Float[Tensor, " d_model"] | None
    W_skip: Float[Tensor, "d_model d_in"] | None

    @property
    def point(self) -> int:
        """Where in the stream the MLP reads."""
        return 2 * self.layer + (self.wiring != "parallel")

    def pull_read(self, vectors: Float[Tensor, "*any pos d_in"]) -> Float[Tensor, "*any pos d_model"]:
        """Directions of the coder's input, as directions of the stream, each at its position."""
        return vectors if self.read is None else self.read.pull(vectors)

    def pull_attention(self, g: Float[Tensor, "target query d_model"]) -> Float[Tensor, "target key d_model"]:
        """The transpose of attention with fixed patterns: which directions of the stream before it `g` reads through it."""
        read = torch.einsum("tqm,hdm->tqhd", g, self.W_O)
        moved = torch.einsum("tqhd,hqk->tkhd", read, self.pattern)
        pulled = torch.einsum("tkhd,hmd->tkm", moved, self.W_V)
        return pulled if self.wiring == "post-norm" else self.norm1.pull(pulled)


def pull_at(
    norm: FrozenNorm | None, vectors: Float[Tensor, "target d_model"], pos: Int[Tensor, " target"]
) -> Float[Tensor, "target d_model"]:
    """Directions after a norm, as directions before it, each with the scale of its own position; None changes nothing."""
    return vectors if norm is None else replace(norm, scale=norm.scale[pos]).pull(vectors)


@dataclass(frozen=True, eq=False)
class LocalReplacement:
    """The linear model of one prompt. See the module's text."""

    model: Model
    prompts: Prompts
    """The one prompt."""
    embeds: dict[str, Float[Tensor, "pos d_model"]]
    """"embed" and, where the model has learned positions, "pos_embed"."""
    layers: tuple[FrozenLayer, ...]
    final: FrozenNorm | None
    """The norm before the unembedding."""
    stream: Float[Tensor, "pos d_model"]
    """What leaves the last block."""

    @property
    def n_pos(self) -> int:
        return len(self.stream)

    @property
    def n_features(self) -> int:
        """Active features, over layers and positions."""
        return sum(map(len, (layer.active for layer in self.layers)))

    @cached_property
    def blocks(self) -> dict[tuple[str, int], slice]:
        """(kind, layer) -> its columns among the sources. Features stand in order of position, the others have one for each position."""
        widths: dict[tuple[str, int], int] = {("feature", layer.layer): len(layer.active) for layer in self.layers}
        widths |= {(kind, -1): self.n_pos for kind in self.embeds}
        for layer in self.layers:
            kinds = ["attn_bias", "mlp" if layer.coder is None else "error"] + ["dec_bias"] * (layer.coder is not None)
            kinds += ["norm1_bias", "norm2_bias"] if layer.wiring == "post-norm" else []
            widths |= {(kind, layer.layer): self.n_pos for kind in kinds}
        ends, start = {}, 0
        for key, width in widths.items():
            ends[key], start = slice(start, start + width), start + width
        return ends

    @property
    def n_sources(self) -> int:
        return max(block.stop for block in self.blocks.values())


def local_replacement(
    model: Model, prompts: "Prompts | str | Sequence[str]", coders: Sequence[Coder], rows: int = 64
) -> list[LocalReplacement]:
    """The local replacement model of every prompt, read from one run of `rows` prompts at a time.

    coders  transcoders of MLPs (target `hook_mlp_out`), at most one for each layer. Their input is `ln2.hook_normalized`, or a stream:
            `hook_resid_mid`; in a parallel block `hook_resid_pre`. Other coders are refused, since their features are no linear reading of
            the stream. float64 sums exactly to 1e-9, float32 to about 1e-5
    """
    prompts = model.check_prompts(prompts)
    by_layer = coders_by_layer(model, coders)
    made = []
    with torch.no_grad():
        for part in torch.arange(len(prompts)).split(rows):
            chosen = prompts[part]
            capture = model.capture(chosen, _sites(model))
            made += [_one(model, chosen[torch.tensor([row])], capture, row, by_layer) for row in range(len(chosen))]
    return made


def coders_by_layer(model: Model, coders: Sequence[Coder]) -> dict[int, Coder]:
    found: dict[int, Coder] = {}
    for coder in coders:
        source, target = sites_of(coder, model)
        layer = model.sites()[target].layer
        wiring = model.anatomy.blocks[layer].wiring if target.endswith(".hook_mlp_out") else ""
        reads = {
            "serial": ("ln2.hook_normalized", "hook_resid_mid"),
            "parallel": ("ln2.hook_normalized", "hook_resid_pre"),
            "post-norm": ("hook_resid_mid",),
        }.get(wiring, ())
        if source not in [f"blocks.{layer}.{kind}" for kind in reads]:
            needs = f"hook_mlp_out from {' or '.join(reads)} of the same block" if reads else "hook_mlp_out from the MLP's own input"
            why = " (in a post-norm block ln2 comes after the MLP)" if wiring == "post-norm" else ""
            raise ValueError(f"Feature circuits need transcoders of {needs}{why}; given a coder from {source} to {target}.")
        if layer in found:
            raise ValueError(f"Several coders replace {target}.")
        found[layer] = coder
    if not found:
        raise ValueError(
            "Give at least one transcoder, such as those of saes.train(model, saes.mlp_transcoders(model, config), documents)."
        )
    return found


def _sites(model: Model) -> list[str]:
    embeds = [site for site in ("hook_embed", "hook_pos_embed") if site in model.sites()]
    kinds = ["hook_resid_pre", "attn.hook_pattern", "attn.hook_v", "hook_attn_out", "hook_mlp_out", "hook_resid_post"]
    kinds += [kind for kind in ("hook_resid_mid", "attn.hook_gate") if f"blocks.0.{kind}" in model.sites()]
    return [*embeds, *(f"blocks.*.{kind}" for kind in kinds)]


def _one(model: Model, prompt: Prompts, capture: Capture, row: int, coders: dict[int, Coder]) -> LocalReplacement:
    n = prompt.width
    at = {site: precise(x[row, :, :n, :n] if site.endswith("pattern") else x[row, :n]).to(model.device) for site, x in capture.items()}
    embeds = {name: at[f"hook_{name}"] for name in ("embed", "pos_embed") if f"hook_{name}" in at}
    layers = tuple(_layer(model, block, at, coders.get(block.layer)) for block in model.anatomy.blocks)
    stream, norm = at[f"blocks.{model.n_layers - 1}.hook_resid_post"], model.anatomy.final_norm
    final = None if norm is None else frozen_norm(norm, stream, Part("final_norm_bias"))
    return LocalReplacement(model, prompt, embeds, layers, final, stream)


def _layer(model: Model, block: Block, at: dict[str, Tensor], coder: Coder | None) -> FrozenLayer:
    name = f"blocks.{block.layer}."
    pre, attn, mlp = (at[name + kind] for kind in ("hook_resid_pre", "hook_attn_out", "hook_mlp_out"))
    post_norm = block.wiring == "post-norm"
    mid = at.get(name + "hook_resid_mid", pre)  # what the MLP reads: in a parallel block the block's own input
    norm1 = frozen_norm(block.norm1, pre + attn if post_norm else pre, Part("norm1_bias", block.layer))
    norm2 = frozen_norm(block.norm2, mid + mlp, Part("norm2_bias", block.layer)) if post_norm else None
    W_V, W_O = like(block.weight_qkv()[2], pre), like(block.weight_out(), pre)
    pattern = at[name + "attn.hook_pattern"]
    if (gate := at.get(name + "attn.hook_gate")) is not None:
        pattern = pattern * gate.transpose(0, 1)
    fixed = like(block.bias_qkv()[2], pre)  # [head, d_head]
    fixed = fixed if post_norm else fixed + torch.einsum("m,hmd->hd", norm1.bias, W_V)
    b_O = like(linear_bias(block.out), pre)
    attn_bias = torch.einsum("hq,hd,hdm->qm", pattern.sum(-1), fixed, W_O) + b_O
    _check_attention(model, block.layer, attn, pattern, at[name + "attn.hook_v"], W_O, b_O)
    features = _features(block, coder, mid, mlp)
    return FrozenLayer(
        block.layer, block.wiring, norm1, norm2, pattern, at[name + "attn.hook_v"], W_V, W_O, attn_bias, fixed, b_O, coder, *features
    )


def _check_attention(model: Model, layer: int, out: Tensor, pattern: Tensor, values: Tensor, W_O: Tensor, b_O: Tensor) -> None:
    made = torch.einsum("hqk,khd,hdm->qm", pattern, values, W_O) + b_O
    off = float((made - out).abs().max() / (1 + out.abs().max()))
    if off > TOLERANCE[torch.float64 if model.dtype == torch.float64 else torch.float32] and model.dtype in TOLERANCE:
        raise ValueError(
            f"The attention of layer {layer} of {model.name} is not pattern @ values @ W_O (off by {off:.1e} of its size): "
            "it has a gate or a hook that this decomposition does not know."
        )


def _features(
    block: Block, coder: Coder | None, mid: Tensor, mlp: Tensor
) -> tuple[FrozenNorm | None, Tensor | None, Active, Tensor, Tensor | None, Tensor | None]:
    """What the MLP is made of: (read, x, active, constant, dec_bias, W_skip)."""
    if coder is None:
        nothing = torch.zeros(0, dtype=torch.long, device=mid.device)
        return None, None, Active(nothing, nothing, mid.new_zeros(0), mid.new_zeros(0, mid.shape[1])), mlp, None, None
    read, x = None, mid
    if str(coder.input_site).endswith("ln2.hook_normalized"):
        norm = frozen_norm(block.norm2, mid, Part("norm2_bias", block.layer))
        read = replace(norm, weight=torch.ones_like(norm.weight), bias=torch.zeros_like(norm.bias))
        x = read.push(mid)
    z = coder.encode(x.to(coder.W_enc.dtype)).detach()
    pos, feature = z.nonzero(as_tuple=True)
    W_dec, b_dec = like(coder.W_dec, mid), like(coder.b_dec, mid)
    # the value is read again in the run's precision: it is the pre-activation, since an active feature is linear
    value = (x[pos] * like(coder.W_enc, mid).T[feature]).sum(-1) + like(coder.b_enc, mid)[feature]
    skip = None if coder.W_skip is None else like(coder.W_skip, mid)
    out = torch.zeros_like(mid).index_add(0, pos, value[:, None] * W_dec[feature]) + b_dec
    out = out if skip is None else out + x @ skip.T
    return read, x, Active(pos, feature, value, W_dec[feature]), mlp - out, b_dec, skip
