"""A case is its link, its script and its command: each way there and back changes nothing."""

import shlex
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import links
from app.case import (
    CLAMP_WHERE,
    COSTS,
    FEATURE_ORDERS,
    FEATURE_PARTS,
    FRACTIONS,
    HEAD_COLUMNS,
    MEASURES,
    METHODS,
    OUTLIER_PARTS,
    OUTPUT_SHARES,
    PROMPTS,
    SCHEMES,
    SECTIONS,
    SINK_SHARES,
    SITES,
    TASKS,
    Case,
    CircuitView,
    FeatureView,
    OutlierView,
    PatchMap,
)
from app.measures import MEASURES as DEFINED

DEFAULT = Case("demo-gpt2", "When John and Mary", "Mary", "John", corrupt="When John and Anna")
EDITS = st.lists(st.sampled_from(["a1.2*0.5", "~a1.2:zero", "m0:zero@-1", "a0.1:mean", "r2+0.3", "blocks.1.hook_resid_mid*2"]), unique=True)
CASES = st.builds(
    Case,
    model=st.sampled_from(["demo-gpt2", "demo-opt", "/some where/else"]),
    prompt=st.text(min_size=1, max_size=40),
    target=st.text(min_size=1, max_size=8),
    foil=st.text(min_size=1, max_size=8),
    edits=EDITS.map(tuple),
    head=st.sampled_from(["", "0.0", "11.3"]),
    measure=st.sampled_from(MEASURES),
    corrupt=st.text(max_size=20),
    section=st.sampled_from(SECTIONS),
    patch=st.builds(
        PatchMap,
        site=st.sampled_from(SITES),
        grid=st.sampled_from(["pos", "head"]),
        way=st.sampled_from(["noise", "denoise"]),
        unit=st.sampled_from(["share", "logits"]),
        cell=st.sampled_from(["", "0.0", "3.14"]),
    ),
    feature=st.builds(
        FeatureView,
        part=st.sampled_from(FEATURE_PARTS),
        layer=st.sampled_from([0, 3, 11]),
        name=st.sampled_from(["", "0.7", "3.1000"]),
        order=st.sampled_from(FEATURE_ORDERS),
        clamp=st.sampled_from([-1.0, 0.0, 12.25]),
        where=st.sampled_from(CLAMP_WHERE),
    ),
    outlier=st.builds(
        OutlierView,
        part=st.sampled_from(OUTLIER_PARTS),
        texts=st.sampled_from(PROMPTS),
        column=st.sampled_from(HEAD_COLUMNS),
        sink=st.sampled_from(SINK_SHARES),
        output=st.sampled_from(OUTPUT_SHARES),
        cost=st.sampled_from(COSTS),
        place=st.sampled_from(["", "0.7", "3.100"]),
        scheme=st.sampled_from(SCHEMES),
    ),
    circuit=st.builds(
        CircuitView,
        task=st.sampled_from(TASKS),
        method=st.sampled_from(METHODS),
        prompts=st.sampled_from(PROMPTS),
        size=st.sampled_from(FRACTIONS),
        run=st.sampled_from(["only", "without"]),
        node=st.sampled_from(["", "a1.h2"]),
        other=st.sampled_from(["", "ioi/eap"]),
    ),
)


@given(CASES)
def test_a_link_reads_back_as_the_same_case(case):
    found = links.read(links.query(case, DEFAULT))
    assert not found.problems
    assert links.apply(found, DEFAULT) == case


def test_the_default_case_needs_no_words_in_its_link():
    assert links.query(DEFAULT, DEFAULT) == {}
    assert links.link("http://localhost:8501/heads?old=1", DEFAULT, DEFAULT) == "http://localhost:8501/heads"


def test_edits_travel_under_e():
    case = replace(DEFAULT, edits=("a9.6*0.5", "~m5:zero@3"))
    assert links.query(case, DEFAULT) == {"e": "a9.6*0.5,~m5:zero@3"}
    assert "e=a9.6%2A0.5" in links.link("http://localhost/heads", case, DEFAULT)


def test_a_prompt_of_ones_own_brings_its_words():
    case = Case("demo-gpt2", "Another prompt", "Mary", "John")
    assert set(links.query(case, DEFAULT)) == {"a", "t", "f"}
    assert set(links.query(replace(case, corrupt="A second one"), DEFAULT)) == {"a", "b", "t", "f"}


