"""Integer products equal the fake ones on the same grid; every linear layer is counted; Conv1D becomes the same function."""

import json
import warnings

import pytest
import torch

import interp
from interp import quant
from interp.engine.anatomy import linear_bias, linear_weight
from interp.quant.linear_products import PER_BLOCK, linears_of, with_linears
from interp.quant.quantized import quantize
from interp.quant.rounding import fake_quant
from interp.quant.schemes import scheme_of
from tests.tiny import N_LAYERS, VARIANTS

PROMPTS = interp.Prompts.from_ids([[2, 9, 4, 9, 17, 9, 4, 8], [2, 11, 5], [2, 40, 40, 7, 40]])
SCHEMES = (
    {"scheme": "w8a8-token"},
    {"scheme": "w8a8-token", "symmetric_activations": True},
    {"scheme": "w8"},
    {"scheme": "w8a8"},
    {"scheme": "w8a8", "symmetric_activations": True, "weight_per": "channel"},
    {"scheme": "w8a8-percentile", "skip_first": True},
    {"scheme": "w8a8", "dynamic": True},
)


@pytest.fixture(scope="module")
def torchao():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("torchao", reason="the extra int8 is not installed: pip install 'interp-workbench[int8]'")


@pytest.fixture(scope="module", params=("gpt2", "opt", "neox"))
def model(request, load):
    return load(request.param, "float32")


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_copy_with_plain_linear_layers_is_the_same_function_and_has_the_familys_number_of_them(variant, load):
    model = load(variant)
    twin = with_linears(model)
    torch.testing.assert_close(twin.logits(PROMPTS), model.logits(PROMPTS), atol=1e-12, rtol=1e-12)
    assert len(linears_of(twin, False)) == PER_BLOCK[model.family] * N_LAYERS and "lm_head" in linears_of(twin, True)
    assert sum(isinstance(m, torch.nn.Linear) for m in twin.anatomy.body.modules()) >= len(linears_of(twin, False))


def test_without_torchao_it_is_said_what_to_install(load, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchao", None)
    with pytest.raises(ImportError, match="int8"):
        quant.real_int8(load("gpt2", "float32"), PROMPTS)


@pytest.mark.parametrize("options", SCHEMES, ids=lambda o: "-".join(map(str, o.values())))
def test_every_integer_product_equals_the_fake_one_of_the_same_input(torchao, model, options):
    found = quant.real_int8(model, PROMPTS, **options)
    assert found.n_quantized == PER_BLOCK[model.family] * N_LAYERS and found.skipped == ("lm_head",)
    assert min(check.sqnr for check in found.linears) > 100, found.table()
    # end to end a float's last digit may move an entry near a tie by one step, and a symmetric range has its largest entry on a tie
    ties = options.get("symmetric_activations", False)
    assert found.loss_real == pytest.approx(found.loss_fake, abs=0.02 if ties else 2e-3)
    assert found.loss == pytest.approx(float(interp.loss_per_token(model.logits(PROMPTS), PROMPTS).nanmean()), abs=1e-5)
    assert found.kl_real > (1 if ties else 10) * found.kl_between
    assert found.damage == pytest.approx(found.loss_real - found.loss)


def test_with_the_other_step_convention_fake_and_real_differ(torchao, load):
    model = load("gpt2", "float32")
    other = quant.real_int8(model, PROMPTS, "w8a8-token", symmetric_activations=True, half_step=False)
    assert all(check.sqnr < 60 for check in other.linears)


def test_static_ranges_are_those_of_the_calibration_prompts(torchao, load):
    model = load("gpt2", "float32")
    calibration = interp.Prompts.from_ids([[2, 5, 6, 7]])
    found = quant.real_int8(model, PROMPTS, "w8a8", calibration=calibration)
    block = model.anatomy.blocks[0]
    x = block.norm1(model.capture(calibration, "blocks.0.hook_resid_pre")["blocks.0.hook_resid_pre"])
    ranges = {check.module: check.static_range for check in found.linears}
    assert ranges["blocks.0.qkv"] == pytest.approx((float(x.min()), float(x.max())), abs=1e-5)
    assert quant.real_int8(model, PROMPTS, "w8").linears[0].static_range is None


def test_the_unembedding_is_quantized_on_request_and_the_model_stays(torchao, load):
    model = load("gpt2", "float32")
    before = model.logits(PROMPTS)
    found = quant.real_int8(model, PROMPTS, lm_head=True)
    assert found.n_quantized == 4 * N_LAYERS + 1 and not found.skipped
    assert torch.equal(model.logits(PROMPTS), before)
    assert json.loads(found.to_json())["n_quantized"] == 4 * N_LAYERS + 1 and len(found.table()) == found.n_quantized
    assert found.figure().data and found.library.startswith("torchao")


@pytest.mark.parametrize("options", [{"scheme": "w4"}, {"scheme": "llm.int8"}, {"scheme": "w6a6"}, {"scheme": "w8", "dynamic": True}])
def test_what_torchao_cannot_execute_is_refused(load, options):
    with pytest.raises(ValueError, match="given Scheme|Dynamic ranges"):
        quant.real_int8(load("gpt2", "float32"), PROMPTS, **options)


def test_at_the_half_step_the_grid_is_torchaos_also_where_the_largest_entry_is_a_tie(torchao):
    from torchao.quantization import Int8Tensor, PerRow

    x = torch.randn(64, 48, generator=torch.Generator().manual_seed(0))
    assert torch.equal(fake_quant(x, 8, True, "token", half_step=True), Int8Tensor.from_hp(x, PerRow()).dequantize())


@pytest.mark.parametrize("threshold", [None, 6.0])
def test_the_emulated_llm_int8_product_equals_bitsandbytes(load, threshold):
    bnb = pytest.importorskip("bitsandbytes", reason="the extra llm-int8 is not installed: pip install 'interp-workbench[llm-int8]'")
    model = load("gpt2", "float32")
    module = model.anatomy.blocks[0].mlp_in
    weight, bias = linear_weight(module).detach(), linear_bias(module).detach()
    layer = bnb.nn.Linear8bitLt(*weight.shape, has_fp16_weights=False, threshold=threshold or 0.0)
    layer.load_state_dict({"weight": weight.T.contiguous(), "bias": bias})
    layer = layer.to("cpu").eval()  # in training mode it is weight-only on a CPU, in silence
    x = torch.randn(32, len(weight), generator=torch.Generator().manual_seed(0))
    x[3, 5], x[7, 9] = 60.0, -40.0
    x = x.half().float()  # theirs casts what it reads to float16

    def emulated(decompose):
        return quantize(model, scheme_of("llm.int8", decompose=decompose)).model.anatomy.blocks[0].mlp_in(x).detach()

    exact, plain = x @ weight + bias, 1e9
    with torch.no_grad():
        theirs, ours, other = layer(x).float(), emulated(threshold or plain), emulated(plain if threshold else 6.0)
    assert quant.sqnr(ours, theirs) > max(quant.sqnr(exact, theirs), quant.sqnr(other, theirs)) + 6
    assert quant.sqnr(exact, emulated(6.0)) > quant.sqnr(exact, emulated(plain)) + 5
