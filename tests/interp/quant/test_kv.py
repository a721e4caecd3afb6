"""Policies keep what they say and never take back; a full cache costs exactly nothing; eviction equals attention without those keys."""

import json

import pytest
import torch

import interp
from interp import Edit, quant
from interp.quant.kv_policies import POLICIES, heavy_hitters, kept_keys
from tests.tiny import N_HEADS, N_LAYERS

PROMPTS = interp.Prompts.from_ids([[2, 9, 4, 9, 17, 9, 4, 8, 22, 9, 30, 31], [2, 11, 5], [2, 40, 40, 7, 40, 9, 41]])
LOCAL = ("local", "sink", "heavy", "random")


@pytest.fixture(scope="module", params=("gpt2", "opt", "neox", "opt-postln"))
def model(request, load):
    return load(request.param)


def mean_loss(model, edits=()):
    per_token = interp.loss_per_token(model.logits(PROMPTS, edits), PROMPTS)
    return float(per_token[~per_token.isnan()].mean())


def random_pattern(rows=2, heads=3, width=10):
    scores = torch.randn(rows, heads, width, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return torch.softmax(scores.masked_fill(~torch.ones(width, width).tril().bool(), -torch.inf), -1)


def masks_of(pattern, budget, **options):
    ids = torch.randint(3, 6, (pattern.shape[0], pattern.shape[-1]), generator=torch.Generator().manual_seed(1))
    priority = torch.rand(pattern.shape[:3], generator=torch.Generator().manual_seed(2))
    return {p: kept_keys(p, pattern, ids, budget, special=(3,), delimiters=(4,), priority=priority, **options) for p in POLICIES}, ids


@pytest.mark.parametrize("budget", [2, 3, 5, 10, 99])
def test_no_policy_takes_a_key_back_drops_the_own_key_looks_ahead_or_exceeds_the_budget(budget):
    pattern = random_pattern()
    masks, _ = masks_of(pattern, budget)
    seen = torch.ones(10, 10).tril().bool()
    for name, kept in masks.items():
        assert not (kept & ~seen).any() and kept.diagonal(dim1=-2, dim2=-1).all(), name
        back = kept[..., 1:, :] & ~kept[..., :-1, :] & seen[:-1]
        assert not back.any(), name
        if name in LOCAL:
            assert int(kept.sum(-1).max()) <= budget and (budget < 10 or bool((kept == seen).all())), name


def test_heavy_hitters_equal_a_loop_over_one_head_at_a_time():
    pattern, budget = random_pattern(), 4
    kept = heavy_hitters(pattern, budget)
    for row in range(2):
        for head in range(3):
            cache, received = [], {}
            for query in range(10):
                cache.append(query)
                received[query] = 0.0
                if len(cache) > budget:
                    older = [k for k in cache if k <= query - budget // 2]
                    cache.remove(min(older, key=lambda k: received[k]))
                assert kept[row, head, query].nonzero().flatten().tolist() == sorted(cache)
                for k in cache:
                    received[k] += float(pattern[row, head, query, k])


def test_special_tokens_and_punctuation_are_kept_where_they_stand():
    masks, ids = masks_of(random_pattern(), 3)
    for row in range(2):
        for query in range(10):
            special = {k for k in range(query) if k == 0 or ids[row, k] == 3} | {query}
            assert set(masks["special"][row, 0, query].nonzero().flatten().tolist()) == special
            marks = special | {k for k in range(query) if ids[row, k] == 4}
            assert set(masks["punctuation"][row, 2, query].nonzero().flatten().tolist()) == marks
    assert masks["sink"][0, 0, 9].nonzero().flatten().tolist() == [0, 8, 9]
    assert masks["local"][0, 0, 9].nonzero().flatten().tolist() == [7, 8, 9]


def test_a_full_cache_costs_exactly_nothing_and_a_budget_as_long_as_the_text_is_one(model):
    view = quant.kv_view(model, PROMPTS, budget=PROMPTS.width, bits=16)
    assert view.full_loss == pytest.approx(mean_loss(model))
    for name in ("full", *LOCAL):
        assert view.loss[name] == 0, name
        torch.testing.assert_close(view.recovered[name], torch.ones(N_LAYERS, N_HEADS, dtype=torch.float64))
    assert float(view.head_loss.abs().max()) == 0 and 0 < abs(view.quantized["kv"]) < 1e-2
    assert abs(view.loss["special"]) > 1e-3


def test_evicting_one_heads_keys_equals_its_attention_renormalised_over_the_others(model):
    view = quant.kv_view(model, PROMPTS, budget=3, bits=4, head_policy="local")
    for layer, head in ((0, 1), (1, 3), (2, 0)):
        site = f"blocks.{layer}.attn.hook_pattern"
        pattern = model.capture(PROMPTS, site)[site][:, head]
        kept = kept_keys("local", pattern[:, None], PROMPTS.ids, 3)[:, 0]
        left = pattern * kept
        value = left / left.sum(-1, keepdim=True)
        effect = mean_loss(model, [Edit(site, "set", value, head=head)]) - view.full_loss
        assert float(view.head_loss[layer, head]) == pytest.approx(effect, abs=1e-9)
        shares = [float(left[r, q].sum()) for r, n in enumerate(PROMPTS.lengths.tolist()) for q in range(1, n)]
        assert float(view.recovered["local"][layer, head]) == pytest.approx(sum(shares) / len(shares))
        sizes = [min(3, q + 1) / (q + 1) for n in PROMPTS.lengths.tolist() for q in range(1, n)]
        assert float(view.held["local"][layer, head]) == pytest.approx(sum(sizes) / len(sizes))


def test_rounded_caches_equal_one_forward_each(model):
    view = quant.kv_view(model, PROMPTS, budget=4, bits=3)
    key = "rot_k" if "blocks.0.attn.hook_rot_k" in model.sites() else "k"
    edits = {
        name: [
            Edit(f"blocks.{layer}.attn.hook_{site}", "quantize", {"bits": 3, "symmetric": False, "per": per}, head=head)
            for layer in range(N_LAYERS) for head in range(N_HEADS)
        ]
        for name, site, per in (("k", key, "channel"), ("v", "v", "token"))
    }  # fmt: skip
    assert view.quantized["k"] == pytest.approx(mean_loss(model, edits["k"]) - view.full_loss, abs=1e-9)
    assert view.quantized["kv"] == pytest.approx(mean_loss(model, edits["k"] + edits["v"]) - view.full_loss, abs=1e-9)
    assert float(view.head_quantized["v"][1, 2]) == pytest.approx(mean_loss(model, edits["v"][6]) - view.full_loss, abs=1e-9)


def test_a_heads_type_is_the_smallest_policy_that_recovers_enough_and_full_where_none_does(model):
    strict, lax = (quant.kv_view(model, PROMPTS, budget=4, threshold=t, special=(9,), delimiters=(40,)) for t in (1.0, 1e-9))
    assert {name for row in strict.types for name in row} == {"full"} and strict.loss["by type"] == 0
    least = min(float(grid[0, 0]) for name, grid in lax.held.items() if name != "random")
    assert all(float(lax.held[name][i, j]) == least for i, row in enumerate(lax.types) for j, name in enumerate(row))
    assert lax.loss["by type"] == pytest.approx(lax.loss[lax.types[0][0]])
    middle = quant.kv_view(model, PROMPTS, budget=4, threshold=0.8, special=(9,), delimiters=(40,))
    for i, row in enumerate(middle.types):
        for j, name in enumerate(row):
            assert float(middle.recovered[name][i, j]) >= 0.8


def test_chunks_change_nothing_and_results_show_what_they_hold(model, monkeypatch):
    import interp.quant.kv as module

    whole = quant.kv_view(model, PROMPTS, budget=4)
    monkeypatch.setattr(module, "BUDGET", 1)
    parts = quant.kv_view(model, PROMPTS, budget=4)
    assert parts.loss == pytest.approx(whole.loss, abs=1e-9) and parts.types == whole.types
    torch.testing.assert_close(parts.head_loss, whole.head_loss, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(parts.heavy_share, whole.heavy_share)
    assert sum(share for share, _ in whole.by_token.values()) == pytest.approx(1) and whole.by_token[9][1] == 5
    assert len(whole.table()) == N_LAYERS * N_HEADS and len(whole.policies()) == len(POLICIES) + 1
    assert json.loads(whole.to_json())["budget"] == 4 and whole.figure().data and -1 <= whole.correlation <= 1


def test_what_makes_no_sense_is_said(load):
    model = load("gpt2")
    for options, said in (({"budget": 1}, "at least 2"), ({"head_policy": "nope"}, "No policy"), ({"threshold": 0}, "threshold")):
        with pytest.raises(ValueError, match=said):
            quant.kv_view(model, PROMPTS, **options)


def test_shares_are_of_the_attention_that_a_clipped_head_has(load):
    model = load("gpt2").with_attention("clipped(gamma=-0.1)")
    view = quant.kv_view(model, PROMPTS, budget=4)
    pattern = model.capture(PROMPTS, "blocks.1.attn.hook_pattern")["blocks.1.attn.hook_pattern"][:, 2]
    rows = [(i, t) for i, n in enumerate(PROMPTS.lengths.tolist()) for t in range(1, n)]
    whole = sum(float(pattern[i, t].sum()) for i, t in rows)
    near = sum(float(pattern[i, t, max(0, t - 3) : t + 1].sum()) for i, t in rows)
    assert whole < 0.9 * len(rows) and bool((view.recovered["full"] == 1).all())
    assert float(view.recovered["local"][1, 2]) == pytest.approx(near / whole)
