"""Input-invariant weights: an edge of a run is the weight times activation over the norm's scale, for every wiring."""

import pytest
import torch
from torch import Tensor

import interp
import saes
from circuits.features.backward import feature_readouts
from circuits.features.decomposition import decompose
from circuits.features.replacement import LocalReplacement, local_replacement
from circuits.features.weights import connections, deembedding, logit_effects, overlap, virtual_weights
from saes.synthetic import Dictionary, Layer, Levers, edge_recovery
from tests.circuits.features.made_up import N_FEATURES, VARIANTS, prompt, random_coders
from tests.tiny import random_ids

PRE_NORM = [v for v in VARIANTS if v != "opt-postln"]


def a_target(run, layer=2, pos=4):
    active = run.layers[layer].active
    one = [int((active.pos == pos).nonzero()[0])]
    return feature_readouts(run, layer, active.pos[one], active.feature[one]), int(active.feature[one])


def scale_of(run: LocalReplacement) -> Tensor:
    """Of the norm before the last coder."""
    assert run.layers[2].read is not None
    return run.layers[2].read.scale


def final_scale(run: LocalReplacement) -> Tensor:
    assert run.final is not None
    return run.final.scale


@pytest.mark.parametrize("variant", PRE_NORM)
def test_a_direct_edge_is_weight_times_activation_over_the_scale(load, variant):
    model = load(variant)
    coders = random_coders(model)
    run = local_replacement(model, prompt(5), coders)[0]
    target, feature = a_target(run)
    weights = virtual_weights(model, coders, 0, 2)[:, feature]
    whole, read = decompose(run, target), run.layers[2].read
    chosen = [i for i, kind in enumerate(whole.kinds) if kind == "feature" and whole.layer[i] == 0]
    assert chosen and read is not None
    active = run.layers[0].active
    expected = active.activation[active.pos == 4] * weights[active.feature[active.pos == 4]] / read.scale[4]
    assert (whole.values[chosen] - expected).abs().max() < 1e-9
    ranked = connections(model, coders, (2, feature), k=2 * N_FEATURES)
    assert ranked.names[:1] == ("L1 #0",) and (ranked.weights[N_FEATURES:] - weights).abs().max() < 1e-12


@pytest.mark.parametrize("variant", PRE_NORM)
def test_through_a_head_it_is_also_times_the_attention_over_that_heads_scale(load, variant):
    model = load(variant)
    coders = random_coders(model, skip=False)
    run = local_replacement(model, prompt(5), coders)[0]
    target, feature = a_target(run)
    from circuits.features.decomposition import expand

    whole = decompose(run, target)
    head = next(p for p in whole.top(len(whole)) if p.kind == "head" and p.layer == 1 and p.pos == 2)
    below = decompose(run, expand(run, target, head))
    chosen = [i for i, kind in enumerate(below.kinds) if kind == "feature" and below.layer[i] == 0]
    via = connections(model, coders, (2, feature), through=(1, head.index or 0))
    active, frozen = run.layers[0].active, run.layers[1]
    at = active.pos == 2
    scales = frozen.norm1.scale[2] * scale_of(run)[4]
    expected = active.activation[at] * via.weights[active.feature[at]] * frozen.pattern[head.index, 4, 2] / scales
    assert (below.values[chosen] - expected).abs().max() < 1e-9
    tokens = deembedding(model, coders, (2, feature), through=(1, head.index or 0))
    embed = next(p for p in below.top(len(below)) if p.kind == "embed")
    token = int(run.prompts.ids[0, 2])
    assert embed.contribution == pytest.approx(float(tokens.weights[token] * frozen.pattern[head.index, 4, 2] / scales), abs=1e-9)


@pytest.mark.parametrize("variant", PRE_NORM)
def test_tokens_and_logits_by_weights_are_what_a_run_divides_by_its_scales(load, variant):
    model = load(variant)
    coders = random_coders(model)
    run = local_replacement(model, prompt(5), coders)[0]
    target, feature = a_target(run)
    embed = next(p for p in decompose(run, target).top(1000) if p.kind == "embed")
    tokens = deembedding(model, coders, (2, feature))
    assert embed.contribution == pytest.approx(float(tokens.weights[int(run.prompts.ids[0, 4])] / scale_of(run)[4]), abs=1e-9)
    from circuits.features.backward import logit_readouts

    logit = decompose(run, logit_readouts(run, torch.tensor([7]), None, torch.tensor([4])))
    mine = next(p for p in logit.top(1000) if p.kind == "feature" and p.layer == 2 and p.index == feature)
    activation = float(target.values)
    effects = logit_effects(model, coders, (2, feature))
    assert mine.contribution == pytest.approx(activation * float(effects.weights[7] / final_scale(run)[4]), abs=1e-9)
    assert effects.raising == sorted(effects.raising, key=lambda x: -x[1]) and all(w < 0 for _, w in effects.lowering)
    assert len(effects.table()) == len(effects.raising) + len(effects.lowering)


