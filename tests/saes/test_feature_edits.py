"""Feature edits: what leaves a code alone changes no bit, and what changes it does to later features what the circuit's edges say."""

import json

import pytest
import torch

import interp
from circuits.features.backward import edges, feature_readouts
from circuits.features.replacement import local_replacement
from saes.feature_editing import FeatureEdit, feature_dose_response, feature_edits
from saes.replacing import replacements
from tests.circuits.features.made_up import VARIANTS, random_coder, random_coders
from tests.tiny import random_ids


@pytest.fixture(scope="module")
def load(folders):
    return lambda variant: interp.load(folders[variant], device="cpu", dtype="float64")


def ragged() -> interp.Prompts:
    return interp.Prompts.from_ids([random_ids(1, 6)[0].tolist(), random_ids(1, 4, 1)[0].tolist()])


def metric(model):
    return interp.logit_diff([5, 6], [7, 8])


def an_active(model, coder, prompts) -> int:
    """A feature that is active somewhere in the first prompt."""
    z = coder.encode(model.capture(prompts, [coder.input_site])[coder.input_site])
    return int(z[0, 3].argmax())


@pytest.mark.parametrize("variant", VARIANTS)
def test_scale_one_and_clamping_to_its_own_value_have_an_effect_of_exactly_zero(load, variant):
    model, prompts = load(variant), ragged()
    coder = random_coder(model, 1, skip=True)
    feature = an_active(model, coder, prompts)
    own = coder.encode(model.capture(prompts, [coder.input_site])[coder.input_site])[:, :, feature].detach()
    same = [FeatureEdit(coder, feature, "scale", 1.0), FeatureEdit(coder, feature, "clamp", own), FeatureEdit(coder, feature, "add", 0)]
    other = [FeatureEdit(coder, feature, "ablate"), FeatureEdit(coder, feature, "clamp", 0.0), FeatureEdit(coder, feature, "scale", 0)]
    plans = [feature_edits(model, prompts, e) for e in (*same, *other)]
    effects = interp.sweep(model, prompts, plans, metric(model)).effects
    assert not effects[:3].any() and effects[3].abs().max() > 1e-6
    ablated, clamped, scaled = (plan[0] for plan in plans[3:])
    assert (
        torch.equal(ablated.value, clamped.value) and torch.equal(ablated.value, scaled.value) and ablated.pos == clamped.pos == scaled.pos
    )


@pytest.mark.parametrize("errors", [True, False])
def test_a_plan_of_several_layers_is_the_model_with_the_edited_codes_in_place(load, errors):
    """The reference writes what the coders make of the run into the MLPs themselves."""
    model, prompts = load("gpt2"), ragged()
    coders = random_coders(model)
    edits = [
        FeatureEdit(coders[0], 3, "add", 2.0),
        FeatureEdit(coders[2], (1, 4), "clamp", 1.5, pos=-1),
        FeatureEdit(coders[1], 7, "ablate"),
    ]
    plan = feature_edits(model, prompts, edits, errors)
    hooks = []
    for layer, coder in enumerate(coders):
        mine = [e for e in edits if e.coder is coder]

        def write(module, args, output, coder=coder, mine=mine, layer=layer):
            norm = model.anatomy.blocks[layer].norm2
            x = (args[0] - norm.bias) / norm.weight  # the MLP's input without the norm's weight and bias
            z = coder.encode(x).detach()
            new = z.clone()
            for edit in mine:
                for row, length in enumerate(prompts.lengths.tolist()):
                    for pos in range(length) if edit.pos is None else [length + edit.pos]:
                        for f in edit.features:
                            new[row, pos, f] = {"add": float(new[row, pos, f]) + 2.0, "clamp": 1.5, "ablate": 0.0}[edit.op]
            return output + (new - z) @ coder.W_dec if errors else coder.decode(new) + (0 if coder.W_skip is None else x @ coder.W_skip.T)

        hooks.append(model.anatomy.blocks[layer].module.mlp.register_forward_hook(write))
    try:
        expected = model.hf(prompts.ids).logits.detach()
    finally:
        for hook in hooks:
            hook.remove()
    real = torch.arange(prompts.width) < prompts.lengths[:, None]
    assert (model.logits(prompts, plan) - expected)[real].abs().max() < 1e-9
    swept = interp.sweep(model, prompts, [plan], metric(model)).values[0]
    assert (swept - metric(model)(prompts.last(expected), torch.arange(2))).abs().max() < 1e-9


