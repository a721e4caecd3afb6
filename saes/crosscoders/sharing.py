"""Which features are shared between sites and which belong to one: norms of a crosscoder's decoder, site by site.

Lindsey et al. 2024 ("Sparse Crosscoders") tell shared features from those of one model by relative decoder norms. Norms are taken in units
of each site's own scale, so that a site whose rows are long does not seem to own every feature.
"""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from saes.crosscoders.crosscoder import Crosscoder

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@dataclass(frozen=True, eq=False)
class Sharing:
    """The decoder of one block, by site."""

    sites: tuple[str, ...]
    norms: Float[Tensor, "n_features site"]
    """Norm of what a feature of code 1 writes to a site, divided by the site's scale (root mean square per dimension)."""
    cosines: Float[Tensor, "n_features site"]
    """Cosine of what it writes to a site with what it writes to its strongest site; NaN where the widths differ."""
    scaled: bool
    """Whether the sites' scales were known; if not, norms are raw."""

    @property
    def relative(self) -> Float[Tensor, "n_features site"]:
        """Each site's share of the sum of a feature's norms; rows sum to 1. A feature that writes nothing has NaN."""
        return self.norms / self.norms.sum(1, keepdim=True)

    @property
    def effective_sites(self) -> Float[Tensor, " n_features"]:
        """Participation ratio of the squared norms: 1 for a feature of one site, the number of sites where all are equal."""
        squares = self.norms.square()
        return squares.sum(1).square() / squares.square().sum(1)

    def exclusive(self, site: str, least: float = 0.9) -> Tensor:
        """The features whose relative norm at the site is at least `least`."""
        if site not in self.sites:
            raise KeyError(f"No site {site!r} here: there are {', '.join(self.sites)}.")
        return (self.relative[:, self.sites.index(site)] >= least).nonzero().flatten()

    def shared(self, least: float = 0.5) -> Tensor:
        """The features whose smallest relative norm is at least `least` of an equal share."""
        return (self.relative.amin(1) >= least / len(self.sites)).nonzero().flatten()

    def table(self) -> "pd.DataFrame":
        """One row per feature and site."""
        import pandas as pd

        n, s = self.norms.shape
        columns = {"feature": [f for f in range(n) for _ in range(s)], "site": list(self.sites) * n}
        values = {"norm": self.norms, "relative_norm": self.relative, "cosine_to_strongest": self.cosines}
        return pd.DataFrame(columns | {name: tensor.flatten().tolist() for name, tensor in values.items()})

    def figure(self) -> "go.Figure":
        """Histogram of relative norms at each site; a line where an equal share would be."""
        import plotly.graph_objects as go

        figure = go.Figure()
        for i, site in enumerate(self.sites):
            figure.add_histogram(x=self.relative[:, i].tolist(), name=site, xbins={"start": 0, "end": 1, "size": 0.025}, opacity=0.6)
        figure.add_vline(x=1 / len(self.sites), line_dash="dot")
        title = f"{len(self.norms)} features, on average on {float(self.effective_sites.nanmean()):.2f} of {len(self.sites)} sites"
        return figure.update_layout(title=title, barmode="overlay", xaxis_title="relative decoder norm", yaxis_title="features")

    def to_json(self) -> str:
        plain = {"sites": self.sites, "scaled": self.scaled, "norms": self.norms.tolist()}
        return json.dumps(plain | {"relative": _plain(self.relative), "cosines": _plain(self.cosines)})


@torch.no_grad()
def sharing(crosscoder: Crosscoder, block: int = 0) -> Sharing:
    """The decoder norms of a block (a crosscoder has one; a cross-layer transcoder one for each layer) at the sites that it writes to."""
    if not 0 <= block < len(crosscoder.blocks):
        raise ValueError(f"There is no block {block}: the crosscoder has {len(crosscoder.blocks)}, counted from 0.")
    sites = crosscoder.blocks[block].writes
    rows = [crosscoder.decoder(block, site).detach().cpu().double() for site in sites]
    scales = crosscoder.info.get("scales") or {}
    known = all(site in scales for site in sites)
    norms = torch.stack([w.norm(dim=1) / (scales[site] if known else 1.0) for w, site in zip(rows, sites, strict=True)], 1)
    return Sharing(sites, norms, _cosines(rows, norms), known)


def _cosines(rows: list[Tensor], norms: Tensor) -> Tensor:
    if len({w.shape[1] for w in rows}) > 1:
        return torch.full_like(norms, float("nan"))
    unit = torch.nn.functional.normalize(torch.stack(rows, 1), dim=2)
    strongest = unit[torch.arange(len(unit)), norms.argmax(1)]
    return torch.einsum("fsd,fd->fs", unit, strongest)


def _plain(tensor: Tensor) -> list[list[float | None]]:
    """NaN as null, which JSON knows."""
    return [[None if value != value else value for value in row] for row in tensor.tolist()]
