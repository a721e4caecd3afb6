"""`feature_graph`: from a prompt, transcoders and a target to the graph of what brings the target about."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits.features.backward import Readouts, edges, feature_readouts, logit_readouts
from circuits.features.graph import ERRORS, TOKENS, FeatureGraph, Node
from circuits.features.influence import Scores, influence, normalized, scores
from circuits.features.replacement import BIASES, LocalReplacement, local_replacement
from interp.models import Model
from interp.prompts import Prompts
from interp.selection import check_vocabulary, positions, token_ids, words
from saes.coders import Coder

ROUNDS = 4
"""Steps in which features are chosen where not all can be traced."""
MASS, MOST = 0.95, 10
"""Without a target: the likeliest next tokens, up to this probability together and this many."""


class Feature(NamedTuple):
    """A feature at a position, as a target."""

    layer: int
    pos: int
    feature: int


Target = None | int | Sequence[int] | tuple[int, int] | Feature | Readouts
Labels = Mapping[tuple[int, int], str]


def feature_graph(
    model: Model,
    prompt: "Prompts | str | LocalReplacement",
    coders: Sequence[Coder] = (),
    target: Target = None,
    pos: int = -1,
    max_nodes: int = 500,
    labels: Labels | None = None,
) -> FeatureGraph:
    """The graph of one prompt: every edge among the chosen features, from tokens, errors and biases, and to the target.

    prompt     one prompt, or its local replacement (then without coders), so that several targets share a run
    target     None: the likeliest next tokens; a token id or several; a tuple (correct, incorrect): their logit difference; Feature(...).
               Logits are taken from the mean over the vocabulary: what moves all alike changes no probability. Or Readouts of your own,
               such as `direction_readouts` of a mean over many tokens
    pos        where logits are read
    max_nodes  features to trace. Of more active ones those with the most influence are chosen, in four rounds; what the others bring
               stands in the node "unexpanded"
    labels     (layer, feature) -> text
    """
    run = _replacement(model, prompt, coders)
    if isinstance(max_nodes, bool) or not isinstance(max_nodes, int) or max_nodes < 0:
        raise ValueError(f"max_nodes is a number of features, 0 or more; given {max_nodes!r}.")
    with torch.no_grad():
        targets, nodes, start = _targets(run, target, pos)
        return _build(run, targets, nodes, start, max_nodes, labels or {}, {"max_nodes": max_nodes})


def _replacement(model: Model, prompt: "Prompts | str | LocalReplacement", coders: Sequence[Coder]) -> LocalReplacement:
    if isinstance(prompt, LocalReplacement):
        if coders or prompt.model is not model:
            raise ValueError("A local replacement has its own model and coders; give none beside it.")
        return prompt
    prompts = model.check_prompts(prompt)
    if len(prompts) != 1:
        raise ValueError(f"A feature graph is of one prompt; given {len(prompts)}. local_replacement(model, prompts, coders) reads many.")
    return local_replacement(model, prompts, coders)[0]


def _targets(run: LocalReplacement, target: Target, pos: int) -> tuple[Readouts, list[Node], Tensor]:
    """What is asked for: readouts, their nodes, the weights that influence starts from."""
    if isinstance(target, Readouts):
        return target, _direction_nodes(target), run.stream.new_full((len(target),), 1 / max(1, len(target)))
    if isinstance(target, Feature):
        return _feature_target(run, target)
    model, where = run.model, positions(run.prompts, pos).to(run.stream.device)
    minus = None
    start = run.stream.new_ones(1)
    if isinstance(target, tuple):
        if len(target) != 2:
            raise ValueError(f"A tuple is (correct, incorrect), two token ids; given {target!r}. Give other tokens as a list.")
        tokens, minus = token_ids(model, target[0], 1, "target"), token_ids(model, target[1], 1, "target")
    elif target is None:
        p = model.anatomy.logits(run.stream[where].to(model.dtype))[0].to(run.stream).softmax(0)
        start, tokens = p.topk(min(MOST, model.d_vocab))
        enough = int((start.cumsum(0) - start < MASS).sum())
        start, tokens = start[:enough], tokens[:enough]
    else:
        tokens = check_vocabulary(model, torch.as_tensor(target).reshape(-1), "target")
        start = run.stream.new_full((len(tokens),), 1 / max(1, len(tokens)))
    if not len(tokens):
        raise ValueError("No target token was given; None takes the likeliest ones.")
    readouts = logit_readouts(run, tokens, minus, where.expand(len(tokens)), centred=minus is None)
    return readouts, _logit_nodes(run, tokens, minus, int(where), readouts.values), start


def _feature_target(run: LocalReplacement, target: Feature) -> tuple[Readouts, list[Node], Tensor]:
    layer, pos, feature = target
    coder = run.layers[layer].coder if 0 <= layer < len(run.layers) else None
    if coder is None or not 0 <= feature < coder.n_features or not -run.n_pos <= pos < run.n_pos:
        covered = {frozen.layer: frozen.coder.n_features for frozen in run.layers if frozen.coder is not None}
        raise ValueError(
            f"{target}: the prompt has positions 0-{run.n_pos - 1}, and there are features of layers {covered} (layer: number)."
        )
    at = torch.tensor([pos % run.n_pos], device=run.stream.device)
    readouts = feature_readouts(run, layer, at, torch.tensor([feature], device=at.device))
    return readouts, [_feature_node(layer, pos % run.n_pos, feature, float(readouts.values), {}, True)], run.stream.new_ones(1)


def _logit_nodes(run: LocalReplacement, tokens: Tensor, minus: Tensor | None, pos: int, values: Tensor) -> list[Node]:
    known = words(run.model, tokens if minus is None else torch.cat([tokens, minus]))
    named = [known.get(i, str(i)) for i in tokens.tolist()]
    ids = [str(i) for i in tokens.tolist()]
    if minus is not None:
        ids, named = [f"{ids[0]}-{int(minus)}"], [f"{named[0]} - {known.get(int(minus), str(int(minus)))}"]
    return [
        Node(f"logit.{pos}.{own}", "logit", len(run.layers), pos, token, value, name, True)
        for own, token, value, name in zip(ids, tokens.tolist(), values.tolist(), named, strict=True)
    ]


def _direction_nodes(target: Readouts) -> list[Node]:
    each = zip(target.point.tolist(), target.pos.tolist(), target.values.tolist(), strict=True)
    return [
        Node(f"reading.{pos}.{i}", "logit", point // 2, pos, None, value, f"reading {i}", True)
        for i, (point, pos, value) in enumerate(each)
    ]


def _feature_node(layer: int, pos: int, feature: int, activation: float, labels: Labels, target: bool = False) -> Node:
    name = labels.get((layer, feature), f"L{layer} #{feature}")
    return Node(f"feature.{layer}.{pos}.{feature}", "feature", layer, pos, feature, activation, name, target)


def _build(
    run: LocalReplacement, targets: Readouts, target_nodes: list[Node], start: Tensor, max_nodes: int, labels: Labels, settings: dict
) -> FeatureGraph:
    columns = _Columns(run)
    device = run.stream.device
    rows, own, readouts = edges(run, targets), torch.tensor(columns.of(target_nodes), device=device), targets
    weights_of_rows = start
    chosen = torch.zeros(0, dtype=torch.long, device=device)
    while len(chosen) < min(max_nodes, columns.n_features):
        reached = columns.influence(rows, own, weights_of_rows)[0][: columns.n_features].clone()
        reached[own[own >= 0]] = -1.0  # traced already
        size = max_nodes if columns.n_features <= max_nodes else max(1, -(-max_nodes // ROUNDS))
        best = reached.argsort(descending=True, stable=True)[: min(size, max_nodes - len(chosen))]
        best = best[reached[best] > 0].sort().values
        if not len(best):
            break
        more = columns.readouts(best)
        rows, readouts = torch.cat([rows, edges(run, more)]), Readouts.join([readouts, more])
        own, chosen = torch.cat([own, best]), torch.cat([chosen, best])
        weights_of_rows = torch.nn.functional.pad(weights_of_rows, (0, len(best)))
    return _finish(run, columns, rows, readouts, own, weights_of_rows, target_nodes, labels, settings)


class _Columns:
    """The sources of a run as columns: features first, then tokens, errors and biases."""

    def __init__(self, run: LocalReplacement):
        self.run, self.n_features = run, run.n_features
        self.kinds: list[str] = []
        for (kind, _), block in run.blocks.items():
            self.kinds += [kind] * (block.stop - block.start)
        active = [layer.active for layer in run.layers]
        self.layer = torch.cat([torch.full_like(a.pos, layer.layer) for a, layer in zip(active, run.layers, strict=True)])
        self.pos, self.feature = torch.cat([a.pos for a in active]), torch.cat([a.feature for a in active])
        self.activation = torch.cat([a.activation for a in active])
        self.counted = self.having(BIASES, False)

    def having(self, kinds: Sequence[str], inside: bool = True) -> Bool[Tensor, " source"]:
        return torch.tensor([(kind in kinds) == inside for kind in self.kinds], device=self.run.stream.device)

    def of(self, nodes: Sequence[Node]) -> list[int]:
        """The columns in which nodes are sources, -1 for logits and for features that are not active."""
        found = []
        for node in nodes:
            same = (self.layer == node.layer) & (self.pos == node.pos) & (self.feature == node.feature)
            found.append(int(same.nonzero()) if node.kind == "feature" and bool(same.any()) else -1)
        return found

    def readouts(self, chosen: Tensor) -> Readouts:
        parts = []
        for layer in self.layer[chosen].unique().tolist():
            mine = chosen[self.layer[chosen] == layer]
            parts.append(feature_readouts(self.run, layer, self.pos[mine], self.feature[mine]))
        return Readouts.join(parts)

    def influence(self, rows: Float[Tensor, "target source"], own: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        return influence(normalized(rows, self.counted), own.to(rows.device), start)


def _finish(
    run: LocalReplacement, columns: _Columns, rows: Tensor, readouts: Readouts, own: Tensor, start: Tensor, targets: list[Node],
    labels: Labels, settings: dict[str, Any],
) -> FeatureGraph:  # fmt: skip
    """The graph of what was traced: columns that share a node are summed, and rows take their nodes' places."""
    traced = torch.zeros(len(columns.kinds), dtype=torch.bool, device=rows.device)
    traced[own[own >= 0]] = True
    by_id: dict[str, Node] = {}
    place = []  # of every column among the nodes
    index: dict[str, int] = {}
    for node in (*_column_nodes(columns, traced, labels), Node("constant", "constant", label="own bias")):
        place.append(index.setdefault(node.id, len(index)))
        by_id.setdefault(node.id, node)
    for node in targets:
        index.setdefault(node.id, len(index))
        by_id[node.id] = node
    column_of = own.tolist()
    row_place = [index[n.id] for n in targets] + [place[c] for c in column_of[len(targets) :]]
    every = torch.cat([rows, readouts.constants[:, None]], 1)
    summed = rows.new_zeros(len(rows), len(index)).index_add(1, torch.tensor(place, device=rows.device), every)
    weights, values = rows.new_zeros(len(index), len(index)), rows.new_full((len(index),), torch.nan)
    weights[row_place], values[row_place] = summed, readouts.values
    weight_of = rows.new_zeros(len(index))
    weight_of[row_place] = start
    graph = FeatureGraph(
        run.model.name, tuple(run.prompts.rows()[0]), _words(run), tuple(by_id.values()), weights.cpu(), values.cpu(), weight_of.cpu(),
        columns.n_features, float((readouts.values - every.sum(1)).abs().max()), _scores(columns, rows, own, start, traced),
        settings | {"targets": [n.id for n in targets]},
    )  # fmt: skip
    used = (graph.weights != 0).any(0) | (graph.weights != 0).any(1)
    return graph.only(used)


