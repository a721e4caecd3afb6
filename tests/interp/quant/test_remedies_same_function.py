"""Smoothing, rotation and planted outliers keep the function: float64 logits equal, the given model untouched, promises are kept."""

import pytest
import torch

import interp
from interp import quant
from interp.engine.anatomy import linear_weight
from interp.quant.remedies.rotation import flat_rotation
from tests.tiny import tiny_hf

PROMPTS = interp.Prompts.from_ids([[2, 9, 4, 9, 17, 9, 4, 8], [2, 11, 5], [2, 40, 40, 7, 40], [2, 3]])
PRE_NORM = ("gpt2", "gpt2-scaled", "gpt2-unscaled", "opt", "neox", "neox-sequential")
TRANSFORMS = {
    "smooth": lambda m: quant.smooth(m, PROMPTS, 0.7),
    "rotate": lambda m: quant.rotate(m, seed=1),
    "rotate the stream": lambda m: quant.rotate(m, seed=1, heads=False),
    "both": lambda m: quant.smooth(quant.rotate(m), PROMPTS, 0.5),
    "planted dimension": lambda m: quant.plant_dimension(m, 5, 100.0),
    "planted token": lambda m: quant.plant_token(m, 1000.0, token=2),
}


@pytest.fixture(scope="module", params=PRE_NORM)
def model(request, load):
    return load(request.param)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_logits_stay_the_same_and_the_given_model_untouched(model, name):
    before = {key: p.clone() for key, p in model.hf.named_parameters()}
    tied = model.hf.config.tie_word_embeddings
    clean = model.logits(PROMPTS)
    changed = TRANSFORMS[name](model)
    real = torch.arange(PROMPTS.width) < PROMPTS.lengths[:, None]
    # a token of size 1000 costs three digits of the sums that norms take the mean of
    torch.testing.assert_close(changed.logits(PROMPTS)[real], clean[real], atol=1e-9, rtol=1e-9)
    assert torch.equal(model.logits(PROMPTS), clean) and model.hf.config.tie_word_embeddings == tied
    assert all(torch.equal(before[key], p) for key, p in model.hf.named_parameters())
    assert any(not torch.equal(before[key], p) for key, p in changed.hf.named_parameters() if key in before)


@pytest.mark.parametrize("name", ["rotate", "smooth"])
def test_a_changed_model_is_one_of_its_family_with_the_same_sites_edits_and_sweeps(model, name):
    changed = TRANSFORMS[name](model)
    assert [str(s) for s in changed.sites()] == [str(s) for s in model.sites()]
    plan = interp.Edit("blocks.1.attn.hook_z", "zero", head=2)  # a head is the same head, whatever basis its values have
    torch.testing.assert_close(changed.logits(PROMPTS, plan)[0], model.logits(PROMPTS, plan)[0], atol=1e-9, rtol=1e-9)
    grids = [interp.sweep_heads(m, PROMPTS, interp.loss(), "zero").grid for m in (model, changed)]
    torch.testing.assert_close(grids[1], grids[0], atol=1e-9, rtol=1e-9)


def test_rotation_turns_the_centred_stream_and_layer_norm_is_rms_norm_there(model):
    turned = quant.rotate(model, seed=3)
    sites = [f"blocks.{i}.hook_resid_post" for i in range(model.n_layers)]
    before, after = model.capture(PROMPTS, sites), turned.capture(PROMPTS, sites)
    q = flat_rotation(model.d_model, torch.Generator().manual_seed(3))
    for site in sites:
        x, y = before[site][0], after[site][0]
        torch.testing.assert_close(y, (x - x.mean(-1, keepdim=True)) @ q)
        assert float(y.mean(-1).abs().max()) < 1e-10
    norm, x = turned.anatomy.blocks[1].norm1, after[sites[0]][0]
    torch.testing.assert_close(norm(x).detach(), x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt())


