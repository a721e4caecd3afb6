"""Random transcoders of tiny models, and the slow reference: the linear model written out plainly, differentiated by autograd."""

from collections.abc import Callable

import torch
from torch import Tensor

import interp
import saes
from interp.engine.anatomy import linear_bias
from saes.config import Kind
from tests.tiny import random_ids

VARIANTS = ("gpt2", "gpt2-scaled", "opt", "opt-postln", "neox", "neox-sequential")
N_FEATURES = 40


def random_coder(model: interp.Model, layer: int, seed: int = 0, kind: Kind = "topk", skip: bool = False) -> saes.Coder:
    """A transcoder of an MLP with random weights; in a post-norm model it reads the stream itself."""
    g = torch.Generator().manual_seed(100 * seed + layer)
    d, n = model.d_model, N_FEATURES
    source = "hook_resid_mid" if model.anatomy.blocks[layer].wiring == "post-norm" else "ln2.hook_normalized"
    config = saes.Config(kind=kind, n_features=n, k=5, input_site=f"blocks.{layer}.{source}", target_site=f"blocks.{layer}.hook_mlp_out")

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(model.dtype)

    threshold = None if kind == "topk" else draw(n).abs()
    weights = (draw(d, n) / d**0.5, 0.2 * draw(n), draw(n, d) / d**0.5, 0.3 * draw(d))
    return saes.Coder(*weights, config, threshold, draw(d, d) / d**0.5 if skip else None, transcoder=True)


def random_coders(model: interp.Model, layers: tuple[int, ...] = (0, 1, 2), seed: int = 0, skip: bool = True) -> list[saes.Coder]:
    """Of several kinds: with and without thresholds and skip terms."""
    return [random_coder(model, layer, seed, "jumprelu" if layer % 2 else "topk", skip and layer != 1) for layer in layers]


def prompt(n: int = 6, seed: int = 0) -> interp.Prompts:
    return interp.Prompts.from_ids(random_ids(1, n, seed))


class Plain:
    """The linear model of one prompt as a function of its sources, with no batching and no pulling back."""

    def __init__(self, model: interp.Model, prompts: interp.Prompts, coders: list[saes.Coder]):
        self.model, self.coders = model, {int(str(c.target_site).split(".")[1]): c for c in coders}
        self.cap = {site: x[0] for site, x in model.capture(prompts, [s.name for s in model.sites()]).items()}
        self.sources: dict[str, Tensor] = {"embed": self.cap["hook_embed"].clone()}
        if "hook_pos_embed" in self.cap:
            self.sources["pos_embed"] = self.cap["hook_pos_embed"].clone()
        for layer in range(model.n_layers):
            self._mlp_sources(layer)
        for x in self.sources.values():
            x.requires_grad_()

    def _mlp_sources(self, layer: int) -> None:
        out, coder = self.cap[f"blocks.{layer}.hook_mlp_out"], self.coders.get(layer)
        if coder is None:
            self.sources[f"mlp.{layer}"] = out.clone()
            return
        x = self.cap[str(coder.input_site)]
        self.sources[f"feature.{layer}"] = coder.encode(x).detach().clone()
        self.sources[f"dec_bias.{layer}"] = coder.b_dec.detach().expand_as(out).clone()
        self.sources[f"error.{layer}"] = (out - coder(x)).detach().clone()

    def norm(self, x: Tensor, module: torch.nn.LayerNorm, at: Tensor, affine: bool = True) -> Tensor:
        """With the scale that `at` has."""
        scale = (at.var(-1, unbiased=False, keepdim=True) + module.eps).sqrt()
        out = (x - x.mean(-1, keepdim=True)) / scale
        return out * module.weight + module.bias if affine else out

    def attention(self, block, x: Tensor) -> Tensor:
        pattern, W_V, W_O, b_V = (
            self.cap[f"blocks.{block.layer}.attn.hook_pattern"],
            block.weight_qkv()[2],
            block.weight_out(),
            block.bias_qkv()[2],
        )
        heads = [pattern[h] @ (x @ W_V[h] + b_V[h]) @ W_O[h] for h in range(block.n_heads)]
        return torch.stack(heads).sum(0) + linear_bias(block.out)

    def run(self) -> tuple[dict[int, Tensor], Tensor]:
        """(pre-activations of every coder [pos, feature], logits [pos, vocab])."""
        stream = torch.stack([self.sources[k] for k in ("embed", "pos_embed") if k in self.sources]).sum(0)
        pre: dict[int, Tensor] = {}
        for block in self.model.anatomy.blocks:
            name = f"blocks.{block.layer}."
            resid, attn, mlp = (self.cap[name + k] for k in ("hook_resid_pre", "hook_attn_out", "hook_mlp_out"))
            if block.wiring == "post-norm":
                stream = self.norm(stream + self.attention(block, stream), block.norm1, resid + attn)
                out = self.mlp(block, stream, pre)
                stream = self.norm(stream + out, block.norm2, self.cap[name + "hook_resid_mid"] + mlp)
                continue
            attended = self.attention(block, self.norm(stream, block.norm1, resid))
            if block.wiring == "parallel":
                stream = stream + attended + self.mlp(block, stream, pre)
            else:
                stream = stream + attended
                stream = stream + self.mlp(block, stream, pre)
        final = self.model.anatomy.final_norm
        if final is not None:
            stream = self.norm(stream, final, self.cap[f"blocks.{self.model.n_layers - 1}.hook_resid_post"])
        return pre, self.model.anatomy.unembed_normed(stream)

    def mlp(self, block, stream: Tensor, pre: dict[int, Tensor]) -> Tensor:
        layer, coder = block.layer, self.coders.get(block.layer)
        if coder is None:
            return self.sources[f"mlp.{layer}"]
        x = stream
        if str(coder.input_site).endswith("normalized"):
            at = self.cap[f"blocks.{layer}.hook_resid_{'pre' if block.wiring == 'parallel' else 'mid'}"]
            x = self.norm(stream, block.norm2, at, affine=False)
        pre[layer] = coder.pre_activations(x)
        out = self.sources[f"feature.{layer}"] @ coder.W_dec + self.sources[f"dec_bias.{layer}"] + self.sources[f"error.{layer}"]
        return out if coder.W_skip is None else out + x @ coder.W_skip.T

    def contributions(self, pick: Callable[[dict[int, Tensor], Tensor], Tensor]) -> dict[str, Tensor]:
        """Source -> gradient of one number times the source: features [pos, feature], the others summed to [pos]."""
        number = pick(*self.run())
        grads = torch.autograd.grad(number, list(self.sources.values()), allow_unused=True)
        found = {}
        for (name, x), grad in zip(self.sources.items(), grads, strict=True):
            product = (torch.zeros_like(x) if grad is None else grad) * x.detach()
            found[name] = product.detach() if name.startswith("feature") else product.detach().sum(-1)
        return found
