"""The variables of the demo models' corpus, read back from its documents: its templates are known, so is the role of every word.

    variables = atlas_variables(documents)      # interp.atlas documents; tokens in the order of `encode`, BOS and EOS included

Where a variable speaks of what comes next ("answer next", "letter next"), it holds at the token from which that is predicted.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice

from interp.atlas import Corpus, Document, world
from interp.atlas import words as lists
from interp.atlas.facts import CHOICES, COLOR_CHOICES, PARAPHRASES
from interp.atlas.scenes import ASK, GREATER, IOI, LIST, SCENE, TELL, TOLD
from interp.atlas.tokenizer import BOS, EOS
from interp.store.texts import HARVEST_SEED
from saes.features.variables import Variables, gather

Mark = tuple[int, str]
"""Position among the words of a document, and a context variable that holds there."""
OPTIONS = " ".join(f"{letter} : {{option{i}}}" for i, letter in enumerate(lists.LETTERS))
POSITIONS = 4
"""So many first positions are variables of their own."""


@dataclass(frozen=True)
class Template:
    """A sentence's words, slots in braces, and what it is: a relation's name for statements of facts."""

    what: str
    words: tuple[str, ...]
    question: bool

    @classmethod
    def of(cls, what: str, text: str) -> "Template":
        words = tuple(text.replace("{options}", OPTIONS).split())
        return cls(what, words, "Question" in words)

    def slots(self, words: Sequence[str], first: int) -> dict[str, int] | None:
        """Positions of the slots, if the words fit; the first word stands at `first`."""
        if len(words) != len(self.words):
            return None
        found = {}
        for i, (mine, word) in enumerate(zip(self.words, words, strict=True)):
            if mine.startswith("{"):
                found[mine.strip("{}")] = first + i
            elif mine != word:
                return None
        return found


@cache
def sentences() -> dict[int, list[Template]]:
    """Templates of sentences by their number of words."""
    made = [Template.of(relation, text) for relation, texts in PARAPHRASES.items() for text in texts]
    made += [Template.of("choices", CHOICES), Template.of("color choices", COLOR_CHOICES.partition(" . ")[2])]
    made += [Template.of("told", TOLD.removesuffix(" .")), Template.of("scene", SCENE.removesuffix(" ."))]
    made += [Template.of("list", "{country} : {value}")]
    made += [Template.of("color", text) for text in (ASK, TELL, LIST)] + [Template.of("greater", text) for text in GREATER]
    return {n: [t for t in made if len(t.words) == n] for n in {len(t.words) for t in made}}


@cache
def ioi_templates() -> list[Template]:
    return [Template.of("ioi", text) for text in IOI]


@cache
def classes() -> dict[str, tuple[str, ...]]:
    """Word -> the lists that it is in."""
    named: dict[str, Sequence[str]] = {
        "first name": lists.FIRST_NAMES, "surname": lists.SURNAMES, "color": lists.COLORS, "object": lists.OBJECTS, "gift": lists.GIFTS,
        "place": lists.PLACES, "surface": lists.SURFACES, "animal": lists.ANIMALS, "adjective": lists.ADJECTIVES, "time": lists.TIMES,
        "event": lists.EVENTS, "century": lists.CENTURIES, "year": lists.YEARS, "letter": lists.LETTERS, "country": world().countries,
        "punctuation": (".", ",", ":", "?"),
    }  # fmt: skip
    named |= {relation: pool for relation, pool in world().pools.items() if relation != "leader"}
    found: dict[str, list[str]] = {}
    for name, words in named.items():
        for word in dict.fromkeys(words):
            found.setdefault(word, []).append(name)
    return {word: tuple(names) for word, names in found.items()}


def atlas_sample(n: int, seed: int = HARVEST_SEED, mixture: str = "last") -> list[Document]:
    """The first n documents of a corpus; the same as those of `interp.store.texts.atlas_documents`."""
    corpus = Corpus(seed)
    return list(islice((document for i in range(-(-n // corpus.pool_size)) for document in corpus.pool(i, mixture)), n))


def atlas_variables(documents: Sequence[Document]) -> Variables:
    """All variables of the tokens of documents, one document after the other, each with BOS and EOS."""
    return gather(sum(len(d.words) + 2 for d in documents), _all_marks(documents))


def _all_marks(documents: Sequence[Document]) -> Iterator[tuple[int, str, str]]:
    first = 0
    for document in documents:
        words = (BOS, *document.words, EOS)
        for i, word in enumerate(words):
            yield first + i, "token", f"token = {word}"
            if i:
                yield first + i, "previous", f"previous token = {words[i - 1]}"
            yield from ((first + i, "class", f"class = {name}") for name in classes().get(word, ()))
        yield from ((first + 1 + i, "context", name) for i, name in context_marks(document))
        first += len(words)


def context_marks(document: Document) -> Iterator[Mark]:
    """What the text before a word, or the whole document, makes of it."""
    words = document.words
    yield from ((i, f"family = {document.family}") for i in range(len(words)))
    yield from ((i, f"position = {i + 1}") for i in range(min(POSITIONS, len(words))))
    yield from _repetition(document)
    if document.family == "ioi":
        yield from _ioi(words)
    stated: set[tuple[str, str]] = set()
    first = 0
    for end in [*(i for i, word in enumerate(words) if word == "."), len(words)]:
        yield from _sentence(words, first, end, stated)
        first = end + 1


def _repetition(document: Document) -> Iterator[Mark]:
    words = document.words
    seen: Counter[str] = Counter()
    pairs: set[tuple[str, str]] = set()
    for i, word in enumerate(words):
        if seen[word] and word != ".":
            yield i, "word seen before"
            if seen[word] > 1:
                yield i, "word seen twice before"
        pair = (words[i - 1], word) if i else None
        if pair in pairs:
            yield i, "pair of words seen before"
        if pair:
            pairs.add(pair)
        seen[word] += 1
    if document.family == "random":
        yield from ((i, f"copy = {i // document.quiet + 1}") for i in range(len(words)))
    if document.family == "repeats":
        size = words.index(".") + 1
        yield from ((i, f"said before = {i // size}") for i in range(len(words)) if words[i % size] == words[i])


def _ioi(words: Sequence[str]) -> Iterator[Mark]:
    found = next((slots for t in ioi_templates() if (slots := t.slots(words[:-1], 0)) is not None), None)
    if found is None:
        return
    io, subject, end = words[found["io"]], words[found["s"]], found["io"]
    for slot in ("a", "b"):
        name = words[found[slot]]
        yield found[slot], "role = IO" if name == io else "role = S" if name == subject else "role = neither"
    yield found["s"], "role = S, second time" if subject in (words[found["a"]], words[found["b"]]) else "role = third person"
    yield end, "role = IO, second time"
    yield end - 1, "name next"
    yield end - 1, f"indirect object next = {io}"
    yield from ((i, f"subject = {subject}") for i in range(found["s"] + 1, end))


def _sentence(words: Sequence[str], first: int, end: int, stated: set[tuple[str, str]]) -> Iterator[Mark]:
    part = words[first:end]
    for template in sentences().get(len(part), ()):
        slots = template.slots(part, first)
        if slots is None:
            continue
        match template.what:
            case "told" | "scene":
                yield from (
                    (slots[f"{x}{i}"], f"{name} in the scene = {i}") for x, name in (("o", "object"), ("c", "color")) for i in range(3)
                )
            case "color" if words[slots["object"]] in lists.OBJECTS and words[slots["color"]] in lists.COLORS:
                yield from _color(words, slots, template)
            case "greater":
                yield from _greater(words, slots)
            case "choices" | "color choices":
                yield from _choices(words, slots, first, template)
            case "list" if words[slots["country"]] in world().countries:
                yield from _statement(words, slots, _relation(words, slots), first, stated)
            case relation if relation in PARAPHRASES:
                if template.question:
                    yield from ((i, "question about a fact") for i in range(first, end))
                yield from _statement(words, slots, relation, first, stated)


def _relation(words: Sequence[str], slots: dict[str, int]) -> str:
    """The relation of `France : Paris`; "" where the value is none of the country's."""
    country, value = words[slots["country"]], words[slots["value"]]
    return next((r for r in PARAPHRASES if world().values[country, r] == value), "")


