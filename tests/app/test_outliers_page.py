"""The Outliers page: every part draws on every family, its numbers are the library's, its criteria are what they say."""

import json
from dataclasses import replace

import pytest

from app import outlier_answers, outlier_exports
from app.case import OUTLIER_PARTS, SCHEMES, Case, OutlierView
from app.service import Refused, Service
from interp import quant
from interp.quant.no_op_heads import COLUMNS
from interp.zoo import bundled
from tests.app.conftest import FAMILIES
from tests.app.test_pages import value, visit  # noqa: F401

FOLDERS = bundled()


@pytest.fixture(autouse=True)
def one_remedy(monkeypatch):
    """The library's own tests try all of them."""
    from interp.quant.remedies import standard

    monkeypatch.setattr(standard, "standard_remedies", lambda model, scheme: (((quant.KeepFeatures(1),),), ("nothing",)))


@pytest.fixture(scope="module")
def service() -> Service:
    return Service("demo-gpt2")


@pytest.fixture
def demo(visit, speaking, monkeypatch):  # noqa: F811
    """demo(model, query parameters) -> the page about a bundled model, beside which no other is measured."""

    def open_page(model: str = "demo-gpt2", **parameters: str):
        monkeypatch.setitem(speaking, model, model)
        monkeypatch.setattr("interp.zoo.bundled", lambda: {model: FOLDERS[model]})
        return visit("outliers", model, **{"texts": "16"} | parameters)

    return open_page


def test_schemes_and_columns_are_the_library_s():
    from app.case import HEAD_COLUMNS

    assert tuple(quant.SCHEMES) == SCHEMES and tuple(COLUMNS) == HEAD_COLUMNS


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_other_words_is_measured_on_what_it_can_read(visit, family, monkeypatch):  # noqa: F811
    monkeypatch.setattr("interp.zoo.bundled", dict)
    test = visit("outliers", family)
    for part in OUTLIER_PARTS:
        test.segmented_control(key="outlier.part").set_value(part).run()
        assert not test.exception and not test.warning
        said = [error.value for error in test.error]
        assert not said or (part == "remedies" and "ifferent prompts" in said[0]), said  # one prompt cannot be split
        assert said or any("short prompts" in caption.value for caption in test.caption)


@pytest.mark.parametrize("part", OUTLIER_PARTS)
def test_every_part_draws(demo, part):
    test = demo("demo-pythia", part=part, scheme="w8")
    assert not test.exception and not test.error and not test.warning
    assert test.segmented_control(key="outlier.part").value == part


def test_numbers_of_documents_are_the_library_s(demo, service):
    test = demo(part="sizes")
    texts = outlier_answers.documents(service, "demo-gpt2", 16)
    found = quant.activation_statistics(service.model("demo-gpt2"), texts.prompts)
    assert value(test, "Max inf-norm") == pytest.approx(found.inf_norm["block"], abs=0.051)
    test.segmented_control(key="outlier.part").set_value("bits").run()
    cost = quant.evaluate(service.model("demo-gpt2"), texts.prompts, "w8a8", calibration=texts.calibration)
    assert value(test, "Loss on rounded numbers") == pytest.approx(cost.loss_quantized, abs=5.1e-5)


def test_the_best_remedy_is_the_library_s(demo, service):
    test = demo(part="remedies", scheme="a8")
    texts = outlier_answers.documents(service, "demo-gpt2", 16)
    found = quant.remedy(service.model("demo-gpt2"), texts.prompts, [quant.KeepFeatures(1)], "a8", calibration=texts.calibration)
    assert value(test, "Least KL") == pytest.approx(found.best.evaluation.kl, abs=5.1e-6)
    assert any("Left out: nothing" in caption.value for caption in test.caption)


def test_documents_to_measure_and_to_calibrate_are_others(service):
    texts = outlier_answers.documents(service, "demo-gpt2", 32)
    measured, other = ({tuple(row) for row in prompts.rows()} for prompts in (texts.prompts, texts.calibration))
    assert len(texts.prompts) == len(texts.calibration) == len(texts.families) == 32 and not measured & other


def test_a_head_does_nothing_only_if_all_criteria_say_so(service):
    report = outlier_answers.heads(service, "demo-gpt2", 16)
    loose = OutlierView(sink=0.0, output=10.0, cost=10.0)
    assert outlier_answers.meets(report, loose).does_nothing.all()
    for strict in (dict(sink=0.9), dict(output=0.01), dict(cost=0.0001)):
        table = outlier_answers.meets(report, replace(loose, **strict))
        assert table.does_nothing.sum() < len(table)
    table = outlier_answers.meets(report, OutlierView(sink=0.3, output=0.2, cost=0.01))
    for row in table.itertuples():
        met = row.sink_mass >= 0.3 and row.output_to_stream < 0.2 and abs(row.loss_zero) < 0.01
        assert row.does_nothing == met


