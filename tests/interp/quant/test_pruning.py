"""Scores equal loops over weights, curves equal one forward per plan, and unstructured pruning zeroes what it says."""

import json

import pytest
import torch

import interp
from interp import Edit, quant
from interp.engine.anatomy import linear_weight
from interp.quant.pruning import SCORES
from interp.quant.sparsity import METHODS, lowest
from tests.tiny import N_HEADS, N_LAYERS

PROMPTS = interp.Prompts.from_ids([[2, 9, 4, 9, 17, 9, 4, 8], [2, 11, 5], [2, 40, 40, 7, 40]])
OTHERS = interp.Prompts.from_ids([[2, 8, 7, 6, 9, 11], [2, 30, 31]])


@pytest.fixture(scope="module", params=("gpt2", "opt", "neox", "opt-postln"))
def model(request, load):
    return load(request.param)


def mean_loss(model, prompts, edits=()):
    per_token = interp.loss_per_token(model.logits(prompts, edits), prompts)
    return float(per_token[~per_token.isnan()].mean())


def test_scores_equal_loops_over_weights_and_inputs(model):
    found = quant.prune(model, PROMPTS, counts=[1])
    for layer, block in enumerate(model.anatomy.blocks):
        capture = model.capture(PROMPTS, [f"blocks.{layer}.attn.hook_z", f"blocks.{layer}.mlp.hook_post"])
        z, post = capture.values()
        z, post = (torch.cat([x[r, :n] for r, n in enumerate(PROMPTS.lengths.tolist())]) for x in (z, post))
        for head in range(N_HEADS):
            w = block.weight_out()[head].detach()
            by_hand = sum(float(w[i].abs().sum() * z[:, head, i].norm()) for i in range(len(w)))
            assert float(found.heads["wanda"][layer, head]) == pytest.approx(by_hand)
            assert float(found.heads["magnitude"][layer, head]) == pytest.approx(float(w.abs().sum()))
        out = linear_weight(block.mlp_out).detach()
        assert float(found.mlps["wanda"][layer]) == pytest.approx(
            sum(float(out[i].abs().sum() * post[:, i].norm()) for i in range(len(out)))
        )
        effect = mean_loss(model, PROMPTS, [Edit(f"blocks.{layer}.hook_mlp_out", "zero")]) - mean_loss(model, PROMPTS)
        assert float(found.mlps["ablation"][layer]) == pytest.approx(effect, abs=1e-9)


def test_a_curve_is_one_forward_per_number_of_heads_lowest_first_on_the_held_out_prompts(model):
    counts = [1, 3, N_LAYERS * N_HEADS]
    found = quant.prune(model, PROMPTS, held_out=OTHERS, counts=counts)
    assert found.loss == pytest.approx(mean_loss(model, OTHERS)) and "other" in found.measured_on
    for name in SCORES:
        order = found.heads[name].flatten().argsort(stable=True).tolist()
        for n, effect in zip(counts, found.curves[name].tolist(), strict=True):
            plan = [Edit(f"blocks.{i // N_HEADS}.attn.hook_z", "zero", head=i % N_HEADS) for i in order[:n]]
            assert effect == pytest.approx(mean_loss(model, OTHERS, plan) - found.loss, abs=1e-9)
    ends = [float(curve[-1]) for curve in found.curves.values()]
    assert max(ends) - min(ends) < 1e-9 and float(found.spread[-1]) < 1e-9  # without any head the order does not matter
    assert len(found.table()) == 3 * 6 and len(found.scores_table()) == N_LAYERS * (N_HEADS + 1)
    assert json.loads(found.to_json())["counts"] == counts and found.figure().data


def test_heads_whose_output_weights_are_zero_go_first_by_every_score_but_random_and_cost_nothing(folders):
    model = interp.load(folders["gpt2"], dtype="float64")
    dead = [(0, 2), (1, 1), (2, 3)]
    with torch.no_grad():
        for layer, head in dead:
            model.anatomy.blocks[layer].weight_out()[head].zero_()
    report = quant.head_report(model, PROMPTS, eps=1e-6)
    found = quant.prune(model, PROMPTS, counts=[3, 4], report=report)
    for name in ("magnitude", "wanda", "norm", "no_op"):
        lowest_three = {divmod(i, N_HEADS) for i in found.heads[name].flatten().argsort(stable=True)[:3].tolist()}
        assert lowest_three == set(dead), name
        assert float(found.curves[name][0]) == 0 != float(found.curves[name][1])
        assert found.free(name, 1e-12) >= 3
    assert abs(float(found.curves["random"][0])) > 0 and set(found.correlations) == {"magnitude", "wanda", "norm", "no_op"}


def test_unstructured_pruning_equals_a_loop_and_leaves_the_model_alone(model):
    before = mean_loss(model, PROMPTS)
    found = quant.sparsify(model, PROMPTS, shares=[0.0, 0.5])
    assert mean_loss(model, PROMPTS) == before == pytest.approx(found.loss)
    for name in METHODS:
        assert float(found.losses[name][0]) == pytest.approx(found.loss, abs=1e-12) and float(found.zeros[name][0]) == 0
        assert float(found.zeros[name][1]) == pytest.approx(0.5) and abs(float(found.losses[name][1]) - found.loss) > 1e-4
    other = quant.sparsify(model, PROMPTS, shares=[0.5], methods=["wanda"], calibration=OTHERS)
    assert float(other.losses["wanda"][0]) != float(found.losses["wanda"][1])
    assert len(found.table()) == 6 and found.figure().data and json.loads(found.to_json())["shares"] == [0.0, 0.5]


def test_the_lowest_share_of_each_output_or_of_the_matrix_is_chosen():
    score = torch.tensor([[1.0, 9.0], [2.0, 8.0], [3.0, 7.0], [4.0, 6.0]])
    assert lowest(score, 0.5, True).tolist() == [[True, False], [True, False], [False, True], [False, True]]
    assert lowest(score, 0.5, False).tolist() == [[True, False]] * 4
    assert int(lowest(score, 0.3, True).sum()) == 2  # rounded down in each column


def test_what_cannot_be_pruned_is_said(load):
    model = load("gpt2")
    with pytest.raises(ValueError, match="from 1 to 12; given"):
        quant.prune(model, PROMPTS, counts=[13])
    with pytest.raises(ValueError, match="orders"):
        quant.prune(model, PROMPTS, orders=0)
    with pytest.raises(ValueError, match="report is of"):
        quant.prune(model, PROMPTS, report=quant.head_report(load("opt"), PROMPTS))
    with pytest.raises(KeyError, match="wanda"):
        quant.prune(model, PROMPTS, counts=[1]).free("nope")
    with pytest.raises(ValueError, match="No method"):
        quant.sparsify(model, PROMPTS, methods=["nope"])
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        quant.sparsify(model, PROMPTS, shares=[1.0])
