"""Published figures of real checkpoints, and whether a checkpoint of yours reproduces them: a pass/fail table.

    rows = quant.read_published("experiments/configs/quantizability_published.json")
    quant.check_published("gpt2", rows, text=Path("wikitext2-test.txt").read_text()).table()

A row says what was measured, how, by whom, and how far off still passes. Without weights, or without the text that a row needs, it says so;
rows that cannot be computed here are listed with the reason.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from interp.edits import Edit
from interp.metrics import loss_per_token
from interp.models import Model, load
from interp.prompts import Prompts
from interp.quant.evaluation import predicting
from interp.quant.sinks import sink_rate
from interp.quant.streaming import activation_statistics
from interp.selection import check_layer, row_chunks

if TYPE_CHECKING:
    import pandas as pd

BUDGET = 512 * 2**20  # bytes of logits held at once
Status = Literal["pass", "fail", "needs weights", "needs text", "excluded"]


@dataclass(frozen=True)
class PublishedRow:
    """One figure of one checkpoint."""

    model: str
    quantity: str
    """A key of QUANTITIES, or "excluded"; `note` then says why."""
    target: float | None
    tolerance: float | None
    """Absolute, in units of the target."""
    arguments: Mapping[str, Any]
    confidence: str
    """source: read in the authors' data; quoted; transcription; abstract; figure; weak."""
    source: str
    note: str = ""


@dataclass(frozen=True)
class PublishedCheck:
    """A row and what came of it."""

    row: PublishedRow
    status: Status
    measured: float | None = None
    said: str = ""


@dataclass(frozen=True)
class PublishedTable:
    """Every row of one checkpoint."""

    model: str
    checks: tuple[PublishedCheck, ...]
    windows: int | None
    """Where only so many windows of the text were read; None: all."""

    @property
    def passed(self) -> bool:
        """Whether every row that can be computed was, and passes."""
        return all(check.status in ("pass", "excluded") for check in self.checks) and any(c.status == "pass" for c in self.checks)

    def table(self) -> "pd.DataFrame":
        """One row per figure."""
        import pandas as pd

        rows = [
            {"status": check.status, "measured": check.measured, "said": check.said}
            | asdict(check.row) | {"arguments": ", ".join(f"{k}={v}" for k, v in check.row.arguments.items())}
            for check in self.checks
        ]  # fmt: skip
        order = ("model", "quantity", "arguments", "target", "tolerance", "measured", "status", "said", "confidence", "source", "note")
        return pd.DataFrame(rows, columns=list(order)).assign(windows=self.windows)

    def to_json(self) -> str:
        checks = [asdict(check.row) | {"status": check.status, "measured": check.measured, "said": check.said} for check in self.checks]
        return json.dumps({"model": self.model, "passed": self.passed, "windows": self.windows, "checks": checks})


def read_published(path: str | Path) -> tuple[PublishedRow, ...]:
    """The rows of a file. Unknown quantities, unknown and missing keys are refused."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No file {path}.")
    data = json.loads(path.read_text(encoding="utf-8"))
    names = {f.name for f in fields(PublishedRow)}
    rows = []
    for i, row in enumerate(data["rows"] if isinstance(data, dict) and "rows" in data else ()):
        if set(row) - names or (names - {"note"}) - set(row):
            raise ValueError(f"{path}, row {i}: a row has {', '.join(sorted(names))}; this one {', '.join(sorted(row))}.")
        if row["quantity"] not in (*QUANTITIES, "excluded"):
            raise ValueError(f"{path}, row {i}: no quantity {row['quantity']!r}; there are {', '.join(QUANTITIES)} and excluded.")
        rows.append(PublishedRow(**row))
    if not rows:
        raise ValueError(f"{path} holds no rows; needed is an object with a list under 'rows'.")
    return tuple(rows)


def check_published(
    name: str,
    rows: Sequence[PublishedRow],
    text: str | None = None,
    *,
    weights: str | Path | None = None,
    device: str = "auto",
    probes: int = 100,
    windows: int | None = None,
    seed: int = 0,
) -> PublishedTable:
    """Computes every row of the checkpoint `name`.

    text     for rows on natural text, such as wikitext-2's test split, joined by two newlines
    weights  a folder of the weights; None: interp.load(name)
    probes   prompts of the sink rates
    windows  only so many windows of the text, for a quick look; perplexities are then of that part
    """
    own = [row for row in rows if row.model == name]
    if not own:
        raise ValueError(f"No published rows for {name!r}; there are rows for {', '.join(dict.fromkeys(row.model for row in rows))}.")
    try:
        model = None if all(row.quantity == "excluded" for row in own) else load(weights or name, device)
        failure = ""
    except (FileNotFoundError, ValueError) as error:
        model, failure = None, f"interp.load({str(weights or name)!r}) failed with {type(error).__name__}: {error}"
    found = []
    for row in own:
        if row.quantity == "excluded":
            found.append(PublishedCheck(row, "excluded", said=row.note))
        elif model is None:
            found.append(PublishedCheck(row, "needs weights", said=f"needs {name} weights: {failure}"))
        elif text is None and row.arguments.get("kind", "natural") == "natural":
            found.append(PublishedCheck(row, "needs text", said="give text=, such as wikitext-2's test split joined by two newlines"))
        else:
            measured = QUANTITIES[row.quantity](_Probe(model, text or "", probes, windows, seed), **row.arguments)
            assert row.target is not None and row.tolerance is not None
            found.append(PublishedCheck(row, "pass" if abs(measured - row.target) <= row.tolerance else "fail", measured))
    return PublishedTable(name, tuple(found), windows)


@dataclass(frozen=True, eq=False)
class _Probe:
    """A loaded checkpoint and the data to measure it on."""

    model: Model
    text: str
    probes: int
    windows: int | None
    seed: int

    def cut(self, length: int, bos: bool | str, most: int | None) -> Prompts:
        """Windows of `length` tokens of the text, without overlap; the rest that does not fill one is left out.

        bos  True: every window begins with it, and has one token of text less; "once": it stands before the whole text
        """
        if self.model.tokenizer is None:
            raise ValueError(f"{self.model.path} has no tokenizer, so text cannot be encoded; put its tokenizer's files into the folder.")
        ids = self.model.tokenizer(self.text, add_special_tokens=False)["input_ids"]
        start = [self.model.tokenizer.bos_token_id]
        ids = start + ids if bos == "once" else ids
        step = length - (bos is True)
        cuts = [ids[i : i + step] for i in range(0, len(ids) - step + 1, step)][:most]
        if not cuts:
            raise ValueError(f"The text has {len(ids)} tokens of {self.model.name}, and a window {length}; give a longer text.")
        return self.model.check_prompts(Prompts.from_ids([start + cut if bos is True else cut for cut in cuts]))


def perplexity(probe: _Probe, context: int, bos: bool | str, edits: Sequence[Edit] = ()) -> float:
    """exp of the mean loss over all predicted tokens of all windows."""
    total, n = 0.0, 0
    for part in _parts(probe, probe.cut(context, bos, probe.windows)):
        losses = loss_per_token(probe.model.logits(part, edits), part)[predicting(part)]
        total, n = total + float(losses.double().sum()), n + losses.numel()
    return math.exp(total / n)


def perplexity_change(probe: _Probe, layer: int, dim: int, pos: int, context: int, bos: bool | str) -> float:
    """The perplexity with one dimension set to zero at one position after a block, minus the perplexity."""
    direction = torch.zeros(probe.model.d_model)
    direction[dim] = 1.0
    edit = Edit(f"blocks.{check_layer(probe.model, layer)}.hook_resid_post", "project_out", direction, pos=pos)
    return perplexity(probe, context, bos, [edit]) - perplexity(probe, context, bos)


def massive_value(probe: _Probe, layer: int, dim: int, pos: int, context: int, bos: bool | str) -> float:
    """|x| of a dimension at a position after a block, averaged over windows."""
    return float(_stream_size(probe, layer, pos, context, bos)[dim])


def massive_dim(probe: _Probe, layer: int, pos: int, context: int, bos: bool | str) -> float:
    """The dimension with the largest mean |x| there."""
    return float(_stream_size(probe, layer, pos, context, bos).argmax())


def outlier_dimensions(probe: _Probe, context: int, bos: bool | str) -> float:
    """How many dimensions fulfil LLM.int8's criterion."""
    return float(len(activation_statistics(probe.model, probe.cut(context, bos, probe.windows)).outlier_dimensions))


