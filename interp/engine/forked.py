"""The forked batch: the blocks run by hand on the rows that differ from the clean run, and only on the tokens that do.

One pass serves the clean run, which records what rows start from, and the edited rows, which join where they leave it. All tokens of
all rows are one matrix [token, d_model], so norms, projections and MLP are one operation per layer; attention alone knows rows. In
the last layer only the position that is read keeps its query and MLP. The weights are those of the Hugging Face modules.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor, nn

from interp.engine.anatomy import Anatomy, Block, linear
from interp.engine.batch_attention import Bucket, attend, make_buckets
from interp.engine.hooked import visited_norm
from interp.engine.operations import Layout, apply
from interp.engine.rows import RowEdits, Rows
from interp.engine.seam import edit_seen
from interp.prompts import Prompts
from interp.sites import Stage


@dataclass(frozen=True, eq=False)
class Clean:
    """What the clean run of some of the prompts left for rows to start from."""

    prompts: Prompts
    """All prompts of the sweep."""
    place: np.ndarray
    """Prompt -> its row in the clean run."""
    offset: np.ndarray
    """Prompt -> its first token in the clean run, which holds the prompts without padding."""
    n_tokens: int
    tensors: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    """(layer, name) -> [token, ...]; [row, ...] in a trimmed last layer."""

    @classmethod
    def of(cls, prompts: Prompts, part: np.ndarray) -> "Clean":
        lengths = prompts.lengths.cpu().numpy()
        place, offset = np.zeros(len(prompts), dtype=np.int64), np.zeros(len(prompts), dtype=np.int64)
        place[part], offset[part] = np.arange(len(part)), np.cumsum(lengths[part]) - lengths[part]
        return cls(prompts, place, offset, int(lengths[part].sum()))


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows on their way through the blocks. With `trim` the last layer keeps only the last token of each row."""

    anatomy: Anatomy
    rows: Rows
    clean: Clean
    edits: RowEdits | None = None
    trim: bool = True
    clean_rows: int = 0
    """How many of the first rows are the clean run itself; the others start from it. 0: the clean run was made before."""
    wanted: frozenset[tuple[int, str]] = frozenset()
    """What to record of the clean rows into `clean`."""

    @cached_property
    def device(self) -> torch.device:
        return self.clean.prompts.ids.device

    @cached_property
    def layout(self) -> Layout:
        return self.rows.layout(self.device)

    @cached_property
    def last_layout(self) -> Layout:
        return self.layout.last()

    @cached_property
    def token_ends(self) -> np.ndarray:
        """Tokens of the first i rows, i = 0 .. rows."""
        return np.concatenate([[0], np.cumsum(self.rows.tokens)])

    @cached_property
    def positions(self) -> np.ndarray:
        """Position of every token."""
        return np.arange(self.token_ends[-1]) - np.repeat(self.token_ends[:-1] - self.rows.start, self.rows.tokens)

    @cached_property
    def source(self) -> Tensor:
        """The clean token of every token."""
        return self.tensor(np.repeat(self.clean.offset[self.rows.prompt], self.rows.tokens) + self.positions)

    @cached_property
    def source_row(self) -> Tensor:
        """The clean run's row of every row."""
        return self.tensor(self.clean.place[self.rows.prompt])

    @cached_property
    def moved(self) -> Tensor:
        """Per row: how many tokens its edits changed by more than rounding."""
        return torch.zeros(len(self.rows), device=self.device)

    @cached_property
    def last_token(self) -> Tensor:
        return self.tensor(self.token_ends[1:] - 1)

    @cached_property
    def rotary(self) -> tuple[Tensor, Tensor] | None:
        """cos and sin of every token's position, [token, 1, rotary dims]."""
        if self.anatomy.rotary is None:
            return None
        ids = torch.arange(self.clean.prompts.width, device=self.device)[None]
        cos, sin = self.anatomy.rotary(self.anatomy.token_embed.weight[:1], position_ids=ids)
        at = self.tensor(self.positions)
        return cos[0, at, None], sin[0, at, None]

    @cached_property
    def _matrix_edits(self) -> bool:
        names = [f"blocks.{b.layer}.attn.hook_{x}" for b in self.anatomy.blocks for x in ("attn_scores", "pattern")]
        return self.edits is not None and any(name in self.edits for name in names)

    @cached_property
    def buckets(self) -> list[Bucket]:
        return self._buckets(self.rows.start)

    @cached_property
    def last_buckets(self) -> list[Bucket]:
        return self._buckets(self.rows.length - 1)

    def _buckets(self, first_query: np.ndarray) -> list[Bucket]:
        n_clean = self.clean.n_tokens if self.borrows_keys else 0  # clean rows of this batch are its first own tokens
        keys = self.clean.prompts.width if self._matrix_edits else None
        return make_buckets(self.rows, first_query, self.clean.offset, n_clean, self.device, keys)

    @cached_property
    def borrows_keys(self) -> bool:
        """Whether rows attend to keys and values of a clean run made before: some start after position 0."""
        return not self.clean_rows and bool((self.rows.start > 0).any())

    def tensor(self, x: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(x)).to(self.device)


