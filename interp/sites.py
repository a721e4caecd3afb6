"""The places in a model that can be read and edited, under TransformerLens's names.

A site has a name (`blocks.3.attn.hook_z`), axes, and a stage: the point of the block where it lies. Stages order the sites
causally, which is what a sweep needs to know where an edited run leaves the clean one.
"""

import difflib
import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from interp.engine.anatomy import Anatomy


class Stage(IntEnum):
    """Where in a block a site lies. A run edited there equals the clean run before that point."""

    EMBED = 0
    """Before the first block."""
    START = 1
    """From the block's input up to the attention pattern."""
    Z = 2
    """From the heads' outputs to the attention's output."""
    MID = 3
    """The stream between attention and MLP, and the MLP."""
    END = 4
    """The block's output, and the final norm after the last block."""


@dataclass(frozen=True)
class Kind:
    """What all sites of one name, such as `attn.hook_z`, share."""

    axes: tuple[str, ...]
    stage: Stage
    doc: str
    local: bool = True
    """An edit at one position changes only that position's output of the block (not so for keys and values)."""


_TOKEN = ("row", "pos", "d_model")
_HEAD = ("row", "pos", "head", "d_head")

KINDS: Mapping[str, Kind] = {
    "hook_embed": Kind(_TOKEN, Stage.EMBED, "token embedding (after OPT's input projection)", local=False),
    "hook_pos_embed": Kind(_TOKEN, Stage.EMBED, "learned position embedding", local=False),
    "hook_resid_pre": Kind(_TOKEN, Stage.START, "residual stream that enters the block", local=False),
    "ln1.hook_scale": Kind(("row", "pos", "one"), Stage.START, "standard deviation that the block's first norm divides by", local=False),
    "ln1.hook_normalized": Kind(_TOKEN, Stage.START, "output of the first norm before its weight and bias", local=False),
    "attn.hook_q": Kind(_HEAD, Stage.START, "queries, before rotary and unscaled"),
    "attn.hook_k": Kind(_HEAD, Stage.START, "keys, before rotary", local=False),
    "attn.hook_v": Kind(_HEAD, Stage.START, "values", local=False),
    "attn.hook_rot_q": Kind(_HEAD, Stage.START, "queries after rotary"),
    "attn.hook_rot_k": Kind(_HEAD, Stage.START, "keys after rotary", local=False),
    "attn.hook_attn_scores": Kind(("row", "head", "query", "key"), Stage.START, "attention scores after the causal mask"),
    "attn.hook_pattern": Kind(("row", "head", "query", "key"), Stage.START, "attention weights: probabilities under softmax"),
    "attn.hook_gate": Kind(("row", "pos", "head", "one"), Stage.START, "gate that each head's mix of values is multiplied by"),
    "attn.hook_z": Kind(_HEAD, Stage.Z, "each head's mix of values, before W_O"),
    "attn.hook_result": Kind(("row", "pos", "head", "d_model"), Stage.Z, "each head's write to the residual stream, without b_O"),
    "hook_attn_out": Kind(_TOKEN, Stage.Z, "attention's write to the residual stream"),
    "hook_resid_mid": Kind(_TOKEN, Stage.MID, "residual stream that the MLP is added to (after the first norm in a post-norm block)"),
    "ln2.hook_scale": Kind(("row", "pos", "one"), Stage.MID, "standard deviation that the block's second norm divides by"),
    "ln2.hook_normalized": Kind(_TOKEN, Stage.MID, "output of the second norm before its weight and bias"),
    "mlp.hook_pre": Kind(("row", "pos", "d_mlp"), Stage.MID, "neurons before the activation function"),
    "mlp.hook_post": Kind(("row", "pos", "d_mlp"), Stage.MID, "neurons after the activation function"),
    "hook_mlp_out": Kind(_TOKEN, Stage.MID, "the MLP's output before it is added to the stream"),
    "hook_resid_post": Kind(_TOKEN, Stage.END, "the block's output, before any final norm"),
    "ln_final.hook_scale": Kind(("row", "pos", "one"), Stage.END, "standard deviation that the final norm divides by"),
    "ln_final.hook_normalized": Kind(_TOKEN, Stage.END, "output of the final norm before its weight and bias"),
}

GLOBAL = ("hook_embed", "hook_pos_embed", "ln_final.hook_scale", "ln_final.hook_normalized")
ATTENTION_MATRICES = ("attn.hook_attn_scores", "attn.hook_pattern")


@dataclass(frozen=True, order=True)
class Site:
    """One place in one model. `str(site)` is its name; `layer` is -1 before the blocks and n_layers after them."""

    layer: int
    stage: Stage
    name: str
    kind: str
    axes: tuple[str, ...]
    sizes: tuple[tuple[str, int], ...]
    """Axis and size where the model fixes it: head, d_head, d_model, d_mlp, one."""

    def __str__(self) -> str:
        return self.name

    @property
    def doc(self) -> str:
        return KINDS[self.kind].doc

    @property
    def has_heads(self) -> bool:
        return "head" in self.axes

    @property
    def is_matrix(self) -> bool:
        """Attention scores and patterns: [row, head, query, key] instead of [row, pos, (head,) d]."""
        return "key" in self.axes

    def shape(self, rows: int, width: int) -> tuple[int, ...]:
        """The tensor's shape for `rows` prompts padded to `width` positions."""
        free = {"row": rows, "pos": width, "query": width, "key": width}
        return tuple(free.get(axis) or dict(self.sizes)[axis] for axis in self.axes)


