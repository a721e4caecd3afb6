"""A loaded model's account of itself as plain data: sizes, words that it knows, sites, what it refuses, checks."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from interp.models import Model
from interp.sites import KINDS
from interp.tokens import known_words

if TYPE_CHECKING:
    from interp.checks import CheckReport


@dataclass(frozen=True)
class SiteKind:
    """One kind of site that the model has, in causal order of the block."""

    name: str
    axes: str
    doc: str


@dataclass(frozen=True)
class Description:
    """What `interp describe` shows."""

    model: str
    family: str
    path: str
    sizes: dict[str, int | str]
    words: tuple[str, ...]
    sites: tuple[SiteKind, ...]
    refused: dict[str, str]
    """Kinds of sites that this model lacks, and why."""
    checks: "CheckReport"

    def to_json(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in ("model", "family", "path")} | self.sizes
        return plain | {
            "words": list(self.words), "sites": [asdict(site) for site in self.sites], "refused": self.refused,
            "passed": bool(self.checks.passed), "checks": plain_rows(self.checks.table().to_dict("records")),
        }  # fmt: skip


def describe_model(model: Model) -> Description:
    """Runs the checks; everything else is looked up."""
    sizes = {name: getattr(model, name) for name in ("n_layers", "n_heads", "d_model", "d_head", "d_mlp", "n_ctx", "d_vocab")}
    sizes |= {"parameters": sum(p.numel() for p in model.hf.parameters()), "dtype": str(model.dtype).removeprefix("torch.")}
    if model.attention.kind != "softmax":
        sizes["attention"] = f"{model.attention}; the folder loaded by plain Hugging Face code has softmax, which is another model"
    return Description(
        model.name, model.family, str(model.path), sizes, tuple(known_words(model)), site_kinds(model), refused_kinds(model), model.check()
    )


def site_kinds(model: Model) -> tuple[SiteKind, ...]:
    """One entry per kind of site that the model has."""
    present = {site.kind: site for site in model.sites()}
    return tuple(SiteKind(kind, " ".join(present[kind].axes), present[kind].doc) for kind in KINDS if kind in present)


def refused_kinds(model: Model) -> dict[str, str]:
    """Kind -> why the model has no such site."""
    return dict(model.sites()._absent)


def plain_rows(rows: list[dict[Any, Any]]) -> list[dict[str, Any]]:
    """Table rows as JSON values: numpy scalars become Python's, NaN becomes null, the rest text."""
    unpacked = [{str(k): v.item() if hasattr(v, "item") else v for k, v in row.items()} for row in rows]
    return [{k: _plain(v) for k, v in row.items()} for row in unpacked]


def _plain(value: Any) -> Any:
    if value != value:
        return None
    return value if isinstance(value, int | float | str | bool | None) else str(value)