def run(batch: Batch) -> Tensor:
    """The stream after the last block, [row, d_model] of last tokens with `trim`, else [token, d_model]."""
    blocks = batch.anatomy.blocks
    x = torch.empty(0, batch.anatomy.d_model, dtype=batch.anatomy.token_embed.weight.dtype, device=batch.device)
    if batch.rows.count(0, Stage.EMBED):
        x = _embed(batch)
    first = int(batch.rows.layer[0]) if len(batch.rows) else len(blocks)
    for block in blocks[first:]:
        x = _run_block(batch, block, x)
    return x


def unembed(batch: Batch, x: Tensor, layout: Layout) -> Tensor:
    """Logits of the stream after the last block."""
    anatomy = batch.anatomy
    if anatomy.final_norm is not None:
        x = _norm(batch, "ln_final", anatomy.final_norm, x, layout)
    return anatomy.unembed_normed(x)


def _embed(batch: Batch) -> Tensor:
    n = int(batch.token_ends[batch.rows.count(0, Stage.EMBED)])
    ids = batch.clean.prompts.ids[batch.tensor(np.repeat(batch.rows.prompt, batch.rows.tokens)[:n]), batch.tensor(batch.positions[:n])]
    x = _visit(batch, "hook_embed", batch.anatomy.embed_tokens(ids), batch.layout)
    at = batch.anatomy.embed_positions(batch.tensor(batch.positions[:n]))
    return x if at is None else x + _visit(batch, "hook_pos_embed", at, batch.layout)