def test_in_a_post_norm_model_norms_between_are_passed_without_their_scale(load):
    model = load("opt-postln")
    coders = random_coders(model, (0, 2), skip=False)
    first, second, third = model.anatomy.blocks
    centre = lambda x: x - x.mean(-1, keepdim=True)  # noqa: E731
    x = coders[0].W_dec.detach()
    for norm in (first.norm2, second.norm1, second.norm2, third.norm1):
        x = centre(x) * norm.weight.detach()
    assert (virtual_weights(model, coders, 0, 2) - x @ coders[1].W_enc.detach()).abs().max() < 1e-9
    y = centre(coders[1].W_dec.detach()[3]) * third.norm2.weight.detach()
    assert (logit_effects(model, coders, (2, 3)).weights - y @ model.anatomy.unembedding().detach()).abs().max() < 1e-9


def test_overlap_is_whole_where_every_feature_is_always_equally_active_and_its_chance_is_told(load):
    model = load("gpt2")
    coders = random_coders(model)
    prompts = interp.Prompts.from_ids(random_ids(4, 6))
    runs = local_replacement(model, prompts, coders)
    feature = int(torch.cat([r.layers[2].active.feature for r in runs]).mode().values)
    found = overlap(model, prompts, coders, (2, feature), 0, k=(1, 5, N_FEATURES))
    assert found.tokens == sum(int((r.layers[2].active.feature == feature).sum()) for r in runs) and found.of == 24
    assert found.chance == (1 / N_FEATURES, 5 / N_FEATURES, 1.0) and all(0 <= share <= 1 for share in found.shares)
    weights, mean = virtual_weights(model, coders, 0, 2)[:, feature], torch.zeros(N_FEATURES, dtype=torch.float64)
    for run in runs:
        mine, below = run.layers[2].active, run.layers[0].active
        for pos in mine.pos[mine.feature == feature].tolist():
            at = below.pos == pos
            mean.index_add_(0, below.feature[at], below.activation[at] * weights[below.feature[at]] / scale_of(run)[pos])
    tops = [set(x.abs().topk(5).indices.tolist()) for x in (weights, mean)]
    assert found.shares[1] == len(tops[0] & tops[1]) / 5


def test_weights_of_perfect_transcoders_are_the_true_edges_of_the_synthetic_world():
    """Two stacked layers whose truth is known: u_i . e'_j is found by the weights of coders that are the truth, and lost by random ones."""
    x, _ = Dictionary.draw(Levers(n_features=64, d=32)).sample(2000)
    first = Layer.draw(32, 40, x)
    second = Layer.draw(32, 40, first(x), seed=1)
    coders = []
    for i, layer in enumerate((first, second)):
        config = saes.Config(
            kind="relu", n_features=40, input_site=f"blocks.{i}.ln2.hook_normalized", target_site=f"blocks.{i}.hook_mlp_out"
        )
        coders.append(
            saes.Coder(layer.encoder.T, -layer.threshold, layer.decoder, torch.zeros(32), config, torch.zeros(40), transcoder=True)
        )
    assert edge_recovery(coders[0], coders[1], (first, second)) > 0.999
    shuffled = saes.Coder(
        coders[0].W_enc.detach(),
        coders[0].b_enc.detach(),
        torch.randn(40, 32),
        torch.zeros(32),
        coders[0].config,
        torch.zeros(40),
        transcoder=True,
    )
    assert edge_recovery(shuffled, coders[1], (first, second)) < 0.3


def test_what_has_no_weight_is_refused(load):
    model = load("gpt2")
    coders = random_coders(model, (0, 2))
    with pytest.raises(ValueError, match="Layer 1 has no transcoder here; there are some for layers 0, 2"):
        connections(model, coders, (1, 0))
    with pytest.raises(ValueError, match="features 0-39"):
        connections(model, coders, (2, 40))
    with pytest.raises(ValueError, match=r"No transcoder writes before L0 #1"):
        connections(model, coders, (0, 1))
    with pytest.raises(ValueError, match="writes after"):
        connections(model, coders, (0, 1), through=(1, 0))
    with pytest.raises(ValueError, match="a source lies below its target"):
        virtual_weights(model, coders, 2, 0)
    with pytest.raises(ValueError, match="active on none of the 5 tokens"):
        run = local_replacement(model, prompt(5), coders)[0]
        silent = next(i for i in range(40) if i not in run.layers[2].active.feature.tolist())
        overlap(model, prompt(5), coders, (2, silent), 0)
