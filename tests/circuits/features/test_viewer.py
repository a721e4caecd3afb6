"""Feature graphs for circuit-tracer's viewer: every field of the schema, links that join nodes, and what was left out is said."""

import json

import pytest

from circuits.features import viewer
from circuits.features.building import feature_graph
from tests.circuits.features.made_up import prompt, random_coders
from tests.circuits.test_tracer import LINK, METADATA, NODE, QPARAMS, has


@pytest.mark.parametrize("target", [None, (7, 9)])
def test_a_written_graph_has_every_field_and_the_weights_of_its_edges(load, tmp_path, target):
    model = load("opt")
    graph = feature_graph(model, prompt(6), random_coders(model, (0, 2)), target=target).prune(0.9, 0.95)
    viewer.write(tmp_path / "graph.json", graph)
    found = json.loads((tmp_path / "graph.json").read_text())
    assert has(found["metadata"], METADATA) and has(found["qParams"], QPARAMS)
    assert all(has(node, NODE) for node in found["nodes"]) and all(has(link, LINK) for link in found["links"])
    ids = [node["node_id"] for node in found["nodes"]]
    assert len(set(ids)) == len(ids) and {end for link in found["links"] for end in (link["source"], link["target"])} <= set(ids)
    kinds = {"cross layer transcoder": "feature", "embedding": "embed"}
    for theirs, ours in kinds.items():
        mine = [node for node in graph.nodes if node.kind == ours]
        assert len(mine) == sum(node["feature_type"] == theirs for node in found["nodes"]) > 0
    table = graph.table()
    between = table[table.source.str.startswith("feature") & table.target.str.startswith("feature")]
    names = {node["node_id"] for node in found["nodes"] if node["feature_type"] == "cross layer transcoder"}
    weights = sorted(link["weight"] for link in found["links"] if {link["source"], link["target"]} <= names)
    assert weights == pytest.approx(sorted(between.weight))
    assert "pos_embed" in found["metadata"]["info"]["left_out"] and found["metadata"]["info"]["features_of"] == graph.n_active
    assert [g["slug"] for g in json.loads((tmp_path / "graph-metadata.json").read_text())["graphs"]] == ["graph"]
    with pytest.raises(ValueError, match="Prune it first"):
        viewer.write(tmp_path / "graph.json", graph, most=1)
    with pytest.raises(ValueError, match="is a .json file"):
        viewer.write(tmp_path / "graph.txt", graph)
