"""Quantized runs: 16 bits change next to nothing, all tensors of the protocol are rounded, one alone equals an Edit, ranges average."""

import json

import pytest
import torch

import interp
from interp import Edit, quant
from interp.quant.schemes import ACTIVATIONS
from tests.tiny import N_LAYERS, VARIANTS

PROMPTS = interp.Prompts.from_ids([[2, 9, 4, 9, 17, 9, 4, 8], [2, 11, 5], [2, 40, 40, 7, 40], [2, 3]])
OTHERS = interp.Prompts.from_ids([[2, 4, 9, 4, 8], [2, 11, 40, 7, 3, 9]])
NONE = quant.Scheme(weight_bits=None, activations=())


@pytest.fixture(scope="module", params=VARIANTS)
def model(request, load):
    return load(request.param)


def test_rounding_nothing_is_the_model_and_16_bits_are_near_it(model):
    run = quant.quantize(model, NONE, OTHERS)
    assert torch.equal(run.logits(PROMPTS), model.logits(PROMPTS)) and run.weights == run.activations == ()
    fine = quant.evaluate(model, PROMPTS, weight_bits=16, activation_bits=16, batches=1)  # several would average ranges, and clip
    coarse = quant.evaluate(model, PROMPTS, "w6a6")
    assert abs(fine.damage) < 1e-3 and 0 <= fine.kl < 1e-4 < coarse.kl


def test_every_tensor_of_the_protocol_is_rounded_and_the_model_is_not_touched(model):
    before = {name: p.clone() for name, p in model.hf.named_parameters()}
    clean = model.logits(PROMPTS)
    found = quant.evaluate(model, PROMPTS, "w8a8", calibration=OTHERS)
    sites = {name: str(site) for name, site in ((s.kind, s) for s in model.sites())}
    expected = sum(N_LAYERS if not s.startswith(("hook_embed", "hook_pos", "blocks.")) else 1 for s in ACTIVATIONS.values()
                   if s in sites or s.startswith("blocks.") or s in [str(x) for x in model.sites()])  # fmt: skip
    expected += 2 * N_LAYERS + (model.anatomy.final_norm is not None)
    assert len(found.activations) == len(set(found.activations)) == expected
    linears = sum(len(b.qkv) + 3 for b in model.anatomy.blocks)
    norms = 2 * N_LAYERS + (model.anatomy.final_norm is not None)
    assert len(found.weights) == linears + norms + 1 + (model.anatomy.pos_embed is not None)
    assert found.n_quantized == len(found.weights) + len(found.activations) and found.calibrated_on == "2 other prompts"
    assert all(torch.equal(before[name], p) for name, p in model.hf.named_parameters())
    assert torch.equal(model.logits(PROMPTS), clean)
    assert set(found.sqnr) == set(found.activations) and min(found.bulk_sqnr.values()) > 0
    assert json.loads(found.to_json())["n_weights"] == len(found.weights) and len(found.table()) == expected and found.figure().data
    low, high = found.interval()
    assert (low + high) / 2 == pytest.approx(found.damage) and low < high


def test_the_interval_is_around_the_damage_and_a_prompt_without_a_loss_does_not_count(load):
    """Its half width is that of bootstrapped damages: sums over drawn prompts divided by their tokens."""
    model = load("opt")
    rows = [[2, *torch.randint(3, 50, (n,), generator=torch.Generator().manual_seed(n)).tolist()] for n in range(1, 31)]
    found = quant.evaluate(model, interp.Prompts.from_ids([*rows, [2]]), "w6a6")
    change, n = (found.per_prompt[:, 1] - found.per_prompt[:, 0]).double(), found.n_tokens.double()
    assert float(n[-1]) == 0 and float((change * n).sum() / n.sum()) == pytest.approx(found.damage)
    drawn = torch.randint(len(n), (4000, len(n)), generator=torch.Generator().manual_seed(0))
    resampled = (change * n)[drawn].sum(1) / n[drawn].sum(1)
    low, high = found.interval()
    assert (low + high) / 2 == pytest.approx(found.damage)
    assert (high - low) / 2 == pytest.approx(1.96 * float(resampled.std()), rel=0.1)


def test_the_unembedding_keeps_its_numbers_where_it_shares_them_with_the_embedding(load):
    model = load("gpt2")
    run = quant.quantize(model, quant.Scheme(weight_bits=3, activations=()), OTHERS)
    assert torch.equal(run.model.hf.lm_head.weight, model.hf.lm_head.weight)
    assert not torch.equal(run.model.anatomy.token_embed.weight, model.anatomy.token_embed.weight)


