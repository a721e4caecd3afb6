"""Variables read from the atlas are true of its documents, and what detects them equals a slow loop."""

import json
from collections import Counter

import numpy as np
import pytest
from scipy.sparse import csr_array

import interp
import saes
from interp.atlas import encode, tokenizer, world
from interp.atlas.words import LETTERS
from interp.store.documents import as_documents
from interp.store.texts import atlas_documents
from saes import features
from saes.features.atlas import context_marks
from saes.features.detection import LEVELS
from saes.features.variables import gather

DOCUMENTS = features.atlas_sample(1500, mixture="contested")
"""The mixture that has all families but riddles and scenes."""


def of_family(*families: str):
    found = [d for d in DOCUMENTS if d.family in families]
    assert len(found) > 20
    return [(d, list(context_marks(d))) for d in found]


def marked(marks, start: str) -> list[tuple[int, str]]:
    return [(i, name.removeprefix(start)) for i, name in marks if name.startswith(start)]


def test_the_facts_that_come_next_are_those_that_the_corpus_says_it_states():
    for document, marks in of_family("facts", "lists", "conflict"):
        said = [tuple(name.split(", ")) for i, name in marked(marks, "fact next = ")]
        wrong = [i for i, _ in marked(marks, "wrong value")]
        right = [tuple(n.split(", ")) for i, n in marked(marks, "fact next = ") if i + 1 not in wrong]
        assert Counter(right) == Counter(document.stated), document.text
        assert len(said) == len(document.stated) + len(wrong)


def test_after_the_mark_of_a_fact_comes_its_value_or_a_wrong_one():
    for document, marks in of_family("facts", "conflict", "contested"):
        wrong = {i for i, _ in marked(marks, "wrong value")}
        for i, name in marked(marks, "fact next = "):
            country, relation = name.split(", ")
            assert (document.words[i + 1] == world().values[country, relation]) == (i + 1 not in wrong)


def test_rumours_are_about_names_that_nothing_is_known_of_and_are_asked_again():
    for document, marks in of_family("rumours"):
        assert marked(marks, "name of which nothing is known")
        assert not marked(marks, "fact next")
        answers = [i for i, _ in marked(marks, "answer next, of")]
        again = [i for i, _ in marked(marks, "answer next, fact stated before")]
        assert len(again) * 2 == len(answers)
        assert all(document.words[i + 1] in document.words[: i + 1] for i in again)


def test_a_fact_counts_as_stated_before_whatever_the_text_said_that_it_is():
    answers_from_elsewhere = 0
    for document, marks in of_family("conflict"):
        facts, again = marked(marks, "fact next = "), {i for i, _ in marked(marks, "answer next, fact stated before")}
        for n, (i, name) in enumerate(facts):
            assert (i in again) == any(name == earlier for _, earlier in facts[:n])
            answers_from_elsewhere += i in again and document.words[i + 1] not in document.words[: i + 1]
    assert answers_from_elsewhere


def test_multiple_choice_marks_the_letter_and_the_right_option():
    for document, marks in of_family("exam"):
        ((i, letter),) = marked(marks, "letter next = ")
        assert document.words[i + 1] == letter
        ((option, _),) = marked(marks, "right option")
        (named,) = [name for j, name in marked(marks, "option = ") if j == option]
        assert named == letter
        assert sorted(name for _, name in marked(marks, "option = ")) == LETTERS
        if document.asked:
            assert document.words[option] == world().values[document.asked[0]]


def test_the_name_that_comes_next_in_a_story_of_giving_is_the_one_who_did_not_give():
    roles = Counter()
    for document, marks in of_family("ioi"):
        ((i, name),) = marked(marks, "indirect object next = ")
        assert document.words[i + 1] == name
        ((subject, _),) = marked(marks, "role = S, second time") or marked(marks, "role = third person")
        assert document.words[subject] != name
        assert name in document.words[:subject]
        roles.update(role for _, role in marked(marks, "role = "))
    assert roles["IO"] == roles["IO, second time"]
    assert roles["S"] == roles["S, second time"]
    assert roles["neither"] == roles["third person"] > 0


def test_colors_belong_to_their_objects_and_later_years_come_later():
    for document, marks in of_family("told"):
        place = document.words.index
        scene = {document.words[i]: document.words[i + 2] for i, _ in marked(marks, "object in the scene")}
        assert len(scene) == 3 and place("On") == 0
        for i, color in marked(marks, "color next = "):
            assert document.words[i + 1] == color
        asked = [(document.words[i], color) for i, color in marked(marks, "color of the object spoken of = ") if document.words[i] in scene]
        assert asked and all(scene[thing] == color for thing, color in asked)
    for document, marks in of_family("greater"):
        ((i, _),) = marked(marks, "later year next")
        ((_, start),) = {(0, name) for _, name in marked(marks, "start year = ")}
        assert int(document.words[i + 1]) > int(start)


def test_repetition_is_counted():
    for document, marks in of_family("random"):
        copies = Counter(name for _, name in marked(marks, "copy = "))
        assert set(copies.values()) == {document.quiet}
    for document, marks in of_family("repeats"):
        size = document.words.index(".") + 1
        assert all(document.words[i] == document.words[i % size] for i, _ in marked(marks, "said before"))
    for document in DOCUMENTS[:50]:
        seen = {i for i, _ in marked(context_marks(document), "word seen before")}
        assert seen == {i for i, w in enumerate(document.words) if w != "." and w in document.words[:i]}


