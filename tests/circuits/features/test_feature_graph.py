"""Feature graphs: sums close before and after pruning, scores are what their definitions say, and files hold the whole."""

import json

import pytest
import torch

from circuits.features.building import Feature, feature_graph
from circuits.features.graph import ERRORS, TOKENS
from circuits.features.influence import influence, share_above
from circuits.features.replacement import BIASES, local_replacement
from tests.circuits.features.made_up import VARIANTS, prompt, random_coders

EXACT = 1e-9


@pytest.fixture(scope="module")
def graph(load):
    model = load("gpt2")
    return feature_graph(model, prompt(6), random_coders(model), max_nodes=1000)


def gap(graph) -> float:
    inner = ~graph.values.isnan()
    return float((graph.weights.sum(1) - graph.values)[inner].abs().max())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("max_nodes", [0, 9, 1000])
def test_sums_close_however_much_is_left_out(load, variant, max_nodes):
    model = load(variant)
    graph = feature_graph(model, prompt(5), random_coders(model, (0, 2)), max_nodes=max_nodes)
    assert graph.closure < EXACT and gap(graph) < EXACT
    assert graph.n_features <= min(max_nodes, graph.n_active)
    for thresholds in ((0.5, 0.5), (0.8, 0.98), (1.0, 1.0)):
        pruned = graph.prune(*thresholds)
        assert gap(pruned) < EXACT and len(pruned.nodes) <= len(graph.nodes) + 1
        assert [n for n in pruned.nodes if n.target] == [n for n in graph.nodes if n.target]


def test_scores_are_those_of_the_inverse_matrix(graph):
    kinds = [node.kind for node in graph.nodes]
    sizes = graph.weights.abs() * torch.tensor([kind not in BIASES for kind in kinds])
    shares = sizes / sizes.sum(1, keepdim=True).clamp_min(1e-300)
    paths = torch.linalg.inv(torch.eye(len(kinds), dtype=shares.dtype) - shares) - torch.eye(len(kinds), dtype=shares.dtype)
    reached = graph.target_weights @ paths
    assert (reached + graph.target_weights - graph.influence).abs().max() < EXACT
    tokens, errors = (sum(reached[i] for i, kind in enumerate(kinds) if kind in some) for some in (TOKENS, ERRORS))
    output = reached + graph.target_weights
    missing = shares[:, [kind in ERRORS for kind in kinds]].sum(1)
    assert graph.scores.replacement == pytest.approx(float(tokens / (tokens + errors)), abs=EXACT)
    assert graph.scores.completeness == pytest.approx(float(((1 - missing) * output).sum() / output.sum()), abs=EXACT)


@pytest.mark.parametrize("max_nodes", [7, 1000])
def test_totals_of_all_nodes_without_input_add_up_to_the_target(load, max_nodes):
    model = load("opt")
    whole = feature_graph(model, prompt(6), random_coders(model), target=(7, 9), max_nodes=max_nodes)
    for graph in (whole, whole.prune(0.7, 0.9)):
        leaves = graph.values.isnan()
        assert float(graph.totals[leaves].sum()) == pytest.approx(float(graph.values[-1]), abs=EXACT)
        assert float(graph.totals[-1]) == pytest.approx(float(graph.values[-1]), abs=EXACT)


def test_features_that_are_not_traced_count_against_both_scores(load, graph):
    model = load("gpt2")
    few = feature_graph(model, prompt(6), random_coders(model), max_nodes=10)
    assert few.n_features == 10 and few.n_active == graph.n_active > 10
    assert few.scores.replacement < graph.scores.replacement and few.scores.completeness < graph.scores.completeness
    none = feature_graph(model, prompt(6), random_coders(model), max_nodes=0)
    assert none.n_features == 0 and none.scores.replacement < few.scores.replacement
    assert next(n for n in none.nodes if n.kind == "unexpanded")


