"""Sensitivity: alone and left out equal runs by hand, the estimate is the first-order term, a planted culprit comes first."""

import json

import pytest
import torch

import interp
from interp import quant
from interp.quant import sensitivity
from tests.tiny import VARIANTS

PROMPTS = interp.Prompts.from_ids([[2, 9, 4, 9, 17, 9, 4, 8], [2, 11, 5]])
SCHEME = quant.Scheme(activations=("z", "ln1", "scores", "resid_post"), batches=1)


@pytest.fixture(scope="module", params=VARIANTS)
def model(request, load):
    return load(request.param)


def mean_loss(logits):
    return float(interp.loss_per_token(logits, PROMPTS).nanmean())


def test_alone_and_left_out_equal_runs_by_hand(model):
    found = sensitivity(model, PROMPTS, SCHEME)
    run = quant.quantize(model, SCHEME, PROMPTS)
    assert [t.tensor for t in found.tensors] == [*run.weights, *run.activations]
    assert found.loss == pytest.approx(mean_loss(model.logits(PROMPTS)))
    assert found.loss_quantized == pytest.approx(mean_loss(run.logits(PROMPTS)))
    by_name = {t.tensor: t for t in found.tensors}
    weight = by_name["blocks.1.mlp_out.weight"]
    with run.only_weights(("blocks.1.mlp_out.weight",)):
        assert weight.only == pytest.approx(mean_loss(run.logits(PROMPTS, only=())) - found.loss, abs=1e-12)
    with run.only_weights(set(run.weights) - {"blocks.1.mlp_out.weight"}):
        assert weight.without == pytest.approx(found.loss_quantized - mean_loss(run.logits(PROMPTS)), abs=1e-12)
    norm = by_name["blocks.2.ln1"]
    with run.only_weights(()):
        alone = run.logits(PROMPTS, only=("blocks.2.ln1",))
    clean = model.logits(PROMPTS)
    assert norm.only == pytest.approx(mean_loss(alone) - found.loss, abs=1e-12)
    p, q = clean.log_softmax(-1), alone.log_softmax(-1)
    counted = ~interp.loss_per_token(clean, PROMPTS).isnan()
    assert norm.only_kl == pytest.approx(float((p.exp() * (p - q)).sum(-1)[counted].mean()))
    assert torch.equal(run.logits(PROMPTS), quant.quantize(model, SCHEME, PROMPTS).logits(PROMPTS))  # all weights are back
    assert found.additive == pytest.approx(sum(t.only for t in found.tensors)) and (norm.layer, norm.kind, norm.role) == (
        2,
        "ln1",
        "activation",
    )
    assert len(found.table()) == len(found.tensors) and json.loads(found.to_json())["tensors"] and found.figure().data


def test_the_estimate_is_the_first_order_term_of_the_exact_change(model):
    """At 16 bits next to nothing is left beyond it."""
    found = sensitivity(model, PROMPTS, SCHEME, weight_bits=16, activation_bits=16)
    assert found.rank_correlation > 0.98
    for t in found.tensors:
        assert t.predicted == pytest.approx(t.only, abs=max(2e-7, 0.05 * abs(t.only))), t.tensor


@pytest.mark.parametrize("variant", ["gpt2", "opt", "neox"])
def test_the_kl_estimate_is_its_quadratic_form(load, variant):
    """Against the exact form 1/2 Var_p(dlogits) per token, with the logits' derivative along what rounding moves; near the measured KL."""
    model = load(variant)
    found = sensitivity(model, PROMPTS, SCHEME, draws=32)
    assert found.kl_rank_correlation > 0.95 and found.kl > 0
    run = quant.quantize(model, SCHEME, PROMPTS)
    clean, counted = model.logits(PROMPTS), ~interp.loss_per_token(model.logits(PROMPTS), PROMPTS).isnan()
    for name in ("blocks.1.mlp_out.weight", "blocks.0.ln1.weight"):
        weight, before, after = run.rounded[name]
        with run.only_weights(()):
            weight.data.copy_(before + 1e-4 * (after - before))
            moved = (run.logits(PROMPTS, only=()) - clean) * 1e4
        p = clean.softmax(-1)
        variance = (p * moved.square()).sum(-1) - (p * moved).sum(-1).square()
        exact = float(variance[counted].mean()) / 2
        tensor = next(t for t in found.tensors if t.tensor == name)
        assert tensor.predicted_kl == pytest.approx(exact, rel=0.5)  # 64 draws of 2 prompts
        assert exact == pytest.approx(tensor.only_kl, rel=0.5)


@pytest.mark.parametrize("change", [{"keep_first": True}, {"keep": 2}])
def test_estimates_know_what_stays_in_floating_point(load, change):
    found = sensitivity(load("opt"), PROMPTS, SCHEME, weight_bits=16, activation_bits=16, **change)
    assert found.rank_correlation > 0.98
    for t in found.tensors:
        assert t.predicted == pytest.approx(t.only, abs=max(2e-7, 0.05 * abs(t.only))), t.tensor


def test_a_planted_culprit_comes_first(folders):
    model = interp.load(folders["gpt2"], dtype="float64")
    with torch.no_grad():
        model.anatomy.blocks[1].mlp_out.weight[3, 5] = 300.0  # one entry stretches the range of all the others
        model.anatomy.blocks[1].mlp_in.bias[3] = -50.0  # and its neuron is never active
    found = sensitivity(model, PROMPTS, "w8")
    assert found.table()["tensor"][found.table().index[0]] == "blocks.1.mlp_out.weight"
    assert quant.head_sensitivity(model, PROMPTS, bits=3).grid.shape == (model.n_layers, model.n_heads)


def test_llm_int8_has_no_single_tensors(load):
    with pytest.raises(ValueError, match="whole products"):
        sensitivity(load("gpt2"), PROMPTS, "llm.int8")


@pytest.mark.parametrize(
    ("prompts", "options", "said"),
    [(interp.Prompts.from_ids([[2], [3]]), {}, "one token"), (PROMPTS, {"draws": 0}, "draws"),
     (PROMPTS, {"weight_bits": None, "activation_bits": None}, "no tensor")],
)  # fmt: skip
def test_what_has_no_sensitivity_is_refused(load, prompts, options, said):
    with pytest.raises(ValueError, match=said):
        sensitivity(load("gpt2"), prompts, **options)


def test_one_tensor_has_no_rank_correlation(load):
    found = sensitivity(load("gpt2"), PROMPTS, weight_bits=None, activations=("ln_final",))
    assert len(found.tensors) == 1 and json.loads(found.to_json())["rank_correlation"] is None and "NaN" not in found.to_json()