@pytest.mark.parametrize("d", [1, 2, 7, 8, 12, 16, 32, 64, 80, 96, 128, 200, 768])
def test_a_flat_rotation_is_orthogonal_keeps_ones_and_has_small_entries_alone(d):
    q = flat_rotation(d, torch.Generator().manual_seed(0))
    torch.testing.assert_close(q @ q.T, torch.eye(d, dtype=torch.float64))
    torch.testing.assert_close(q.sum(1), torch.ones(d, dtype=torch.float64))
    if d & (d - 1) == 0 and d > 2:
        assert float(q.abs().max()) == pytest.approx((1 if d.bit_length() % 2 else 2**0.5) / d**0.5)  # d a power of 4: as small as can be
    if d == 768:
        assert float(q.abs().max()) < 1.2 / d**0.5
    other = flat_rotation(d, torch.Generator().manual_seed(1))
    assert d < 3 or not torch.equal(q, other)


def test_smoothing_evens_out_what_it_says(model):
    """At alpha 1 the norms' largest entries are all 1; at alpha 0 the weights' rows are; s is the formula's."""
    flat = quant.smooth(model, PROMPTS, 1.0)
    rows = quant.smooth(model, PROMPTS, 0.0)
    real = torch.arange(PROMPTS.width) < PROMPTS.lengths[:, None]
    for block in flat.anatomy.blocks:
        x = flat.capture(PROMPTS, f"blocks.{block.layer}.ln1.hook_normalized")[f"blocks.{block.layer}.ln1.hook_normalized"][real]
        peaks = (x * block.norm1.weight + block.norm1.bias).abs().amax(0)
        torch.testing.assert_close(peaks, torch.ones_like(peaks))
    for block in rows.anatomy.blocks:
        for readers in (block.qkv, (block.mlp_in,)):
            largest = torch.stack([linear_weight(m).abs().amax(1) for m in readers]).amax(0)
            torch.testing.assert_close(largest, torch.ones_like(largest))
    half = quant.smooth(model, PROMPTS, 0.5)
    for a, b, c in zip(model.anatomy.blocks, flat.anatomy.blocks, half.anatomy.blocks, strict=True):
        full, weight = a.norm2.weight / b.norm2.weight, linear_weight(a.mlp_in).abs().amax(1)
        torch.testing.assert_close(a.norm2.weight / c.norm2.weight, full.sqrt() / weight.sqrt())
        assert torch.equal(a.mlp_out.weight, c.mlp_out.weight) and torch.equal(a.out.weight, c.out.weight)


def test_models_without_biases_keep_their_function(tmp_path):
    for variant, off in (("opt", {"enable_bias": False}), ("neox", {"attention_bias": False})):
        tiny_hf(variant, torch.float64, **off).save_pretrained(tmp_path / variant)
        model = interp.load(tmp_path / variant, dtype="float64")
        torch.testing.assert_close(quant.rotate(model).logits(PROMPTS)[0], model.logits(PROMPTS)[0], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m: quant.rotate(m), "post-norm"),
        (lambda m: quant.smooth(m, PROMPTS), "post-norm"),
        (lambda m: quant.plant_dimension(m, 3), "post-norm"),
    ],
)
def test_post_norm_models_are_refused_with_the_reason(load, call, said):
    with pytest.raises(ValueError, match=said):
        call(load("opt-postln"))


def test_planting_where_nothing_is_is_refused(load):
    with pytest.raises(ValueError, match="0-31"):
        quant.plant_dimension(load("gpt2"), 32)
    with pytest.raises(ValueError, match="0-49"):
        quant.plant_token(load("gpt2"), token=50)
    with pytest.raises(ValueError, match="name a token"):
        quant.plant_token(load("neox"))
    planted = quant.plant_token(load("opt"), 500.0)
    assert quant.activation_statistics(planted, PROMPTS)["blocks.0.out"].absmax > 400
    torch.testing.assert_close(planted.logits(PROMPTS)[0], load("opt").logits(PROMPTS)[0], atol=1e-9, rtol=1e-9)
