"""What does a head's key-value cache need? Attention that eviction policies keep, head types, and what eviction does to the loss, exactly.

    view = quant.kv_view(model, prompts, budget=16)       view.table(), view.policies(), view.types, view.loss["heavy"]

A policy (interp.quant.kv_policies) is a claim about attention mass; whether lost mass matters is measured: the scores of evicted keys are
sunk before the softmax, for all heads together and for each alone. Rounding the cache to few bits (keys per channel, values per token, as
in KIVI, Liu et al. 2024, arXiv 2402.02750) stands beside it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.edits import Edit, Plan
from interp.metrics import loss
from interp.models import Model
from interp.progress import Report, reporting
from interp.prompts import Prompts
from interp.quant.kv_policies import POLICIES, held, kept_keys, recovered
from interp.quant.rounding import check_bits
from interp.residual import precise
from interp.selection import real, row_chunks
from interp.sweeps import sweep

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

BUDGET = 256 * 2**20  # bytes of masks held at once
EVICTED = -1e9
"""Added to the score of an evicted key: its share is exactly 0 (every query keeps its own key)."""
HEAVY = 0.2


@dataclass(frozen=True, eq=False)
class KVView:
    """Losses are differences from the loss of the full cache, nats per token; every token counts the same."""

    model: str
    budget: int
    threshold: float
    bits: int
    recovered: Mapping[str, Float[Tensor, "layer head"]]
    """Policy -> the share of the attention that goes to the keys it keeps."""
    held: Mapping[str, Float[Tensor, "layer head"]]
    """Policy -> kept keys over keys seen."""
    types: tuple[tuple[str, ...], ...]
    """[layer][head]: the policy that holds the least and recovers the threshold; "full" where none does (after FastGen)."""
    loss: Mapping[str, float]
    """Policy, for all heads together; "by type": every head by its type."""
    head_loss: Float[Tensor, "layer head"]
    """Each head alone under `head_policy`."""
    head_policy: str
    quantized: Mapping[str, float]
    """"k", "v" and "kv" of all heads rounded."""
    head_quantized: Mapping[str, Float[Tensor, "layer head"]]
    heavy_share: Float[Tensor, "layer head"]
    """Share of a prompt's attention that its most attended fifth of the keys receives."""
    by_token: Mapping[int, tuple[float, int]]
    """Token id -> share of all attention that it receives (all heads, H2O's accumulated attention), occurrences."""
    full_loss: float
    longest: int

    @property
    def correlation(self) -> float:
        """Spearman's over heads: attention that `head_policy` loses against what evicting does to the loss."""
        from scipy.stats import spearmanr

        lost = (1 - self.recovered[self.head_policy]).flatten().tolist()
        return float(spearmanr(lost, self.head_loss.flatten().tolist())[0])  # type: ignore[arg-type]

    def table(self) -> "pd.DataFrame":
        """One row per head."""
        import pandas as pd

        layers, heads = self.head_loss.shape
        frame = pd.DataFrame({"layer": [i for i in range(layers) for _ in range(heads)], "head": list(range(heads)) * layers})
        frame["type"] = [name for row in self.types for name in row]
        for name, grid in self.recovered.items():
            frame[f"recovered[{name}]"] = grid.flatten().tolist()
        frame["heavy_share"] = self.heavy_share.flatten().tolist()
        frame[f"loss[{self.head_policy}]"] = self.head_loss.flatten().tolist()
        for name, grid in self.head_quantized.items():
            frame[f"loss[{name}, {self.bits} bits]"] = grid.flatten().tolist()
        return frame.assign(budget=self.budget, longest=self.longest, model=self.model)

    def policies(self) -> "pd.DataFrame":
        """One row per policy: what it holds, what attention it keeps, what it costs."""
        import pandas as pd

        rows = [
            {"policy": name, "held": self._mean(self.held, name), "recovered": self._mean(self.recovered, name), "loss": effect}
            for name, effect in self.loss.items()
        ]
        return pd.DataFrame(rows).assign(budget=self.budget, unit="nats/token", model=self.model)

    def _mean(self, grids: Mapping[str, Tensor], policy: str) -> float:
        if policy in grids:
            return float(grids[policy].mean())
        return sum(float(grids[name][i, j]) for i, row in enumerate(self.types) for j, name in enumerate(row)) / self.head_loss.numel()

    def figure(self) -> "go.Figure":
        """Attention lost against loss, a point per head."""
        import plotly.graph_objects as go

        lost = (1 - self.recovered[self.head_policy]).flatten().tolist()
        heads = self.head_loss.shape[1]
        names = [f"{i // heads}.{i % heads}" for i in range(len(lost))]
        figure = go.Figure(
            go.Scatter(x=lost, y=self.head_loss.flatten().tolist(), text=names, mode="markers+text", textposition="top center")
        )
        return figure.update_layout(
            title=f"{self.model}: does attention lost to eviction ({self.head_policy}, {self.budget} keys) cost loss?",
            template="plotly_white", xaxis_title="share of attention lost", yaxis_title="loss - loss of the full cache (nats/token)",
        )  # fmt: skip

    def to_json(self) -> str:
        names = ("model", "budget", "threshold", "bits", "types", "loss", "head_policy", "quantized", "full_loss", "longest")
        grids = {name: {k: v.tolist() for k, v in getattr(self, name).items()} for name in ("recovered", "held", "head_quantized")}
        tokens = {str(token): list(pair) for token, pair in self.by_token.items()}
        plain = {name: getattr(self, name) for name in names} | {"loss": dict(self.loss), "quantized": dict(self.quantized)}
        return json.dumps(
            plain | grids | {"head_loss": self.head_loss.tolist(), "heavy_share": self.heavy_share.tolist(), "by_token": tokens}
        )


