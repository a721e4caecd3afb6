"""Scores of edges equal their definitions, computed slowly: autograd of explicit edge strengths, and one run per edge."""

import pytest
import torch

import circuits
import interp
from circuits.edges.graph import Graph
from tests.circuits.conftest import FAMILIES, random_task
from tests.circuits.explicit_edges import ExplicitEdges, ablated_writes, values

GRADIENTS = ("eap", "eap-ig-inputs", "eap-ig-activations", "clean-corrupted", "relp")


def by_autograd(reference: ExplicitEdges, graph: Graph, task: circuits.Task, runs: list, ablated: list) -> torch.Tensor:
    """Mean over runs and prompts of the derivative by t, at 0, where an edge carries t * (ablated - clean write) on top.

    A run is a function: row -> what parts write instead of their own.
    """
    names = graph.names()
    total = torch.zeros(len(names), dtype=torch.float64)
    for row, ids in enumerate(task.clean.rows()):
        clean = reference.run(ids)[1]
        delta = {name: ablated[row][name] - clean[name] for name in clean}
        for instead in runs:
            amount = torch.zeros(len(names), dtype=torch.float64, requires_grad=True)
            added = {name: t * delta[name.split("->")[0]] for name, t in zip(names, amount, strict=True)}
            logits, _ = reference.run(ids, instead=instead(row), added=added)
            total += torch.autograd.grad(logits[task.correct[row]] - logits[task.incorrect[row]], amount)[0]
    return total / len(runs) / len(task)


@pytest.mark.parametrize("variant", FAMILIES)
@pytest.mark.parametrize("ablation", ["patch", "mean"])
def test_eap_is_the_derivative_by_explicit_edge_strengths(variant, ablation, load, explicit, task):
    scores = circuits.attribute(load(variant), task, "eap", ablation=ablation)
    reference, graph = explicit(variant), scores.graph
    wanted = by_autograd(reference, graph, task, [lambda row: {}], ablated_writes(reference, task, ablation))
    torch.testing.assert_close(graph.per_edge(scores.scores), wanted, atol=1e-10, rtol=1e-9)


def between(reference: ExplicitEdges, task: circuits.Task, nodes: list[str], share: float):
    """row -> these nodes' writes, `share` of the way from corrupted to clean."""
    ends = [[reference.run(ids)[1] for ids in prompts.rows()] for prompts in (task.corrupt, task.clean)]
    return lambda row: {name: ends[0][row][name] + share * (ends[1][row][name] - ends[0][row][name]) for name in nodes}


@pytest.mark.parametrize("variant", ["gpt2", "neox"])
def test_integrated_gradients_are_means_of_derivatives_along_the_path(variant, load, explicit):
    task = random_task((4, 3))
    model, reference = load(variant), explicit(variant)
    graph, ablated = Graph.of(model), ablated_writes(reference, task, "patch")
    shares = [0, 1 / 2]
    runs = {"eap-ig-inputs": [between(reference, task, ["input"], s) for s in shares]}
    runs["clean-corrupted"] = [between(reference, task, ["input"], s) for s in (0, 1)]
    heads = [[f"a{layer}.h{h}" for h in range(model.n_heads)] for layer in range(model.n_layers)]
    sites = [["input"], *(s for layer, names in enumerate(heads) for s in (names, [f"m{layer}"]))]
    runs["eap-ig-activations"] = [between(reference, task, nodes, s) for nodes in sites for s in shares]
    for method, points in runs.items():
        found = circuits.attribute(model, task, method, steps=2)
        wanted = by_autograd(reference, graph, task, points, ablated)
        torch.testing.assert_close(graph.per_edge(found.scores), wanted, atol=1e-10, rtol=1e-9)


def exact_and_explicit(
    model, reference: ExplicitEdges, task: circuits.Task, step: int, ablation: str = "patch"
) -> tuple[dict[str, float], dict[str, float]]:
    """Every step-th edge's exact score, and what an explicit run with that edge alone changed gives."""
    scores = circuits.attribute(model, task, "exact", ablation=ablation)
    ablated = ablated_writes(reference, task, ablation)
    clean = values(reference, task, [], ablated)
    names = scores.graph.names()[::step]
    explicit = {name: float((values(reference, task, [name], ablated) - clean).mean()) for name in names}
    return {name: float(scores[name]) for name in names}, explicit