@pytest.mark.parametrize("name", ["z", "mlp_post", "resid_post", "pattern", "q"])
def test_one_activation_alone_equals_an_edit_with_the_same_range(model, name):
    """An Edit finds its range on the one prompt given; in the first block, calibrated on that prompt, the run has the same range."""
    one = PROMPTS[torch.tensor([0])]
    run = quant.quantize(model, quant.Scheme(weight_bits=None, activation_bits=5), one)
    site = f"blocks.0.{ACTIVATIONS[name]}"
    alone = quant.quantize(model, quant.Scheme(weight_bits=None, activation_bits=5, activations=(name,)), one)
    edited = model.logits(one, Edit(site, "quantize", {"bits": 5, "symmetric": False, "per": "tensor"}))
    torch.testing.assert_close(alone.logits(one, only=[site]), edited, atol=1e-9, rtol=0)
    assert not torch.allclose(run.logits(one), edited)


def test_static_ranges_are_running_averages_that_depend_on_the_order(load):
    model = load("opt")
    scheme = quant.Scheme(weight_bits=None, activation_bits=16, activations=("mlp_post",), batches=4)
    site = "blocks.0.mlp.hook_post"
    highs = [float(model.capture(PROMPTS[torch.tensor([i])], site)[site][0, : int(n)].max()) for i, n in enumerate(PROMPTS.lengths)]
    expected = highs[0]
    for high in highs[1:]:
        expected = 0.9 * expected + 0.1 * high
    assert float(quant.quantize(model, scheme, PROMPTS).quantizers[site].high) == pytest.approx(expected, rel=1e-3)
    backwards = quant.quantize(model, scheme, PROMPTS[torch.tensor([3, 2, 1, 0])])
    assert float(backwards.quantizers[site].high) != pytest.approx(expected, rel=1e-3)


def test_a_range_that_skips_position_zero_does_not_see_its_spike(folders):
    model = interp.load(folders["gpt2"], dtype="float64")
    with torch.no_grad():
        model.anatomy.pos_embed.weight[0, 6] += 500.0
    for skip in (False, True):
        scheme = quant.Scheme(weight_bits=None, activations=("resid_post",), skip_first=skip)
        found = quant.evaluate(model, PROMPTS, scheme, calibration=OTHERS)
        assert (found.bulk_sqnr["blocks.0.hook_resid_post"] > 25) == skip
        assert (found.sqnr["blocks.0.hook_resid_post"] > 25) != skip  # what lies beyond the range is clipped: the total turns it around