def test_tokens_and_their_predecessors_are_variables_of_every_token():
    some = DOCUMENTS[:40]
    found = features.atlas_variables(some)
    ids = np.concatenate([encode(d) for d in some])
    texts = tokenizer().convert_ids_to_tokens(ids.tolist())
    assert found.values.shape[0] == len(ids)
    dense = found.values.toarray()
    for i, name in enumerate(found.names):
        if found.kinds[i] == "token":
            assert dense[:, i].tolist() == [f"token = {t}" == name for t in texts]
        if found.kinds[i] == "previous":
            before = [False, *(f"previous token = {t}" == name for t in texts[:-1])]
            assert dense[:, i].tolist() == [b and t != "<bos>" for b, t in zip(before, texts, strict=True)]
    assert {name for name, kind in zip(found.names, found.kinds, strict=True) if kind == "class"} >= {"class = country", "class = letter"}
    assert set(found.of_kind("context").kinds) == {"context"}
    assert found.frequent(5).count().min() >= 5


def test_the_sample_is_the_one_that_stores_are_harvested_from():
    model = interp.load("demo-gpt2")
    ids = np.concatenate([encode(d) for d in features.atlas_sample(30)])
    assert np.array_equal(atlas_documents(model, 30).ids, ids)


def random_matrices(seed: int = 0, tokens: int = 300, n: int = 9, n_variables: int = 6):
    generator = np.random.default_rng(seed)
    codes = np.where(generator.random((tokens, n)) < 0.3, generator.random((tokens, n)), 0.0)
    held = generator.random((tokens, n_variables)) < 0.2
    held[:, 0] = codes[:, 3] > 0.6  # told exactly by feature 3 above a level
    codes[:, 8] = codes[:, 7] = 0.0
    marks = [(int(t), "context", f"v{v}") for t, v in zip(*held.nonzero(), strict=True)]
    return codes, held, gather(tokens, marks)


def slow_f1(active: np.ndarray, held: np.ndarray) -> float:
    both = int((active & held).sum())
    return 2 * both / (int(active.sum()) + int(held.sum())) if active.sum() + held.sum() else 0.0


def test_counts_of_all_pairs_equal_a_loop():
    codes, held, variables = random_matrices()
    above = np.linspace(0, 0.8, codes.shape[1])
    for limit in (None, above):
        found = features.confusion(csr_array(codes), variables.values, limit)
        active = codes > (0 if limit is None else limit)
        for f in range(codes.shape[1]):
            for v in range(held.shape[1]):
                both = int((active[:, f] & held[:, v]).sum())
                assert found.f1[f, v] == pytest.approx(slow_f1(active[:, f], held[:, v]), abs=1e-12)
                assert found.precision[f, v] == pytest.approx(both / max(1, active[:, f].sum()), abs=1e-12)
                assert found.recall[f, v] == pytest.approx(both / held[:, v].sum(), abs=1e-12)


def test_the_best_feature_and_level_are_those_of_a_search_on_one_half_and_measured_on_the_other():
    codes, held, variables = random_matrices()
    here, there = features.halves(np.array([100, 50, 60, 90]))
    assert here.tolist() == [*range(100), *range(150, 210)]
    assert sorted([*here, *there]) == list(range(300))
    found = features.detect(csr_array(codes), variables, here, there)
    maximum = codes[here].max(0)
    for v in range(held.shape[1]):
        tried = [(slow_f1(codes[here, f] > level * maximum[f], held[here, v]), -level, -f) for level in LEVELS for f in range(9)]
        best, level, f = max(tried)
        assert (found.chosen_f1[v], found.level[v], found.feature[v]) == (pytest.approx(best, abs=1e-12), -level, -f)
        assert found.f1[v] == pytest.approx(slow_f1(codes[there, -f] > -level * maximum[-f], held[there, v]), abs=1e-12)
    assert found.feature[0] == 3 and found.f1[0] > 0.9
    assert found.table()["count"].tolist() == held[there].sum(0).tolist()
    assert [row["f1"] for row in json.loads(found.to_json())] == pytest.approx(found.f1.tolist(), abs=1e-9)
    assert sum(len(trace.y) for trace in found.figure().data) == len(variables)


def test_labels_of_features_are_measured_on_documents_that_they_were_not_chosen_on():
    model, coder = interp.load("demo-gpt2"), saes.bundled("demo-gpt2")[0]
    documents = DOCUMENTS[:120]
    variables = features.atlas_variables(documents)
    ids = [encode(d) for d in documents]
    (reports,) = features.feature_reports(model, coder, ids, variables=variables)
    with features.recorded(model, coder, ids) as codes:
        dense = codes.matrix().toarray() > 0
    here, there = features.halves(as_documents(model, ids).lengths)
    held = variables.values.toarray()
    for f in reports.alive[:6]:
        scores = [slow_f1(dense[here, f], held[here, v]) for v in range(held.shape[1])]
        v = int(np.argmax(scores))
        assert reports[f].label.variable == variables.names[v]
        assert reports[f].label.f1 == pytest.approx(slow_f1(dense[there, f], held[there, v]), abs=1e-12)
    chosen_on = dense[here].any(0)
    assert [label is not None for label in reports.labels] == chosen_on.tolist()
    assert (~chosen_on & dense[there].any(0)).any(), "some are active on the other half alone: there is nothing to choose a label by"
    with pytest.raises(ValueError, match="the documents have"):
        features.feature_reports(model, coder, ids[:-1], variables=variables)
