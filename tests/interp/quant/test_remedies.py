"""The remedies sandbox: rows equal evaluations by hand, calibration is apart, plans are data, planted outliers are recovered from."""

import json

import pytest
import torch

import interp
from interp import quant
from interp.attention_variants import AttentionVariant
from interp.quant.remedies.head_edits import no_op_heads
from interp.quant.remedies.plans import REMEDIES

ROWS = [[2, *torch.randint(3, 50, (n,), generator=torch.Generator().manual_seed(n)).tolist()] for n in range(3, 15)]
PROMPTS = interp.Prompts.from_ids(ROWS)
OTHERS = interp.Prompts.from_ids([[2, 4, 9, 4, 8], [2, 11, 40, 7, 3, 9], [2, 9, 9, 31]])
ALL = (
    quant.Clip(99.0), quant.Granularity("token", "channel"), quant.FirstPosition(keep=False), quant.KeepFeatures(2),
    quant.Leave(("q", "ln_final")), quant.Smooth((0.3, 0.6)), quant.Rotate(seed=4, heads=False),
    quant.EditHeads(((0, 1), (2, 3)), "scale", 0.25), quant.AttentionFormula("clipped", gamma=-0.1),
)  # fmt: skip


def test_rows_equal_evaluations_by_hand(load):
    model = load("gpt2")
    found = quant.remedy(model, PROMPTS, [quant.Clip(99.0), quant.Rotate(), (quant.Rotate(), quant.Smooth(0.4), quant.KeepFeatures(2))],
                         "w6a6", calibration=OTHERS, batches=2)  # fmt: skip
    turned = quant.rotate(model)
    both = quant.smooth(turned, OTHERS, 0.4)
    by_hand = [
        quant.evaluate(model, PROMPTS, "w6a6", calibration=OTHERS, batches=2),
        quant.evaluate(model, PROMPTS, "w6a6", calibration=OTHERS, batches=2, activation_range=99.0),
        quant.evaluate(turned, PROMPTS, "w6a6", calibration=OTHERS, batches=2),
        quant.evaluate(both, PROMPTS, "w6a6", calibration=OTHERS, batches=2, keep=2),
    ]
    for row, hand in zip(found.rows, by_hand, strict=True):
        assert row.evaluation.loss_quantized == pytest.approx(hand.loss_quantized, abs=1e-9)
        assert row.evaluation.kl == pytest.approx(hand.kl, abs=1e-9) and row.evaluation.sqnr == pytest.approx(hand.sqnr, abs=1e-6)
        assert row.loss_float == pytest.approx(found.loss) and row.kl_float == pytest.approx(0, abs=1e-9)
        assert row.evaluation.n_quantized == by_hand[0].n_quantized
    first, last = found.rows[0], found.rows[-1]
    assert found.recovered(last) == pytest.approx(1 - last.evaluation.kl / first.evaluation.kl) and found.recovered(first) == 0
    assert by_hand[0].damage < 0  # random weights: the loss has no damage to recover
    assert found.recovered(last, "damage") != found.recovered(last, "damage")
    assert found.best.evaluation.kl == pytest.approx(min(hand.kl for hand in by_hand))
    assert found["clip at 99 %"] is found.rows[1] and len(found.table()) == 4 and found.figure().data
    plain = json.loads(found.to_json())
    assert plain["rows"][3]["plan"][1] == {"remedy": "smooth", "alpha": 0.4} and plain["n_calibration"] == 3
    with pytest.raises(KeyError, match="rotate"):
        found["turn"]


def test_calibration_and_evaluation_prompts_are_disjoint_and_said(load, monkeypatch):
    model, seen = load("opt"), {}
    import interp.quant.remedies.report as module

    def spy(ready, scheme, calibration=None):
        if calibration is not None:
            seen["fitted"] = {tuple(row) for row in calibration.rows()}
        return quant.quantize(ready, scheme, calibration)

    monkeypatch.setattr(module, "quantize", spy)
    twice = interp.Prompts.from_ids([*ROWS, *ROWS[:4]])
    found = quant.remedy(model, twice, [], "a8", share=0.5, seed=3)
    measured = found.n_evaluated
    assert len(seen["fitted"]) == 6 and found.n_calibration + measured == 16 and found.left_out == 0
    assert found.n_tokens == sum(len(row) - 1 for row in twice.rows() if tuple(row) not in seen["fitted"])
    assert found.rows[0].evaluation.calibrated_on == f"{found.n_calibration} other prompts"
    given = quant.remedy(model, twice, [], "a8", calibration=interp.Prompts.from_ids(ROWS[:2]))
    assert (given.n_calibration, given.n_evaluated, given.left_out) == (2, 12, 4)
    for same in (lambda: quant.remedy(model, PROMPTS, [], calibration=PROMPTS), lambda: quant.remedy(model, PROMPTS[[0, 0]], [])):
        with pytest.raises(ValueError, match="prompts"):
            same()