def test_llm_int8_keeps_columns_beyond_its_threshold_and_equals_a_product_by_hand(load):
    model = load("opt")
    module = model.anatomy.blocks[1].mlp_in
    x = torch.randn(2, 3, model.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[0, 1, 4] = 90.0
    run = quant.quantize(model, quant.Scheme(weight_bits=None, activation_bits=None, decompose=6.0))
    assert len(run.weights) == 6 * N_LAYERS and not run.activations
    weight = quant.fake_quant(module.weight.T, 8, True, "channel")  # one scale per output
    rest = x.clone()
    rest[..., 4] = 0
    expected = quant.fake_quant(rest, 8, True, "token") @ weight + x[..., 4:5] * weight[4] + module.bias
    torch.testing.assert_close(run.model.anatomy.blocks[1].mlp_in(x), expected)
    plain = quant.quantize(model, quant.Scheme(weight_bits=None, activation_bits=None, decompose=1e9)).model.anatomy.blocks[1].mlp_in(x)
    exact = module(x).detach()
    assert quant.sqnr(exact, expected) > quant.sqnr(exact, plain) + 5


def test_what_stands_in_padding_does_not_decide_which_columns_llm_int8_keeps(model):
    run = quant.quantize(model, quant.Scheme(weight_bits=None, activation_bits=None, decompose=2.0))
    long, lengths = list(range(3, 11)), torch.tensor([2, 8])
    found = [run.logits(interp.Prompts(torch.tensor([[2, 9, *[token] * 6], long]), lengths)) for token in range(3, 43, 4)]
    for logits in found[1:]:
        torch.testing.assert_close(logits[0, :2], found[0][0, :2])
        torch.testing.assert_close(logits[1], found[0][1])


def test_a_model_that_gives_nan_has_no_loss(folders):
    model = interp.load(folders["gpt2"], dtype="float64")
    with torch.no_grad():
        model.anatomy.final_norm.bias[3] = torch.nan
    found = quant.evaluate(model, PROMPTS, NONE)
    assert all(value != value for value in (found.loss, found.loss_quantized, found.kl, found.damage))
    assert all(value != value for value in found.per_prompt.flatten().tolist())


@pytest.mark.parametrize("name", ["scores", "pattern"])
def test_a_percentile_of_attention_is_one_of_what_queries_see(load, name):
    model = load("opt")
    scheme = quant.Scheme(weight_bits=None, activations=(name,), activation_range=90.0, batches=1)
    site = f"blocks.0.{ACTIVATIONS[name]}"
    x = model.capture(PROMPTS, site)[site]
    seen = torch.cat([x[row, :, q, : q + 1].flatten() for row, n in enumerate(PROMPTS.lengths.tolist()) for q in range(n)])
    quantizer = quant.quantize(model, scheme, PROMPTS).quantizers[site]
    expected = seen.quantile(torch.tensor([0.1, 0.9], dtype=torch.float64)).tolist()
    assert [float(quantizer.low), float(quantizer.high)] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m: quant.evaluate(m, PROMPTS, "w8a9"), "w8a8"),
        (lambda m: quant.evaluate(m, PROMPTS, weight_bit=4), "weight_bits"),
        (lambda m: quant.evaluate(m, PROMPTS, weight_bits=1), "2 to 16"),
        (lambda m: quant.evaluate(m, PROMPTS, activations=("zz",)), "mlp_out"),
        (lambda m: quant.evaluate(m, interp.Prompts.from_ids([[2]])), "one token"),
        (lambda m: quant.quantize(m, quant.Scheme()), "calibration"),
        (lambda m: quant.quantize(m, quant.Scheme(skip_first=True), interp.Prompts.from_ids([[2], [3]])), "skip_first"),
    ],
)
def test_what_cannot_be_quantized_is_said(load, call, said):
    with pytest.raises(ValueError, match=said):
        call(load("gpt2"))


def test_a_model_that_is_quantized_already_is_refused(folders):
    model = interp.load(folders["gpt2"])
    model.hf.config.quantization_config = {"bits": 8}
    for call in (quant.evaluate, quant.smooth, lambda m, _: quant.rotate(m), lambda m, _: quant.remedy(m, PROMPTS, [])):
        with pytest.raises(ValueError, match="quantized already"):
            call(model, PROMPTS)


def test_comparing_twice_gives_the_same_precision_twice(load):
    """Each comparison adds up signal and noise from zero: other prompts in between do not blend in."""
    from interp.quant.evaluation import evaluate_run

    model = load("opt")
    run = quant.quantize(model, quant.Scheme(), OTHERS)
    first = evaluate_run(model, run, PROMPTS, "")
    evaluate_run(model, run, OTHERS, "")
    again = evaluate_run(model, run, PROMPTS, "")
    assert first.sqnr == again.sqnr and first.bulk_sqnr == again.bulk_sqnr
    assert not any(q.measuring for q in run.quantizers.values())


def test_position_zero_stays_in_floating_point_where_the_scheme_keeps_it(folders):
    """A spike at position 0 costs nothing then: ranges do not see it and rounding does not touch it; later positions are rounded."""
    model = interp.load(folders["gpt2"], dtype="float64")
    with torch.no_grad():
        model.anatomy.pos_embed.weight[0, 6] += 500.0
    scheme = quant.Scheme(weight_bits=None)
    plain, skipped, kept = (quant.evaluate(model, PROMPTS, scheme, **how) for how in ({}, {"skip_first": True}, {"keep_first": True}))
    assert kept.kl < 0.1 * min(plain.kl, skipped.kl)
    assert min(kept.sqnr.values()) > 25 > min(plain.bulk_sqnr.values())
    run = quant.quantize(model, quant.Scheme(weight_bits=None, activation_bits=2, keep_first=True), PROMPTS)
    rounded, clean = run.logits(PROMPTS), model.logits(PROMPTS)
    torch.testing.assert_close(rounded[:, 0], clean[:, 0])
    assert not torch.allclose(rounded[0, 1], clean[0, 1])


