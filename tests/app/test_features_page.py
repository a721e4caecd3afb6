"""The Features page: its numbers are the library's, clamping is an edit, the drawn graph is the computed one."""

import json

import pytest

from app import feature_answers, feature_exports
from app.case import FEATURE_PARTS, Case, FeatureView
from app.parts.dashboard_view import ordered
from app.parts.feature_graph import layout
from app.service import Refused, Service
from tests.app.conftest import FAMILIES
from tests.app.test_pages import value, visit  # noqa: F401

PROMPT = "Yesterday Robert and Ben met near the station and Robert passed a computer to"
WORDS = {"a": PROMPT, "t": "Ben", "f": "Robert"}
CASE = Case("demo-gpt2", PROMPT, "Ben", "Robert")


@pytest.fixture(scope="module")
def service() -> Service:
    return Service("demo-gpt2")


@pytest.fixture
def demo(visit, speaking, monkeypatch, service):  # noqa: F811
    """demo(query parameters) -> the page about demo-gpt2, with fewer documents; answers are kept between tests."""
    monkeypatch.setitem(speaking, "demo-gpt2", "demo-gpt2")
    monkeypatch.setattr(feature_answers, "DOCUMENTS", 48)
    monkeypatch.setattr(feature_answers, "MEASURED", 16)
    monkeypatch.setattr("app.frame.service", lambda: service)
    return lambda **parameters: visit("features", "demo-gpt2", **WORDS | parameters)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(feature_answers, "DOCUMENTS", 48)
    monkeypatch.setattr(feature_answers, "MEASURED", 16)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_without_transcoders_is_told_how_to_train_some(visit, family):  # noqa: F811
    test = visit("features", family)
    assert not test.exception and not test.error
    assert any("interp train transcoder" in info.value.replace("\\", "") for info in test.info)


@pytest.mark.parametrize("part", FEATURE_PARTS)
def test_every_part_draws(demo, part):
    test = demo(features=part, layer="1")
    assert not test.exception and not test.error and not test.warning
    assert value(test, "Error share") < 50 and value(test, "CE recovered") > 50


def test_quality_is_the_library_s(demo, service, small):
    import saes

    test = demo(layer="2")
    texts = feature_answers.documents(service, "demo-gpt2", 16)
    found = saes.evaluate(service.model("demo-gpt2"), saes.bundled("demo-gpt2")[2], texts.prompts)
    assert value(test, "Active features") == pytest.approx(found.l0, abs=0.051)
    assert value(test, "Error share") == pytest.approx(100 * found.fvu, abs=0.051)


def test_features_are_listed_in_the_order_asked_for(service, small):
    layer = feature_answers.reports(service, "demo-gpt2")[1]
    dense, strong, number = (ordered(layer, by) for by in ("density", "maximum", "number"))
    assert set(dense) == set(strong) == set(number) == set(layer.alive)
    assert number == sorted(number)
    assert all(layer.density[a] >= layer.density[b] for a, b in zip(dense, dense[1:], strict=False))
    assert all(layer.statistics.maximum[a] >= layer.statistics.maximum[b] for a, b in zip(strong, strong[1:], strict=False))


def test_a_feature_held_at_its_own_value_changes_nothing(service, small):
    from saes.features import feature_activations

    coder = feature_answers.coders(service, "demo-gpt2")[1]
    active = feature_activations(service.model("demo-gpt2"), coder, PROMPT).dense(0)[-1]
    feature = int(active.argmax())
    case = Case("demo-gpt2", PROMPT, "Ben", "Robert", feature=FeatureView(where="last"))
    found = feature_answers.clamped(service, case, (1, feature), float(active[feature]), 10.0)
    clean, now = found.next.measures["logit difference"]
    assert now == pytest.approx(clean, abs=2e-4) and found.own == pytest.approx(float(active[feature]), rel=1e-5)
    assert found.values[0] == 0.0 and abs(found.curve[0] - clean) > 1e-3
    assert found.other != feature


def test_moving_the_clamp_moves_the_numbers_and_the_address(demo):
    test = demo(layer="0", feature="0.42")
    before = value(test, "Logit difference")
    test.slider(key="feature_clamp").set_value(0.0).run()
    assert not test.exception and "".join(test.query_params["clamp"]) == "0"
    assert value(test, "Logit difference") != before


def test_a_value_is_of_the_feature_that_it_was_set_for(demo):
    """Another feature starts at its own largest activation; a link's value beyond the slider's end is the slider's end everywhere."""
    test = demo(layer="0", feature="0.42", clamp="1e5")
    slider = test.slider(key="feature_clamp")
    assert not test.exception and slider.value == slider.max
    end = value(test, "Logit difference")
    test.slider(key="feature_clamp").set_value(0.0).run()
    test.slider(key="feature_clamp").set_value(slider.max).run()
    assert value(test, "Logit difference") == end
    other = next(int(f[1:].split()[0]) for f in test.selectbox(key="feature_pick").options if not f.startswith("#42 "))
    test.selectbox(key="feature_pick").set_value(other).run()
    slider = test.slider(key="feature_clamp")
    assert test.session_state["case"].feature.clamp == -1.0 and slider.value == pytest.approx(slider.max / 2)


