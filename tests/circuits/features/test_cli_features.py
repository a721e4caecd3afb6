"""`interp circuit features` says what the library computes, and refuses in one line."""

import json

from typer.testing import CliRunner

import interp
import saes
from circuits.cli import app
from circuits.features import feature_graph

TEXT = "The project lasted from the year 13 54 to the year 13"


def run(*words: str, status: int = 0) -> str:
    result = CliRunner().invoke(app, ["features", "demo-gpt2", TEXT, *words], env={"COLUMNS": "160"})
    assert result.exit_code == status, result.output
    return result.output


def test_features_prints_and_writes_the_graph_of_a_prompt(tmp_path):
    said = run("--answers", "71,51", "--max-nodes", "30", "--out", str(tmp_path / "graph.json"), "--device", "cpu")
    found = json.loads((tmp_path / "graph.json").read_text())
    model = interp.load("demo-gpt2", "cpu")
    ids = [model.encode(word, bos=False).rows()[0][0] for word in ("71", "51")]
    graph = feature_graph(model, TEXT, saes.bundled("demo-gpt2"), (ids[0], ids[1]), max_nodes=30)
    assert f"30 of {graph.n_active} active features" in said and f"completeness score {graph.scores.completeness:.3f}" in said
    assert [node["id"] for node in found["nodes"]] == [node.id for node in graph.nodes]


def test_an_answer_that_is_no_token_is_refused():
    assert "does not know 'nonsense'" in run("--answers", "nonsense", status=2)
    assert "An answer is one token" in run("--answers", "71 51", status=2)


def test_coders_are_read_from_the_folder_that_training_writes(tmp_path):
    """Named by their site, as `interp train transcoder --out` does, or numbered: the same graph."""
    for layer, coder in enumerate(saes.bundled("demo-gpt2")):
        coder.save(tmp_path / "named" / f"blocks.{layer}.hook_mlp_out")
        coder.save(tmp_path / "numbered" / str(layer))
    (tmp_path / "named" / "training.jsonl").write_text("")
    options = ("--max-nodes", "20", "--device", "cpu")
    bundled = run(*options)
    assert run(*options, "--coders", str(tmp_path / "named")) == bundled
    assert run(*options, "--coders", str(tmp_path / "numbered")) == bundled


def test_a_folder_without_coders_is_refused(tmp_path):
    assert "There is no folder" in run("--coders", str(tmp_path / "none"), status=2)
    assert "holds no folders of coders" in run("--coders", str(tmp_path), status=2)