def test_the_largest_features_stay_in_floating_point_with_the_weights_that_read_them(model):
    scheme = quant.Scheme(keep=3, batches=1)
    run = quant.quantize(model, scheme, PROMPTS)
    for name, quantizer in run.quantizers.items():
        assert (quantizer.kept is None) == name.endswith(("scores", "pattern"))
        if quantizer.kept is not None:
            assert int(quantizer.kept.sum()) == 3
    site = "blocks.0.mlp.hook_post"
    x = model.capture(PROMPTS, site)[site]
    real = torch.arange(PROMPTS.width) < PROMPTS.lengths[:, None]
    largest = x[real].abs().amax(0).topk(3).indices.sort().values
    mask = run.quantizers[site].kept
    assert mask.nonzero().flatten().tolist() == largest.tolist()
    out = run.quantizers[site](x, x)
    assert torch.equal(out[..., mask], x[..., mask]) and not torch.equal(out[..., ~mask], x[..., ~mask])
    _, before, after = run.rounded["blocks.0.mlp_out.weight"]
    rows = before != after if model.family == "gpt2" else (before != after).T
    assert not rows[mask].any() and rows[~mask].any()
    with pytest.raises(ValueError, match="leaves nothing to round"):
        quant.quantize(model, quant.Scheme(keep=32), PROMPTS)


@pytest.mark.parametrize("product", ["absmax", "zeropoint", "row", "vector"])
def test_products_equal_those_by_hand(load, product):
    model = load("opt")
    x = torch.randn(2, 3, model.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.3
    module = model.anatomy.blocks[1].mlp_in
    run = quant.quantize(model, quant.Scheme(weight_bits=None, activation_bits=None, decompose=float("inf"), product=product))
    symmetric = product != "zeropoint"
    weight = quant.fake_quant(module.weight.T, 8, symmetric, "channel" if product == "vector" else "tensor")
    expected = quant.fake_quant(x, 8, symmetric, "token" if product in ("row", "vector") else "tensor") @ weight + module.bias
    torch.testing.assert_close(run.model.anatomy.blocks[1].mlp_in(x), expected)


@pytest.mark.parametrize("where", ["weights", "activations"])
def test_nan_is_refused_with_the_tensors_name(folders, where):
    model = interp.load(folders["gpt2"], dtype="float64")
    with torch.no_grad():
        if where == "weights":
            model.anatomy.blocks[1].mlp_in.weight[2, 3] = torch.nan
        else:
            model.anatomy.blocks[1].mlp_in.bias[3] = torch.inf
    with pytest.raises(ValueError, match="blocks.1.m.*NaN or infinities"):
        quant.evaluate(model, PROMPTS)


def test_a_tensor_of_zeros_and_a_constant_one_survive_rounding(folders):
    model = interp.load(folders["gpt2"], dtype="float64")
    with torch.no_grad():
        for parameter in (
            model.anatomy.blocks[0].mlp_out.weight,
            model.anatomy.blocks[0].mlp_out.bias,
            model.anatomy.blocks[1].norm1.weight,
        ):
            parameter.zero_()
    found = quant.evaluate(model, PROMPTS)  # the first MLP writes zeros, a norm's output is its bias everywhere
    assert found.loss_quantized == found.loss_quantized and found.sqnr["blocks.0.hook_mlp_out"] == float("inf")


@pytest.mark.parametrize("wrong", [{"weight_per": "row"}, {"activation_per": "channel"}, {"product": "rows"}, {"activations": "z"}])
def test_a_scheme_refuses_what_it_would_otherwise_not_do(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        quant.Scheme(**wrong)


def test_infinity_is_text_in_json(load):
    plain = quant.evaluate(load("gpt2"), PROMPTS, NONE, decompose=float("inf")).to_json()
    assert "Infinity" not in plain and json.loads(plain)["scheme"]["decompose"] == "inf"


def test_positions_that_are_all_kept_measure_nothing(load):
    run = quant.quantize(load("gpt2"), quant.Scheme(keep_first=True), OTHERS)
    with run.measuring():
        run.logits(interp.Prompts.from_ids([[2], [7]]))
    assert all(sum(q.sums.values()) == 0 for q in run.quantizers.values())


def test_results_say_themselves_in_a_line(load):
    model = load("gpt2")
    prompts = interp.Prompts.from_ids([[1, 2, 3, 4], [2, 5, 6, 7], [3, 3, 8, 1], [4, 9, 2, 6]])
    results = [quant.evaluate(model, prompts), quant.head_report(model, prompts), quant.remedy(model, prompts, [quant.KeepFeatures(1)])]
    for result in results:
        assert type(result).__name__ in repr(result) and len(repr(result)) < 400 and "tensor(" not in repr(result)
