"""Sweeps: many plans on many prompts in one forked batch.

    res = interp.sweep(model, prompts, plans, metric)       res.values [plan, prompt], res.clean [prompt], res.effects

Results equal one full forward per plan. Chunks are sized to a memory budget. `path="hooked"` runs the slow reference instead; it is
also taken, visibly in `res.path`, where the weights do not lie whole on one device or where you have put hooks of your own on `model.hf`.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.edits import Edit, Plan
from interp.engine import forked
from interp.engine.forked import Batch, Clean
from interp.engine.hooked import foreign_hooks
from interp.engine.operations import Layout, apply
from interp.engine.plans import check_plan, resolve_means
from interp.engine.rows import RowEdits, Rows, plan_rows, ranges_over_positions
from interp.engine.seam import causal_mask
from interp.metrics import AnyMetric, Metric, check_metric, loss_per_token, measure, reads_tokens
from interp.models import Model, compile_plan
from interp.progress import reporting
from interp.prompts import Prompts
from interp.results import HeadSweep, SweepResult
from interp.sites import Stage

BUDGET = 512 * 2**20
CPU_BLOCK = 8 * 2**20
"""Bytes of the widest tensor of a chunk on a CPU. Larger ones leave the cache, and the allocator gives them fresh pages every time: a
matrix product of 8,192 tokens ran at 70 GFLOP/s where one of 1,024 ran at 97."""

Report = Callable[[int, int], Any]


def sweep(
    model: Model,
    prompts: "Prompts | str | Sequence[str]",
    plans: Sequence[Edit | Sequence[Edit]],
    metric: AnyMetric,
    *,
    budget: int = BUDGET,
    progress: Report | bool | None = None,
    path: str = "auto",
) -> SweepResult:
    """`metric` of every plan on every prompt.

    plans     a list of plans; each is an Edit or a tuple of Edits applied together
    metric    metric(logits [n, vocab], rows [n]) -> [n] at the last real position, or one of interp.metrics
    budget    bytes of activations to hold at once; a larger sweep runs in chunks
    progress  called with (rows done, rows in all) after each chunk; True draws a bar. What it raises ends the sweep
    path      "forked" (fast), "hooked" (one Hugging Face forward per plan, so that hooks of your own on `model.hf` act), or "auto"
    """
    prompts = model.check_prompts(prompts)
    model.check_whole()
    check_metric(metric, prompts)
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        raise ValueError(f"budget is a whole number of bytes above 0; given {budget!r}.")
    checked = [check_plan(model.sites(), prompts, plan) for plan in _as_plans(plans)]
    resolved = resolve_means(checked, lambda site: model.mean(prompts, site))
    path = _choose_path(model, path)
    run = _forked if path == "forked" else _hooked
    with torch.no_grad(), reporting(progress, "sweep") as report:
        with torch.inference_mode(path == "forked"):  # saves the bookkeeping of every operation
            clean, values, still = run(model, prompts, resolved, metric, budget, report)
        clean, values = clean.clone(), values.clone()  # ordinary tensors again
        _settle_identities(model, prompts, resolved, clean, values, still)
    name, unit = (metric.name, metric.unit) if isinstance(metric, Metric) else (getattr(metric, "__name__", "metric"), "")
    return SweepResult(tuple(checked), values, clean, name, unit, path, model.name)


def sweep_heads(
    model: Model,
    prompts: "Prompts | str | Sequence[str]",
    metric: AnyMetric,
    op: str = "zero",
    value: Any = None,
    site: str = "hook_z",
    **options: Any,
) -> HeadSweep:
    """One edit of every head in turn; `.grid` [layer, head] is its mean effect over prompts.

    `site` is one of attention's, such as hook_v.
    """
    plans = [
        (Edit(f"blocks.{layer}.attn.{site}", op, value, head=head),) for layer in range(model.n_layers) for head in range(model.n_heads)
    ]
    result = sweep(model, prompts, plans, metric, **options)
    return HeadSweep(**vars(result), n_layers=model.n_layers, n_heads=model.n_heads, op=op)


def _as_plans(plans: Sequence[Edit | Sequence[Edit]]) -> Sequence[Edit | Sequence[Edit]]:
    if isinstance(plans, Edit) or not isinstance(plans, Sequence):
        raise ValueError(f"sweep takes a list of plans, each a tuple of Edits; given {plans!r:.100}.")
    return plans


def _choose_path(model: Model, path: str) -> str:
    if path not in ("auto", "forked", "hooked"):
        raise ValueError(f"path is 'auto', 'forked' or 'hooked'; given {path!r}.")
    if path == "hooked":
        return path
    reason = None
    if len(set(getattr(model.hf, "hf_device_map", {}).values())) > 1 or model.device.type == "meta":
        reason = f"{model.name} is spread over several devices; the forked path needs it whole"
    elif hooked := foreign_hooks(model.hf):
        reason = f"{', '.join(hooked[:3])} of {model.name} carries hooks of yours, which the forked path would pass by"
    if path == "forked" and reason:
        raise ValueError(f"{reason}. Use path='hooked' or 'auto'.")
    return "hooked" if reason else "forked"


# --- the forked path --------------------------------------------------------------------------------------------------------


def _forked(
    model: Model, prompts: Prompts, plans: Sequence[Plan], metric: AnyMetric, budget: int, report: Report
) -> tuple[Tensor, Tensor, np.ndarray]:
    """Clean values [prompt], values [plan, prompt], and where [plan, prompt] the edits moved nothing beyond rounding."""
    trim = not reads_tokens(metric) and not any(_needs_all_positions(model, edit) for plan in plans for edit in plan)
    rows = plan_rows(model.sites(), prompts, plans, model.n_layers, trim)
    clean_values: list[Tensor] = []
    values: list[Tensor] = []
    still = np.zeros((len(plans), len(prompts)), dtype=bool)
    half = max(1, budget // 2)
    for part in _prompt_chunks(model, prompts, half):
        mine = rows if len(part) == len(prompts) else rows[np.isin(rows.prompt, part)]
        chunks = _row_chunks(model, mine, prompts.width, half, trim)
        done = int(part[0]) * len(plans) + len(part) * len(plans) - len(mine)  # rows that equal the clean run need no work
        runs = (
            _together(model, prompts, plans, part, mine, trim)
            if len(chunks) == 1
            else _apart(model, prompts, plans, part, mine, chunks, trim)
        )
        clean_batch, logits, _ = next(runs)
        measured = _Measured(metric, clean_batch, logits)
        column = measured.clean[None].repeat(len(plans), 1)
        for batch, logits, moved in runs:
            column[batch.tensor(batch.rows.plan), batch.source_row] = measured(batch, logits).to(column.dtype)
            still[batch.rows.plan, batch.rows.prompt] = (moved == 0).cpu().numpy()
            done += len(batch.rows)
            report(done, len(plans) * len(prompts))
        clean_values.append(measured.clean)
        values.append(column)
        if not len(mine):
            report(done, len(plans) * len(prompts))
    return torch.cat(clean_values), torch.cat(values, dim=1), still


_Outputs = Iterator[tuple[Batch, Tensor, Tensor]]  # rows, their logits at the last position ([token, vocab] if not trimmed), moved


def _together(model: Model, prompts: Prompts, plans: Sequence[Plan], part: np.ndarray, rows: Rows, trim: bool) -> _Outputs:
    """The clean rows and all edited rows in one pass; the clean ones come out first."""
    own, clean = _clean_rows(prompts, part), Clean.of(prompts, part)
    every = own.beside(rows)
    edits = RowEdits(model.sites(), every, plans, prompts.lengths)
    both = Batch(model.anatomy, every, clean, edits, trim, len(own), forked.record_names(rows, model.n_layers))
    logits = _logits(both)
    n = len(own) if trim else clean.n_tokens
    yield Batch(model.anatomy, own, clean, None, trim), logits[:n], both.moved[: len(own)]
    yield Batch(model.anatomy, rows, clean, None, trim), logits[n:], both.moved[len(own) :]


def _apart(model: Model, prompts: Prompts, plans: Sequence[Plan], part: np.ndarray, rows: Rows, chunks: list[Rows], trim: bool) -> _Outputs:
    """The clean rows, recorded, then one pass per chunk of edited rows."""
    own, clean = _clean_rows(prompts, part), Clean.of(prompts, part)
    batch = Batch(model.anatomy, own, clean, None, trim, len(own), forked.record_names(rows, model.n_layers))
    yield batch, _logits(batch), batch.moved
    for chunk in chunks:
        batch = Batch(model.anatomy, chunk, clean, RowEdits(model.sites(), chunk, plans, prompts.lengths), trim)
        yield batch, _logits(batch), batch.moved


def _clean_rows(prompts: Prompts, part: np.ndarray) -> Rows:
    zeros = np.zeros(len(part), dtype=np.int64)
    return Rows(zeros - 1, part, zeros, zeros + int(Stage.EMBED), zeros, prompts.lengths.cpu().numpy()[part])


def _logits(batch: Batch) -> Tensor:
    return forked.unembed(batch, forked.run(batch), batch.last_layout if batch.trim else batch.layout)


def _needs_all_positions(model: Model, edit: Edit) -> bool:
    """In the last layer a trimmed run has most sites at the last position alone."""
    return ranges_over_positions(edit) and model.sites()[edit.site].layer >= model.n_layers - 1


class _Measured:
    """The metric of the clean run, and of batches of rows beside it."""

    def __init__(self, metric: AnyMetric, batch: Batch, logits: Tensor):
        self.metric = metric
        if reads_tokens(metric):
            tokens = self._tokens(batch, logits)
            sums = tokens.double().cumsum(0)  # differences of these are taken: float32 would lose digits
            self.before = torch.cat([sums.new_zeros(1), sums])  # sum over the first i clean tokens
            self.clean = self._means(batch, tokens, 0.0)
        else:
            self.logits = logits if batch.trim else logits[batch.last_token]
            self.clean = measure(metric, self.logits, batch.tensor(batch.rows.prompt), self.logits)

    def __call__(self, batch: Batch, logits: Tensor) -> Tensor:
        if reads_tokens(self.metric):
            offset = batch.tensor(batch.clean.offset[batch.rows.prompt])
            return self._means(
                batch, self._tokens(batch, logits), self.before[offset + batch.tensor(batch.rows.start)] - self.before[offset]
            )
        logits = logits if batch.trim else logits[batch.last_token]
        return measure(self.metric, logits, batch.tensor(batch.rows.prompt), self.logits[batch.source_row])

    def _tokens(self, batch: Batch, logits: Tensor) -> Tensor:
        """The metric of every token; a prompt's last token has no next one and counts 0."""
        prompts, nexts = batch.clean.prompts, batch.positions + 1
        prompt, length = (np.repeat(a, batch.rows.tokens) for a in (batch.rows.prompt, batch.rows.length))
        ids = prompts.ids[batch.tensor(prompt), batch.tensor(np.minimum(nexts, prompts.width - 1))]
        return measure(self.metric, logits, ids, logits).masked_fill(batch.tensor(nexts >= length), 0.0)

    def _means(self, batch: Batch, tokens: Tensor, before: Tensor | float) -> Tensor:
        row = batch.tensor(np.repeat(np.arange(len(batch.rows)), batch.rows.tokens))
        total = tokens.new_zeros(len(batch.rows), dtype=torch.float64).index_add(0, row, tokens.double()) + before
        return (total / (batch.tensor(batch.rows.length) - 1)).to(tokens.dtype)