def _run_block(batch: Batch, block: Block, x: Tensor) -> Tensor:
    layer, rows = block.layer, batch.rows
    trim = batch.trim and layer == batch.anatomy.n_layers - 1
    layout = batch.last_layout if trim else batch.layout
    visit = partial(_visit_in, batch, f"blocks.{layer}.")
    norm = partial(_norm, batch)
    at_start, at_z, at_mid, at_end = (rows.count(layer, stage) for stage in (Stage.START, Stage.Z, Stage.MID, Stage.END))

    _record(batch, (layer, "resid"), x)
    x = _join(batch, x, (layer, "resid"), rows.count(layer, Stage.EMBED) if layer == 0 else rows.count(layer - 1, Stage.END), at_start)
    x = visit("hook_resid_pre", x, batch.layout)
    z = x.new_empty(0, block.n_heads, batch.anatomy.d_head)
    if at_start:
        h = x if block.wiring == "post-norm" else norm(f"blocks.{layer}.ln1", block.norm1, x, batch.layout)
        z = _attention(batch, block, h, at_start, trim)
        x = x[batch.last_token[:at_start]] if trim else x
    _record(batch, (layer, "stream"), x, trim)
    _record(batch, (layer, "z"), z, trim)

    z = _join(batch, z, (layer, "z"), at_start, at_z, trim)
    x = _join(batch, x, (layer, "stream"), at_start, at_z, trim)
    z = visit("attn.hook_z", z, layout)
    attn_out = visit("hook_attn_out", _attention_out(batch, block, z, layout), layout)
    mid = x + attn_out
    if block.wiring == "post-norm":
        mid = norm(f"blocks.{layer}.ln1", block.norm1, mid, layout)
    _record(batch, (layer, "mid"), mid, trim)

    mid = _join(batch, mid, (layer, "mid"), at_z, at_mid, trim)
    if block.wiring == "parallel":
        x = _join(batch, x, (layer, "stream"), at_z, at_mid, trim)
        h = norm(f"blocks.{layer}.ln2", block.norm2, x, layout)
    else:
        mid = visit("hook_resid_mid", mid, layout)
        h = mid if block.wiring == "post-norm" else norm(f"blocks.{layer}.ln2", block.norm2, mid, layout)
    pre = visit("mlp.hook_pre", linear(block.mlp_in, h), layout)
    post = visit("mlp.hook_post", block.activate(pre), layout)
    x = mid + visit("hook_mlp_out", linear(block.mlp_out, post), layout)
    if block.wiring == "post-norm":
        x = norm(f"blocks.{layer}.ln2", block.norm2, x, layout)
    _record(batch, (layer, "end"), x, trim)

    x = _join(batch, x, (layer, "end"), at_mid, at_end, trim)
    return visit("hook_resid_post", x, layout)


def _attention(batch: Batch, block: Block, h: Tensor, n_rows: int, trim: bool) -> Tensor:
    """z [query token, head, d_head] of the first n_rows rows."""
    layer, layout = block.layer, batch.layout
    visit = partial(_visit_in, batch, f"blocks.{layer}.attn.")
    q_layout = batch.last_layout if trim else layout
    if trim:
        last = batch.last_token[:n_rows]
        q, k, v = block.project_last(h, last)
    else:
        last = slice(None)
        q, k, v = block.project_qkv(h)
    q, k, v = visit("hook_q", q, q_layout), visit("hook_k", k, layout), visit("hook_v", v, layout)
    if batch.rotary is not None:
        cos, sin = (x[: len(h)] for x in batch.rotary)
        q, k = visit("hook_rot_q", rotate(q, cos[last], sin[last]), q_layout), visit("hook_rot_k", rotate(k, cos, sin), layout)
    _record(batch, (layer, "k"), k)
    _record(batch, (layer, "v"), v)
    clean_kv = (batch.clean.tensors[layer, "k"], batch.clean.tensors[layer, "v"]) if batch.borrows_keys else None
    edits = batch.edits
    touched = edits is not None and any(f"blocks.{layer}.attn.hook_{x}" in edits for x in ("attn_scores", "pattern"))
    matrices = partial(_visit_matrix, batch, layer) if touched else None
    variant = block.variant
    z = attend(batch.last_buckets if trim else batch.buckets, n_rows, q, k, v, clean_kv, block.score_scale, matrices, variant)
    return z if variant is None or not variant.spec.is_gate else z * visit("hook_gate", variant.gate(h[last]), q_layout)


def _visit_matrix(batch: Batch, layer: int, name: str, x: Tensor, keep: Tensor, layout: Layout, members: np.ndarray) -> Tensor:
    assert batch.edits is not None
    operations = batch.edits.at(f"blocks.{layer}.{name}", layout, members)
    if not operations:
        return x
    rows, queries = x.shape[0], x.shape[2]

    moved = torch.zeros(rows, device=x.device)
    hidden = ~keep.expand(rows, 1, queries, x.shape[3])[:, 0].flatten(0, 1)

    def edit(seen: Tensor) -> Tensor:
        flat = apply(operations, seen.transpose(1, 2).flatten(0, 1), inplace=True, moved=moved, hidden=hidden)
        return flat.unflatten(0, (rows, queries)).transpose(1, 2)

    x = edit_seen(name, x, keep, edit)
    batch.moved[batch.tensor(members)] += moved
    return x


