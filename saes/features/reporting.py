"""`feature_reports`: dashboards of all features of coders from one pass of the model over documents."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from interp.models import Model
from interp.progress import Report as Progress
from interp.tokens import token_text
from saes.coders import Coder
from saes.features.detection import best_variables, halves
from saes.features.examples import Examples, collect
from saes.features.recording import Recorded, recorded
from saes.features.reports import Label, Report, Reports
from saes.features.weights import encoder_decoder_cosine, has_logit_weights, logit_weights, nearest_features
from saes.replacing import sites_of

if TYPE_CHECKING:
    from saes.features.variables import Variables


@torch.no_grad()
def feature_reports(
    model: Model,
    coders: Coder | Sequence[Coder],
    documents: Any,
    *,
    top: int = 12,
    bands: int = 5,
    per_band: int = 3,
    context: int = 24,
    bins: int = 20,
    promoted: int = 10,
    nearest: int = 5,
    variables: "Variables | None" = None,
    rows: int = 64,
    seed: int = 0,
    progress: Progress | bool | None = None,
) -> list[Reports]:
    """Reports of all features of each coder. The model runs once, in batches of `rows` documents; memory does not grow with the text.

    documents  texts, lists of token ids, prompts, or `interp.store.documents.Documents`
    top        strongest documents of each feature, and `per_band` of each of `bands` bands of its range, drawn evenly
    context    tokens that are shown on either side of the strongest one
    variables  what is known of the documents' tokens (`atlas_variables`): each feature is labelled with the one that it tells best.
               Labelling holds all codes in memory, about 16 bytes for each active feature of a token.
    """
    for name, value in (("top", top), ("bands", bands), ("per_band", per_band), ("bins", bins), ("promoted", promoted), ("rows", rows)):
        if value < 1:
            raise ValueError(f"{name}={value!r}: at least 1.")
    if context < 0 or nearest < 0:
        raise ValueError(f"context={context!r}, nearest={nearest!r}: not negative.")
    coders = [coders] if isinstance(coders, Coder) else list(coders)
    settings = {"top": top, "bands": bands, "per_band": per_band, "context": context, "bins": bins, "seed": seed}
    with recorded(model, coders, documents, rows, progress) as codes:
        return [_report(model, codes, i, settings, promoted, nearest, variables) for i in range(len(coders))]


def feature_report(model: Model, coder: Coder, feature: int, documents: Any, **options: Any) -> Report:
    """One feature's report; options as in `feature_reports`, which costs about the same for all features."""
    if not 0 <= feature < coder.n_features:
        raise KeyError(f"There is no feature {feature}: this coder has 0-{coder.n_features - 1}.")
    return feature_reports(model, coder, documents, **options)[0][feature]


def _report(
    model: Model, codes: Recorded, i: int, settings: dict[str, int], promoted: int, nearest: int, variables: "Variables | None"
) -> Reports:
    coder = codes.coders[i]
    statistics, examples = collect(codes, i, **settings)
    weights = logit_weights(model, coder, k=promoted) if has_logit_weights(coder, model) else None
    near_ids, near = nearest_features(coder, nearest)
    cosine = encoder_decoder_cosine(coder)
    nothing = np.zeros((coder.n_features, 0))
    arrays = {name: getattr(weights, name).numpy() if weights else nothing for name in ("promoted", "suppressed")}
    arrays |= {n: getattr(weights, n).numpy() if weights else nothing.astype(np.int64) for n in ("promoted_ids", "suppressed_ids")}
    source, target = sites_of(coder, model)
    return Reports(
        model=model.name, kind=coder.config.kind, transcoder=coder.transcoder, input_site=source, target_site=target,
        statistics=statistics, examples=examples, words=_words(model, examples, arrays["promoted_ids"], arrays["suppressed_ids"]),
        nearest_ids=near_ids.numpy(), nearest=near.numpy(), source={**codes.documents.source, **settings},
        encoder_decoder_cosine=np.full(coder.n_features, np.nan) if cosine is None else cosine.numpy(),
        labels=labels(codes, i, variables) if variables is not None else (), **arrays,
    )  # fmt: skip


def _words(model: Model, examples: Examples, *ids: np.ndarray) -> dict[int, str]:
    used = np.unique(np.concatenate([examples.ids, *(some.ravel() for some in ids)]))
    return {int(i): token_text(model, int(i)) for i in used}


def labels(codes: Recorded, coder: int, variables: "Variables") -> tuple[Label | None, ...]:
    """Of each feature the variable that it tells best, chosen on even documents, measured on odd ones; None for one that no even document
    activates: nothing could be chosen."""
    if variables.values.shape[0] != len(codes.documents.ids):
        raise ValueError(f"Variables are of {variables.values.shape[0]} tokens, the documents have {len(codes.documents.ids)}.")
    matrix = codes.matrix(coder)
    even, odd = halves(codes.documents.lengths)
    chosen, held = best_variables(matrix, variables, even, odd)
    f1, precision, recall = held.f1, held.precision, held.recall
    active = np.bincount(matrix[even].indices, minlength=matrix.shape[1]) > 0
    return tuple(
        Label(variables.names[v], variables.kinds[v], float(f1[f, v]), float(precision[f, v]), float(recall[f, v])) if active[f] else None
        for f, v in enumerate(chosen.tolist())
    )
