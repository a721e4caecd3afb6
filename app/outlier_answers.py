"""How large a model's activations get, which heads do nothing, who writes an outlier dimension, what 8 bits cost: live, on documents.

The bundled models read documents of their own corpus that they were not trained on; other models read the page's prompts, which are few
and short (the note says so). All runs go through the service, which remembers them.
"""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.case import Case, OutlierView
from app.curated import CASES
from app.service import LONGEST, Refused, Service, encode

if TYPE_CHECKING:
    import pandas as pd

    from interp.models import Model
    from interp.prompts import Prompts
    from interp.quant.evaluation import QuantEvaluation
    from interp.quant.no_op_heads import HeadReport
    from interp.quant.remedies.report import RemedyReport
    from interp.quant.streaming import ActivationStatistics
    from interp.quant.tracing import Trace

TOP = 3  # dimensions named at a place


@dataclass(frozen=True, eq=False)
class Documents:
    """What is measured on."""

    prompts: "Prompts"
    calibration: "Prompts"
    """Other documents, for ranges; the same ones where there are no others."""
    families: tuple[str, ...]
    """The kind of each document."""
    said: str
    """What they are, in a sentence."""
    ranges: str
    """And where ranges come from."""


@dataclass(frozen=True)
class Place:
    """The residual stream at one position of the prompt, as it leaves one layer (or enters the first)."""

    norm: float
    """Length of the vector."""
    largest: tuple[tuple[int, float], ...]
    """(dimension, value) of the TOP largest."""


@dataclass(frozen=True)
class NormMap:
    """The stream of the prompt, with the edits that are on."""

    places: tuple[tuple[Place, ...], ...]
    """[row][position]: row 0 is what enters layer 0, row i + 1 what leaves layer i."""
    tokens: tuple[str, ...]
    first: int
    """Position of the first token shown; only the last LONGEST are."""
    seconds: float


def documents(service: Service, name: str, n: int) -> Documents:
    """n documents for a model, or the prompts that it can read."""
    own = service.suggest(name).prompt
    return service.answer(("documents", name, n), lambda: _documents(service.model(name), n, own))


def reads_corpus(model: "Model") -> bool:
    """Whether the model's words are those of the bundled models' corpus."""
    from interp.atlas import vocabulary

    return model.tokenizer is not None and model.tokenizer.get_vocab() == vocabulary()


def statistics(service: Service, name: str, n: int) -> "ActivationStatistics":
    def compute() -> "ActivationStatistics":
        from interp.quant import activation_statistics

        return activation_statistics(service.model(name), texts.prompts)

    texts = documents(service, name, n)
    return service.answer(("statistics", name, n), compute)


def heads(service: Service, name: str, n: int) -> "HeadReport":
    def compute() -> "HeadReport":
        from interp.quant import head_report

        return head_report(service.model(name), texts.prompts, families=texts.families)

    texts = documents(service, name, n)
    return service.answer(("no-op heads", name, n), compute)


def traced(service: Service, name: str, n: int, place: tuple[int, int] | None) -> "Trace":
    """Of the dimension asked for, else of the largest one."""

    def compute() -> "Trace":
        from interp.quant import trace

        layer, dim = place or (None, None)
        return trace(service.model(name), texts.prompts, layer=layer, dim=dim)

    texts = documents(service, name, n)
    return service.answer(("trace", name, n, place), compute)


def quantized(service: Service, name: str, n: int, scheme: str) -> "QuantEvaluation":
    def compute() -> "QuantEvaluation":
        from interp.quant import evaluate

        return evaluate(service.model(name), texts.prompts, scheme, calibration=texts.calibration)

    texts = documents(service, name, n)
    return service.answer(("quantized", name, n, scheme), compute)


def remedied(service: Service, name: str, n: int, scheme: str) -> "tuple[RemedyReport, tuple[str, ...]]":
    """The standard remedies, and why some are left out."""

    def compute() -> "tuple[RemedyReport, tuple[str, ...]]":
        from interp.quant import remedy
        from interp.quant.remedies.standard import standard_remedies

        model = service.model(name)
        plans, left_out = standard_remedies(model, scheme)
        apart = None if texts.calibration is texts.prompts else texts.calibration
        return remedy(model, texts.prompts, plans, scheme, calibration=apart), left_out

    texts = documents(service, name, n)
    return service.answer(("remedies", name, n, scheme), compute)


def norm_map(service: Service, case: Case) -> NormMap:
    """The prompt's stream under the edits that are on."""
    return service.answer(("norm map", case.model, case.prompt, case.active), lambda: _norm_map(service.model(case.model), case))


def meets(report: "HeadReport", view: OutlierView) -> "pd.DataFrame":
    """One row per head with every column, and whether it counts as doing nothing: all three criteria of the page."""
    table = report.table().drop(columns=["model", "longest", "eps", "tau"])
    quiet = (table.sink_mass >= view.sink) & (table.output_to_stream < view.output) & (table.loss_zero.abs() < view.cost)
    table.insert(2, "does_nothing", quiet)
    return table


def _documents(model: "Model", n: int, own: str) -> Documents:
    from interp.prompts import Prompts
    from interp.quant.held_out import held_out

    if model.tokenizer is None:
        raise Refused(f"{model.name} has no tokenizer, so it cannot read texts; use interp.quant with prompts of token ids.")
    if reads_corpus(model):
        found = held_out(n)
        said = f"{n} documents of the models' corpus that they were not trained on"
        return Documents(found.prompts, found.calibration, found.families, said, f"ranges are found on {n} others")
    texts = {curated.prompt: curated.name for curated in CASES} | {own: "own words"}
    readable = [(kind, row) for text, kind in texts.items() if (row := _ids(model, text)) is not None]
    if not readable:
        raise Refused(
            f"{model.name} cannot read the prompts of the first page: its words are others. Use `interp quant report` with a text."
        )
    prompts = Prompts.from_ids([row for _, row in readable])
    said = f"{len(readable)} short prompts (a real text: `interp quant report MODEL --text FILE`)"
    return Documents(prompts, prompts, tuple(kind for kind, _ in readable), said, "ranges are found on the same")


def _ids(model: "Model", text: str) -> list[int] | None:
    """Token ids of a text, None where the model cannot read it or finds it too short to predict anything."""
    try:
        row = encode(model, text).rows()[0]
    except ValueError:
        return None
    return row if 2 <= len(row) <= model.n_ctx else None


def _norm_map(model: "Model", case: Case) -> NormMap:
    import torch

    from interp.tokens import token_text

    start = time.perf_counter()
    if not case.prompt.strip():
        raise Refused("The prompt is empty: type the beginning of a text.")
    prompts = model.check_prompts(encode(model, case.prompt))
    sites = ["blocks.0.hook_resid_pre", *(f"blocks.{i}.hook_resid_post" for i in range(model.n_layers))]
    with torch.no_grad():
        capture = model.capture(prompts, sites, edits=case.plan())
    first = max(0, prompts.width - LONGEST)
    rows = []
    for site in sites:
        x = capture[site][0, first:].double()
        order = x.abs().topk(min(TOP, model.d_model), dim=1).indices
        values = x.gather(1, order)
        rows.append(
            tuple(
                Place(norm, tuple(zip(dims, sizes, strict=True)))
                for norm, dims, sizes in zip(x.norm(dim=1).tolist(), order.tolist(), values.tolist(), strict=True)
            )
        )
    tokens = tuple(token_text(model, i) for i in prompts.rows()[0][first:])
    return NormMap(tuple(rows), tokens, first, time.perf_counter() - start)