def kv_view(
    model: Model,
    prompts: "Prompts | str | Sequence[str]",
    *,
    budget: int | None = None,
    threshold: float = 0.95,
    special: Sequence[int] = (),
    delimiters: Sequence[int] = (),
    head_policy: str = "heavy",
    bits: int = 4,
    seed: int = 0,
    progress: Report | bool | None = None,
) -> KVView:
    """Every policy on these prompts.

    budget       keys that a head may hold; None: a quarter of the longest prompt, at least 4
    threshold    attention that a head's type must recover
    special      token ids that `special` keeps beside position 0
    delimiters   token ids that `punctuation` keeps too, such as those of "." and ","
    head_policy  the policy that each head is put under alone
    bits         of the rounded cache
    """
    prompts = model.check_prompts(prompts)
    budget = max(4, prompts.width // 4) if budget is None else budget
    if head_policy not in POLICIES:
        raise ValueError(f"No policy {head_policy!r}; there are {', '.join(POLICIES)}.")
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is a share of attention, above 0 and up to 1; given {threshold!r}.")
    if prompts.shortest < 2:
        raise ValueError(f"Prompt {int(prompts.lengths.argmin())} has one token; a loss needs at least two.")
    work = _Work(model, prompts, budget, tuple(special), tuple(delimiters), head_policy, check_bits(bits), seed)
    with torch.no_grad(), reporting(progress, "key-value cache") as report:
        mass, share, heavy, tokens = work.attention()
        types = _types(mass, share, threshold)
        effects, clean = work.losses(types, report)
    grids = {name: e.unflatten(0, (model.n_layers, model.n_heads)) for name, e in effects.items() if e.ndim}
    quantized = {name: float(effects[f"all {name}"]) for name in ("k", "v", "kv")}
    return KVView(
        model.name, budget, threshold, bits, mass, share, types, {name: float(effects[name]) for name in (*POLICIES, "by type")},
        grids["heads"], head_policy, quantized, {"k": grids["k"], "v": grids["v"]}, heavy, tokens, clean, prompts.width,
    )  # fmt: skip


def _types(mass: Mapping[str, Tensor], share: Mapping[str, Tensor], threshold: float) -> tuple[tuple[str, ...], ...]:
    layers, heads = mass["full"].shape
    candidates = [name for name in POLICIES if name != "random"]

    def cheapest(i: int, j: int) -> str:
        enough = [name for name in candidates if float(mass[name][i, j]) >= threshold]
        return min(enough, key=lambda name: float(share[name][i, j]), default="full")

    return tuple(tuple(cheapest(i, j) for j in range(heads)) for i in range(layers))


@dataclass(frozen=True, eq=False)
class _Work:
    """Passes over the prompts in chunks whose masks fit the budget."""

    model: Model
    prompts: Prompts
    budget: int
    special: tuple[int, ...]
    delimiters: tuple[int, ...]
    head_policy: str
    bits: int
    seed: int

    def chunks(self) -> Iterator[tuple[Tensor, Prompts, list[Tensor]]]:
        """Rows, their prompts, and every layer's pattern without eviction."""
        per_row = self.model.n_layers * self.model.n_heads * self.prompts.width**2 * 4 * (len(POLICIES) + 3)
        for rows in row_chunks(self.prompts, per_row, BUDGET):
            part = self.prompts[rows]
            yield rows, part, [precise(x) for x in self.model.capture(part, "blocks.*.attn.hook_pattern").values()]

    def kept(self, policy: str, layer: int, rows: Tensor, part: Prompts, pattern: Tensor) -> Bool[Tensor, "row head query key"]:
        priority = torch.stack([self._draw(layer, int(row)) for row in rows])[..., : part.width].to(pattern.device)
        return kept_keys(
            policy, pattern, part.ids, self.budget, special=self.special, delimiters=self.delimiters, priority=priority
        )  # fmt: skip

    def _draw(self, layer: int, row: int) -> Float[Tensor, "head key"]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + row) * 1_009 + layer)
        return torch.rand(self.model.n_heads, self.prompts.width, generator=generator)

    def attention(self) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor, dict[int, tuple[float, int]]]:
        """Recovered mass, held share, heavy share [layer, head] and mass by token."""
        size, n_queries = (self.model.n_layers, self.model.n_heads), int((self.prompts.lengths - 1).sum())
        mass, share = ({name: torch.zeros(size, dtype=torch.float64) for name in POLICIES} for _ in range(2))
        heavy = torch.zeros(size, dtype=torch.float64)
        received = torch.zeros(self.model.d_vocab, dtype=torch.float64)
        for rows, part, patterns in self.chunks():
            counted = real(part)
            for layer, pattern in enumerate(patterns):
                for name in POLICIES:
                    kept = self.kept(name, layer, rows, part, pattern)
                    mass[name][layer] += recovered(pattern, kept, counted).cpu()
                    share[name][layer] += held(kept, counted).cpu() / n_queries
                per_key = (pattern * counted[:, None, :, None]).sum(2)  # [row, head, key]
                top = per_key.sort(-1, descending=True).values
                n_top = (part.lengths * HEAVY).ceil()[:, None, None]
                first = torch.arange(part.width, device=top.device) < n_top
                heavy[layer] += _share((top * first).sum(-1), top.sum(-1)).sum(0).double().cpu() / len(self.prompts)
                received.index_add_(0, part.ids[counted].cpu(), per_key.sum(1)[counted].double().cpu())
        counts = torch.bincount(self.prompts.ids[real(self.prompts)].cpu(), minlength=self.model.d_vocab)
        tokens = {int(i): (float(received[i] / received.sum()), int(counts[i])) for i in counts.nonzero().flatten()}
        mass = {name: _share(kept, mass["full"]) for name, kept in mass.items()}
        return mass, share, heavy, dict(sorted(tokens.items(), key=lambda item: -item[1][0]))

    def losses(self, types: tuple[tuple[str, ...], ...], report: Report) -> tuple[dict[str, Tensor], float]:
        """Effects of every plan, single numbers and "heads", "k", "v" flat over heads; and the loss."""
        total, clean, n_tokens = None, 0.0, int((self.prompts.lengths - 1).sum())
        names: list[str] = []
        done = 0
        for rows, part, patterns in self.chunks():
            plans = self._plans(types, rows, part, patterns)
            names = [name for name, _ in plans]
            result = sweep(self.model, part, [plan for _, plan in plans], loss())
            weight = (part.lengths - 1).double().to(result.effects.device) / n_tokens
            effects = (result.effects.double() @ weight).cpu()
            total, clean = effects if total is None else total + effects, clean + float(result.clean.double() @ weight)
            report(done := done + len(rows), len(self.prompts))
        assert total is not None
        found = {name: total[[i for i, n in enumerate(names) if n == name]] for name in dict.fromkeys(names)}
        return {name: x if name in ("heads", "k", "v") else x[0] for name, x in found.items()}, clean

    def _plans(self, types: tuple[tuple[str, ...], ...], rows: Tensor, part: Prompts, patterns: list[Tensor]) -> list[tuple[str, Plan]]:
        layers, heads = range(self.model.n_layers), range(self.model.n_heads)
        masks = {(name, i): self.kept(name, i, rows, part, pattern) for name in POLICIES for i, pattern in enumerate(patterns)}
        mixed = [torch.stack([masks[types[i][j], i][:, j] for j in heads], 1) for i in layers]
        plans: list[tuple[str, Plan]] = [(name, tuple(_evict(i, masks[name, i]) for i in layers)) for name in POLICIES]
        plans.append(("by type", tuple(_evict(i, mask) for i, mask in enumerate(mixed))))
        plans += [("heads", (_evict(i, masks[self.head_policy, i][:, j], j),)) for i in layers for j in heads]
        edits = {name: [[self._round(name, i, j)] for i in layers for j in heads] for name in ("k", "v")}
        plans += [(name, tuple(plan)) for name, each in edits.items() for plan in each]
        flat = {name: tuple(edit for plan in each for edit in plan) for name, each in edits.items()}
        return [*plans, ("all k", flat["k"]), ("all v", flat["v"]), ("all kv", flat["k"] + flat["v"])]

    def _round(self, name: str, layer: int, head: int) -> Edit:
        """Keys as they are cached: after rotary."""
        rotary = f"blocks.{layer}.attn.hook_rot_k"
        site = rotary if name == "k" and rotary in self.model.sites() else f"blocks.{layer}.attn.hook_{name}"
        per = "channel" if name == "k" else "token"
        return Edit(site, "quantize", {"bits": self.bits, "symmetric": False, "per": per}, head=head)


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole (with clipped attention and the like, rows sum to less than 1); 1 where a head attends to nothing."""
    return torch.where(whole > 0, part / whole, torch.ones_like(part))


def _evict(layer: int, kept: Tensor, head: int | None = None) -> Edit:
    """kept [row, head, query, key], or [row, query, key] of one head."""
    return Edit(f"blocks.{layer}.attn.hook_attn_scores", "add", (~kept).float() * EVICTED, head=head)
