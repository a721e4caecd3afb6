"""The task is what it says, the measures are interp's own, and training makes a sink with softmax and none with ReLU."""

import json

import pytest
import torch

from experiments import sinks
from experiments.sinks import BOS, Config, Task

TINY = {"steps": 2, "batch": 4, "length": 12, "d_model": 16, "vocab": 12}


def test_after_a_trigger_the_token_before_it_comes_again_and_elsewhere_the_table_decides():
    config = Config(vocab=10, triggers=2)
    task = Task.make(config)
    ids = task.sample(400, 20, torch.Generator().manual_seed(0))
    assert (ids[:, 0] == BOS).all() and (ids[:, 1:] != BOS).all()
    trigger = task.is_trigger(ids)
    assert not trigger[:, 1].any() and trigger[:, 2:].any()
    row, at = trigger[:, :-1].nonzero(as_tuple=True)
    assert torch.equal(ids[row, at + 1], ids[row, at - 1])
    counts = torch.zeros(10, 10)
    counts.index_put_((ids[:, :-1][~trigger[:, :-1]], ids[:, 1:][~trigger[:, :-1]]), torch.tensor(1.0), accumulate=True)
    often = counts.sum(1) > 300
    torch.testing.assert_close((counts / counts.sum(1, keepdim=True))[often], task.table[often], atol=0.12, rtol=0)


def test_the_least_loss_is_the_entropy_of_the_table_where_no_trigger_stands():
    task = Task.make(Config(vocab=10, triggers=2))
    ids = task.sample(3, 8, torch.Generator().manual_seed(1))
    by_hand = [0.0 if 1 <= int(ids[r, i]) <= 2 else -float(task.table[ids[r, i], ids[r, i + 1]].log()) for r in range(3) for i in range(7)]
    assert task.least_loss(ids) == pytest.approx(sum(by_hand) / len(by_hand))


def test_relu_attention_is_causal_sums_to_anything_and_is_zero_where_scores_are_negative():
    q, k, v = torch.randn(3, 2, 1, 5, 4, generator=torch.Generator().manual_seed(0))
    z, pattern = sinks.relu_attention(None, q, k, v, None)
    scores = q @ k.mT / 2
    for i in range(5):
        for j in range(5):
            wanted = scores[:, 0, i, j].clamp(min=0) / (i + 1) if j <= i else torch.zeros(2)
            torch.testing.assert_close(pattern[:, 0, i, j], wanted)
    torch.testing.assert_close(z, (pattern @ v).transpose(1, 2))


@pytest.mark.parametrize("attention", ["softmax", "relu"])
def test_a_run_measures_before_and_after_and_interp_sees_the_same_patterns(attention, tmp_path, monkeypatch):
    monkeypatch.setitem(sinks.RUNS, "tiny", Config(attention, layers=2, **TINY))
    out = tmp_path / "sinks.json"
    sinks.main(["tiny"], out)
    found = json.loads(out.read_text())["runs"]["tiny"]
    assert len(found["trained"]["layers"]) == len(found["untrained"]["layers"]) == 2
    assert found["trained"]["loss"] > found["trained"]["least_loss"] > 0
    assert ("interp" in found) == (attention == "softmax")
    if attention == "softmax":
        assert found["interp"]["pattern_difference"] < 1e-5
        assert all(layer["total_attention"] == pytest.approx(1, abs=1e-5) for layer in found["trained"]["layers"])


def test_an_unknown_attention_is_refused():
    with pytest.raises(ValueError, match="softmax or relu"):
        sinks.train(Config("linear"))


@pytest.mark.slow
def test_training_makes_a_sink_with_a_small_value_under_softmax_and_none_under_relu():
    before = sinks.measure(sinks.make_model(Config()).eval(), Task.make(Config()), Config())["layers"][0]
    soft, hard = (sinks.measure(*sinks.train(config), config)["layers"][0] for config in (Config(), Config("relu")))
    assert soft["sink_mass"] > 1.8 * before["sink_mass"] and soft["bos_elsewhere"] > 5 * soft["bos_on_triggers"]
    assert soft["value_ratio"] < 0.6 < 0.7 < hard["value_ratio"]
    assert hard["sink_rate"] == 0 and hard["bos_elsewhere"] < 0.01
