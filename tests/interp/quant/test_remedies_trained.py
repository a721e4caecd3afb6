"""Remedies on the bundled models: an outlier planted without changing their function breaks 8-bit quantization, and remedies mend it."""

import pytest

import interp
from interp import quant
from interp.atlas.corpus import Corpus, encode
from interp.atlas.tokenizer import BOS, vocabulary

MEASURED, FITTED = (interp.Prompts.from_ids([encode(d)[:48] for d in Corpus(seed=7, pool_size=5).pool(i)]) for i in (0, 1))


@pytest.fixture(scope="module", params=["demo-gpt2", "demo-opt", "demo-pythia"])
def model(request):
    return interp.load(request.param)


def test_an_outlier_dimension_breaks_w8a8_and_three_remedies_recover_most(model):
    planted = quant.plant_dimension(model, 64, 300.0)
    found = quant.remedy(planted, MEASURED, [quant.Smooth(0.5), quant.Rotate(), quant.KeepFeatures(1)], calibration=FITTED)
    plain = quant.evaluate(model, MEASURED, calibration=FITTED)
    assert found.loss == pytest.approx(plain.loss, abs=1e-4)
    assert found.rows[0].evaluation.kl > 1 > 20 * plain.kl
    for row in found.rows[1:]:
        assert found.recovered(row) > 0.9 and found.recovered(row, "damage") > 0.9, row.name


def test_a_massive_first_token_breaks_w8a8_and_rotation_recovers_most(model):
    """Its row of the embedding table is massive too: keeping position 0 in floating point is enough only where weights are not rounded."""
    planted = quant.plant_token(model, 3000.0, token=vocabulary()[BOS])
    found = quant.remedy(planted, MEASURED, [quant.Rotate(), quant.FirstPosition(keep=True)], calibration=FITTED)
    assert found.rows[0].evaluation.kl > 1 and found.recovered(found["rotate"]) > 0.9
    assert found.recovered(found["position 0 in floating point"]) < 0.9
    alone = quant.remedy(planted, MEASURED, [quant.FirstPosition(keep=True)], "a8", calibration=FITTED)
    assert alone.rows[0].evaluation.kl > 1 and alone.recovered(alone.rows[1]) > 0.9