def _attention_out(batch: Batch, block: Block, z: Tensor, layout: Layout) -> Tensor:
    out = linear(block.out, z.flatten(1))
    site = f"blocks.{block.layer}.attn.hook_result"
    if batch.edits is None or site not in batch.edits:
        return out
    result = torch.einsum("thd,hdm->thm", z, block.weight_out())
    return out + (_visit(batch, site, result.clone(), layout) - result).sum(1)


def _norm(batch: Batch, name: str, norm: nn.LayerNorm, x: Tensor, layout: Layout) -> Tensor:
    sites = (f"{name}.hook_scale", f"{name}.hook_normalized")
    if batch.edits is None or not any(site in batch.edits for site in sites):
        return (
            nn.functional.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps) if type(norm) is nn.LayerNorm else norm(x)
        )
    visits: list[Callable[[Tensor], Tensor]] = [lambda t, site=site: _visit(batch, site, t, layout) for site in sites]
    return visited_norm(norm, x, *visits)


def _visit_in(batch: Batch, prefix: str, name: str, x: Tensor, layout: Layout) -> Tensor:
    return _visit(batch, prefix + name, x, layout)


def _visit(batch: Batch, site: str, x: Tensor, layout: Layout) -> Tensor:
    """`x` [token, (head,) d] with the batch's edits at this site."""
    if batch.edits is None or site not in batch.edits:
        return x
    operations = batch.edits.at(site, layout)
    flat = x if x.ndim == 3 else x.unsqueeze(1)
    return apply(operations, flat, inplace=True, moved=batch.moved).reshape(x.shape)  # in place: a batch owns its tensors


def _join(batch: Batch, x: Tensor, name: tuple[int, str], before: int, after: int, trim: bool = False) -> Tensor:
    """`x` with the rows before..after appended, as the clean run left them."""
    if before == after:
        return x
    clean = batch.clean.tensors[name]
    if trim:
        new = clean.index_select(0, batch.source_row[before:after])
    else:
        new = clean.index_select(0, batch.source[int(batch.token_ends[before]) : int(batch.token_ends[after])])
    return torch.cat([x, new]) if len(x) else new


def _record(batch: Batch, name: tuple[int, str], x: Tensor, trim: bool = False) -> None:
    """Keeps the clean rows' part of x, a view: edits in place touch the other rows alone."""
    if name in batch.wanted:
        batch.clean.tensors[name] = x[: batch.clean_rows if trim else int(batch.token_ends[batch.clean_rows])]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of the first dimensions of x [token, head, d_head] (GPT-NeoX's halves)."""
    n = cos.shape[-1]
    turned, rest = x[..., :n], x[..., n:]
    a, b = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat([-b, a], dim=-1) * sin
    return torch.cat([turned, rest], dim=-1) if rest.shape[-1] else turned


def record_names(rows: Rows, n_layers: int) -> frozenset[tuple[int, str]]:
    """What the clean run must record for these rows."""
    names: set[tuple[int, str]] = set()
    needs = {Stage.START: ("resid",), Stage.Z: ("z", "stream"), Stage.MID: ("mid", "stream"), Stage.END: ("end",), Stage.EMBED: ()}
    for layer, stage in {*zip(rows.layer.tolist(), rows.stage.tolist(), strict=True)}:
        names |= {(layer, name) for name in needs[Stage(stage)]}
    if len(rows) and (rows.start > 0).any():
        names |= {(layer, name) for layer in range(int(rows.layer.min()), n_layers) for name in "kv"}
    return frozenset(names)
