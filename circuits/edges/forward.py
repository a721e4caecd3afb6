"""The forward pass in the pieces that edges need: what each part writes, what each reader reads, and the numbers in between.

The blocks are run from the model's anatomy, with and without gradients, on right-padded rows; nothing is hooked. What a run wrote is
kept compact: a head's write is z @ W_O, so differences and means of writes are those of embedding, z and MLP outputs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from circuits.edges.graph import Graph
from interp.engine.anatomy import Anatomy, Block
from interp.engine.forked import rotate
from interp.engine.hooked import foreign_hooks
from interp.engine.seam import causal_mask, explicit_attention, unvisited
from interp.prompts import Prompts

if TYPE_CHECKING:
    from interp.models import Model

Replace = Callable[[int, Tensor], Tensor]
"""(site, activation) -> activation; site 0 is the embedding, 1 + 2l the z of layer l, 2 + 2l its MLP's output."""


@dataclass(frozen=True, eq=False)
class Activations:
    """What every part of the model wrote. Rows and positions may have size 1 and broadcast."""

    embedded: Float[Tensor, "row pos d_model"]
    """Token plus position embedding."""
    z: tuple[Float[Tensor, "row pos head d_head"], ...]
    mlp: tuple[Float[Tensor, "row pos d_model"], ...]

    def map(self, change: Callable[[Tensor], Tensor]) -> "Activations":
        return Activations(change(self.embedded), tuple(map(change, self.z)), tuple(map(change, self.mlp)))

    def combine(self, other: "Activations", with_: Callable[[Tensor, Tensor], Tensor]) -> "Activations":
        pairs = (zip(a, b, strict=True) for a, b in ((self.z, other.z), (self.mlp, other.mlp)))
        z, mlp = (tuple(with_(a, b) for a, b in pair) for pair in pairs)
        return Activations(with_(self.embedded, other.embedded), z, mlp)

    def __sub__(self, other: "Activations") -> "Activations":
        return self.combine(other, torch.sub)

    def __add__(self, other: "Activations") -> "Activations":
        return self.combine(other, torch.add)

    def writes(self, graph: Graph, anatomy: Anatomy, n_sources: int | None = None) -> Float[Tensor, "source row pos d_model"]:
        """What the first `n_sources` sources wrote to the residual stream."""
        rows, width, d = self.embedded.shape
        n = graph.n_sources if n_sources is None else n_sources
        out = self.embedded.new_empty(n, rows, width, d)
        out[0] = self.embedded
        for block in anatomy.blocks:
            first = graph.source(block.layer, 0)
            if first >= n:
                break
            head_writes(block, self.z[block.layer], out[first : first + graph.n_heads])
            if first + graph.n_heads < n:
                out[first + graph.n_heads] = self.mlp[block.layer]
        return out


def head_writes(block: Block, z: Float[Tensor, "row pos head d_head"], out: Tensor | None = None) -> Float[Tensor, "head row pos d_model"]:
    """Each head's write, z @ W_O of the head; b_O belongs to no head."""
    rows, width, heads, _ = z.shape
    flat = z.permute(2, 0, 1, 3).reshape(heads, rows * width, -1)
    if out is None:
        return torch.bmm(flat, block.weight_out()).unflatten(1, (rows, width))
    torch.bmm(flat, block.weight_out(), out=out.view(heads, rows * width, -1))
    return out


@dataclass(frozen=True, eq=False)
class Trace:
    """One forward. `streams[stage]` is what the readers of that stage of the graph read; the logits' readers read `last`."""

    streams: tuple[Float[Tensor, "row pos d_model"], ...]
    qkv: tuple[tuple[Tensor, Tensor, Tensor], ...]
    """Outputs of the projections, [row, pos, head, d_head], before rotary."""
    z: tuple[Tensor, ...]
    attn_out: tuple[Tensor, ...]
    mlp: tuple[Tensor, ...]
    embedded: Tensor
    last: Float[Tensor, "row d_model"]
    """The stream after the last block, at each prompt's last position."""
    logits: Float[Tensor, "row vocab"]

    def activations(self, rows: slice = slice(None)) -> Activations:
        return Activations(self.embedded, self.z, self.mlp).map(lambda x: x[rows].detach())


