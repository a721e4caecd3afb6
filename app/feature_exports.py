"""The Features page taken elsewhere: Python and files."""

import json

from app import feature_answers, frame
from app.case import Case, prompt_ids
from app.parts.sharing import Download


def python(case: Case) -> str:
    """A script that computes what is shown."""
    ids = prompt_ids(case.prompt)
    prompts = f"model.encode([{case.prompt!r}])" if ids is None else f"interp.Prompts.from_ids([{ids}])"
    view = case.feature
    head = (
        f"import interp\nimport saes\n\nmodel = interp.load({case.model!r})\ncoders = saes.bundled({case.model!r})\nprompts = {prompts}\n"
    )
    if view.part == "graph":
        return head + (
            "from circuits.features import feature_graph\nfrom interp.tokens import token_id\n\n"
            f"target = token_id(model, {case.target!r}), token_id(model, {case.foil!r})\n"
            "graph = feature_graph(model, prompts, coders, target=target, max_nodes=300)\nprint(graph.scores, graph.top(10, 'feature'))\n"
        )
    if view.part == "prompt":
        return (
            head
            + f"from saes.features import feature_activations\n\nprint(feature_activations(model, coders[{view.layer}], prompts).table())\n"
        )
    layer, feature = view.layer_feature or (view.layer, 0)
    return head + (
        "from saes import FeatureEdit, feature_edits\nfrom saes.features import feature_report\n"
        "from interp.atlas import encode\nfrom saes.features import atlas_sample, atlas_variables\n\n"
        f"sample = atlas_sample({feature_answers.DOCUMENTS})\n"
        f"report = feature_report(model, coders[{layer}], {feature}, [encode(d) for d in sample], variables=atlas_variables(sample))\n"
        "print(report.label, report.promoted)\n"
        f"plan = feature_edits(model, prompts, [FeatureEdit(coders[{layer}], {feature}, 'clamp', {max(0.0, view.clamp)})])\n"
        "print(model.logits(prompts, plan).shape)\n"
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
                 lambda: feature_answers.reports(service, case.model)[case.feature.layer].table().to_csv(index=False).encode()),
        Download("This feature as JSON", "json", "application/json", lambda: _report(case)),
    ]  # fmt: skip


def _report(case: Case) -> str:
    layer = feature_answers.reports(frame.service(), case.model)[case.feature.layer]
    chosen = case.feature.layer_feature
    feature = chosen[1] if chosen is not None and chosen[0] == case.feature.layer else layer.alive[0]
    return json.dumps(json.loads(layer[feature].to_json()), ensure_ascii=False, indent=1)
