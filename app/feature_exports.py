"""The Features page taken elsewhere: Python and files."""

import json

from app import feature_answers, frame
from app.case import Case, prompt_ids
from app.parts.clamp_view import held
from app.parts.dashboard_view import in_focus
from app.parts.sharing import Download
from app.service import Refused, short_name


def python(case: Case) -> str:
    """A script that computes the numbers shown. Refused where there is nothing to show."""
    ids = prompt_ids(case.prompt)
    prompts = f"model.encode([{case.prompt!r}])" if ids is None else f"interp.Prompts.from_ids([{ids}])"
    view = case.feature
    head = f"import interp\nimport saes\n\nmodel = interp.load({case.model!r})\n{_coders(case)}prompts = {prompts}\n"
    pair = f"token_id(model, {case.target!r}), token_id(model, {case.foil!r})"
    if view.part == "graph":
        return head + (
            "from circuits.features import feature_graph\nfrom interp.tokens import token_id\n\n"
            f"target = {pair}\n"
            f"graph = feature_graph(model, prompts, list(coders.values()), target=target, max_nodes={feature_answers.NODES})\n"
            "print(graph.scores, graph.top(10, 'feature'))\n"
        )
    if view.part == "prompt":
        call = f"feature_activations(model, coders[{view.layer}], prompts)"
        return head + f"from saes.features import feature_activations\n\nprint({call}.table())\n"
    return head + _dashboard(case, pair)


def _coders(case: Case) -> str:
    """The line that opens them, by layer."""
    if not case.feature.coders:
        return f"coders = dict(enumerate(saes.bundled({short_name(case.model)!r})))\n"
    folders = [str(path) for path in feature_answers.coder_folders(case.feature.coders)]
    return (
        "from circuits.features.replacement import coders_by_layer\n"
        f"coders = coders_by_layer(model, [saes.load(folder) for folder in {folders}])\n"
    )


def _dashboard(case: Case, pair: str) -> str:
    """The feature's report on the same documents, and the logit difference with it held where the page holds it."""
    service, view = frame.service(), case.feature
    layer = feature_answers.reports_of(service, case)[view.layer]
    feature = in_focus(case, layer)
    if feature is None:
        raise Refused("No document activates any feature of this layer.")
    value, pos = held(case, layer[feature])[1], "-1" if view.where == "last" else "None"
    if feature_answers.reads_corpus(service.model(case.model)):
        documents = f"sample = atlas_sample({feature_answers.DOCUMENTS})\ndocuments = [encode(d) for d in sample]\n"
        variables = ", variables=atlas_variables(sample)"
    else:
        rows = feature_answers.documents(service, case.model, feature_answers.DOCUMENTS).prompts.rows()
        documents, variables = f"documents = interp.Prompts.from_ids({rows})\n", ""
    return (
        "from interp.atlas import encode\nfrom interp.tokens import token_id\n"
        "from saes.features import atlas_sample, atlas_variables, feature_report\n\n"
        f"{documents}report = feature_report(model, coders[{view.layer}], {feature}, documents{variables})\n"
        "print(report.label, report.promoted)\n\n"
        f"plan = saes.feature_edits(model, prompts, saes.FeatureEdit(coders[{view.layer}], {feature}, 'clamp', {value!r}, pos={pos}))\n"
        f"target, foil = {pair}\n"
        "result = interp.sweep(model, prompts, [plan], interp.logit_diff([target], [foil]))\n"
        "print(float(result.clean[0]), float(result.values[0, 0]))\n"
    )


def downloads(case: Case) -> list[Download]:
    """Of the part that is shown."""
    service = frame.service()
    if case.feature.part == "graph":
        return [
            Download("Graph as JSON", "json", "application/json", lambda: feature_answers.graph(service, case)[0].to_json()),
            Download(
                "Edges as CSV", "csv", "text/csv", lambda: feature_answers.graph(service, case)[0].table().to_csv(index=False).encode()
            ),
        ]
    if case.feature.part == "prompt":
        return [
            Download(
                "Activations as CSV",
                "csv",
                "text/csv",
                lambda: feature_answers.on_prompt(service, case).table().to_csv(index=False).encode(),
            )
        ]
    return [
        Download("All features of the layer as CSV", "csv", "text/csv",
                 lambda: feature_answers.reports_of(service, case)[case.feature.layer].table().to_csv(index=False).encode()),
        Download("This feature as JSON", "json", "application/json", lambda: _report(case)),
    ]  # fmt: skip


def _report(case: Case) -> str:
    layer = feature_answers.reports_of(frame.service(), case)[case.feature.layer]
    feature = in_focus(case, layer)
    if feature is None:
        raise Refused("No document activates any feature of this layer.")
    return json.dumps(json.loads(layer[feature].to_json()), ensure_ascii=False, indent=1)