@pytest.mark.parametrize("variant", FAMILIES)
def test_exact_scores_equal_an_explicit_run_per_edge(variant, load, explicit):
    found, wanted = exact_and_explicit(load(variant), explicit(variant), random_task((4, 3)), step=7)
    assert found and found == pytest.approx(wanted, abs=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("variant", FAMILIES)
def test_exact_scores_equal_an_explicit_run_of_every_edge(variant, load, explicit, task):
    found, wanted = exact_and_explicit(load(variant), explicit(variant), task, step=1)
    assert found and found == pytest.approx(wanted, abs=1e-10)


@pytest.mark.parametrize("ablation", ["zero", "mean", "positional-mean"])
def test_exact_scores_follow_the_ablation(ablation, load, explicit, task):
    found, wanted = exact_and_explicit(load("opt"), explicit("opt"), task, 17, ablation)
    assert found and found == pytest.approx(wanted, abs=1e-10)


@pytest.mark.parametrize("variant", ["gpt2", "neox"])
@pytest.mark.parametrize("method", [*GRADIENTS, "exact", "ifr"])
def test_batches_and_padding_change_no_score(variant, method, load, task):
    model = load(variant)
    together = circuits.attribute(model, task, method).scores
    apart = circuits.attribute(model, task, method, batch_size=1).scores
    alone = torch.stack([circuits.attribute(model, task[[row]], method).scores for row in range(len(task))]).mean(0)
    torch.testing.assert_close(together, apart, atol=1e-11, rtol=0)
    torch.testing.assert_close(together, alone, atol=1e-11, rtol=0)


def test_scores_of_small_changes_are_those_of_exact_patching(load, monkeypatch):
    """Towards equal prompts EAP's error vanishes faster than the effect."""
    model, task = load("gpt2"), random_task((4, 4), shared=1)
    errors = []
    for share in (1e-2, 1e-4):
        shift = _shift_embedding(model, task, share)
        monkeypatch.setattr("circuits.edges.forward.Forward.embed", shift)
        eap, exact = (circuits.attribute(model, task, m).scores for m in ("eap", "exact"))
        monkeypatch.undo()
        errors.append(float((eap - exact).abs().max() / exact.abs().max()))
    assert errors[1] < errors[0] / 30 and errors[1] < 1e-2


def _shift_embedding(model, task, share):
    from circuits.edges.forward import Forward

    embed, corrupt = Forward.embed, task.corrupt.ids

    def shifted(self, ids):
        if not torch.equal(ids, corrupt[: len(ids), : ids.shape[1]]):
            return embed(self, ids)
        clean = embed(self, task.clean.ids)
        return clean + share * (embed(self, ids) - clean)

    return shifted


def test_the_sign_is_that_of_the_effect_of_ablating_the_edge(load, task):
    model = load("opt")
    exact = circuits.attribute(model, task, "exact")
    graph = exact.graph
    worst = int(exact.scores.argmin())
    without = graph.real.clone()
    without.view(-1)[worst] = False
    measured = circuits.measure_circuits(model, task, [circuits.Circuit(graph, without)])
    assert (
        float((measured.values[0] - measured.full).mean()) == pytest.approx(float(exact.scores.min()), abs=1e-10) and exact.scores.min() < 0
    )
    assert exact.header.sign == "ablated - clean"


def test_equal_prompts_give_scores_of_zero(load, task):
    same = circuits.Task("same", task.clean, task.clean, task.correct, task.incorrect)
    for method in (*GRADIENTS, "exact"):
        assert circuits.attribute(load("gpt2"), same, method).scores.abs().max() < 1e-12


def test_relevance_rules_leave_the_forward_as_it_is_and_change_the_derivatives(load, task):
    from circuits.edges.forward import Forward

    model = load("gpt2")
    plain, relp = (Forward.of(model, task.clean.width, relevance=x).run_prompts(task.clean).logits for x in (False, True))
    torch.testing.assert_close(plain, relp, atol=1e-12, rtol=0)
    assert (circuits.attribute(model, task, "relp").scores - circuits.attribute(model, task, "eap").scores).abs().max() > 1e-3


@pytest.mark.parametrize("variant", ["gpt2", "neox"])
def test_information_flow_into_a_reader_is_a_share_of_one_per_position(variant, load, task):
    scores = circuits.attribute(load(variant), task, "ifr")
    tokens = float(task.clean.lengths.double().mean())
    into = scores.scores.sum(0)
    torch.testing.assert_close(into[:-1], torch.full_like(into[:-1], tokens), atol=1e-9, rtol=0)
    assert float(into[-1]) == pytest.approx(1) and scores.scores.min() >= 0 and scores.header.sign == "importance"


def test_kl_to_the_clean_run_can_be_the_metric(load, task):
    scores = circuits.attribute(load("gpt2"), task, "exact", metric=interp.kl())
    assert scores.scores.min() >= -1e-12 and scores.scores.max() > 0
    assert circuits.attribute(load("gpt2"), task, "eap", metric=interp.kl()).scores.abs().max() < 1e-9  # flat at its minimum
    assert circuits.attribute(load("gpt2"), task, "eap-ig-inputs", metric=interp.kl()).scores.abs().max() > 1e-3


def transformer_lens_scores(model: interp.Model, task: circuits.Task, graph: Graph) -> torch.Tensor:
    """TransformerLens's edge scores, summed over positions. It goes from corrupted to clean with the gradient on the corrupted run."""
    from transformer_lens.tools.analysis import attribution_patching as tl

    bridge = model.bridge()
    for setting in ("set_use_attn_result", "set_use_split_qkv_input", "set_use_hook_mlp_in"):
        if hasattr(bridge, setting):
            getattr(bridge, setting)(True)
    out = torch.zeros(graph.real.shape, dtype=torch.float64)
    for row in range(len(task)):
        pair = task[[row]]
        answers = int(pair.correct[0]), int(pair.incorrect[0])
        found = tl.attribution_patch(
            bridge, pair.corrupt.ids, pair.clean.ids, lambda logits, a=answers: (logits[..., -1, a[0]] - logits[..., -1, a[1]]).sum(),
            tl.EdgeAttributionConfig(granularity="edge"),
        )  # fmt: skip
        for (writer, reader), score in found.edge_scores.items():
            u = 0 if writer.kind == "embed" else graph.source(writer.layer, writer.head)
            v = {"mlp_in": f"m{reader.layer}", "logits": "logits"}.get(reader.kind) or f"a{reader.layer}.h{reader.head}<{reader.kind[0]}>"
            assert graph.real[u, graph.destinations.index(v)]
            out[u, graph.destinations.index(v)] += score / len(task)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["gpt2", "neox-sequential", "neox"])