def test_a_target_can_be_tokens_a_difference_or_a_feature(load):
    model = load("neox")
    run = local_replacement(model, prompt(6), random_coders(model))[0]
    logits = model.logits(run.prompts)[0, -1]
    difference = feature_graph(model, run, target=(7, 9))
    assert float(difference.values[-1]) == pytest.approx(float(logits[7] - logits[9]), abs=EXACT)
    tokens = feature_graph(model, run, target=[7, 9])
    assert tokens.values[-2:].tolist() == pytest.approx((logits - logits.mean())[[7, 9]].tolist(), abs=EXACT)
    likely = feature_graph(model, run)
    p = logits.softmax(0).sort(descending=True).values
    assert likely.target_weights[-1] > 0 and likely.target_weights.sum() == pytest.approx(float(p[: sum(likely.target_weights > 0)].sum()))
    active = run.layers[2].active
    layer, pos, feature = 2, int(active.pos[-1]), int(active.feature[-1])
    own = feature_graph(model, run, target=Feature(layer, pos, feature))
    node = next(n for n in own.nodes if n.target)
    assert (node.layer, node.pos, node.feature) == (layer, pos, feature) and node.activation == pytest.approx(float(active.activation[-1]))
    assert all(n.kind != "logit" and (n.layer is None or n.layer <= 2) for n in own.nodes)
    silent = next(i for i in range(40) if i not in active.feature[active.pos == pos].tolist())
    assert gap(feature_graph(model, run, target=Feature(layer, pos, silent))) < EXACT


def test_pruning_keeps_the_most_influential_and_every_feature_reaches_a_target(graph):
    pruned = graph.prune(0.6, 0.9)
    assert pruned.n_features < graph.n_features and pruned.n_edges < graph.n_edges
    ids = {n.id for n in pruned.nodes}
    lost = [float(graph.influence[i]) for i, n in enumerate(graph.nodes) if n.id not in ids]
    assert graph.top(1)[0][0] in ids and max(lost) <= max(value for _, value in graph.top(1))
    digraph = pruned.networkx()
    import networkx

    targets = [n.id for n in pruned.nodes if n.target]
    reached = set().union(*(networkx.ancestors(digraph, t) for t in targets))
    assert {n.id for n in pruned.nodes if n.kind == "feature"} <= reached
    assert networkx.is_directed_acyclic_graph(digraph) and digraph.number_of_edges() == pruned.n_edges
    with pytest.raises(ValueError, match="share of the influence"):
        graph.prune(1.5)


def test_json_table_and_figure_hold_what_the_graph_holds(graph):
    plain = json.loads(graph.to_json())
    assert plain["features_of"] == graph.n_active and plain["features"] == graph.n_features and plain["edges_of"] == graph.n_edges
    assert [node["id"] for node in plain["nodes"]] == [node.id for node in graph.nodes]
    rebuilt = torch.zeros_like(graph.weights)
    for source, target, weight, _ in plain["edges"]:
        rebuilt[target, source] = weight
    assert (rebuilt - graph.weights).abs().max() < 1e-5 * graph.weights.abs().max()
    few = json.loads(graph.to_json(max_edges=5))
    assert len(few["edges"]) == 5 and few["edges_of"] == graph.n_edges and few["edges"] == plain["edges"][:5]
    table = graph.table()
    assert len(table) == graph.n_edges and table.influence.is_monotonic_decreasing
    assert table.groupby("target").weight.sum().to_dict() == pytest.approx(
        {n.id: float(v) for n, v in zip(graph.nodes, graph.values, strict=True) if v == v}
    )
    assert len(graph.node_table()) == len(graph.nodes)
    assert f"of {graph.n_active}" in graph.figure().layout.title.text


def test_what_does_not_fit_is_refused(load):
    model = load("gpt2")
    coders = random_coders(model)
    run = local_replacement(model, prompt(6), coders)[0]
    with pytest.raises(ValueError, match="of one prompt; given 2"):
        feature_graph(model, prompt(6)[[0, 0]], coders)
    with pytest.raises(ValueError, match="has its own model and coders"):
        feature_graph(model, run, coders)
    with pytest.raises(ValueError, match="max_nodes"):
        feature_graph(model, run, max_nodes=-1)
    with pytest.raises(ValueError, match="positions 0-5"):
        feature_graph(model, run, target=Feature(1, 9, 0))
    with pytest.raises(ValueError, match="outside the vocabulary"):
        feature_graph(model, run, target=99)
    with pytest.raises(ValueError, match="two token ids"):
        feature_graph(model, run, target=(1, 2, 3))
    with pytest.raises(KeyError, match="No node"):
        feature_graph(model, run)["nothing"]


def test_shares_are_counted_from_the_largest_and_cycles_are_refused():
    assert share_above(torch.tensor([1.0, 5.0, 0.0, 4.0]), 0.85).tolist() == [False, True, False, True]
    assert share_above(torch.tensor([1.0, 5.0, 0.0, 4.0]), 1.0).tolist() == [True, True, False, True]
    with pytest.raises(ValueError, match="cycle"):
        influence(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 1]), torch.tensor([1.0, 0.0]))
