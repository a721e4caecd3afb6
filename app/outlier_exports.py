"""The Outliers page taken elsewhere: Python, a command, and files."""

import json
import shlex
from typing import TYPE_CHECKING

from app import frame, outlier_answers
from app.case import Case
from app.parts.sharing import Download

if TYPE_CHECKING:
    import pandas as pd

CALLS = {
    "sizes": "quant.activation_statistics(model, prompts)",
    "heads": "quant.head_report(model, prompts)",
    "trace": "quant.trace(model, prompts, layer={layer}, dim={dim})",
    "bits": "quant.evaluate(model, prompts, {scheme!r}, calibration=calibration)",
    "remedies": "quant.remedy(model, prompts, standard_remedies(model, {scheme!r})[0], {scheme!r}, calibration=calibration)",
}


def python(case: Case) -> str:
    """A script that computes what is shown; documents of the atlas stand for one's own text."""
    n = case.outlier.texts
    layer, dim = case.outlier.layer_dim or (None, None)
    call = CALLS[case.outlier.part].format(layer=layer, dim=dim, scheme=case.outlier.scheme)
    return (
        "import interp\nfrom interp import quant\nfrom interp.quant.remedies.standard import standard_remedies\n"
        "from interp.store.texts import atlas_documents\n\n"
        f"model = interp.load({case.model!r})\n"
        f"documents = atlas_documents(model, {2 * n}, seed={outlier_answers.SEED})  # or model.encode([your texts])\n"
        f"prompts, calibration = documents.prompts(range({n})), documents.prompts(range({n}, {2 * n}))\n"
        f"result = {call}\nprint(result.table())\n"
    )


def command(case: Case) -> str:
    verb = {"bits": "evaluate", "remedies": "remedy"}.get(case.outlier.part, "report")
    what = [verb, *(["--scheme", case.outlier.scheme] if verb != "report" else [])]
    return shlex.join(["interp", "quant", what[0], case.model, *what[1:], "--atlas", str(case.outlier.texts)])


def downloads(case: Case) -> list[Download]:
    """Of the part that is shown."""
    return [
        Download("Table as CSV", "csv", "text/csv", lambda: _table(case).to_csv(index=False).encode()),
        Download("All numbers as JSON", "json", "application/json", lambda: _json(case)),
    ]


def _table(case: Case) -> "pd.DataFrame":
    if case.outlier.part == "heads":
        return outlier_answers.meets(outlier_answers.heads(frame.service(), case.model, case.outlier.texts), case.outlier)
    return _result(case).table()


def _json(case: Case) -> str:
    result = outlier_answers.heads(frame.service(), case.model, case.outlier.texts) if case.outlier.part == "heads" else _result(case)
    said = outlier_answers.documents(frame.service(), case.model, case.outlier.texts).said
    return json.dumps({"documents": said, **json.loads(result.to_json())}, indent=1)


def _result(case: Case):  # noqa: ANN202
    service, model, view = frame.service(), case.model, case.outlier
    if view.part == "trace":
        return outlier_answers.traced(service, model, view.texts, view.layer_dim)
    if view.part == "bits":
        return outlier_answers.quantized(service, model, view.texts, view.scheme)
    if view.part == "remedies":
        return outlier_answers.remedied(service, model, view.texts, view.scheme)[0]
    return outlier_answers.statistics(service, model, view.texts)
