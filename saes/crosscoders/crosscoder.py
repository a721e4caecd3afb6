"""A trained crosscoder: a coder for each block, whose outputs at a site add up.

    z_i = activation(concat_{s in reads_i} x_s W_enc_i + b_i)          y_s = sum over blocks i that write s of z_i W_dec_{i->s}, + b_dec_s

Each block is a `Coder` from its sites side by side to its sites side by side, so everything that holds for a coder holds for a block.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saes.coders import Coder
from saes.crosscoders.blocks import Block, check_blocks, sites_read, sites_written
from saes.sparse import Codes


@dataclass(frozen=True, eq=False)
class Crosscoder:
    """Coders of blocks. A crosscoder of several sites, a cross-layer transcoder, or what else the blocks say.

    coders  one per block: `W_enc` [sum of widths read, n_features], `W_dec` [n_features, sum of widths written]. A site's bias lies in
            `b_dec` of the last block that writes it; elsewhere it is 0
    widths  site -> d
    info    what is known: the model, the steps, `scales` (site -> root mean square per dimension of its centred rows)
    """

    blocks: tuple[Block, ...]
    coders: tuple[Coder, ...]
    widths: Mapping[str, int]
    info: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", check_blocks(self.blocks))
        object.__setattr__(self, "coders", tuple(self.coders))
        if len(self.coders) != len(self.blocks):
            raise ValueError(f"There are {len(self.blocks)} blocks and {len(self.coders)} coders: one belongs to each.")
        if missing := [s for s in (*self.reads, *self.writes) if s not in self.widths]:
            raise ValueError(f"The width of {missing[0]} is not given; widths are known of {', '.join(self.widths) or 'no site'}.")
        for i, (block, coder) in enumerate(zip(self.blocks, self.coders, strict=True)):
            wanted = self.split_sizes(block.reads), self.split_sizes(block.writes)
            if (coder.d_in, coder.d_out) != (sum(wanted[0]), sum(wanted[1])):
                sizes = f"its sites are {sum(wanted[0])} and {sum(wanted[1])} wide"
                raise ValueError(f"The coder of block {i} is {coder.d_in} -> {coder.d_out}; {sizes}.")

    @property
    def reads(self) -> tuple[str, ...]:
        return sites_read(self.blocks)

    @property
    def writes(self) -> tuple[str, ...]:
        return sites_written(self.blocks)

    @property
    def n_features(self) -> int:
        """Of all blocks together."""
        return sum(coder.n_features for coder in self.coders)

    def __repr__(self) -> str:
        kinds = "/".join(dict.fromkeys(coder.config.kind for coder in self.coders))
        what = f"{len(self.blocks)} blocks of {'/'.join(str(n) for n in dict.fromkeys(c.n_features for c in self.coders))} features"
        return f"Crosscoder({kinds}, {what}: {len(self.reads)} sites -> {len(self.writes)} sites)"

    def split_sizes(self, sites: Sequence[str]) -> list[int]:
        return [self.widths[site] for site in sites]

    def decoder(self, block: int, site: str) -> Float[Tensor, "n_features d"]:
        """What the features of a block write to a site."""
        writes = self.blocks[block].writes
        if site not in writes:
            raise KeyError(f"Block {block} does not write to {site}; it writes to {', '.join(writes)}.")
        return self.coders[block].W_dec.split(self.split_sizes(writes), 1)[writes.index(site)]

    def encoder(self, block: int, site: str) -> Float[Tensor, "d n_features"]:
        """What the features of a block read at a site."""
        reads = self.blocks[block].reads
        if site not in reads:
            raise KeyError(f"Block {block} does not read {site}; it reads {', '.join(reads)}.")
        return self.coders[block].W_enc.split(self.split_sizes(reads), 0)[reads.index(site)]

    def side_by_side(self, block: int, rows: Mapping[str, Float[Tensor, "*rows d"]]) -> Float[Tensor, "*rows d_in"]:
        """What a block reads, as its coder takes it."""
        if missing := [site for site in self.blocks[block].reads if site not in rows]:
            raise KeyError(f"Block {block} reads {missing[0]}; there are rows of {', '.join(rows) or 'no site'}.")
        return torch.cat([rows[site].to(self.coders[block].W_enc.dtype) for site in self.blocks[block].reads], -1)

    def encode(self, rows: Mapping[str, Float[Tensor, "*rows d"]]) -> tuple[Float[Tensor, "*rows n_features"], ...]:
        """Codes of each block, dense."""
        return tuple(coder.encode(self.side_by_side(i, rows)) for i, coder in enumerate(self.coders))

    def encode_sparse(self, rows: Mapping[str, Float[Tensor, "row d"]]) -> tuple[Codes, ...]:
        """The same codes as pairs of feature and value. No gradient."""
        return tuple(coder.encode_sparse(self.side_by_side(i, rows)) for i, coder in enumerate(self.coders))

    def decode(self, codes: Sequence["Float[Tensor, '*rows n_features'] | Codes"]) -> dict[str, Float[Tensor, "*rows d"]]:
        """What the codes of all blocks stand for at each site, without skip terms."""
        if len(codes) != len(self.blocks):
            raise ValueError(f"There are {len(self.blocks)} blocks; given codes of {len(codes)}.")
        return self.added([coder.decode(z) for coder, z in zip(self.coders, codes, strict=True)])

    def __call__(self, rows: Mapping[str, Float[Tensor, "*rows d"]]) -> dict[str, Float[Tensor, "*rows d"]]:
        """The reconstruction of each site that is written to, with skip terms."""
        return self.added([coder(self.side_by_side(i, rows)) for i, coder in enumerate(self.coders)])

    def added(self, outputs: Sequence[Float[Tensor, "*rows d_out"]]) -> dict[str, Float[Tensor, "*rows d"]]:
        """What blocks write, by site."""
        return add_up(self.blocks, self.widths, outputs)

    def to(self, device: "torch.device | str") -> "Crosscoder":
        """Moves the coders, as `torch.nn.Module.to` does, and gives the crosscoder back."""
        for coder in self.coders:
            coder.to(device)
        return self

    def save(self, path: str | Path, format: str = "workbench") -> Path:
        """Writes a folder: format "workbench", or "circuit-tracer" for a cross-layer transcoder of all layers."""
        from saes.formats.crosscoders import save

        return save(self, path, format)


def add_up(blocks: Sequence[Block], widths: Mapping[str, int], outputs: Sequence[Float[Tensor, "*rows d_out"]]) -> dict[str, Tensor]:
    """Outputs of blocks, cut into sites and added up."""
    total: dict[str, Tensor] = {}
    for block, output in zip(blocks, outputs, strict=True):
        for site, part in zip(block.writes, output.split([widths[site] for site in block.writes], -1), strict=True):
            total[site] = total[site] + part if site in total else part
    return total
