"""The studies of quantization: prompts apart, groups of tensors quantized together, and what LLM.int8 keeps."""

import json

import pytest
import torch

import interp
from experiments import llm_int8, quant_remedies
from experiments.quant_remedies import Config
from interp import quant
from tests.tiny import save_tiny

PROMPTS = interp.Prompts.from_ids([[2, 9, 4, 9, 17, 9, 4, 8], [2, 11, 5]])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return interp.load(save_tiny("opt", tmp_path_factory.mktemp("tiny") / "opt"), dtype="float64")


def test_documents_to_fit_on_and_to_measure_on_are_different_and_always_the_same():
    measured, fitted = quant_remedies.documents(40), quant_remedies.documents(20, 1)
    assert not {tuple(row) for row in measured.rows()} & {tuple(row) for row in fitted.rows()}
    assert torch.equal(measured.ids, quant_remedies.documents(40).ids) and measured.width <= 128


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8-token"])
def test_every_plan_goes_with_its_scheme(scheme, model):
    for plan in quant_remedies.plans(scheme, whole=True):
        assert quant.remedies_from_json(quant.remedies_to_json(plan))
    found = quant.remedy(model, PROMPTS, quant_remedies.plans(scheme, whole=False), scheme, calibration=PROMPTS[[1]])
    assert len({row.name for row in found.rows}) == len(found.rows)


def test_a_group_of_one_is_that_tensor_alone_and_of_all_is_everything(model):
    scheme, config = "w4a8", Config(random_groups=0)
    found = quant.sensitivity(model, PROMPTS, scheme, calibration=PROMPTS, draws=1)
    rows = {row["group"]: row for row in quant_remedies.together(config, model, PROMPTS, PROMPTS, scheme, found)}
    one = rows["ln_final (weight)"]
    assert one["tensors"] == 1 and one["together"] == pytest.approx(one["only"]) and one["together_kl"] == pytest.approx(one["only_kl"])
    layers = [set(members) for name, members in quant_remedies._groups(config, found) if name.startswith("layer")]
    assert not layers[0] & layers[1] and len(layers) == model.n_layers


def test_what_llm_int8_keeps_is_what_its_products_leave_in_floating_point(model):
    assert llm_int8.kept_share(model, PROMPTS, float("inf")) == 0.0 and llm_int8.kept_share(model, PROMPTS, 1e-9) > 0.9
    x = [model.capture(PROMPTS, f"blocks.{i}.mlp.hook_post")[f"blocks.{i}.mlp.hook_post"] for i in range(model.n_layers)]
    real = torch.arange(PROMPTS.width) < PROMPTS.lengths[:, None]
    wide = sum(int((part[real].abs() > 3.0).any(0).sum()) for part in x)
    total = model.n_layers * (3 * model.d_model + model.d_mlp)
    assert wide / total <= llm_int8.kept_share(model, PROMPTS, 3.0) < 1
    rows = llm_int8.losses(model, PROMPTS, (1e-9,))
    assert [row["product"] for row in rows] == ["absmax", "zeropoint", "row", "vector", "absmax", "vector"]
    assert json.dumps(rows)


@pytest.mark.slow
def test_the_study_of_remedies_runs_whole(tmp_path):
    import experiments.studies as studies

    config = Config(schemes=("w8a8",), prompts=8, calibration=4, sensitivity_prompts=2, draws=1, random_groups=2)
    summary = studies.summary_of(quant_remedies.STUDY, config, quant_remedies.study, tmp_path)
    planted = summary["remedies"]["planted dimension, w8a8"]["rows"]
    assert max(row["recovered"] for row in planted) > 0.9 and planted[0]["recovered"] == 0
