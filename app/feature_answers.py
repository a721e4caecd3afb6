"""A model's transcoders on the page: dashboards over documents, the features of a prompt, the graph behind its answer, a feature clamped.

Bundled transcoders come with the demo models; others are opened from a folder that holds one coder per layer (`folder`, "" for the
bundled ones). All runs go through the service, which remembers them.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.case import Case
from app.outlier_answers import documents, reads_corpus
from app.service import Refused, Service, encode, short_name

if TYPE_CHECKING:
    from circuits.features import FeatureGraph
    from interp.models import Model
    from interp.nextwords import NextWords
    from interp.prompts import Prompts
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


def coders(service: Service, name: str, folder: str = "") -> "dict[int, Coder]":
    """By layer, in order. Refused where none are known."""
    if folder:
        if not service.allows_coders(folder):
            raise Refused(
                f"The coders in {folder!r} are not open: a link alone cannot have files loaded. Open them below if you trust them."
            )
        return service.answer(("coders", name, folder), lambda: _own_coders(service.model(name), folder))
    return service.answer(("coders", name, ""), lambda: _bundled_coders(service.model(name)))


def coder_folders(folder: str) -> list[Path]:
    """The folders of coders in a folder, or the folder itself where it holds a coder and no others."""
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise Refused(f"There is no folder {folder!r}; one with a coder per layer is written by `interp train transcoder MODEL --out DIR`.")
    inside = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return sorted(inside) or [root]


def reports(service: Service, name: str, folder: str = "") -> "dict[int, Reports]":
    """Dashboards of all features of every layer, in one pass of the model."""
    found = coders(service, name, folder)
    texts = None if reads_corpus(service.model(name)) else documents(service, name, DOCUMENTS).prompts
    return service.answer(("reports", name, folder), lambda: _reports(service.model(name), found, texts))


def reports_of(service: Service, case: Case) -> "dict[int, Reports]":
    return reports(service, case.model, case.feature.coders)


def quality(service: Service, name: str, layer: int, folder: str = "") -> Quality:
    found, texts, all_of_them = coders(service, name, folder), documents(service, name, MEASURED), together(service, name, folder)

    def compute() -> Quality:
        import saes

        one = saes.evaluate(service.model(name), found[layer], texts.prompts)
        whole = all_of_them.ce_replaced
        return Quality(one.l0, one.fvu, one.ce_recovered, one.ce_clean, whole, one.dead_fraction, texts.said)

    return service.answer(("quality", name, layer, folder), compute)


def together(service: Service, name: str, folder: str = "") -> "Together":
    """Every MLP that there is a coder of replaced at once."""
    found, texts = coders(service, name, folder), documents(service, name, MEASURED)

    def compute() -> "Together":
        import saes

        return saes.evaluate_together(service.model(name), list(found.values()), texts.prompts)

    return service.answer(("together", name, folder), compute)


def on_prompt(service: Service, case: Case) -> "FeatureActivations":
    """The features of the layer in focus that the prompt activates."""
    layer, found = case.feature.layer, coders(service, case.model, case.feature.coders)

    def compute() -> "FeatureActivations":
        from saes.features import feature_activations

        model = service.model(case.model)
        return feature_activations(model, found[layer], _prompt(model, case))

    return service.answer(("features", case.model, case.feature.coders, layer, case.prompt), compute)


def graph(service: Service, case: Case) -> "tuple[FeatureGraph, float]":
    """What brings target - foil about, and how long it took."""
    found = coders(service, case.model, case.feature.coders)

    def compute() -> "tuple[FeatureGraph, float]":
        from circuits.features import feature_graph

        start = time.perf_counter()
        model, prompts, pair = service.open(case)
        made = feature_graph(model, prompts, list(found.values()), target=pair, max_nodes=NODES)
        return made, time.perf_counter() - start

    return service.answer(("feature graph", case.model, case.feature.coders, case.prompt, case.target, case.foil), compute)


def clamped(service: Service, case: Case, feature: tuple[int, int], value: float, most: float) -> Clamped:
    """The feature held at `value`; the curve goes to FACTORS times `most`, the largest activation seen."""
    found = coders(service, case.model, case.feature.coders)
    key = ("clamped", case.model, case.feature.coders, case.prompt, case.target, case.foil, feature, value, most, case.feature.where)
    return service.answer(key, lambda: _clamped(service, case, found[feature[0]], feature, value, most))


def _prompt(model: "Model", case: Case) -> Any:
    if not case.prompt.strip():
        raise Refused("The prompt is empty: type the beginning of a text.")
    return model.check_prompts(encode(model, case.prompt))


def _bundled_coders(model: "Model") -> "dict[int, Coder]":
    from interp import zoo
    from saes.zoo import bundled, bundled_models

    own = zoo.bundled().get(model.name)  # another model may lie in a folder of the same name
    if model.name not in bundled_models() or own is None or not own.samefile(model.path):
        raise Refused(
            f"No transcoders of {short_name(model.name)} are bundled. Train some with `interp train transcoder {model.name} --text FILE "
            "--out DIR` and open DIR here, or choose a bundled model in the sidebar."
        )
    return dict(enumerate(bundled(model.name)))


def _own_coders(model: "Model", folder: str) -> "dict[int, Coder]":
    """Refused unless they are transcoders of this model's MLPs, which is what the page is about."""
    import saes
    from circuits.features.replacement import coders_by_layer

    found = coders_by_layer(model, [saes.load(path) for path in coder_folders(folder)])
    for layer, coder in found.items():
        if (coder.d_in, coder.d_out) != (model.d_model, model.d_model):
            raise Refused(
                f"The coder of layer {layer} in {folder} maps {coder.d_in} to {coder.d_out} dimensions; {model.name} has {model.d_model}."
            )
    return dict(sorted(found.items()))


def _reports(model: "Model", found: "dict[int, Coder]", texts: "Prompts | None") -> "dict[int, Reports]":
    """On the models' corpus, whose variables are known, or on prompts."""
    from interp.atlas import encode as words
    from saes.features import atlas_sample, atlas_variables, feature_reports

    if texts is not None:
        return dict(zip(found, feature_reports(model, list(found.values()), texts), strict=True))
    sample = atlas_sample(DOCUMENTS)
    made = feature_reports(model, list(found.values()), [words(d) for d in sample], variables=atlas_variables(sample))
    return dict(zip(found, made, strict=True))


def _clamped(service: Service, case: Case, coder: "Coder", feature: tuple[int, int], value: float, most: float) -> Clamped:
    from interp.metrics import logit_diff
    from interp.nextwords import next_words
    from interp.sweeps import sweep
    from saes import FeatureEdit, feature_edits
    from saes.features import feature_activations

    start = time.perf_counter()
    model, prompts, (target, foil) = service.open(case)
    pos = -1 if case.feature.where == "last" else None
    values = tuple(float(f"{most * factor:.4g}") for factor in FACTORS)
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