def _column_nodes(columns: _Columns, traced: Tensor, labels: Labels) -> Iterator[Node]:
    """The node of every column: features one by one where they were traced, biases summed over positions."""
    n = columns.n_features
    features = zip(*(x.tolist() for x in (columns.layer, columns.pos, columns.feature, columns.activation, traced[:n])), strict=True)
    for layer, pos, feature, activation, shown in features:
        yield (
            _feature_node(layer, pos, feature, activation, labels) if shown else Node("unexpanded", "unexpanded", label="features left out")
        )
    words = _words(columns.run)
    for (kind, layer), block in columns.run.blocks.items():
        for pos in range(block.stop - block.start) if kind != "feature" else ():
            if kind in BIASES:
                yield Node(f"{kind}.{layer}", kind, layer, label=f"L{layer} {kind}")
            elif kind in TOKENS:
                name = words[pos] if kind == "embed" else f"position {pos}"
                yield Node(f"{kind}.{pos}", kind, None, pos, columns.run.prompts.rows()[0][pos], label=name)
            else:
                yield Node(f"{kind}.{layer}.{pos}", kind, layer, pos, label=f"L{layer} {kind}")


def _scores(columns: _Columns, rows: Tensor, own: Tensor, start: Tensor, traced: Tensor) -> Scores:
    """Features that were not traced count as unexplained."""
    reached, through = columns.influence(rows, own, start)
    left_out = torch.zeros_like(columns.counted)
    left_out[: columns.n_features] = ~traced[: columns.n_features]
    unexplained = columns.having(ERRORS) | left_out
    return scores(normalized(rows, columns.counted), through, reached, start, columns.having(TOKENS), unexplained)


def _words(run: LocalReplacement) -> tuple[str, ...]:
    ids = run.prompts.ids[0]
    known = words(run.model, ids)
    return tuple(known.get(i, str(i)) for i in ids.tolist())