def test_plans_of_remedies_round_trip_through_json():
    assert {type(item) for item in ALL} == set(REMEDIES.values()), "every remedy is tried here"
    text = quant.remedies_to_json(ALL)
    assert quant.remedies_from_json(text) == ALL and len({hash(item) for item in ALL}) == len(ALL)
    assert len({item.name for item in ALL}) == len(ALL)
    assert quant.remedies_from_json(quant.remedies_to_json(quant.EditHeads())) == (quant.EditHeads(),)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: quant.remedies_from_json("{"), "Not JSON"),
        (lambda: quant.remedies_from_json('{"remedy": "clip"}'), "list"),
        (lambda: quant.remedies_from_json('[{"remedy": "smoth"}]'), "did you mean 'smooth'"),
        (lambda: quant.remedies_from_json('[{"remedy": ["clip"]}]'), "No remedy"),
        (lambda: quant.remedies_from_json('[{"remedy": "clip", "percent": 3}]'), "percentile; given percent"),
        (lambda: quant.Clip(30.0), "above 50"),
        (lambda: quant.Clip("99"), "above 50"),
        (lambda: quant.Smooth(1.5), "from 0"),
        (lambda: quant.Smooth(()), "given none"),
        (lambda: quant.KeepFeatures(0), "1 or more"),
        (lambda: quant.Leave(("nope",)), "resid_post"),
        (lambda: quant.Granularity("channel"), "'token'"),
        (lambda: quant.EditHeads(((1, 2),), "double"), "'mean'"),
        (lambda: quant.EditHeads(()), "at least one"),
        (lambda: quant.Rotate(seed=0.5), "whole number"),
    ],
)
def test_what_is_no_remedy_is_said(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_what_does_not_go_together_is_said(load):
    model = load("gpt2")
    for item, scheme, said in [
        (quant.Clip(), "w8a8-token", "static ranges"),
        (quant.EditHeads(((0, 9),)), "w8a8", "heads 0-3"),
        ("clip", "w8a8", "Clip"),
        (quant.KeepFeatures(32), "w8a8", "leaves nothing"),
        (quant.KeepFeatures(), "llm.int8", "decompose"),
    ]:
        with pytest.raises(ValueError, match=said):
            quant.remedy(model, PROMPTS, [item], scheme)
    with pytest.raises(ValueError, match="between 0 and 1"):
        quant.remedy(model, PROMPTS, [], share=1.5)
    with pytest.raises(ValueError, match="one token"):
        quant.remedy(model, interp.Prompts.from_ids([[2], [3], [4]]), [])


def test_an_attention_formula_switched_on_after_training_is_charged_for(load):
    model = load("opt")
    items = [quant.AttentionFormula("softmax-1"), quant.AttentionFormula("clipped", gamma=-0.2), quant.AttentionFormula("softmax")]
    found = quant.remedy(model, PROMPTS, items, "a8", calibration=OTHERS)
    for row, variant in zip(found.rows[1:3], ("softmax-1", AttentionVariant("clipped", gamma=-0.2)), strict=True):
        losses = interp.loss_per_token(model.with_attention(variant).logits(PROMPTS), PROMPTS)
        assert row.loss_float == pytest.approx(float(losses[~losses.isnan()].mean())) and row.kl_float > 0.01
    assert "nothing changed" in found.rows[3].notes[0] and found.rows[3].kl_float == 0
    with pytest.raises(ValueError, match="have to be trained"):
        quant.AttentionFormula("gated-linear")


@pytest.mark.parametrize("op", ["zero", "mean", "scale"])
def test_edited_heads_are_charged_for_what_they_change(load, op):
    model = load("opt")
    item = quant.EditHeads(((1, 2), (2, 0)), op, 0.5)
    found = quant.remedy(model, PROMPTS, [item], quant.Scheme(weight_bits=None, activations=()), calibration=OTHERS)
    row = found.rows[1]
    edits = []
    for layer, head in item.heads:
        site = f"blocks.{layer}.attn.hook_z"
        value = {"zero": None, "scale": 0.5, "mean": None}[op]
        edits.append(
            interp.Edit(site, "set", model.mean(OTHERS, site)[head], head=head) if op == "mean" else interp.Edit(site, op, value, head=head)
        )
    logits = model.logits(PROMPTS, edits)
    losses = interp.loss_per_token(logits, PROMPTS)
    assert row.loss_float == pytest.approx(float(losses[~losses.isnan()].mean())) == pytest.approx(row.evaluation.loss_quantized)
    assert row.kl_float == pytest.approx(row.evaluation.kl) and row.kl_float > 0 and found.recovered(row) != found.recovered(row)


def test_no_op_heads_are_found_on_calibration_prompts_and_none_is_said(folders):
    model = interp.load(folders["gpt2"], dtype="float64")
    block = model.anatomy.blocks[1]
    with torch.no_grad():  # head 3 of layer 1 attends to the first token, always, and writes nothing
        weight, bias = block.qkv[0].weight, block.qkv[0].bias
        d, mine = model.d_model, slice(3 * model.d_head, 4 * model.d_head)
        weight[:, :d][:, mine], bias[:d][mine] = 0, 1.0
        block.out.weight[mine] = 0
        weight[:, d : 2 * d][:, mine] = torch.linalg.pinv(block.norm1.weight[None] * _normed(model, 1))[:, :1] * 50
    assert no_op_heads(model, OTHERS, 0.5)[0] == (1, 3)
    found = quant.remedy(model, PROMPTS, [quant.EditHeads(least=0.5), quant.EditHeads(least=1.5)], "a8", calibration=OTHERS)
    assert "1.3" in found.rows[1].notes[0] and found.rows[1].kl_float < 1e-9 and "nothing changed" in found.rows[2].notes[0]


def _normed(model, layer):
    """What position 0 (token 2) gives after the norm, and others after it."""
    x = model.capture(OTHERS, f"blocks.{layer}.ln1.hook_normalized")[f"blocks.{layer}.ln1.hook_normalized"]
    return torch.cat([x[0, :1], x[0, 1:5]])


@pytest.fixture(scope="module", params=["gpt2", "opt", "neox"])
def planted(request, load):
    """A model with an outlier dimension, and one with a massive first token."""
    model = load(request.param)
    return quant.plant_dimension(model, 5, 300.0), quant.plant_token(model, 3000.0, token=2)


def test_remedies_recover_what_a_planted_outlier_dimension_breaks(planted):
    model = planted[0]
    found = quant.remedy(model, PROMPTS, [quant.Clip(99.9), quant.Smooth(0.5), quant.Rotate(), quant.KeepFeatures(1)], calibration=OTHERS)
    clean = quant.remedy(quant.smooth(model, OTHERS), PROMPTS, [], calibration=OTHERS).rows[0].evaluation.kl
    assert found.rows[0].evaluation.kl > 5 * clean
    for name in ("smooth, alpha 0.5", "rotate", "keep 1 feature"):
        assert found.recovered(found[name]) > 0.8, name
    assert found.recovered(found["clip at 99.9 %"]) < 0.5  # one entry in 32 is beyond the others: no rare value


def test_remedies_recover_what_a_planted_massive_token_breaks(planted):
    model = planted[1]
    plan = [quant.FirstPosition(True), quant.Rotate(), quant.Granularity(), quant.KeepFeatures(1), quant.Smooth(0.5)]
    found = quant.remedy(model, PROMPTS, plan, "a8", calibration=OTHERS)  # the embedding table with this row is no better to round
    assert found.rows[0].inf_norm > 2900 > 100 > found["rotate"].inf_norm
    for name in ("position 0 in floating point", "rotate"):
        assert found.recovered(found[name]) > 0.8, name
    for name in ("keep 1 feature", "smooth, alpha 0.5"):  # it is in all dimensions, and no norm lets it through
        assert abs(found.recovered(found[name])) < 0.5, name


def test_smoothing_before_a_rotation_has_no_effect_and_after_it_has(load):
    model = load("neox")
    rotated, before, after = (quant.Rotate(),), (quant.Smooth(0.8), quant.Rotate()), (quant.Rotate(), quant.Smooth(0.8))
    rows = quant.remedy(model, PROMPTS, [rotated, before, after], "w6a6", calibration=OTHERS).rows
    assert rows[2].evaluation.kl == pytest.approx(rows[1].evaluation.kl, rel=1e-6)
    assert rows[3].evaluation.kl != pytest.approx(rows[1].evaluation.kl, rel=1e-3)


def test_a_grid_of_alphas_takes_the_best_on_the_calibration_prompts(load):
    model = quant.plant_dimension(load("opt"), 5, 300.0)
    row = quant.remedy(model, PROMPTS, [quant.Smooth((0.0, 0.5, 1.0))], calibration=OTHERS).rows[1]
    cost = {a: quant.evaluate(quant.smooth(model, OTHERS, a), OTHERS).kl for a in (0.0, 0.5, 1.0)}
    assert row.notes == (f"alpha {min(cost, key=cost.get):g}",)


@pytest.mark.parametrize(
    "wrong",
    ['{"remedy": "leave", "activations": 5}', '{"remedy": "edit heads", "heads": [1, 2]}', '{"remedy": "edit heads", "heads": [[0, 1.5]]}',
     '{"remedy": "edit heads", "op": "scale", "factor": "half"}', '{"remedy": "first position", "keep": "no"}'],
)  # fmt: skip
def test_fields_of_another_type_are_refused(wrong):
    with pytest.raises(ValueError, match="given"):
        quant.remedies_from_json(f"[{wrong}]")
