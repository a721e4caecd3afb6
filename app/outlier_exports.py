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
    "heads": "quant.head_report(model, prompts, families=families)",
    "trace": "quant.trace(model, prompts, layer={layer}, dim={dim})",
    "bits": "quant.evaluate(model, prompts, {scheme!r}, calibration=calibration)",
    "remedies": "quant.remedy(model, prompts, standard_remedies(model, {scheme!r})[0], {scheme!r}, calibration=calibration)",
}


def python(case: Case) -> str:
    """A script that computes what is shown, on the same documents. Refused where the model can read none."""
    layer, dim = case.outlier.layer_dim or (None, None)
    scheme = case.outlier.mended_scheme if case.outlier.part == "remedies" else case.outlier.scheme
    call = CALLS[case.outlier.part].format(layer=layer, dim=dim, scheme=scheme)
    return (
        "import interp\nfrom interp import quant\nfrom interp.quant.remedies.standard import standard_remedies\n\n"
        f"model = interp.load({case.model!r})\n{_documents(case)}result = {call}\nprint(result.table())\n"
    )


def _documents(case: Case) -> str:
    """The lines that make the documents of the page."""
    n, texts = case.outlier.texts, outlier_answers.documents(frame.service(), case.model, case.outlier.texts)
    if texts.calibration is texts.prompts:
        apart = "None" if case.outlier.part == "remedies" else "prompts"  # remedies are split off the prompts themselves
        return f"prompts = interp.Prompts.from_ids({texts.prompts.rows()})\ncalibration = {apart}\nfamilies = {texts.families}\n"
    return (
        f"from interp.quant.held_out import held_out\n\nfound = held_out({n})\n"
        "prompts, calibration, families = found.prompts, found.calibration, found.families\n"
    )


def command(case: Case) -> str:
    """The same measurements on the command line, on the same documents."""
    verb = {"bits": "evaluate", "remedies": "remedy"}.get(case.outlier.part, "report")
    scheme = case.outlier.mended_scheme if verb == "remedy" else case.outlier.scheme
    what = [verb, *(["--scheme", scheme] if verb != "report" else [])]
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
        return outlier_answers.remedied(service, model, view.texts, view.mended_scheme)[0]
    return outlier_answers.statistics(service, model, view.texts)
