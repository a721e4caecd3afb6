"""Statistics of one pass equal those of all activations at once; chunks change nothing; planted outliers are found."""

import json

import numpy as np
import pytest
import torch

import interp
from interp import quant
from tests.tiny import N_LAYERS, VARIANTS

PROMPTS = interp.Prompts.from_ids([[2, 9, 4, 9, 17, 9, 4, 8], [2, 11, 5], [2, 40, 40, 7, 40], [3, 3]])


@pytest.fixture(scope="module", params=VARIANTS)
def model(request, load):
    return load(request.param, "float32")


def whole(model, name):
    """[row][token, d] of one tensor, norms with weight and bias."""
    layer, _, kind = name.removeprefix("blocks.").partition(".")
    block = None if name == "final" else model.anatomy.blocks[int(layer)]
    norm = {"ln1": block and block.norm1, "ln2": block and block.norm2, "": model.anatomy.final_norm}.get(kind)
    site = {"ln1": "ln1.hook_normalized", "ln2": "ln2.hook_normalized", "attn_out": "hook_attn_out", "mlp_out": "hook_mlp_out",
            "out": "hook_resid_post"}.get(kind)  # fmt: skip
    x = model.capture(PROMPTS, "ln_final.hook_normalized" if name == "final" else f"blocks.{layer}.{site}")
    x = next(iter(x.values()))
    x = x if norm is None else x * norm.weight + norm.bias
    return [x[r, :n].detach() for r, n in enumerate(PROMPTS.lengths.tolist())]


def test_every_statistic_equals_that_of_all_activations(model):
    stats = quant.activation_statistics(model, PROMPTS)
    assert len(stats.tensors) == 5 * N_LAYERS + (model.anatomy.final_norm is not None)
    for found in stats.tensors:
        rows = whole(model, found.name)
        x = torch.cat(rows).double()
        flat = x.flatten().numpy()
        assert found.entries == x.numel() and found.absmax == pytest.approx(float(x.abs().max()))
        assert found.mean == pytest.approx(flat.mean(), abs=1e-6) and found.std == pytest.approx(flat.std(), rel=1e-5)
        assert found.kurtosis == pytest.approx(quant.kurtosis(x), rel=1e-4)
        assert found.inf_norm == pytest.approx(np.mean([float(r.abs().max()) for r in rows]))
        centred = [(r.double() - r.double().mean()) for r in rows]
        paper = [float((c**4).mean() / (c.flatten().var(correction=1) ** 2 + 1e-6)) for c in centred]
        assert found.paper_kurtosis == pytest.approx(np.mean(paper), rel=1e-4)
        assert found.percentiles["p99"] == pytest.approx(np.quantile(np.abs(flat), 0.99, method="inverted_cdf"), rel=0.012)
        torch.testing.assert_close(found.dim_absmax, x.abs().amax(0).float())
        torch.testing.assert_close(found.dim_mean_square.double(), x.square().mean(0), rtol=1e-5, atol=1e-9)
        six = quant.outliers(x)
        assert found.outliers_by_dim.tolist() == six.sum(0).tolist()
        ids = torch.cat([PROMPTS.ids[r, :n] for r, n in enumerate(PROMPTS.lengths.tolist())])
        assert sum(found.outliers_by_token.values()) == int(six.sum())
        assert all(n == int(six[ids == token].sum()) for token, n in found.outliers_by_token.items())
    assert json.loads(stats.to_json())["tensors"] and len(stats.table()) == len(stats.tensors) and stats.figure().data


def test_a_spike_in_one_dimension_is_an_outlier_dimension_and_a_massive_activation(folders):
    model = interp.load(folders["opt"], dtype="float32")
    with torch.no_grad():
        for block in model.anatomy.blocks:
            block.norm1.weight[7], block.norm1.bias[7] = 0.0, 9.0
        model.anatomy.blocks[0].mlp_out.bias[7] = 30_000.0
    stats = quant.activation_statistics(model, PROMPTS)
    layers, positions = stats.outlier_dimensions[7]
    assert layers == pytest.approx(5 / 6) and positions == 1.0  # all first norms, and the second ones after the spike in the stream
    out = stats["blocks.0.out"]
    assert out.massive == int(PROMPTS.lengths.sum())
    assert out.feature_kurtosis == pytest.approx(model.d_model, rel=0.01)
    assert stats.inf_norm["all"] == stats.inf_norm["block"] >= 29_000


def test_chunks_change_the_sums_by_rounding_alone(model, monkeypatch):
    import interp.quant.streaming as module

    one = quant.activation_statistics(model, PROMPTS)
    monkeypatch.setattr(module, "BUDGET", 1)
    many = quant.activation_statistics(model, PROMPTS)
    for a, b in zip(one.tensors, many.tensors, strict=True):
        assert (a.entries, a.absmax, a.massive) == (b.entries, pytest.approx(b.absmax), b.massive)
        assert a.percentiles == pytest.approx(b.percentiles, rel=0.03)
        assert a.kurtosis == pytest.approx(b.kurtosis, rel=1e-4) and a.paper_kurtosis == pytest.approx(b.paper_kurtosis, rel=1e-4)


def test_an_unknown_tensor_is_said(model):
    with pytest.raises(KeyError, match="blocks.0.ln1"):
        quant.activation_statistics(model, PROMPTS)["nope"]


@pytest.mark.parametrize(("mean", "dtype"), [(1e3, "float32"), (1e6, "float64")])
def test_kurtosis_is_right_where_a_tensor_is_far_from_zero(folders, mean, dtype):
    """Raw fourth powers in float32 lose the spread of a tensor whose mean is a thousand times above it."""
    model = interp.load(folders["opt"], dtype=dtype)
    with torch.no_grad():
        for block in model.anatomy.blocks:
            block.norm1.bias += mean
    stats = quant.activation_statistics(model, PROMPTS)
    for layer in range(N_LAYERS):
        found, x = stats[f"blocks.{layer}.ln1"], torch.cat(whole(model, f"blocks.{layer}.ln1")).double()
        assert found.kurtosis == pytest.approx(quant.kurtosis(x), rel=1e-6)
        assert found.std == pytest.approx(float(x.std(correction=0)), rel=1e-6)
        assert found.mean == pytest.approx(float(x.mean())) and found.outliers_by_dim.sum() == quant.outliers(x).sum()


def test_a_model_that_computes_nan_is_named_not_counted(load):
    model = load("gpt2", "float32")
    weight = model.anatomy.blocks[1].mlp_in.weight
    saved = weight.detach().clone()
    try:
        weight.data[0, 0] = float("nan")
        with pytest.raises(ValueError, match=r"blocks\.1\.mlp_out holds NaN"):
            quant.activation_statistics(model, PROMPTS)
    finally:
        weight.data.copy_(saved)