def test_the_script_gives_the_page_s_numbers(demo, capsys):
    test = demo(layer="1", clamp="2", where="last")  # no feature is named: the first of the list
    exec(feature_exports.python(test.session_state["case"]), {})
    clean, now = map(float, capsys.readouterr().out.split("\n")[-2].split())
    assert now == pytest.approx(value(test, "Logit difference"), abs=6e-4)
    assert now != clean


@pytest.fixture
def folder(speaking, tmp_path):
    """A folder of transcoders of the tiny GPT-2, of layer 1 alone."""
    import interp
    import saes

    model = interp.load(speaking["gpt2"])
    (config,) = saes.mlp_transcoders(model, saes.Config(n_features=24, k=4, steps=5, batch_size=32), [1])
    (coder,) = saes.train(model, [config], interp.Prompts.from_ids([[5, 6, 7, 8, 9, 10, 11, 12]] * 16))
    coder.save(tmp_path / str(coder.target_site))
    return str(tmp_path)


def test_own_transcoders_are_opened_from_a_folder_that_is_typed(visit, folder):  # noqa: F811
    test = visit("features", "gpt2", coders=folder)
    assert not test.exception and any("link alone" in info.value for info in test.info)
    test.button(key="open_coders").click().run()
    for part in FEATURE_PARTS:
        test.segmented_control(key="feature.part").set_value(part).run()
        assert not test.exception and not test.error
        assert test.segmented_control(key="feature.layer").options == ["1"]
    compile(feature_exports.python(test.session_state["case"]), "script", "exec")
    test.text_input(key="coders").set_value("").run()
    assert any("interp train transcoder" in info.value for info in test.info)


def test_coders_of_another_model_are_refused(service, folder, tmp_path):
    service.allow_coders(folder)
    with pytest.raises(Refused, match="dimensions"):
        feature_answers.coders(service, "demo-gpt2", folder)
    for wrong in (tmp_path / "nothing", tmp_path / "blocks.1.hook_mlp_out" / "coder.json"):
        service.allow_coders(str(wrong))
        with pytest.raises(Refused, match="no folder"):
            feature_answers.coders(service, "demo-gpt2", str(wrong))


def test_another_model_in_a_folder_of_a_bundled_name_has_no_bundled_transcoders(service, tmp_path):
    from tests.tiny import save_tiny

    save_tiny("gpt2", tmp_path / "demo-gpt2")
    service.allow(str(tmp_path / "demo-gpt2"))
    with pytest.raises(Refused, match="bundled"):
        feature_answers.coders(service, str(tmp_path / "demo-gpt2"))


def test_the_graph_that_is_drawn_is_the_one_computed(service, small):
    graph, _ = feature_answers.graph(service, CASE)
    drawn = layout(graph, 4, "")
    placed = {node.id for node in graph.nodes if node.pos is not None}
    assert {node["id"] for node in drawn["nodes"]} == placed
    assert drawn["rows"] == ["tokens", "layer 0", "layer 1", "layer 2", "layer 3", "logits"]
    for source, target, weight, _ in drawn["edges"][:50]:
        ends = (drawn["nodes"][source]["id"], drawn["nodes"][target]["id"])
        assert weight == pytest.approx(float(graph.weights[graph.index(ends[1]), graph.index(ends[0])]), rel=1e-4)
        assert drawn["nodes"][source]["row"] < drawn["nodes"][target]["row"]
    assert graph.closure < 1e-3


def test_a_layer_that_is_not_there_is_said(demo):
    test = demo(layer="9")
    assert not test.exception and any("no layer 9" in warning.value for warning in test.warning)


def test_a_folder_without_known_transcoders_is_refused(service, tmp_path):
    from tests.tiny import save_tiny

    save_tiny("opt", tmp_path / "bare")
    service.allow(str(tmp_path / "bare"))
    with pytest.raises(Refused, match="interp train transcoder"):
        feature_answers.coders(service, str(tmp_path / "bare"))


@pytest.mark.parametrize("part", FEATURE_PARTS)
def test_files_hold_what_is_shown_and_the_script_is_python(service, part, monkeypatch, small):
    monkeypatch.setattr("app.frame.service", lambda: service)
    case = Case("demo-gpt2", PROMPT, "Ben", "Robert", feature=FeatureView(part, 1))
    for file in feature_exports.downloads(case):
        made = file.make()
        assert json.loads(made) if file.kind == "json" else len(made.splitlines()) > 5
    compile(feature_exports.python(case), "script", "exec")