def test_moving_a_criterion_changes_the_count_and_the_address(demo, service):
    test = demo(part="heads")
    test.select_slider(key="outlier.sink").set_value(0.0).run()
    test.select_slider(key="outlier.cost").set_value(10.0).run()
    test.select_slider(key="outlier.output").set_value(10.0).run()
    assert not test.exception
    (metric,) = [m for m in test.metric if m.label == "Heads that do nothing"]
    assert metric.value == "16 of 16"
    assert {key: "".join(test.query_params[key]) for key in ("sink", "cost", "output")} == {"sink": "0", "cost": "10", "output": "10"}


def test_the_norm_map_is_the_stream_under_the_edits(service):
    import torch

    case = Case("demo-opt", "When John and Mary went to the store", "Mary", "John", ("m1*3",))
    found, clean = outlier_answers.norm_map(service, case), outlier_answers.norm_map(service, case.clean())
    model = service.model("demo-opt")
    stream = model.capture(model.encode(case.prompt), ["blocks.2.hook_resid_post"], edits=case.plan())["blocks.2.hook_resid_post"][0]
    assert [place.norm for place in found.places[3]] == pytest.approx(stream.double().norm(dim=1).tolist(), rel=1e-6)
    dim, size = found.places[3][4].largest[0]
    assert abs(size) == pytest.approx(float(stream[4].abs().max()), rel=1e-6) and int(stream[4].abs().argmax()) == dim
    assert [p.norm for p in clean.places[1]] == [p.norm for p in found.places[1]] and clean.places[2] != found.places[2]
    assert torch.isfinite(stream).all()


def test_a_dimension_of_ones_own_is_traced(demo):
    test = demo("demo-opt", part="trace", dim="1.7")
    assert not test.exception and value(test, "Dimension") == 7
    test.selectbox(key="trace_layer").set_value(-1).run()
    assert test.session_state["case"].outlier.place == "" and not test.exception


def test_a_model_without_words_is_refused_with_what_to_do(service, tmp_path):
    from tests.tiny import save_tiny

    save_tiny("gpt2", tmp_path / "bare")
    service.allow(str(tmp_path / "bare"))
    with pytest.raises(Refused, match="no tokenizer"):
        outlier_answers.statistics(service, str(tmp_path / "bare"), 16)


def test_the_script_measures_the_page_s_documents(service, monkeypatch, speaking):
    monkeypatch.setattr("app.frame.service", lambda: service)
    service.allow(speaking["neox"])
    for model in ("demo-opt", speaking["neox"]):
        case = Case(model, "John and Mary", "Mary", "John", outlier=OutlierView("sizes", 16))
        made: dict = {}
        exec(outlier_exports.python(case), made)
        assert made["result"].inf_norm == outlier_answers.statistics(service, model, 16).inf_norm


def test_llm_int8_is_a_remedy_itself(service, monkeypatch):
    monkeypatch.setattr("app.frame.service", lambda: service)
    case = Case("demo-gpt2", outlier=OutlierView("remedies", 16, scheme="llm.int8"))
    report = outlier_answers.remedied(service, "demo-gpt2", 16, "a8")
    asked = []
    monkeypatch.setattr(outlier_answers, "remedied", lambda *given: (asked.append(given[3]), report)[1])
    assert all(file.make() for file in outlier_exports.downloads(case)) and set(asked) == {"w8a8"}
    assert "'w8a8'" in outlier_exports.python(case) and "w8a8" in outlier_exports.command(case)


@pytest.mark.parametrize("part", OUTLIER_PARTS)
def test_files_are_the_tables_and_the_script_is_python(service, part, monkeypatch):
    case = Case("demo-gpt2", "John and Mary", "Mary", "John", outlier=OutlierView(part, 16, scheme="a8"))
    monkeypatch.setattr("app.frame.service", lambda: service)
    files = {file.kind: file.make() for file in outlier_exports.downloads(case)}
    assert len(files["csv"].splitlines()) > (2 if part == "remedies" else 4) and "documents" in json.loads(files["json"])
    compile(outlier_exports.python(case), "script", "exec")
    assert outlier_exports.command(case).startswith("interp quant ")