class Sites(Sequence[Site]):
    """All sites of one model, in causal order; looks names up and explains why a name is missing."""

    def __init__(self, anatomy: Anatomy):
        self._sizes = {"head": anatomy.n_heads, "d_head": anatomy.d_head, "d_model": anatomy.d_model, "d_mlp": anatomy.d_mlp, "one": 1}
        self._absent = _absent_kinds(anatomy)
        self.n_layers = anatomy.n_layers
        names = [(-1, k, k) for k in ("hook_embed", "hook_pos_embed")]
        names += [(layer, k, f"blocks.{layer}.{k}") for layer in range(anatomy.n_layers) for k in KINDS if k not in GLOBAL]
        names += [(anatomy.n_layers, k, k) for k in ("ln_final.hook_scale", "ln_final.hook_normalized")]
        self._sites = tuple(self._site(layer, kind, name) for layer, kind, name in names if kind not in self._absent)
        self._by_name = {site.name: site for site in self._sites}

    def _site(self, layer: int, kind: str, name: str) -> Site:
        axes = KINDS[kind].axes
        return Site(layer, KINDS[kind].stage, name, kind, axes, tuple((a, self._sizes[a]) for a in axes if a in self._sizes))

    def __len__(self) -> int:
        return len(self._sites)

    def __getitem__(self, index):  # type: ignore[override]
        return self.get(index) if isinstance(index, str) else self._sites[index]

    def __repr__(self) -> str:
        """The kinds of sites, one a line; `blocks.*` stands for every layer."""
        seen = dict.fromkeys(f"blocks.*.{site.kind}" if site.name.startswith("blocks.") else site.name for site in self._sites)
        return f"{len(self)} sites of {self.n_layers} layers:\n" + "\n".join(f"  {name}" for name in seen)

    def __contains__(self, site: object) -> bool:
        return str(site) in self._by_name

    def get(self, name: str) -> Site:
        """The site of this name; KeyError says what exists or why this model lacks it."""
        try:
            return self._by_name[name]
        except (KeyError, TypeError):
            raise UnknownSite(self._explain(name)) from None

    def expand(self, patterns: str | Iterable[str]) -> list[Site]:
        """The sites that names or shell patterns such as `blocks.*.attn.hook_z` select, in causal order."""
        if not isinstance(patterns, str | Site | Iterable):
            raise UnknownSite(f"Sites are given by name, such as 'blocks.*.attn.hook_z', or as a list of names; given {patterns!r:.60}.")
        patterns = [patterns] if isinstance(patterns, str | Site) else list(patterns)
        if not patterns:
            raise UnknownSite("No site was named; give at least one, such as 'blocks.*.attn.hook_z'.")
        chosen: set[str] = set()
        for pattern in patterns:
            name = str(pattern)
            found = [name] if name in self._by_name else fnmatch.filter(self._by_name, name)
            if not found:
                raise UnknownSite(self._explain(name))
            chosen.update(found)
        return [site for site in self._sites if site.name in chosen]

    def _explain(self, name: object) -> str:
        text = str(name)
        kind = text.split(".", 2)[2] if text.startswith("blocks.") and text.count(".") >= 2 else text
        if kind in self._absent:
            return f"This model has no site {text!r}: {self._absent[kind]}."
        layer = text.split(".")[1] if text.startswith("blocks.") and "." in text else None
        if kind in KINDS and kind not in GLOBAL and layer is not None and layer.lstrip("-").isdigit():
            return f"No site {text!r}: this model has layers 0-{self.n_layers - 1}."
        near = difflib.get_close_matches(text, self._by_name, n=3, cutoff=0.5)
        kinds = ", ".join(k for k in KINDS if k not in self._absent)
        return f"No site matches {text!r}. " + (f"Did you mean {', '.join(near)}? " if near else "") + f"Kinds: {kinds}."


class UnknownSite(KeyError):
    """A site that the model does not have."""

    def __str__(self) -> str:  # KeyError would show the repr, with escaped quotes
        return str(self.args[0])


def _absent_kinds(anatomy: Anatomy) -> dict[str, str]:
    absent: dict[str, str] = {}
    if anatomy.pos_embed is None:
        absent["hook_pos_embed"] = "its positions are rotary and enter inside attention (attn.hook_rot_q, attn.hook_rot_k)"
    if anatomy.rotary is None:
        absent |= {f"attn.hook_rot_{x}": f"it has no rotary embedding; attn.hook_{x} is what the scores are made of" for x in "qk"}
    if any(block.wiring == "parallel" for block in anatomy.blocks):
        absent["hook_resid_mid"] = "its attention and MLP run in parallel and both read hook_resid_pre, so no stream lies between them"
    if not all(block.variant is not None and block.variant.spec.is_gate for block in anatomy.blocks):
        absent["attn.hook_gate"] = "its heads have no gates"
    if anatomy.final_norm is None:
        absent |= {f"ln_final.hook_{x}": "it has no final norm" for x in ("scale", "normalized")}
    for kind, norm in (("ln1", "norm1"), ("ln2", "norm2")):
        if any(not hasattr(getattr(block, norm), "eps") for block in anatomy.blocks):
            absent |= {f"{kind}.hook_{x}": f"its {kind} is not a LayerNorm" for x in ("scale", "normalized")}
    return absent