@dataclass(frozen=True, eq=False)
class Forward:
    """The parts of a model, ready to run on rows of a given width. `relevance` swaps derivatives for layer-wise relevance rules."""

    anatomy: Anatomy
    rotary: tuple[Tensor, Tensor] | None
    """cos and sin, [pos, 1, rotary dims]."""
    relevance: bool = False
    """Norms divide by a constant and activation functions multiply by one: same numbers, other derivatives (RelP)."""

    @classmethod
    def of(cls, model: "Model", width: int, relevance: bool = False) -> "Forward":
        model.check_whole()
        if hooked := foreign_hooks(model.hf):
            raise ValueError(
                f"{', '.join(hooked[:3])} of {model.name} carries hooks of yours, which runs of the blocks by hand would pass by. Remove "
                "them; interp.sweep and what is built on it (circuits.patch, method='exact' of nodes) see them."
            )
        model.refuse_gates("A forward in edges")
        anatomy, rotary = model.anatomy, None
        if anatomy.rotary is not None:
            ids = torch.arange(width, device=model.device)[None]
            cos, sin = anatomy.rotary(anatomy.token_embed.weight[:1], position_ids=ids)
            rotary = cos[0, :, None], sin[0, :, None]
        return cls(anatomy, rotary, relevance)

    def embed(self, ids: Int[Tensor, "row pos"]) -> Float[Tensor, "row pos d_model"]:
        x = self.anatomy.embed_tokens(ids)
        at = self.anatomy.embed_positions(torch.arange(ids.shape[1], device=ids.device))
        return x if at is None else x + at

    def norm(self, norm: nn.LayerNorm, x: Tensor) -> Tensor:
        if not self.relevance:
            return norm(x)
        centred = x - x.mean(-1, keepdim=True)
        out = centred / (centred.detach().pow(2).mean(-1, keepdim=True) + norm.eps).sqrt()
        out = out if norm.weight is None else out * norm.weight
        return out if norm.bias is None else out + norm.bias

    def attend(self, block: Block, q: Tensor, k: Tensor, v: Tensor, earlier: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """z [row, query, head, d_head]. `earlier`: keys (rotated) and values of the positions before the first of q, k, v."""
        start = 0 if earlier is None else earlier[0].shape[1]
        q, k = self.rotate(q, start), self.rotate(k, start)
        mask = None
        if earlier is not None and start:
            k, v = torch.cat([earlier[0], k], 1), torch.cat([earlier[1], v], 1)
            mask = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device).tril(start)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        if block.variant is not None:
            keep = causal_mask(q.shape[2], k.shape[2], q.device)
            return explicit_attention(q, k, v, block.score_scale, keep, unvisited, unvisited, block.variant).transpose(1, 2)
        z = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=block.score_scale)
        return z.transpose(1, 2)

    def rotate(self, x: Float[Tensor, "row pos head d_head"], start: int = 0) -> Tensor:
        if self.rotary is None:
            return x
        cos, sin = (t[start : start + x.shape[1]] for t in self.rotary)
        return rotate(x, cos, sin)

    def mlp(self, block: Block, x: Tensor) -> Tensor:
        """The MLP's output for what it reads, its norm included."""
        return block.mlp_out(self.neurons(block, x))

    def neurons(self, block: Block, x: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_mlp"]:
        """The MLP's neurons after the activation function, for what it reads."""
        pre = block.mlp_in(x if block.wiring == "post-norm" else self.norm(block.norm2, x))
        post = block.activate(pre)
        return pre * torch.where(pre == 0, 0.5, post.detach() / pre.detach()) if self.relevance else post

    def unembed(self, last: Float[Tensor, "... d_model"]) -> Float[Tensor, "... vocab"]:
        norm = self.anatomy.final_norm
        return self.anatomy.unembed_normed(last if norm is None else self.norm(norm, last))

    def run(self, embedded: Tensor, lengths: Int[Tensor, " row"], replace: Replace | None = None) -> Trace:
        """The forward from the embedding on; `replace` may swap what a site writes."""
        change: Replace = replace or (lambda _, x: x)
        x = embedded = change(0, embedded)
        streams, qkv, zs, outs, mlps = [], [], [], [], []
        for block in self.anatomy.blocks:
            after = block.wiring == "post-norm"
            streams.append(x)
            qkv.append(block.project_qkv(x if after else self.norm(block.norm1, x)))
            z = change(1 + 2 * block.layer, self.attend(block, *qkv[-1]))
            out = block.out(z.flatten(-2))
            mid = self.norm(block.norm1, x + out) if after else x + out
            read = x if block.wiring == "parallel" else mid
            read = read.view_as(read)  # the MLP's own copy, so that a gradient at it is that of this reader alone
            mlp = change(2 + 2 * block.layer, self.mlp(block, read))
            x = self.norm(block.norm2, mid + mlp) if after else mid + mlp
            streams.append(read)
            zs.append(z)
            outs.append(out)
            mlps.append(mlp)
        last = x[torch.arange(len(x), device=x.device), lengths.to(x.device) - 1]
        return Trace(tuple(streams), tuple(qkv), tuple(zs), tuple(outs), tuple(mlps), embedded, last, self.unembed(last))

    def run_prompts(self, prompts: Prompts) -> Trace:
        return self.run(self.embed(prompts.ids), prompts.lengths)