def _statement(words: Sequence[str], slots: dict[str, int], relation: str, first: int, stated: set[tuple[str, str]]) -> Iterator[Mark]:
    country, value, last = words[slots["country"]], words[slots["value"]], slots["value"]
    known = country in world().countries
    yield from ((i, f"statement of = {relation}") for i in range(first, last + 1))
    yield last - 1, "answer next"
    yield last - 1, f"answer next, of = {relation}"
    after = range(slots["country"] + 1, last + 1)
    if known:
        yield from ((i, f"country spoken of = {country}") for i in after)
        yield last - 1, f"fact next = {country}, {relation}"
    else:
        yield from ((i, "name of which nothing is known") for i in after)
    if (country, relation) in stated:  # whatever the text said that it is
        yield last - 1, "answer next, fact stated before"
    if known and world().values[country, relation] != value:
        yield last, "wrong value"
    stated.add((country, relation))


def _color(words: Sequence[str], slots: dict[str, int], template: Template) -> Iterator[Mark]:
    color, end = words[slots["color"]], slots["color"]
    if template.question:
        yield from ((i, "question about a color") for i in range(end - len(template.words) + 1, end + 1))
    yield end - 1, "color next"
    yield end - 1, f"color next = {color}"
    yield from ((i, f"color of the object spoken of = {color}") for i in range(slots["object"], end))
    yield from ((i, f"object spoken of = {words[slots['object']]}") for i in range(slots["object"] + 1, end + 1))


def _greater(words: Sequence[str], slots: dict[str, int]) -> Iterator[Mark]:
    start, end = words[slots["start"]], slots["end"]
    yield end - 1, "later year next"
    yield from ((i, f"decade of the start = {start[0]}x") for i in range(slots["start"] + 1, end))
    yield from ((i, f"start year = {start}") for i in range(slots["start"] + 1, end))


def _choices(words: Sequence[str], slots: dict[str, int], first: int, template: Template) -> Iterator[Mark]:
    answer = slots["letter"]
    letter = words[answer]
    yield from ((i, "multiple choice") for i in range(first, answer + 1))
    yield answer - 1, "letter next"
    yield answer - 1, f"letter next = {letter}"
    yield from ((slots[f"option{i}"], f"option = {name}") for i, name in enumerate(lists.LETTERS))
    yield slots[f"option{lists.LETTERS.index(letter)}"], "right option"
    if template.what == "choices":
        country, relation = words[slots["country"]], words[slots["relation"]]
        yield from ((i, f"question of = {relation}") for i in range(slots["relation"] + 1, answer + 1))
        yield from ((i, f"country spoken of = {country}") for i in range(slots["country"] + 1, answer + 1))
    else:
        yield from ((i, "question about a color") for i in range(first, answer + 1))
        yield from ((i, f"object spoken of = {words[slots['object']]}") for i in range(slots["object"] + 1, answer + 1))
