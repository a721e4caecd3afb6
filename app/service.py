"""The one way from the explorer to a model: loads it, runs it one caller at a time, and remembers a bounded number of answers.

Plain Python without Streamlit. Every answer is keyed by what it depends on, so two people with different edits can never see each
other's numbers. What cannot be done is a Refused with a sentence for the reader.
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from app.bounded import Bounded
from app.case import Case, prompt_ids
from app.curated import CASES
from app.measures import MEASURES

if TYPE_CHECKING:
    from interp.checks import CheckReport
    from interp.models import Model
    from interp.nextwords import NextWords
    from interp.prompts import Prompts

LONGEST = 64  # tokens of an attention pattern that are kept: the last ones
FACTORS = tuple(i / 2 for i in range(-4, 7))  # -2, -1.5 ... 3
Answer = TypeVar("Answer")


class Refused(ValueError):
    """Something that a person asked for and the model cannot do; its text says what and what to do."""


@dataclass(frozen=True)
class Reading:
    """A prompt as the model reads it, and its next token clean and under the edits."""

    tokens: tuple[str, ...]
    ids: tuple[int, ...]
    target: tuple[int, str]
    """Token id and text."""
    foil: tuple[int, str]
    next: "NextWords"
    seconds: float

    @property
    def measures(self) -> dict[str, tuple[float, float]]:
        return self.next.measures


@dataclass(frozen=True)
class Grid:
    """One number per head of the unedited model."""

    values: tuple[tuple[float, ...], ...]
    """[layer][head]"""
    seconds: float


@dataclass(frozen=True)
class HeadCard:
    """One head on one prompt, with the edits in force."""

    pattern: tuple[tuple[float, ...], ...]
    """[query][key], fractions; of the last LONGEST tokens."""
    first: int
    """Position of the first token in `pattern`."""
    promoted: tuple[tuple[str, float], ...]
    """Tokens that its output at the last position raises most under the edits, and by how many logits, directly."""
    suppressed: tuple[tuple[str, float], ...]
    direct: float
    """Its direct part of the logit difference in the unedited run, in logits."""
    ablation: float
    """What zeroing it really does to the logit difference of the unedited run, in logits."""
    seconds: float


@dataclass(frozen=True)
class Curve:
    """The logit difference as one head is scaled, all other edits in force."""

    factors: tuple[float, ...]
    values: tuple[float, ...]
    clean: float
    """Without any edit."""
    seconds: float


class Service:
    """Models and answers. `default` is the model that an address without one means."""

    def __init__(self, default: str | None = None, models: int = 3, answers: int = 256):
        self._given = default or os.environ.get("WORKBENCH_MODEL") or None
        self._extra: set[str] = set()
        self._coders: set[str] = set()
        self._warmed = False
        self._models: Bounded[Model] = Bounded(models)
        self._answers: Bounded[Any] = Bounded(answers)
        self._run = threading.RLock()
        """Held by whoever runs a model."""

    # --- models -----------------------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """The models that may be opened: the one given at the start, the bundled ones, and those a person asked for."""
        from interp.zoo import bundled

        return list(dict.fromkeys([*([self._given] if self._given else []), *bundled(), *sorted(self._extra)]))

    @property
    def default(self) -> str:
        names = self.names()
        if not names:
            raise Refused("No model is bundled here. Start with `interp explore --model FOLDER`, FOLDER being a Hugging Face model folder.")
        return names[0]

    def allow(self, name: str) -> None:
        """A model that a person asks for by name or folder. A link alone cannot have files loaded or downloaded."""
        self._extra.add(name)

    def allow_coders(self, folder: str) -> None:
        """A folder of coders that a person asks for."""
        self._coders.add(folder)

    def allows_coders(self, folder: str) -> bool:
        return folder in self._coders

    def model(self, name: str) -> "Model":
        if name not in self.names():
            known = ", ".join(map(short_name, self.names()))
            raise Refused(f"The model {name!r} is not one of {known}. Open it by name or folder in the sidebar.")

        def load() -> "Model":
            import interp.models

            return interp.models.load(name)

        return self._models.get(name, lambda: refusing(load))

    def warm(self) -> None:
        """Imports the library and loads the default model in the background, once."""

        def work() -> None:
            with contextlib.suppress(Refused):
                case = self.suggest(self.default)
                self.reading(case), self.grid(case, "zero")

        if not self._warmed:
            self._warmed = True
            threading.Thread(target=work, daemon=True, name="warm").start()

    def suggest(self, name: str) -> Case:
        """A prompt that the model can read, with two words to compare: the first curated case, or some of its own words."""
        first = CASES[0].case(name)
        if Path(name).name in DEMO:
            return first
        return self.answer(("suggest", name), lambda: self._suggest(name, first))

    def _suggest(self, name: str, first: Case) -> Case:
        from interp.tokens import known_words, token_id

        model = self.model(name)
        shop = "When John and Mary went to the store, {} gave a drink to"
        bundled = Case(name, shop.format("John"), "Mary", "John", corrupt=shop.format("Paul"))
        for case in (first, bundled):
            try:
                clean, corrupt = model.encode(case.prompt), model.encode(case.corrupt)
                token_id(model, case.target), token_id(model, case.foil)
            except ValueError:
                continue
            return case if clean.width == corrupt.width else replace(case, corrupt="")
        words = known_words(model, 6)
        if len(words) < 2:
            return Case(name, "#1 #2 #1", "#2", "#1", corrupt="#2 #2 #1")
        return Case(name, " ".join(words), words[0], words[1], corrupt=" ".join([words[1], *words[1:]]))

    # --- answers ----------------------------------------------------------------------------------------------------------

    def reading(self, case: Case) -> Reading:
        """The prompt's tokens, and what comes next, clean and under the edits that are switched on."""
        key = ("reading", case.model, case.prompt, case.target, case.foil, case.active)
        return self.answer(key, lambda: self._reading(case))

    def grid(self, case: Case, measure: str | None = None) -> Grid:
        """The measure of every head of the unedited model on this prompt."""
        measure = measure or case.measure
        key = ("grid", case.model, case.prompt, case.target, case.foil, measure)
        return self.answer(key, lambda: self._grid(case, measure))

    def head(self, case: Case) -> HeadCard:
        """The head in focus: its attention under the edits, what it writes, and its effect."""
        layer, head = self._focus(case)
        effects = [self.grid(case, name).values[layer][head] for name in ("direct", "zero")]
        key = ("head", case.model, case.prompt, case.target, case.foil, case.active, case.head)
        return self.answer(key, lambda: self._head(case, *effects))

    def curve(self, case: Case) -> Curve:
        """The logit difference against the factor of the head in focus, the other edits in force: one forked batch."""
        head = self._focus(case)
        others = case.with_head_edit(head, None)
        key = ("curve", case.model, case.prompt, case.target, case.foil, others.active, case.head)
        return self.answer(key, lambda: self._curve(others, head))

    def texts(self, case: Case, n: int = 12) -> dict[str, str]:
        """Greedy continuations: "clean", and "edited" where an edit is on."""
        key = ("texts", case.model, case.prompt, case.active, n)
        return self.answer(key, lambda: self._texts(case, n))

    def example(self, name: str, task: str, number: int, n: int) -> tuple[str, str, str, str]:
        """A pair of a task as texts: clean and corrupted prompt, right and wrong next word. The first of `n` pairs is number 0."""
        return self.answer(("example", name, task, n), lambda: self._examples(name, task, n))[number]

    def check(self, name: str) -> "CheckReport":
        """The honesty checks on the loaded weights."""
        return self.answer(("check", name), lambda: self.model(name).check())

    # --- how they are computed --------------------------------------------------------------------------------------------

    def answer(self, key: tuple[str, str, *tuple[Hashable, ...]], compute: Callable[[], Answer]) -> Answer:
        """The remembered answer, or a new one.

        A model is loaded before the turn is taken, so that others need not wait for a download. `compute` must not ask for another
        answer: whoever waits for its turn may be the one who makes it.
        """

        def run() -> Answer:
            self.model(key[1])
            with self._run:
                return refusing(compute)

        return self._answers.get(key, run)

    def open(self, case: Case) -> "tuple[Model, Prompts, tuple[int, int]]":
        """The model, the encoded prompt, and the ids of target and foil."""
        from interp.tokens import token_id

        model = self.model(case.model)
        if not case.prompt.strip():
            raise Refused("The prompt is empty: type the beginning of a text that the model should continue.")
        prompts = model.check_prompts(encode(model, case.prompt))
        target, foil = token_id(model, case.target, "The target"), token_id(model, case.foil, "The foil")
        if target == foil:
            raise Refused(f"Target and foil are the same token ({case.target!r}): their difference is always 0. Give two different words.")
        return model, prompts, (target, foil)

    def _reading(self, case: Case) -> Reading:
        from interp.nextwords import next_words
        from interp.tokens import token_text

        start = time.perf_counter()
        model, prompts, (target, foil) = self.open(case)
        ids = tuple(prompts.rows()[0])
        found = next_words(model, prompts, case.plan(), 8, target, foil)
        tokens = tuple(token_text(model, i) for i in ids)
        pair = ((target, token_text(model, target)), (foil, token_text(model, foil)))
        return Reading(tokens, ids, *pair, found, time.perf_counter() - start)

    def _grid(self, case: Case, measure: str) -> Grid:
        start = time.perf_counter()
        values = MEASURES[measure].compute(*self.open(case))
        return Grid(tuple(map(tuple, values.tolist())), time.perf_counter() - start)

    def _head(self, case: Case, direct: float, ablation: float) -> HeadCard:
        from interp.ov import promoted_by_output

        start = time.perf_counter()
        model, prompts, _ = self.open(case)
        layer, head = self._focus(case)
        plan = case.plan()
        pattern = model.capture(prompts, f"blocks.{layer}.attn.hook_pattern", plan).tensors[f"blocks.{layer}.attn.hook_pattern"]
        written = promoted_by_output(model, prompts, layer, head, k=6, edits=plan)

        def named(ids: Any, values: Any) -> tuple[tuple[str, float], ...]:
            return tuple((written.words.get(i, f"#{i}"), v) for i, v in zip(ids[0].tolist(), values[0].tolist(), strict=True))

        first = max(0, prompts.width - LONGEST)
        return HeadCard(
            tuple(map(tuple, pattern[0, head, first:, first:].tolist())), first, named(written.promoted_ids, written.promoted),
            named(written.suppressed_ids, written.suppressed), direct, ablation, time.perf_counter() - start,
        )  # fmt: skip

    def _curve(self, others: Case, head: tuple[int, int]) -> Curve:
        from interp.edits import Edit
        from interp.metrics import logit_diff
        from interp.sweeps import sweep

        start = time.perf_counter()
        model, prompts, (target, foil) = self.open(others)
        site, rest = f"blocks.{head[0]}.attn.hook_z", others.plan()
        plans = [(*rest, Edit(site, "scale", factor, head=head[1])) for factor in FACTORS]
        result = sweep(model, prompts, plans, logit_diff([target], [foil]))
        return Curve(FACTORS, tuple(result.values[:, 0].tolist()), float(result.clean[0]), time.perf_counter() - start)

    def _texts(self, case: Case, n: int) -> dict[str, str]:
        from interp.nextwords import continuation

        model, prompts, _ = self.open(case)
        room = min(n, model.n_ctx - prompts.width)
        if room < 1:
            return {}
        plans = {"clean": ()} | ({"edited": case.plan()} if case.active else {})
        return {name: continuation(model, prompts, plan, room)[1] for name, plan in plans.items()}

    def _examples(self, name: str, task: str, n: int) -> list[tuple[str, str, str, str]]:
        from circuits.tasks import task as draw
        from interp.tokens import token_id

        model = self.model(name)
        drawn = draw(task, model, n)

        def prompt(text: str, ids: list[int]) -> str:
            return text if model.encode(text).rows()[0] == ids else " ".join(f"#{i}" for i in ids)

        def word(text: str, i: int) -> str:
            return text.strip() if token_id(model, text.strip()) == i else f"#{i}"

        columns = [
            *(map(prompt, drawn.text[key], prompts.rows()) for key, prompts in (("clean", drawn.clean), ("corrupted", drawn.corrupt))),
            *(map(word, drawn.text[key], ids.tolist()) for key, ids in (("correct", drawn.correct), ("incorrect", drawn.incorrect))),
        ]
        return list(zip(*columns, strict=True))

    def _focus(self, case: Case) -> tuple[int, int]:
        """The head in focus, which the model must have."""
        from interp.scaling import check_head

        if case.layer_head is None:
            raise Refused("No head is selected: click one in the grid.")
        return refusing(lambda: check_head(self.model(case.model), case.layer_head))


DEMO = ("demo-gpt2", "demo-opt", "demo-pythia")


def encode(model: "Model", text: str) -> "Prompts":
    """Prompts of a text, or of token ids written as "#5 #9" (for models without tokenizer)."""
    from interp.prompts import Prompts

    ids = prompt_ids(text)
    return model.encode(text) if ids is None else Prompts.from_ids([ids])


def refusing(work: Callable[[], Answer]) -> Answer:
    """Runs it; what the library refuses becomes a Refused with its text."""
    try:
        return work()
    except Refused:
        raise
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise Refused(str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)) from error


def short_name(model: str) -> str:
    """A model's name for display: the last part of a folder, or the hub name."""
    path = Path(model)
    return path.name if path.is_absolute() or path.is_dir() else model


def moved_to(case: Case, model: str) -> Case:
    """The same question to another model: edits, coders, and what is in focus, are of the old one and go."""
    patch, circuit = replace(case.patch, cell=""), replace(case.circuit, node="")
    outlier, feature = replace(case.outlier, place=""), replace(case.feature, name="", clamp=-1.0, coders="")
    return replace(case, model=model, edits=(), head="", patch=patch, circuit=circuit, outlier=outlier, feature=feature)