def test_eap_equals_transformer_lens_on_the_swapped_pair(variant, load, task):
    pytest.importorskip("transformer_lens.tools.analysis.attribution_patching")
    model = load(variant, "float32")
    ours = circuits.attribute(model, task, "eap")
    theirs = transformer_lens_scores(model, task, ours.graph)
    assert int((theirs != 0).sum()) > 0.9 * ours.graph.n_edges
    torch.testing.assert_close(ours.scores.double(), theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "eap-ig"}, "eap-ig-inputs"),
        ({"method": "atp*"}, "attribute_nodes"),
        ({"ablation": "noise"}, "positional-mean"),
        ({"method": "eap-ig-inputs", "ablation": "zero"}, "corrupted prompts"),
        ({"steps": 0}, "steps=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"metric": interp.logit_diff([1], [2])}, "1 prompts"),
        ({"metric": lambda logits, rows: torch.zeros(len(rows))}, "no gradient"),
        ({"metric": interp.loss()}, "every position"),
    ],
)
def test_what_makes_no_sense_is_refused(options, says, load, task):
    with pytest.raises(ValueError, match=says):
        circuits.attribute(load("gpt2"), task, **options)


def test_answers_outside_the_vocabulary_are_refused(load, task):
    with pytest.raises(ValueError, match="999"):
        circuits.attribute(load("gpt2"), circuits.Task("far", task.clean, task.corrupt, [999, 1, 2], [3, 4, 5]))


def test_post_norm_models_are_refused_with_the_reason(load, task):
    with pytest.raises(ValueError, match=r"normalised again.*attribute_nodes"):
        circuits.attribute(load("opt-postln"), task)
