"""`interp quant`: what it prints is what the library found; what cannot be done is one line."""

import json

import pytest
from typer.testing import CliRunner

from interp import quant
from interp.models import load
from interp.quant.cli import app
from interp.quant.held_out import held_out
from interp.quant.html_report import write_html


@pytest.fixture(scope="module")
def model():
    return load("demo-gpt2")


@pytest.fixture(scope="module")
def halves():
    """The prompts that --atlas 4 measures on, and those that it calibrates on."""
    found = held_out(4)
    return found.prompts, found.calibration


def run(*words: str):
    return CliRunner().invoke(app, list(words))


def test_held_out_documents_are_of_many_kinds_and_in_one_half_alone():
    found = held_out(32)
    measured, other = ({tuple(row) for row in prompts.rows()} for prompts in (found.prompts, found.calibration))
    assert len(found.prompts) == len(found.calibration) == len(found.families) == 32 and not measured & other
    assert len(set(found.families)) > 5 and held_out(32).prompts.rows() == found.prompts.rows()
    with pytest.raises(ValueError, match="5000"):
        held_out(5000)


def test_evaluate_prints_the_library_s_numbers(model, halves):
    found = json.loads(run("evaluate", "demo-gpt2", "--atlas", "4", "--scheme", "w6a6", "--json").stdout)
    expected = quant.evaluate(model, halves[0], "w6a6", calibration=halves[1])
    assert found["loss_quantized"] == pytest.approx(expected.loss_quantized, abs=1e-6)
    assert found["n_activations"] == len(expected.activations) and "4 others" in found["documents"]


def test_a_report_joins_sizes_heads_trace_and_bits(model, halves, tmp_path):
    page = tmp_path / "deep" / "report.html"
    done = run("report", "demo-gpt2", "--atlas", "4", "--html", str(page), "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout[done.stdout.index("{") :])
    assert found["sizes"]["inf_norm"]["all"] == pytest.approx(quant.activation_statistics(model, halves[0]).inf_norm["all"], rel=1e-6)
    assert {"sizes", "heads", "trace", "bits"} < set(found)
    text = page.read_text()
    assert text.count("<h2>") == 4 and "blocks.3.hook_mlp_out" in text
    assert 'src="http' not in text and "cdn.plot" not in text.split("<body>")[0]


def test_sensitivity_names_the_worst_tensors_first():
    done = run("sensitivity", "demo-opt", "--atlas", "2", "--top", "3")
    assert done.exit_code == 0, done.output
    assert "the worst 3 of" in done.stdout and "rank correlation" in done.stdout


def test_remedies_of_a_file_are_tried_in_its_order(model, halves, tmp_path):
    (tmp_path / "plan.json").write_text(quant.remedies_to_json((quant.KeepFeatures(2), quant.Clip(99.9))))
    done = run("remedy", "demo-gpt2", "--atlas", "4", "--plan", str(tmp_path / "plan.json"), "--json")
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["rows"]
    expected = quant.remedy(model, halves[0], [(quant.KeepFeatures(2), quant.Clip(99.9))], calibration=halves[1])
    assert [row["remedy"] for row in rows] == ["none", "keep 2 features + clip at 99.9 %"]
    assert rows[1]["kl"] == pytest.approx(expected.rows[1].evaluation.kl, rel=1e-5)


def test_standard_remedies_fit_the_model_and_the_scheme(model, folders):
    from interp.quant.remedies.standard import standard_remedies

    plans, left_out = standard_remedies(model)
    assert len(plans) > 8 and not left_out
    dynamic, why = standard_remedies(model, "w8a8-token")
    assert len(dynamic) < len(plans) and "static ranges" in why[0]
    post, why = standard_remedies(load(folders["opt-postln"]))
    assert len(post) < len(plans) and "post-norm" in why[0]


@pytest.mark.parametrize(
    "words, said",
    [
        (("evaluate", "demo-gpt2"), "--text FILE and --atlas N"),
        (("evaluate", "demo-gpt2", "--atlas", "2", "--scheme", "w8a9"), "did you mean 'w8a8'"),
        (("evaluate", "demo-gpt2", "--text", "nowhere.txt"), "No file nowhere.txt"),
    ],
)
def test_what_cannot_be_done_is_one_line(words, said):
    done = run(*words)
    assert done.exit_code == 2 and said in done.stderr and done.stderr.count("\n") == 1


def test_one_text_is_too_few_to_find_ranges_on_others(tmp_path):
    (tmp_path / "one.txt").write_text("John and Mary went to the store\n")
    done = run("evaluate", "demo-gpt2", "--text", str(tmp_path / "one.txt"))
    assert done.exit_code == 2 and "at least two" in done.stderr


def test_a_page_says_nothing_that_was_not_measured(tmp_path):
    with pytest.raises(ValueError, match="nothing"):
        write_html(tmp_path / "a.html", "m", "d", {})
    with pytest.raises(KeyError, match="sises"):
        write_html(tmp_path / "a.html", "m", "d", {"sises": None})


def test_a_report_refuses_an_unknown_scheme_before_it_measures(monkeypatch):
    monkeypatch.setattr(quant, "activation_statistics", lambda *_, **__: pytest.fail("measured"))
    done = run("report", "demo-gpt2", "--atlas", "4", "--scheme", "w8a9")
    assert done.exit_code == 2 and "did you mean 'w8a8'" in done.stderr


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "empty.txt").touch()
    done = run("evaluate", "demo-gpt2", "--text", str(tmp_path / "empty.txt"))
    assert done.exit_code == 2 and "no texts" in done.stderr