def sink_percent(
    probe: _Probe, length: int, eps: float, kind: str, bos: bool, key: int = 0, swap: int | None = None
) -> float:  # fmt: skip
    """Sink rate, percent of prompts, layers and heads. `swap`: the position embeddings 0 and `swap` change places."""
    prompts = _probes(probe, length, kind, bos)
    edits = () if swap is None else _swapped(probe.model, swap)
    rates = []
    for part in _parts(probe, prompts):
        patterns = probe.model.capture(part, "blocks.*.attn.hook_pattern", edits=edits).values()
        rates.append(torch.stack([sink_rate(pattern, eps, key) for pattern in patterns]).mean() * len(part) / len(prompts))
    return 100 * float(torch.stack(rates).sum())


QUANTITIES: Mapping[str, Callable[..., float]] = {
    "perplexity": perplexity, "perplexity_change": perplexity_change, "massive_value": massive_value, "massive_dim": massive_dim,
    "outlier_dimensions": outlier_dimensions, "sink_rate": sink_percent,
}  # fmt: skip


def _probes(probe: _Probe, length: int, kind: str, bos: bool) -> Prompts:
    """natural: windows of the text; random: uniform tokens; repeated: one random token throughout."""
    if kind == "natural":
        return probe.cut(length, bos, probe.probes)
    if kind not in ("random", "repeated"):
        raise ValueError(f"kind is natural, random or repeated; given {kind!r}.")
    generator = torch.Generator().manual_seed(probe.seed)
    width = length if kind == "random" else 1
    ids = torch.randint(0, probe.model.d_vocab, (probe.probes, width), generator=generator).expand(-1, length)
    return probe.model.check_prompts(Prompts.from_ids(ids.contiguous()))


def _swapped(model: Model, t: int) -> tuple[Edit, Edit]:
    """Position embeddings 0 and t in each other's place."""
    at = model.anatomy.embed_positions(torch.tensor([0, t], device=model.device))
    if at is None:
        raise ValueError(f"{model.name} has no position embeddings to swap.")
    first, other = at.detach()
    return Edit("hook_pos_embed", "set", other, pos=0), Edit("hook_pos_embed", "set", first, pos=t)


def _stream_size(probe: _Probe, layer: int, pos: int, context: int, bos: bool | str) -> Tensor:
    site, prompts = f"blocks.{check_layer(probe.model, layer)}.hook_resid_post", probe.cut(context, bos, probe.windows)
    parts = [probe.model.capture(part, site)[site][:, pos].double().abs().sum(0) for part in _parts(probe, prompts)]
    return torch.stack(parts).sum(0) / len(prompts)


def _parts(probe: _Probe, prompts: Prompts) -> Iterator[Prompts]:
    model = probe.model
    matrices = model.n_layers * model.n_heads * prompts.width
    for rows in row_chunks(prompts, prompts.width * (3 * model.d_vocab + 2 * matrices) * model.dtype.itemsize, BUDGET):
        yield prompts[rows]
