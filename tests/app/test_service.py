"""The service gives the library's numbers, remembers a bounded number of them, and never mixes callers up."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO

import pytest

import interp
from app.bounded import Bounded
from app.case import MEASURES, Case, FeatureView, OutlierView
from app.curated import CASES, STORED, stored_results
from app.measures import MEASURES as DEFINED
from app.service import FACTORS, Refused, Service, moved_to
from interp.zoo import bundled
from tests.app.conftest import FAMILIES

PROMPT = "John and Mary went to the store , John gave a drink to"


@pytest.fixture(scope="module", params=FAMILIES)
def asked(request, speaking) -> tuple[Service, Case]:
    folder = speaking[request.param]
    return Service(folder), Case(folder, PROMPT, "Mary", "John", ("a1.2*-1", "m0:zero@-1"), "2.1")


def test_clean_and_edited_numbers_are_those_of_the_library(asked):
    service, case = asked
    model = interp.load(case.model)
    prompts = model.encode(PROMPT)
    target, foil = (int(model.encode(word, bos=False).ids[0, 0]) for word in ("Mary", "John"))
    metric = interp.logit_diff([target], [foil])
    result = interp.sweep(model, prompts, [case.plan()], metric)
    clean, edited = service.reading(case).measures["logit difference"]
    assert clean == pytest.approx(float(result.clean[0]), abs=1e-4)
    assert edited == pytest.approx(float(result.values[0, 0]), abs=1e-4)
    kl = interp.sweep(model, prompts, [case.plan()], interp.kl()).values[0, 0]
    assert service.reading(case).measures["KL to clean (nats)"][1] == pytest.approx(float(kl), abs=1e-4)


@pytest.mark.parametrize("measure", MEASURES)
def test_every_measure_is_one_number_per_head(asked, measure):
    service, case = asked
    values = service.grid(case, measure).values
    assert len(values) == 3 and all(len(row) == 4 for row in values)
    assert DEFINED[measure].signed or all(v >= 0 or v != v for row in values for v in row)


def test_the_grid_ignores_the_edits(asked):
    service, case = asked
    assert service.grid(case) == service.grid(case.clean())


def test_the_curve_passes_through_the_edited_value(asked):
    """Other edits stay in force, and factor 1 is the run with them alone."""
    service, case = asked
    curve = service.curve(case)
    alone = service.reading(case).measures["logit difference"]
    assert curve.factors == FACTORS and curve.clean == pytest.approx(alone[0], abs=1e-4)
    assert curve.values[FACTORS.index(1.0)] == pytest.approx(alone[1], abs=1e-4)
    halved = service.reading(case.with_head_edit((2, 1), "*0.5")).measures["logit difference"][1]
    assert curve.values[FACTORS.index(0.5)] == pytest.approx(halved, abs=1e-4)


def test_a_head_card_has_a_causal_pattern_and_the_grid_s_numbers(asked):
    service, case = asked
    card = service.head(case)
    assert all(sum(row) == pytest.approx(1, abs=1e-4) for row in card.pattern)
    assert all(share == 0 for q, row in enumerate(card.pattern) for share in row[q + 1 :])
    assert card.ablation == service.grid(case, "zero").values[2][1] and card.direct == service.grid(case, "direct").values[2][1]
    assert card.promoted[0][1] >= card.promoted[-1][1] >= card.suppressed[0][1]


def test_what_a_head_writes_is_that_of_the_edited_model(asked):
    """A head of the last layer that is turned around promotes what it suppressed."""
    service, case = asked
    clean, turned = (service.head(replace(case, edits=edits)) for edits in ((), ("a2.1*-1",)))
    assert [word for word, _ in turned.promoted] == [word for word, _ in clean.suppressed]
    assert [word for word, _ in turned.suppressed] == [word for word, _ in clean.promoted]
    model = service.model(case.model)
    written = interp.promoted_by_output(model, model.encode(PROMPT), 2, 1, k=6, edits=case.plan())
    assert [value for _, value in service.head(case).promoted] == pytest.approx(written.promoted[0].tolist(), abs=1e-5)


def test_texts_are_shown_clean_and_edited(asked):
    service, case = asked
    assert set(service.texts(case, 3)) == {"clean", "edited"} and set(service.texts(case.clean(), 3)) == {"clean"}


def test_the_exported_script_prints_the_number_on_the_page(asked):
    service, case = asked
    out = StringIO()
    with redirect_stdout(out):
        exec(compile(case.python(), "snippet", "exec"), {})
    clean, edited = service.reading(case).measures["logit difference"]
    assert out.getvalue().split(":")[1].split() == [f"{clean:.4f}", "->", f"{edited:.4f}"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt": ""}, "empty"), ({"prompt": "John likes Zebras"}, "Zebras"), ({"prompt": "John " * 60}, "at most 32"),
        ({"target": "Zebra"}, "Zebra"), ({"target": ""}, "empty"), ({"foil": "John Mary"}, "2 tokens"), ({"foil": "Mary"}, "same token"),
        ({"edits": ("a9.6*0.5",)}, "layers 0-2"), ({"edits": ("a1.6*0.5",)}, "heads 0-3"), ({"edits": ("m1:zero@40",)}, "Position 40"),
        ({"model": "no-such-model"}, "not one of"), ({"target": "#99"}, "0-49"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_with_a_sentence(speaking, change, said):
    case = Case(speaking["gpt2"], PROMPT, "Mary", "John")
    with pytest.raises(Refused, match=said):
        Service(speaking["gpt2"]).reading(replace(case, **change))


def test_a_link_alone_cannot_open_a_folder(speaking):
    service = Service(speaking["gpt2"])
    case = Case(speaking["opt"], PROMPT, "Mary", "John")
    with pytest.raises(Refused, match="Open it by name"):
        service.reading(case)
    service.allow(speaking["opt"])
    assert service.reading(case).ids


def test_a_head_that_does_not_exist_is_refused(speaking):
    service = Service(speaking["gpt2"])
    with pytest.raises(Refused, match="heads 0-3"):
        service.curve(Case(speaking["gpt2"], PROMPT, "Mary", "John", head="1.7"))


def test_a_model_without_tokenizer_is_asked_by_ids(folders):
    service = Service(str(folders["neox"]))
    case = service.suggest(str(folders["neox"]))
    assert service.reading(case).ids == (1, 2, 1)
    with pytest.raises(Refused, match="no tokenizer"):
        service.reading(replace(case, prompt="words"))


def test_the_suggested_prompt_can_be_read(asked):
    service, case = asked
    assert service.reading(service.suggest(case.model)).ids


def test_another_model_gets_the_question_without_edits():
    assert moved_to(Case("a", "p", "t", "f", ("a1.2*2",), "1.2"), "b") == Case("b", "p", "t", "f")


def test_another_model_keeps_the_page_but_nothing_that_is_of_the_old_one():
    focus = Case("a", "p", outlier=OutlierView("trace", place="2.14"), feature=FeatureView("graph", 2, "2.7", "density", 3.0, coders="x"))
    kept = Case("b", "p", outlier=OutlierView("trace"), feature=FeatureView("graph", 2, order="density"))
    assert moved_to(focus, "b") == kept


def test_callers_with_different_edits_get_their_own_numbers(speaking):
    """Many threads, one service without memory: every answer equals that of a caller alone."""
    folder = speaking["gpt2"]
    cases = [Case(folder, PROMPT, "Mary", "John", (f"a{i % 3}.{i % 4}*{i / 2 - 1:g}",) if i else (), f"{i % 3}.{i % 4}") for i in range(8)]
    alone = Service(folder)

    def numbers(service: Service, case: Case):
        card = service.head(case)
        return service.reading(case).measures, service.curve(case).values, card.pattern, card.direct, service.grid(case, "zero").values

    expected = [numbers(alone, c) for c in cases]
    shared = Service(folder, answers=1)
    start = threading.Barrier(8)

    def ask(i: int):
        start.wait()
        return [numbers(shared, cases[i]) for _ in range(4)]

    with ThreadPoolExecutor(8) as pool:
        for i, answers in enumerate(pool.map(ask, range(8))):
            assert all(answer == expected[i] for answer in answers)


def test_memory_is_bounded_and_keeps_what_was_used_last():
    made: list[int] = []
    cache: Bounded[int] = Bounded(2)
    for key in (1, 2, 1, 3, 1, 2):
        assert cache.get(key, lambda key=key: made.append(key) or key) == key
    assert made == [1, 2, 3, 2] and len(cache) == 2


def test_what_fails_is_not_remembered():
    cache: Bounded[int] = Bounded(2)
    with pytest.raises(ValueError):
        cache.get("key", lambda: int("x"))
    assert cache.get("key", lambda: 5) == 5


def test_one_key_is_computed_once_for_many_threads():
    cache, made = Bounded[int](4), []
    gate = threading.Event()

    def make() -> int:
        gate.wait(1)
        made.append(1)
        return 7

    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(cache.get, "key", make) for _ in range(4)]
        gate.set()
        assert [a.result() for a in answers] == [7] * 4
    assert made == [1]


@pytest.mark.parametrize("name", ["demo-gpt2", "demo-opt", "demo-pythia"])
def test_stored_results_are_what_the_model_says(name):
    from app.store_results import results_of

    if name not in bundled() or not (STORED / f"{name}.json").is_file():
        pytest.skip(f"{name} is not bundled, or its results are not stored: python -m app.store_results")
    stored, found = stored_results(name), results_of(Service(name), name)
    assert stored["weights"] == found["weights"], "the model changed: run python -m app.store_results"
    assert set(stored["cases"]) == {c.name for c in CASES}
    for case, result in found["cases"].items():
        assert stored["cases"][case]["logit_difference"] == pytest.approx(result["logit_difference"], abs=2e-3)
        assert stored["cases"][case]["next"][0]["text"] == result["next"][0]["text"]
        assert stored["cases"][case]["top_heads"][0]["head"] == result["top_heads"][0]["head"]
