"""A model's transcoders on the page: dashboards over documents, the features of a prompt, the graph behind its answer, a feature clamped.

Bundled transcoders come with the demo models; others are opened from a folder that holds one coder per layer. All runs go through the
service, which remembers them.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from app.case import Case
from app.outlier_answers import documents
from app.service import Refused, Service, encode, short_name

if TYPE_CHECKING:
    from circuits.features import FeatureGraph
    from interp.models import Model
    from interp.nextwords import NextWords
    from saes.coders import Coder
    from saes.evaluation import Together
    from saes.features import FeatureActivations, Reports

DOCUMENTS = 256  # whose tokens the dashboards are about
MEASURED = 32  # documents on which quality is measured
NODES = 300  # features of a graph
FACTORS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)  # of a feature's maximum, for the curve


@dataclass(frozen=True)
class Quality:
    """What the coder of one layer is worth, and all of them together. Losses in nats per token."""

    l0: float
    fvu: float
    ce_recovered: float
    ce_clean: float
    ce_all: float
    """With every MLP replaced."""
    dead: float
    said: str


@dataclass(frozen=True)
class Clamped:
    """The next word with one feature held at a value, and the logit difference at every value of the curve."""

    next: "NextWords"
    """(clean, clamped)."""
    values: tuple[float, ...]
    curve: tuple[float, ...]
    clean: float
    own: float
    """The feature's activation at the last position, unclamped."""
    random: float
    """Logit difference with another active feature of the layer clamped to the same value: the control."""
    other: int
    seconds: float


def coders(service: Service, name: str) -> "tuple[Coder, ...]":
    """One per layer. Refused where none are known."""
    return service.answer(("coders", name), lambda: _coders(service.model(name)))


def reports(service: Service, name: str) -> "list[Reports]":
    """Dashboards of all features of every layer, in one pass of the model."""
    found = coders(service, name)
    return service.answer(("reports", name), lambda: _reports(service.model(name), found))


def quality(service: Service, name: str, layer: int) -> Quality:
    found, texts, all_of_them = coders(service, name), documents(service, name, MEASURED), together(service, name)

    def compute() -> Quality:
        import saes

        one = saes.evaluate(service.model(name), found[layer], texts.prompts)
        whole = all_of_them.ce_replaced
        return Quality(one.l0, one.fvu, one.ce_recovered, one.ce_clean, whole, one.dead_fraction, texts.said)

    return service.answer(("quality", name, layer), compute)


def together(service: Service, name: str) -> "Together":
    """Every MLP replaced at once."""
    found, texts = coders(service, name), documents(service, name, MEASURED)

    def compute() -> "Together":
        import saes

        return saes.evaluate_together(service.model(name), found, texts.prompts)

    return service.answer(("together", name), compute)


def on_prompt(service: Service, case: Case) -> "FeatureActivations":
    """The features of the layer in focus that the prompt activates."""
    layer, found = case.feature.layer, coders(service, case.model)

    def compute() -> "FeatureActivations":
        from saes.features import feature_activations

        model = service.model(case.model)
        return feature_activations(model, found[layer], _prompt(model, case))

    return service.answer(("features", case.model, layer, case.prompt), compute)


def graph(service: Service, case: Case) -> "tuple[FeatureGraph, float]":
    """What brings target - foil about, and how long it took."""
    found = coders(service, case.model)

    def compute() -> "tuple[FeatureGraph, float]":
        from circuits.features import feature_graph

        start = time.perf_counter()
        model, prompts, pair = service.open(case)
        made = feature_graph(model, prompts, found, target=pair, max_nodes=NODES)
        return made, time.perf_counter() - start

    return service.answer(("feature graph", case.model, case.prompt, case.target, case.foil), compute)


def clamped(service: Service, case: Case, feature: tuple[int, int], value: float, most: float) -> Clamped:
    """The feature held at `value`; the curve goes to twice `most`, the largest activation seen."""
    found = coders(service, case.model)
    key = ("clamped", case.model, case.prompt, case.target, case.foil, feature, value, most, case.feature.where)
    return service.answer(key, lambda: _clamped(service, case, found[feature[0]], feature, value, most))


def _prompt(model: "Model", case: Case) -> Any:
    if not case.prompt.strip():
        raise Refused("The prompt is empty: type the beginning of a text.")
    return model.check_prompts(encode(model, case.prompt))


def _coders(model: "Model") -> "tuple[Coder, ...]":
    from saes.zoo import bundled, bundled_models

    known = short_name(model.name)
    if known not in bundled_models():
        raise Refused(
            f"No transcoders of {known} are bundled. Train some with `interp train transcoder {model.name} --text FILE --out DIR` and use "
            "saes.features in Python, or choose a bundled model in the sidebar."
        )
    return tuple(bundled(known))


def _reports(model: "Model", found: "Sequence[Coder]") -> "list[Reports]":
    from interp.atlas import encode as words
    from saes.features import atlas_sample, atlas_variables, feature_reports

    sample = atlas_sample(DOCUMENTS)
    return feature_reports(model, list(found), [words(d) for d in sample], variables=atlas_variables(sample))


def _clamped(service: Service, case: Case, coder: "Coder", feature: tuple[int, int], value: float, most: float) -> Clamped:
    from interp.metrics import logit_diff
    from interp.nextwords import next_words
    from interp.sweeps import sweep
    from saes import FeatureEdit, feature_edits
    from saes.features import feature_activations

    start = time.perf_counter()
    model, prompts, (target, foil) = service.open(case)
    pos = -1 if case.feature.where == "last" else None
    values = tuple(round(2 * most * f / FACTORS[-1], 4) for f in FACTORS)
    active = feature_activations(model, coder, prompts)
    other = next((f for f in active.top(0, 2) if f != feature[1]), (feature[1] + 1) % coder.n_features)

    def plan(which: int, size: float) -> Any:
        return feature_edits(model, prompts, [FeatureEdit(coder, which, "clamp", size, pos)])

    plans = [plan(feature[1], size) for size in (*values, value)] + [plan(other, value)]
    result = sweep(model, prompts, plans, logit_diff([target], [foil]))
    *curve, _, random = result.values[:, 0].tolist()
    own = float(active.dense(0)[-1, feature[1]])
    found = next_words(model, prompts, plans[len(values)], 8, target, foil)
    return Clamped(found, values, tuple(curve), float(result.clean[0]), own, random, other, time.perf_counter() - start)
