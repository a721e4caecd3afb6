"""Which features read where and write where: what tells crosscoders, cross-layer transcoders and all between apart.

A block is a set of features that read some sites side by side and write to some sites. One block that reads and writes the same sites is a
crosscoder; a block for each layer that reads its MLP's input and writes to the outputs of this MLP and of all later ones is a cross-layer
transcoder; blocks that read one site and write to it and to later ones are a weakly causal crosscoder (Lindsey et al. 2024, "Sparse
Crosscoders for Cross-Layer Features and Model Diffing"; Ameisen et al. 2025, "Circuit Tracing").
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from interp.models import Model
from saes.replacing import mlp_sites


@dataclass(frozen=True)
class Block:
    """Features that read the sites `reads` side by side and write to the sites `writes`."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]

    def __post_init__(self) -> None:
        for what, sites in (("reads", self.reads), ("writes", self.writes)):
            object.__setattr__(self, what, (sites,) if isinstance(sites, str) else tuple(sites))
            if not getattr(self, what):
                raise ValueError(f"A block {what} at least one site.")
            if len(set(getattr(self, what))) < len(getattr(self, what)):
                raise ValueError(f"A block {what} each site once; given {', '.join(getattr(self, what))}.")


def clt_blocks(model: Model, layers: Iterable[int] | None = None) -> tuple[Block, ...]:
    """A cross-layer transcoder of a model's MLPs: from `blocks.i.ln2.hook_normalized` to `blocks.j.hook_mlp_out` for all j >= i.

    The input of a post-norm block's MLP (OPT-350m) is `blocks.i.hook_resid_mid`.

    layers  a range without gaps (default: all). ValueError for others: a layer that is left out would be written to by nobody.
    """
    chosen = list(range(model.n_layers) if layers is None else layers)
    if wrong := [layer for layer in chosen if not 0 <= layer < model.n_layers]:
        raise ValueError(f"There is no layer {wrong[0]}: {model.name} has layers 0-{model.n_layers - 1}.")
    if not chosen or chosen != list(range(chosen[0], chosen[0] + len(chosen))):
        given = ", ".join(map(str, chosen)) or "none"
        raise ValueError(f"A cross-layer transcoder takes neighbouring layers in order, such as 0,1,2; given {given}.")
    inputs, outputs = zip(*(mlp_sites(model, layer) for layer in chosen), strict=True)
    return tuple(Block((source,), outputs[i:]) for i, source in enumerate(inputs))


def crosscoder_blocks(sites: Sequence[str], causal: bool = False) -> tuple[Block, ...]:
    """One code of several sites that reconstructs all of them; `causal`: a code of each site that reconstructs it and those after it.

    sites  at least two, in causal order where `causal`
    """
    sites = tuple(sites)
    if len(sites) < 2:
        raise ValueError(f"A crosscoder has at least two sites; given {', '.join(sites) or 'none'}. For one site train an autoencoder.")
    return tuple(Block((site,), sites[i:]) for i, site in enumerate(sites)) if causal else (Block(sites, sites),)


def check_blocks(blocks: Sequence[Block]) -> tuple[Block, ...]:
    if not blocks or not all(isinstance(block, Block) for block in blocks):
        raise ValueError(f"Give blocks, such as those of saes.clt_blocks(model) or saes.crosscoder_blocks(sites); given {blocks!r:.80}.")
    return tuple(blocks)


def sites_read(blocks: Sequence[Block]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(site for block in blocks for site in block.reads))


def sites_written(blocks: Sequence[Block]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(site for block in blocks for site in block.writes))


def owners(blocks: Sequence[Block]) -> dict[str, int]:
    """For each site that is written to, the last block that does so: it holds the site's bias."""
    return {site: i for i, block in enumerate(blocks) for site in block.writes}
