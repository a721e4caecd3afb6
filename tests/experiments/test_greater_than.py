"""The greater-than study: its metric, its curves' ends, and what published numbers are compared with."""

import json
from pathlib import Path

import pytest
import torch

import interp
import saes
from experiments import greater_than
from experiments.greater_than import Config, Sentences


@pytest.fixture(scope="module")
def model() -> interp.Model:
    return interp.load("demo-gpt2")


@pytest.fixture(scope="module")
def given(model) -> Sentences:
    return greater_than.sentences(model, "voyage", "16")


def test_the_metric_is_the_share_of_later_years_less_that_of_the_others(given):
    logits = torch.full((2, 200), -1e9)
    logits[0, given.years[given.starts[0] + 1 :]] = 0.0
    logits[1, given.years] = 0.0
    rows = torch.tensor([0, given.starts.index(49)])
    later, even = given.metric(logits, rows).tolist()
    assert later == pytest.approx(1.0) and even == pytest.approx(0.0, abs=1e-6)  # 50 years later than 49, 50 not


def test_all_neurons_are_the_clean_model_and_what_fills_the_rest_does_not_matter_when_nothing_is_left(model, given):
    coder = saes.bundled("demo-gpt2")[2]
    some = Sentences(given.prompts[[10, 40, 80]], tuple(given.starts[i] for i in (10, 40, 80)), given.years)
    found = greater_than.curves(Config(sizes=(0, 4)), model, coder, 2, some)
    clean = float(some.metric(some.prompts.last(model.logits(some.prompts)), torch.arange(3)).mean())
    for kind, size in (("neurons", model.d_mlp), ("features", coder.n_features)):
        ends = [found[f"{kind}, others {fill}"][str(size)] for fill in ("zero", "mean")]
        assert ends[0] == pytest.approx(ends[1], abs=1e-5)
        assert kind == "features" or ends[0] == pytest.approx(clean, abs=1e-5)
    assert found["features, others zero"]["0"] != pytest.approx(found["features, others mean"]["0"], abs=1e-4)


def test_published_numbers_pass_within_the_tolerance_and_belong_to_their_model():
    path = Path(greater_than.__file__).parent / "configs" / "greater_than_gpt2.json"
    data = json.loads(path.read_text())
    curve = {"20": 0.8435 + 2 * data["tolerance"], "21": 0.8433}
    summary = {"model": "gpt2", "layers": {"clean": 0.88, "10 replaced": 0.9}, "curves": {"features, others mean": curve}}
    rows = {row["what"]: row["passes"] for row in greater_than.check(path, summary)}
    assert rows["layers: clean"] and not rows["layers: 10 replaced"] and rows["features, others mean: 21"]
    assert not rows["features, others mean: 20"] and not rows["features, others mean: 22"]  # off, and not measured
    with pytest.raises(ValueError, match="is of gpt2"):
        greater_than.check(path, summary | {"model": "demo-gpt2"})