def _token_bytes(model: Model) -> int:
    """Bytes that one token of a row needs at the widest point of a block, temporaries included."""
    return (12 * model.d_model + 3 * model.d_mlp) * torch.finfo(model.dtype).bits // 8


def _most_tokens(model: Model) -> int:
    """Tokens that a chunk may hold for speed alone."""
    widest = max(model.d_mlp, 3 * model.d_model) * torch.finfo(model.dtype).bits // 8
    return max(1, CPU_BLOCK // widest) if model.device.type == "cpu" else 2**40


def _prompt_chunks(model: Model, prompts: Prompts, budget: int) -> list[np.ndarray]:
    """Prompts whose clean run, recorded at every layer, fits the budget."""
    size = torch.finfo(model.dtype).bits // 8
    per_prompt = prompts.width * (_token_bytes(model) + (model.n_layers * 6 * model.d_model + 2 * model.d_vocab) * size)
    step = max(1, min(budget // per_prompt, _most_tokens(model) // prompts.width))
    return [np.arange(i, min(i + step, len(prompts))) for i in range(0, len(prompts), step)]


def _row_chunks(model: Model, rows: Rows, width: int, budget: int, trim: bool) -> list[Rows]:
    """Consecutive rows that fit the budget together."""
    if not len(rows):
        return []
    size = torch.finfo(model.dtype).bits // 8
    matrices = 2 if model.attention.kind == "softmax" or model.attention.is_gate else 6  # scores and weights, and the formula's steps
    attention = 3 * width * model.d_model * size + rows.tokens * width * (matrices * model.n_heads * size + 4)
    logits = (1 if trim else rows.tokens) * model.d_vocab * 3 * size
    share = (rows.tokens * _token_bytes(model) + attention + logits) / budget
    total = np.cumsum(np.maximum(share, rows.tokens / _most_tokens(model)))
    edges, done = [0], 0.0
    for i in range(1, len(rows)):
        if total[i] - done > 1:
            edges.append(i)
            done = total[i - 1]
    return [rows[slice(a, b)] for a, b in zip(edges, [*edges[1:], len(rows)], strict=True)]


# --- the reference path, and exact zeros ------------------------------------------------------------------------------------


def _hooked(
    model: Model, prompts: Prompts, plans: Sequence[Plan], metric: AnyMetric, _budget: int, report: Report
) -> tuple[Tensor, Tensor, np.ndarray]:
    """One full forward of all prompts per plan."""
    rows = torch.arange(len(prompts), device=model.device)

    def value(plan: Plan) -> Tensor:
        logits = model.logits(prompts, plan)
        if reads_tokens(metric):
            return _token_mean(metric, logits, prompts)
        last = prompts.last(logits)
        return measure(metric, last, rows, last if not plan else clean_last)

    clean_last = prompts.last(model.logits(prompts))
    clean = value(())
    values = []
    for i, plan in enumerate(plans):
        values.append(value(plan))
        report((i + 1) * len(prompts), len(plans) * len(prompts))
    stacked = torch.stack(values) if values else clean.new_zeros(0, len(prompts))
    still = (stacked - clean).abs() <= 1e-4 * (1 + clean.abs())
    return clean, stacked, still.cpu().numpy()


def _token_mean(metric: Metric, logits: Tensor, prompts: Prompts) -> Tensor:
    if metric.name == "loss":
        return loss_per_token(logits, prompts).nanmean(1)
    real = torch.arange(prompts.width - 1, device=logits.device) < prompts.lengths[:, None] - 1
    out = logits.new_zeros(real.shape)
    out[real] = metric(logits[:, :-1][real], prompts.ids[:, 1:][real])
    return out.sum(1) / (prompts.lengths - 1)


def _settle_identities(model: Model, prompts: Prompts, plans: Sequence[Plan], clean: Tensor, values: Tensor, still: np.ndarray) -> None:
    """Gives exactly the clean value to plans that change no bit.

    Two batches differ by rounding even where nothing was edited. Where an edit moved nothing beyond rounding, the hooked run's own
    activations decide: if every edit leaves them bit-equal, the edited run is the clean run.
    """
    for i in np.flatnonzero(still.any(1)).tolist():
        if bool((values[i] == clean)[torch.from_numpy(still[i]).to(values.device)].all()):
            continue
        same = _changes_nothing(model, prompts, plans[i]) & torch.from_numpy(still[i]).to(values.device)
        values[i] = torch.where(same, clean, values[i])


def _changes_nothing(model: Model, prompts: Prompts, plan: Plan) -> Tensor:
    """Per prompt, whether the plan leaves the clean activations bit-equal."""
    same = torch.ones(len(prompts), dtype=torch.bool, device=model.device)
    operations = compile_plan(model.sites(), plan, Layout.padded(prompts.lengths, prompts.width), prompts.lengths)
    clean = model.capture(prompts, list(operations)) if operations else {}
    for site, ops in operations.items():
        x, hidden = clean[site], None
        if model.sites()[site].is_matrix:  # what the mask hides is no part of the activation
            hidden = ~causal_mask(prompts.width, prompts.width, x.device)
            x = x.masked_fill(hidden, 0.0).transpose(1, 2)
        flat = x.flatten(0, 1) if x.ndim == 4 else x.flatten(0, 1).unsqueeze(1)
        equal = (apply(ops, flat) == flat).unflatten(0, (len(prompts), prompts.width))
        same &= (equal if hidden is None else equal | hidden[:, None]).flatten(1).all(1)
    return same
