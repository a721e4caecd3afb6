"""Edges of the local replacement model: sums close to the last digit, and each edge is what autograd finds on the model written out."""

import pytest
import torch

import interp
from circuits.features.backward import Readouts, edges, feature_readouts, logit_readouts
from circuits.features.replacement import LocalReplacement, local_replacement
from tests.circuits.features.made_up import VARIANTS, Plain, prompt, random_coder, random_coders

EXACT = 1e-9


def all_readouts(run: LocalReplacement, tokens: tuple[int, ...] = (5, 9)) -> Readouts:
    """Every active feature, and two logits at two positions."""
    features = [
        feature_readouts(run, layer.layer, layer.active.pos, layer.active.feature) for layer in run.layers if layer.coder is not None
    ]
    return Readouts.join([*features, logit_readouts(run, torch.tensor(tokens), None, torch.tensor([run.n_pos - 1, 2]))])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("layers", [(0, 1, 2), (1,)])
def test_every_pre_activation_and_every_logit_is_the_sum_of_its_edges(load, variant, layers):
    model = load(variant)
    ragged = interp.Prompts.from_ids([prompt(7).rows()[0], prompt(5, 1).rows()[0]])
    for run in local_replacement(model, ragged, random_coders(model, layers)):
        readouts = all_readouts(run)
        sums = edges(run, readouts).sum(1) + readouts.constants
        assert (sums - readouts.values).abs().max() < EXACT
        logits = model.logits(run.prompts)[0]
        assert (readouts.values[-2:] - torch.stack([logits[-1, 5], logits[2, 9]])).abs().max() < EXACT
        active = torch.cat([layer.active.activation for layer in run.layers])
        assert (readouts.values[:-2] - active).abs().max() < EXACT and bool((active > 0).all())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("layers", [(0, 1, 2), (0, 2)])
def test_each_edge_is_gradient_times_source_of_the_linear_model_written_out(load, variant, layers):
    model, prompts = load(variant), prompt(5)
    coders = random_coders(model, layers)
    run, plain = local_replacement(model, prompts, coders)[0], Plain(model, prompts, coders)
    top = run.layers[2].active
    chosen = [0, len(top) // 2, len(top) - 1]
    readouts = Readouts.join([
        feature_readouts(run, 2, top.pos[chosen], top.feature[chosen]),
        logit_readouts(run, torch.tensor([7]), torch.tensor([11]), torch.tensor([4])),
    ])  # fmt: skip
    found = edges(run, readouts)
    picks = [lambda pre, _, i=i: pre[2][top.pos[i], top.feature[i]] for i in chosen] + [lambda _, logits: logits[4, 7] - logits[4, 11]]
    for row, pick in zip(found, picks, strict=True):
        expected = plain.contributions(pick)
        for (kind, layer), block in run.blocks.items():
            name = kind if layer < 0 else f"{kind}.{layer}"
            if kind == "feature" and name in expected:
                active = run.layers[layer].active
                assert (row[block] - expected[name][active.pos, active.feature]).abs().max() < EXACT
            elif name in expected:
                assert (row[block] - expected[name]).abs().max() < EXACT, name


def test_targets_in_chunks_and_in_any_order_have_the_same_edges(load, monkeypatch):
    model = load("neox")
    run = local_replacement(model, prompt(6), random_coders(model))[0]
    readouts = all_readouts(run)
    whole = edges(run, readouts)
    order = torch.randperm(len(readouts), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("circuits.features.backward.BUDGET", 7 * 4 * run.stream.numel() * 8)
    assert (edges(run, readouts[order]) - whole[order]).abs().max() < 1e-12


def test_nothing_flows_back_in_time_or_up_from_later_layers(load):
    model = load("gpt2")
    run = local_replacement(model, prompt(6), random_coders(model))[0]
    one = run.layers[1].active
    at = int((one.pos == 3).nonzero()[0])
    row = edges(run, feature_readouts(run, 1, one.pos[[at]], one.feature[[at]]))[0]
    assert not row[run.blocks["feature", 2]].any() and not row[run.blocks["feature", 1]].any() and not row[run.blocks["error", 2]].any()
    zero = run.layers[0].active
    assert not row[run.blocks["feature", 0]][zero.pos > 3].any() and row[run.blocks["feature", 0]][zero.pos < 3].any()
    assert not row[run.blocks["embed", -1]][4:].any()


def test_coders_that_read_elsewhere_are_refused_with_the_reason(load):
    model, post = load("gpt2"), load("opt-postln")
    coder = random_coder(post, 0)
    coder.config = coder.config.but(input_site="blocks.0.ln2.hook_normalized")
    with pytest.raises(ValueError, match="in a post-norm block ln2 comes after the MLP"):
        local_replacement(post, prompt(), [coder])
    own = random_coder(model, 1)
    own.config = own.config.but(input_site="blocks.1.hook_mlp_out")
    with pytest.raises(ValueError, match="ln2.hook_normalized or hook_resid_mid"):
        local_replacement(model, prompt(), [own])
    own.config = own.config.but(target_site="blocks.1.hook_resid_post")
    with pytest.raises(ValueError, match="MLP's own input"):
        local_replacement(model, prompt(), [own])
    with pytest.raises(ValueError, match=r"Several coders replace blocks\.1\.hook_mlp_out"):
        local_replacement(model, prompt(), [random_coder(model, 1), random_coder(model, 1)])
    with pytest.raises(ValueError, match="at least one transcoder"):
        local_replacement(model, prompt(), [])
    with pytest.raises(ValueError, match="Layer 0 has no transcoder here; there are some for layers 1"):
        feature_readouts(local_replacement(model, prompt(), [random_coder(model, 1)])[0], 0, torch.tensor([0]), torch.tensor([0]))
