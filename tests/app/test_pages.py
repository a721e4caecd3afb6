"""Every page on every family draws without an exception; what cannot be done is a message."""

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

import app
from app.measures import MEASURES
from tests.app.conftest import FAMILIES

MAIN = str(Path(app.__file__).parent / "main.py")
PROMPT = "John and Mary went to the store , John gave a drink to"
WORDS = {"a": PROMPT, "t": "Mary", "f": "John"}


@pytest.fixture
def visit(speaking, monkeypatch):
    """visit(page, family, query parameters) -> the page as a person finds it."""
    import streamlit as st

    def open_page(page: str = "heads", family: str = "gpt2", **parameters: str) -> AppTest:
        st.cache_resource.clear()
        monkeypatch.setenv("WORKBENCH_MODEL", speaking[family])
        test = AppTest.from_file(MAIN, default_timeout=60)
        for key, value in parameters.items():
            test.query_params[key] = value
        if page != "start":
            test.switch_page(f"views/{page}.py")
        return test.run()

    return open_page


def value(test: AppTest, label: str) -> float:
    (metric,) = [m for m in test.metric if m.label.replace("\\", "").startswith(label)]
    return float(metric.value.rstrip("%"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("page", ["start", "heads", "circuits", "recall", "features", "outliers"])
def test_every_page_draws_on_every_family(visit, page, family):
    test = visit(page, family)
    assert not test.exception and not test.error and not test.warning


def test_the_pages_are_those_of_the_folder():
    pages = {file.stem for file in (Path(MAIN).parent / "views").glob("*.py")} - {"__init__"}
    assert pages == {"start", "heads", "circuits", "recall", "features", "outliers"}


@pytest.mark.parametrize("measure", MEASURES)
def test_every_measure_draws(visit, measure):
    test = visit(by=measure, head="1.2", **WORDS)
    assert not test.exception and not test.error
    assert test.selectbox(key="measure").value == measure


def test_edits_of_the_link_are_in_force(visit):
    clean, edited = visit(**WORDS), visit(**WORDS, e="a1.2*-2")
    assert not edited.exception
    assert value(clean, "Logit difference") != value(edited, "Logit difference")
    assert value(clean, "KL to clean") == 0 < value(edited, "KL to clean")


def test_a_chosen_head_can_be_scaled_and_set_back(visit):
    test = visit(**WORDS)
    clean = value(test, "Logit difference")
    test.selectbox(key="head").set_value("1.2").run()
    test.slider(key="scale").set_value(-2.0).run()
    assert not test.exception and value(test, "Logit difference") != clean
    assert test.session_state["case"].edits == ("a1.2*-2",)
    test.selectbox(key="head").set_value("0.1").run()
    assert test.slider(key="scale").value == 1.0
    test.button(key="set-Silence").click().run()
    assert test.session_state["case"].edits == ("a1.2*-2", "a0.1:zero")
    test.button(key="switch-0").click().run()
    assert test.session_state["case"].active == "a0.1:zero"
    test.button(key="remove-all").click().run()
    assert value(test, "Logit difference") == clean and not test.exception


def test_a_move_made_while_the_browser_still_shows_an_older_address_is_kept(visit):
    test = visit(**WORDS, head="1.2")
    older = dict(test.query_params)
    test.slider(key="scale").set_value(0.5).run()
    test.query_params.clear()
    for key, value in older.items():
        test.query_params[key] = value
    test.slider(key="scale").set_value(-1.0).run()
    assert test.session_state["case"].edits == ("a1.2*-1",) and "".join(test.query_params["e"]) == "a1.2*-1"
    for key in list(test.query_params):  # going back, without a move, does read the address
        del test.query_params[key]
    for key, value in older.items():
        test.query_params[key] = value
    assert test.run().session_state["case"].edits == ()


def test_an_edit_can_be_typed(visit):
    test = visit(**WORDS)
    test.text_input(key="new_edit").set_value("m1:zero@-1").run()
    assert test.session_state["case"].edits == ("m1:zero@-1",) and value(test, "KL to clean") > 0
    test.text_input(key="new_edit").set_value("m9:zero").run()
    assert "layers 0-2" in test.warning[0].value and test.session_state["case"].edits == ("m1:zero@-1",)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [("prompt", "", "empty"), ("prompt", "Zebras run", "Zebras"), ("prompt", "John " * 60, "at most 32"), ("target", "Zebra", "Zebra"),
     ("foil", "Mary", "same token"), ("target", "John Mary", "2 tokens")],
)  # fmt: skip
def test_bad_words_are_a_message_and_a_way_on(visit, name, text, said):
    test = visit(**WORDS)
    test.text_input(key=name).set_value(text).run()
    assert not test.exception and said in test.error[0].value
    test.button(key="start_over").click().run()
    assert not test.error and test.metric


@pytest.mark.parametrize(
    ("parameters", "said"),
    [({"e": "nonsense"}, "nonsense"), ({"e": "a9.1*2"}, "layers 0-2"), ({"head": "x"}, "LAYER.HEAD"), ({"head": "9.9"}, "no head 9.9"),
     ({"by": "magic"}, "magic"), ({"model": "/etc"}, "not one of"), ({"a": "<b>Zebras</b>"}, "does not know"), ({"what": "1"}, "'what'")],
)  # fmt: skip
def test_a_bad_link_is_a_message(visit, parameters, said):
    test = visit(**{**WORDS, **parameters})
    assert not test.exception
    assert said in " ".join(e.value for e in [*test.error, *test.warning])


def test_one_token_is_a_prompt(visit):
    test = visit(a="John", t="Mary", f="Peter", head="0.0")
    assert not test.exception and not test.error and test.metric


def test_a_model_without_tokenizer_has_a_page(visit, folders, monkeypatch, speaking):
    monkeypatch.setitem(speaking, "silent", str(folders["gpt2"]))
    test = visit(family="silent", head="1.2")
    assert not test.exception and not test.error and test.text_input(key="prompt").value == "#1 #2 #1"


def test_without_any_model_the_page_says_how_to_open_one(visit, monkeypatch, speaking):
    import interp.zoo

    monkeypatch.setattr(interp.zoo, "bundled", dict)
    monkeypatch.setitem(speaking, "none", "")
    for page in ("start", "heads", "circuits", "recall"):
        test = visit(page, family="none")
        assert not test.exception and "interp explore --model" in test.error[0].value


def test_going_to_another_model_keeps_the_question_and_drops_the_edits(visit, speaking):
    test = visit(**WORDS, e="a1.2*2")
    test.text_input(key="other_model").set_value(speaking["neox"]).run()
    case = test.session_state["case"]
    assert not test.exception and not test.error
    assert (case.model, case.prompt, case.edits) == (speaking["neox"], PROMPT, ())
    test.text_input(key="other_model").set_value("/no/such/folder").run()
    assert not test.exception and "/no/such/folder" in test.error[0].value


def test_downloads_hold_the_numbers_of_the_page(speaking, monkeypatch):
    import json

    from app import exports, frame
    from app.case import Case
    from app.service import Service

    service = Service(speaking["opt"])
    monkeypatch.setattr(frame, "service", lambda: service)
    case = Case(speaking["opt"], PROMPT, "Mary", "John", ("a1.2*0.5",), "1.2")
    table, data = exports.heads_table(case), json.loads(exports.heads_json(case))
    assert len(table) == 12 and list(table.columns[:3]) == ["layer", "head", "value"] and set(table["unit"]) == {"logits"}
    assert table["value"].iloc[6] == service.grid(case).values[1][2] == data["grid"]["values"][1][2]
    assert data["case"]["edits"] == ["a1.2*0.5"] and data["measures"]["logit difference"]["edited"] and len(data["curve"]["values"]) == 11
    files = {file.kind: file.make() for file in exports.heads(case)}
    assert b"plotly" in files["html"][:200_000] and files["parquet"][:4] == b"PAR1" and files["csv"] and json.loads(files["json"]) == data


def test_the_self_check_reports(visit):
    test = visit("start")
    test.button(key="check").click().run()
    assert not test.exception and "checks passed" in test.success[0].value
    test.toggle(key="list_sites").set_value(True).run()
    assert not test.exception


def test_what_a_token_says_is_never_markup():
    from app.parts.words import strip_html, written_html

    evil = "<img src=x onerror=alert(1)>"
    assert "<img" not in strip_html([evil], [5]) and "<img" not in written_html("promotes", [(evil, 1.0)])