def test_a_link_with_a_prompt_alone_has_no_second_prompt():
    assert links.apply(links.read({"a": "Another prompt"}), DEFAULT).corrupt == ""
    assert links.apply(links.read({"head": "1.1"}), DEFAULT).corrupt == DEFAULT.corrupt


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"e": "nonsense"}, "nonsense"), ({"e": "a1.2*0.5,b9*1"}, "b9"), ({"head": "two"}, "two"), ({"by": "magic"}, "magic"),
        ({"a": "x" * 5000}, "5,000"), ({"zzz": "1"}, "zzz"), ({"e": "a1.2*1e999"}, "finite"), ({"head": "<script>"}, "script"),
        ({"site": "hook_magic"}, "magic"), ({"grid": "x"}, "pos, head"), ({"cell": "1.2.3"}, "ROW.COLUMN"),
        ({"cell": "-1.2"}, "ROW.COLUMN"),
        ({"task": "<b>"}, "<b>"), ({"size": "0.123"}, "0.1,"), ({"size": "nan"}, "nan"), ({"n": "10000000"}, "16, 32, 64"),
        ({"vs": "ioi"}, "TASK/METHOD"), ({"show": "all"}, "patch, circuit"), ({"cell": "9" * 50 + ".1"}, "ROW.COLUMN"),
        ({"b": "x" * 5000}, "5,000"),
    ],
)  # fmt: skip
def test_what_a_link_cannot_mean_is_said_and_left_out(parameters, said):
    found = links.read(parameters)
    assert said in " ".join(found.problems)
    rest = links.apply(found, DEFAULT)
    assert rest.head == "" and rest.measure == "zero" and "nonsense" not in rest.edits
    assert (rest.patch, rest.circuit, rest.section) == (DEFAULT.patch, DEFAULT.circuit, DEFAULT.section)


def test_good_edits_of_a_bad_link_are_kept():
    assert links.read({"e": "a1.2*0.50,b9*1,a1.2*0.5"}).fields["edits"] == ("a1.2*0.5",)


def test_a_head_has_one_edit_and_others_stay():
    case = Case("m", edits=("a1.2*0.5", "m0:zero"))
    assert case.with_head_edit((1, 2), "*2").edits == ("a1.2*2", "m0:zero")
    assert case.with_head_edit((1, 2), None).edits == ("m0:zero",)
    assert case.with_head_edit((0, 1), ":mean").edits == ("a1.2*0.5", "m0:zero", "a0.1:mean")
    assert Case("m", edits=("a1.20*0.5",)).with_head_edit((1, 2), None).edits == ("a1.20*0.5",)
    assert [case.factor((1, 2)), case.factor((0, 0)), Case("m", edits=("a1.2:zero",)).factor((1, 2))] == [0.5, 1.0, 0.0]


def test_an_edit_that_is_switched_off_is_kept_and_does_nothing():
    case = Case("m", edits=("a1.2*0.5", "m0:zero")).with_edit_switched(0)
    assert case.edits == ("~a1.2*0.5", "m0:zero") and case.active == "m0:zero"
    assert case.with_edit_switched(0).active == "a1.2*0.5,m0:zero"
    assert case.without_edit(1).edits == ("~a1.2*0.5",)


@given(CASES)
def test_the_command_holds_every_word_as_one_argument(case):
    words = shlex.split(case.command())
    assert words[:2] == ["interp", "logits"] and case.target in words and case.model in words


@given(CASES)
def test_the_script_is_python(case):
    assert compile(case.python(), "snippet", "exec").co_names[0] == "interp"


def test_every_measure_is_defined_and_says_its_unit():
    assert tuple(DEFINED) == MEASURES
    assert all(
        m.unit and m.help and m.question.endswith("?") and m.kind in ("exact", "direct part", "description") for m in DEFINED.values()
    )


def test_what_can_be_chosen_is_what_the_library_has():
    from typing import get_args

    from app.case import PAIR, PER_HEAD
    from app.parts.choices import METHOD_NAMES, TASK_NAMES
    from circuits import tasks
    from circuits.edges import attribution
    from circuits.patching import activations as patching

    assert set(SITES) == set(get_args(patching.Kind)) and PER_HEAD == patching.PER_HEAD
    assert set(TASKS) == {*tasks.TASKS, PAIR} == set(TASK_NAMES)
    assert set(METHODS) == set(get_args(attribution.Method)) - {"exact"} == set(METHOD_NAMES)
    assert PatchMap().direction in get_args(patching.Direction) and PatchMap(way="noise").direction in get_args(patching.Direction)
