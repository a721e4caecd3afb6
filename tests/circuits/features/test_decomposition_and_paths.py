"""One named route at a time: direct addends sum to the target, a head's is its part of the whole, and paths keep the sum."""

import json

import networkx
import pytest
import torch

import interp
from circuits.features.backward import edges, feature_readouts, logit_readouts
from circuits.features.decomposition import EXPANDABLE, decompose, expand
from circuits.features.paths import feature_paths
from circuits.features.replacement import LocalReplacement, local_replacement
from tests.circuits.features.made_up import VARIANTS, prompt, random_coders

EXACT = 1e-9


@pytest.fixture
def run(request, load) -> LocalReplacement:
    model = load(request.param)
    return local_replacement(model, prompt(5), random_coders(model, (0, 2)))[0]


def targets(run: LocalReplacement):
    top = run.layers[2].active
    one = [int((top.pos == 4).nonzero()[0])]
    yield feature_readouts(run, 2, top.pos[one], top.feature[one])
    yield logit_readouts(run, torch.tensor([7]), torch.tensor([9]), torch.tensor([4]))


@pytest.mark.parametrize("run", VARIANTS, indirect=True)
def test_direct_addends_sum_to_the_target_and_so_do_those_of_each_addend(run):
    for target in targets(run):
        whole = decompose(run, target)
        assert abs(float(whole.values.sum()) - whole.value) < EXACT and whole.value == float(target.values)
        for part in [p for p in whole.top(len(whole)) if p.kind in EXPANDABLE][::17]:
            below = decompose(run, expand(run, target, part))
            assert abs(float(below.values.sum()) - part.contribution) < EXACT, part


@pytest.mark.parametrize("run", [v for v in VARIANTS if v != "gpt2-scaled"], indirect=True)
def test_one_edge_is_the_sum_of_all_named_routes_between_its_ends(run):
    """Every route from the embedding of position 1 to the target, head by head (features in between stand still)."""
    target = next(targets(run))
    whole = edges(run, target)[0, run.blocks["embed", -1]][1]

    def routes(reading) -> float:
        total = 0.0
        found = decompose(run, reading)
        for part in found.top(len(found)):
            if part.kind == "embed" and part.pos == 1:
                total += part.contribution
            elif part.kind in ("head", "skip") and part.pos >= 1:
                total += routes(expand(run, reading, part))
        return total

    assert routes(target) == pytest.approx(float(whole), abs=EXACT)


def test_a_heads_part_is_its_pattern_times_what_its_value_writes(load):
    model = load("opt")
    run = local_replacement(model, prompt(5), random_coders(model))[0]
    target = next(targets(run))
    cap = model.capture(run.prompts, ["blocks.1.attn.hook_result", "blocks.1.attn.hook_pattern", "blocks.1.attn.hook_v"])
    heads = decompose(run, target).heads(model.n_layers, model.n_heads, run.n_pos)
    written = cap["blocks.1.attn.hook_result"][0, 4] @ target.vectors[0]
    assert (heads[1].sum(1) - written).abs().max() < EXACT
    value = cap["blocks.1.attn.hook_v"][0, 2, 3] @ model.anatomy.blocks[1].weight_out()[3].detach() @ target.vectors[0]
    assert float(heads[1, 3, 2]) == pytest.approx(float(cap["blocks.1.attn.hook_pattern"][0, 3, 4, 2] * value), abs=EXACT)


@pytest.mark.parametrize("run", ["gpt2", "neox", "opt-postln"], indirect=True)
@pytest.mark.parametrize("sign", [0, 1, -1])
def test_what_flows_into_a_node_of_merged_paths_flows_out_of_it(run, sign):
    for target in targets(run):
        found = feature_paths(run, target, "goal", length=4, branches=6, sign=sign)
        graph = found.networkx()
        sources = {"error", "bias", "pruned", "not traced"}
        for node in graph:
            into = sum(graph.edges[e]["weight"] for e in graph.in_edges(node))
            out = sum(graph.edges[e]["weight"] for e in graph.out_edges(node))
            if node == "goal":
                assert into == pytest.approx(found.value, abs=EXACT)
            elif node not in sources and not node.startswith(("embed", "pos_embed")):
                assert into == pytest.approx(out, abs=EXACT), node
        assert networkx.is_directed_acyclic_graph(graph)
        wrong = [p for some in found.paths for p in some if sign * p.contribution < 0]
        assert not wrong and len(found.table()) == sum(map(len, found.paths))


def test_a_wide_enough_search_finds_the_largest_path(load):
    model = load("gpt2")
    run = local_replacement(model, prompt(3), random_coders(model, skip=False))[0]
    target = next(iter(targets_at(run, 2)))
    wide, narrow = (feature_paths(run, target, length=2, branches=b) for b in (4000, 3))
    best = []
    whole = decompose(run, target)
    for part in whole.top(len(whole)):
        if part.kind in ("feature", "head"):
            below = decompose(run, expand(run, target, part))
            best += [p.contribution for p in below.top(len(below)) if p.kind in ("feature", "head", "embed", "pos_embed")]
    assert wide.paths[1][0].contribution == pytest.approx(max(best, key=abs), abs=EXACT)
    assert abs(narrow.paths[1][0].contribution) <= abs(wide.paths[1][0].contribution) and len(narrow.paths[1]) == 3
    assert narrow.paths[0] == wide.paths[0][:3]
    assert max(p.contribution for p in feature_paths(run, target, length=2, sign=-1).paths[0]) < 0


def targets_at(run: LocalReplacement, pos: int):
    top = run.layers[2].active
    one = [int((top.pos == pos).nonzero()[0])]
    yield feature_readouts(run, 2, top.pos[one], top.feature[one])


def test_decompositions_and_paths_refuse_what_they_cannot_do(load):
    model: interp.Model = load("gpt2")
    run = local_replacement(model, prompt(4), random_coders(model))[0]
    target = next(targets_at(run, 3))
    whole = decompose(run, target, "L2 #3")
    embed = next(p for p in whole.top(len(whole)) if p.kind == "embed")
    with pytest.raises(ValueError, match="no input to be traced to"):
        expand(run, target, embed)
    with pytest.raises(KeyError, match="No kind"):
        whole.of("nothing")
    with pytest.raises(ValueError, match="from 1"):
        feature_paths(run, target, length=0)
    assert whole.table().contribution.abs().is_monotonic_decreasing and len(json.loads(str(whole.figure(7).to_json()))["data"][0]["y"]) == 7
    assert all(p.contribution > 0 for p in whole.top(5, 1)) and all(p.contribution < 0 for p in whole.top(5, -1))