def test_without_errors_and_without_change_it_is_the_replaced_model(load):
    model, prompts = load("opt"), ragged()
    coders = random_coders(model)
    plan = feature_edits(model, prompts, [FeatureEdit(c, 0, "scale", 1.0) for c in coders], errors=False)
    for mine, theirs in zip(plan, replacements(model, prompts, coders), strict=True):
        assert (mine.site, mine.op) == (theirs.site, theirs.op) and torch.allclose(mine.value, theirs.value, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_with_attention_and_norms_frozen_a_later_feature_loses_exactly_the_edge(load, variant):
    model = load(variant)
    prompts = interp.Prompts.from_ids(random_ids(1, 5))
    coders = random_coders(model, (0, 1), skip=False)
    run = local_replacement(model, prompts, coders)[0]
    first, second = run.layers[0].active, run.layers[1].active
    source = int((first.pos == 2).nonzero()[0])
    row = edges(run, feature_readouts(run, 1, second.pos, second.feature))[:, run.blocks["feature", 0]][:, source]
    edit = FeatureEdit(coders[0], int(first.feature[source]), "ablate", pos=2)
    names = [f"blocks.{layer}.{name}" for layer in (0, 1) for name in ("attn.hook_pattern", "ln1.hook_scale", "ln2.hook_scale")]
    frozen = tuple(interp.Edit(site, "patch", value=x) for site, x in model.capture(prompts, names).items())
    plan = (*frozen, *feature_edits(model, prompts, edit))
    site = str(coders[1].input_site)
    before, after = (model.capture(prompts, [site], edits=e)[site][0] for e in (frozen, plan))
    change = (coders[1].pre_activations(after) - coders[1].pre_activations(before))[second.pos, second.feature].detach()
    assert (change + row).abs().max() < 1e-9 and row.abs().max() > 1e-4


def test_many_values_go_in_one_sweep_and_equal_one_run_each(load):
    model, prompts = load("neox"), ragged()
    coder = random_coder(model, 1)
    feature = an_active(model, coder, prompts)
    dose = feature_dose_response(model, prompts, coder, feature, [0, 1, 5.0], metric(model), pos=-1)
    for value, row in zip([0.0, 1.0, 5.0], dose.values, strict=True):
        logits = model.logits(prompts, feature_edits(model, prompts, FeatureEdit(coder, feature, "clamp", value, pos=-1)))
        assert (row - metric(model)(prompts.last(logits), torch.arange(2))).abs().max() < 1e-9
    scaled = feature_dose_response(model, prompts, coder, feature, [1.0], metric(model), op="scale")
    assert not scaled.effects.any()
    assert len(dose.table()) == 6 and json.loads(dose.to_json())["doses"] == [0, 1, 5] and dose.figure().to_json()


def test_an_autoencoder_of_head_outputs_and_positions_from_the_end_work_alike(load):
    import saes

    model, prompts = load("gpt2"), ragged()
    g = torch.Generator().manual_seed(0)
    draw = lambda *s: torch.randn(*s, generator=g, dtype=torch.float64)  # noqa: E731
    config = saes.Config(kind="topk", n_features=20, k=4, input_site="blocks.1.attn.hook_z")
    coder = saes.Coder(draw(32, 20), draw(20), draw(20, 32), draw(32), config)
    plan = feature_edits(model, prompts, FeatureEdit(coder, 2, "clamp", 3.0, pos=(0, -1)))
    before, after = (model.capture(prompts, ["blocks.1.attn.hook_z"], edits=e)["blocks.1.attn.hook_z"] for e in ((), plan))
    z = coder.encode(before.flatten(2))
    wanted = before.flatten(2).clone()
    for row, pos in ((0, 0), (0, 5), (1, 0), (1, 3)):
        wanted[row, pos] += (3.0 - z[row, pos, 2]) * coder.W_dec[2]
    real = torch.arange(6) < prompts.lengths[:, None]
    assert (after.flatten(2) - wanted)[real].abs().max() < 1e-9


def test_edits_that_make_no_sense_are_refused(load):
    model = load("gpt2")
    coder, twin = random_coder(model, 1), random_coder(model, 1)
    for arguments, said in [
        ((0, "raise", 1.0), "Unknown op 'raise'"), ((40, "ablate"), "features 0-39"), ((0, "ablate", 1.0), "takes no value"),
        ((0, "clamp"), "finite number"), ((0, "clamp", float("nan")), "finite number"), ((True, "ablate"), "whole number"),
        (((1, 1), "ablate"), "different ones"), ((0, "ablate", None, 1.5), "pos of a feature edit"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=said):
            FeatureEdit(coder, *arguments)
    with pytest.raises(ValueError, match="outside a prompt of 4 tokens"):
        feature_edits(model, ragged(), FeatureEdit(coder, 0, "ablate", pos=4))
    with pytest.raises(ValueError, match=r"these prompts take \[row, pos\] \(2, 6\)"):
        feature_edits(model, ragged(), FeatureEdit(coder, 0, "clamp", torch.zeros(3, 3)))
    with pytest.raises(ValueError, match="Several coders replace"):
        feature_edits(model, ragged(), [FeatureEdit(coder, 0, "ablate"), FeatureEdit(twin, 0, "ablate")])
    with pytest.raises(ValueError, match="at least one value"):
        feature_dose_response(model, ragged(), coder, 0, [], metric(model))
