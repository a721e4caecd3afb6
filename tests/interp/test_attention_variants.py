"""Attention of other formulas at the seam: reads, edits, sweeps, generation and files are as exact as with softmax."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import interp
from interp import Edit, Prompts
from interp.attention_files import write_variant
from interp.attention_variants import SETTINGS, AttentionVariant, as_variant, parameter_shapes
from interp.engine import seam
from tests.tiny import VARIANTS

KINDS = [kind for kind in SETTINGS if kind != "softmax"]
GATES = [kind for kind in KINDS if kind.startswith("gated")]
FAMILIES = ("gpt2", "opt", "opt-postln", "neox")
PROMPTS = Prompts.from_ids([[3, 7, 11, 5, 20, 9, 31], [9, 4], [12, 13, 14, 40]])


def spec_of(kind: str) -> AttentionVariant:
    """Settings at which tiny models are clipped at both ends."""
    return AttentionVariant(kind, **{"clipped": {"gamma": -0.15, "zeta": 1.1}, "normalized-clipped": {"alpha": 0.5}}.get(kind, {}))


def drawn(model: interp.Model, spec: AttentionVariant, seed: int = 0) -> dict[str, Tensor]:
    """Parameters in which everything matters."""
    generator = torch.Generator().manual_seed(seed)
    shapes = parameter_shapes(spec, model.n_heads, model.d_head, model.d_model)
    layers = range(model.n_layers)
    return {f"blocks.{i}.attn.{n}": torch.randn(s, generator=generator, dtype=torch.float64) for i in layers for n, s in shapes.items()}


def variant_of(model: interp.Model, kind: str) -> interp.Model:
    spec = spec_of(kind)
    return model.with_attention(spec, drawn(model, spec) if spec.is_learned else None)


def slow_pattern(spec: AttentionVariant, scores: list[float], extra: float) -> list[float]:
    """One query's weights on the keys that it sees, number by number."""
    if spec.kind in ("softmax-1", "sink-logit", "key-bias"):
        bottom = math.exp(extra) + sum(map(math.exp, scores))
        return [math.exp(s) / bottom for s in scores]
    p = [math.exp(s) / sum(map(math.exp, scores)) for s in scores]
    if spec.kind == "clipped":
        gamma, zeta = spec.gamma, spec.zeta
    elif spec.kind == "normalized-clipped" and len(p) > spec.alpha:
        gamma, zeta = -spec.alpha / len(p), 1.0
    else:
        return p
    return [min(1.0, max(0.0, (zeta - gamma) * x + gamma)) for x in p]


def slow_gate(spec: AttentionVariant, h: list[float], head: int, d: int, tensors: dict[str, Tensor]) -> float:
    """One head's gate for one token."""
    mine = h[head * d : head * d + d]
    if spec.kind == "gated-all-heads":
        total = sum(x * float(w) for x, w in zip(h, tensors["weight"][:, head], strict=True)) + float(tensors["bias"][head])
    elif spec.kind == "gated-linear":
        total = sum(x * float(w) for x, w in zip(mine, tensors["weight"][head], strict=True)) + float(tensors["bias"][head])
    else:
        total = float(tensors["bias_out"][head])
        for n in range(spec.hidden):
            inner = sum(x * float(tensors["weight_in"][head, i, n]) for i, x in enumerate(mine)) + float(tensors["bias_in"][head, n])
            total += max(0.0, inner) * float(tensors["weight_out"][head, n])
    return 1 / (1 + math.exp(-total))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_pattern_and_gate_are_their_formulas(family: str, kind: str, load):
    plain = load(family)
    spec = spec_of(kind)
    tensors = drawn(plain, spec) if spec.is_learned else {}
    model = plain.with_attention(spec, tensors or None)
    layer, row, head = 1, 0, 2
    own = {name.rsplit(".", 1)[1]: value for name, value in tensors.items() if name.startswith(f"blocks.{layer}.")}
    cap = model.capture(PROMPTS, f"blocks.{layer}.*")
    at = {name.removeprefix(f"blocks.{layer}."): x[row] for name, x in cap.items()}
    block = model.anatomy.blocks[layer]
    q = at.get("attn.hook_rot_q", at["attn.hook_q"])
    for query in range(7):
        scores = at["attn.hook_attn_scores"][head, query, : query + 1].tolist()
        extra = float(own["logit"][head]) if kind == "sink-logit" else 0.0
        if kind == "key-bias":
            extra = block.score_scale * float(q[query, head] @ own["key"][head])
        found = at["attn.hook_pattern"][head, query]
        assert found[: query + 1].tolist() == pytest.approx(slow_pattern(spec, scores, extra), abs=1e-9)
        assert not found[query + 1 :].any()
    if spec.is_gate:
        read = at["hook_resid_pre"] if block.wiring == "post-norm" else block.norm1(at["hook_resid_pre"])
        for token in range(7):
            want = slow_gate(spec, read[token].tolist(), head, model.d_head, own)
            assert float(at["attn.hook_gate"][token, head, 0]) == pytest.approx(want, abs=1e-9)
    assert float((model.logits(PROMPTS) - plain.logits(PROMPTS))[0].abs().max()) > 1e-3  # the variant is not a no-op


CHECKED = [("opt", "clipped"), ("opt-postln", "gated-mlp"), ("neox", "key-bias"), ("gpt2", "gated-linear"), ("neox", "softmax-1")]


@pytest.mark.parametrize(("family", "kind"), CHECKED)
def test_all_checks_hold_at_every_site(family: str, kind: str, load):
    report = variant_of(load(family), kind).check()
    assert report.passed, report.failures
    laws = set(report.table()["law"])
    assert any(law.startswith("with softmax for ") for law in laws) and "logits equal Hugging Face's" not in laws
    assert ("pattern times values times the gate equals z" if kind in GATES else f"{spec_of(kind)} of scores equals the pattern") in laws


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", VARIANTS)
def test_all_checks_hold_of_every_family_and_kind(family: str, kind: str, load):
    assert variant_of(load(family), kind).check().passed


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ("gpt2", "neox-sequential", "opt-postln"))
def test_forked_sweeps_of_ragged_prompts_equal_the_hooked_forward(family: str, kind: str, load):
    model = variant_of(load(family), kind)
    row = torch.tensor([0.5, 0.7, 0, 0, 0, 0, 0], dtype=torch.float64)
    plans = [
        (Edit("blocks.0.hook_resid_pre", "scale", 0.5, pos=1),),
        (Edit("blocks.1.attn.hook_v", "scale", -1.5, head=1),),
        (Edit("blocks.1.attn.hook_pattern", "set", row, head=2, pos=1), Edit("blocks.2.attn.hook_z", "zero", head=0)),
        (Edit("blocks.2.attn.hook_attn_scores", "scale", 3.0, head=3, pos=-1),),
        (Edit("blocks.2.attn.hook_q", "scale", 2.0, pos=-1),),
        (Edit("blocks.0.attn.hook_k", "zero", head=0), Edit("blocks.1.hook_mlp_out", "scale", 0.5, pos=-2)),
        (Edit("blocks.1.ln1.hook_normalized", "scale", 0.5, pos=1),),
    ]
    if kind in GATES:
        plans += [(Edit("blocks.2.attn.hook_gate", "set", 1.0, head=1),), (Edit("blocks.0.attn.hook_gate", "scale", 0.5, pos=1),)]
    metric = interp.logit_diff([3, 4, 5], [6, 7, 8])
    forked, hooked = (interp.sweep(model, PROMPTS, plans, metric, path=path, budget=60_000) for path in ("forked", "hooked"))
    torch.testing.assert_close(forked.values, hooked.values, rtol=0, atol=1e-9)
    assert bool((hooked.effects.abs().amax(1) > 1e-9).all())
    forked = interp.sweep(model, PROMPTS, plans, interp.loss(), path="forked")
    hooked = interp.sweep(model, PROMPTS, plans, interp.loss(), path="hooked")
    torch.testing.assert_close(forked.values, hooked.values, rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_variants_at_their_limits_are_softmax(family: str, load):
    plain = load(family)
    clean = plain.logits(PROMPTS)
    limits: list[tuple[AttentionVariant, dict[str, float] | None]] = [
        (AttentionVariant("clipped", gamma=0.0, zeta=1.0), None),
        (AttentionVariant("normalized-clipped", alpha=0.0), None),
        (AttentionVariant("normalized-clipped", alpha=7.0), None),  # no query sees more than 7 keys
        (AttentionVariant("sink-logit"), {"logit": -1e4}),
        (AttentionVariant("gated-linear"), {"weight": 0.0, "bias": 50.0}),
        (AttentionVariant("gated-all-heads"), {"weight": 0.0, "bias": 50.0}),
        (AttentionVariant("gated-mlp"), {"weight_in": 1.0, "bias_in": 0.0, "weight_out": 0.0, "bias_out": 50.0}),
    ]
    for spec, values in limits:
        tensors = None if values is None else {n: torch.full_like(x, values[n.rsplit(".", 1)[1]]) for n, x in drawn(plain, spec).items()}
        found = plain.with_attention(spec, tensors).logits(PROMPTS)
        for i, length in enumerate(PROMPTS.lengths.tolist()):
            torch.testing.assert_close(found[i, :length], clean[i, :length], rtol=0, atol=1e-9, msg=str(spec))


def test_an_extra_key_far_below_all_scores_is_softmax_and_one_of_score_0_is_softmax_1(load):
    plain = load("gpt2")
    q = plain.capture(PROMPTS, "blocks.*.attn.hook_q")
    tensors = {}
    for layer in range(plain.n_layers):  # a key that scores under -60 with every query that occurs
        x = q[f"blocks.{layer}.attn.hook_q"][0].transpose(0, 1)  # [head, query, d_head]
        tensors[f"blocks.{layer}.attn.key"] = torch.linalg.lstsq(x, torch.full((*x.shape[:2], 1), -1e3, dtype=x.dtype)).solution[..., 0]
    far = plain.with_attention("key-bias", tensors).logits(PROMPTS[0])
    torch.testing.assert_close(far, plain.logits(PROMPTS[0]), rtol=0, atol=1e-9)
    zero = plain.with_attention("key-bias", {name: torch.zeros_like(x) for name, x in tensors.items()}).logits(PROMPTS[0])
    torch.testing.assert_close(zero, plain.with_attention("softmax-1").logits(PROMPTS[0]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", GATES)
def test_a_gate_set_to_1_is_a_model_without_gates_and_one_set_to_0_a_head_without_output(kind: str, load):
    plain = load("opt")
    model = variant_of(plain, kind)
    opened = [Edit(f"blocks.{i}.attn.hook_gate", "set", 1.0) for i in range(model.n_layers)]
    torch.testing.assert_close(model.logits(PROMPTS, opened)[0], plain.logits(PROMPTS)[0], rtol=0, atol=1e-9)
    shut, zeroed = (model.logits(PROMPTS, Edit(f"blocks.1.attn.hook_{x}", "zero", head=2)) for x in ("gate", "z"))
    assert torch.equal(shut[0], zeroed[0])


def test_half_precision_computes_the_formula_in_float32(load):
    for kind in KINDS:
        model = variant_of(load("gpt2", "bfloat16"), kind)
        scores = model.capture(PROMPTS, "blocks.0.attn.*")
        variant = model.anatomy.blocks[0].variant
        assert variant is not None
        q = scores["blocks.0.attn.hook_q"].transpose(1, 2)
        keep = seam.causal_mask(7, 7, q.device)
        exact = variant.pattern(scores["blocks.0.attn.hook_attn_scores"].double(), keep, q.double(), model.anatomy.blocks[0].score_scale)
        torch.testing.assert_close(scores["blocks.0.attn.hook_pattern"].double(), exact, rtol=0, atol=2**-8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ("opt", "neox"))
def test_cached_generation_equals_running_the_whole_text_anew(family: str, kind: str, load):
    model = variant_of(load(family), kind)
    plan = (Edit("blocks.1.attn.hook_v", "scale", -1.5, head=1),)
    found = model.generate(PROMPTS, plan, max_new_tokens=4, stop=None)
    for row, new in zip(PROMPTS.rows(), found.new_ids, strict=True):
        ids = list(row)
        for _ in range(4):
            ids.append(int(model.logits(Prompts.from_ids([ids]), plan)[0, -1].argmax()))
        assert tuple(ids[len(row) :]) == new


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_match_finite_differences_in_every_parameter(kind: str, load):
    model = variant_of(load("neox"), kind)
    prompts = PROMPTS[0]
    direction = torch.randn(model.d_vocab, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    blocks = model.anatomy.blocks
    value = model.hf(prompts.ids, use_cache=False).logits[0, -1] @ direction
    for parameter in (*(blocks[0].variant.parameters()), blocks[0].qkv[0].weight):
        (gradient,) = torch.autograd.grad(value, parameter, retain_graph=True)
        step = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        ends = []
        for sign in (1, -1):
            parameter.data.add_(step, alpha=sign * 1e-6)
            ends.append(float(model.logits(prompts)[0, -1] @ direction))
            parameter.data.sub_(step, alpha=sign * 1e-6)
        assert float((gradient * step).sum()) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4, abs=1e-6)
        assert bool(gradient.any())


def test_the_original_model_is_left_bit_equal_and_weights_are_shared(load):
    plain = load("gpt2")
    clean = plain.logits(PROMPTS)
    other = variant_of(plain, "gated-linear")
    assert torch.equal(plain.logits(PROMPTS), clean) and plain.attention.kind == "softmax"
    assert other.hf.transformer.wte.weight is plain.hf.transformer.wte.weight
    assert torch.equal(other.with_attention("softmax").logits(PROMPTS), clean)
    assert other.name == "gpt2 with gated-linear(opening=0.25) attention"
    assert "hook_gate" in repr(other.sites()) and "hook_gate" not in repr(plain.sites())
    with pytest.raises(KeyError, match="no gates"):
        plain.sites().get("blocks.0.attn.hook_gate")


@pytest.fixture
def saved(load, tmp_path: Path):
    """saved(kind) -> (model, folder) with the variant on disk."""

    def save(kind: str, family: str = "opt") -> tuple[interp.Model, Path]:
        model = variant_of(load(family), kind)
        folder = tmp_path / kind
        load(family).hf.save_pretrained(folder)
        write_variant(folder, model.anatomy)
        return model, folder

    return save


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_variant_loads_as_the_same_model(kind: str, saved):
    model, folder = saved(kind)
    again = interp.load(folder, device="cpu")
    assert again.attention == model.attention == spec_of(kind) and again.name == kind
    assert torch.equal(again.logits(PROMPTS)[0], model.logits(PROMPTS)[0])
    assert interp.load(folder, attention="softmax").attention.kind == "softmax"


@pytest.mark.parametrize("kind", ("clipped", "gated-mlp"))
def test_a_baked_plan_keeps_the_variant(kind: str, saved, tmp_path: Path):
    model, _ = saved(kind)
    plan = (Edit("blocks.1.attn.hook_v", "scale", 0.5, head=1), Edit("blocks.0.attn.hook_z", "zero", head=3))
    baked = interp.load(interp.bake(model, plan, tmp_path / "baked"))
    assert baked.attention == model.attention
    torch.testing.assert_close(baked.logits(PROMPTS)[0], model.logits(PROMPTS, plan)[0], rtol=0, atol=1e-9)


def test_missing_unknown_and_misshaped_parameters_are_refused(saved):
    _, folder = saved("gated-linear")
    file = folder / "attention_gates.safetensors"
    whole = load_file(file)
    name = "blocks.1.attn.weight"
    cases = {
        "lacks 1 tensors, such as blocks.1.attn.weight": {k: v for k, v in whole.items() if k != name},
        "no tensors named blocks.9.attn.weight": whole | {"blocks.9.attn.weight": whole[name].clone()},
        r"has shape \(4, 7\).*asks for \(4, 8\)": whole | {name: whole[name][:, :7].contiguous()},
        "NaN or infinities": whole | {name: whole[name] * math.nan},
    }
    for message, tensors in cases.items():
        save_file(tensors, file)
        with pytest.raises(interp.CheckpointError, match=message):
            interp.load(folder)
    file.write_bytes(b"short")
    with pytest.raises(interp.CheckpointError, match="not a whole safetensors file"):
        interp.load(folder)
    file.unlink()
    with pytest.raises(interp.CheckpointError, match="lacks attention_gates.safetensors"):
        interp.load(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"kind": "sparsemax"}', "Unknown kind of attention 'sparsemax': there are softmax, clipped"),
        ('{"kind": "clipped", "alpha": 2}', "clipped attention has no alpha"),
        ('{"kind": "clipped", "gama": 2}', "no 'gama'"),
        ('{"kind": "clipped", "gamma": 0.1}', "gamma <= 0 and zeta >= 1"),
        ('{"kind": "clipped", "gamma": "low"}', "gamma is a finite number"),
        ('["clipped"]', "no JSON object"),
        ("{", "describes no attention"),
    ],
)
def test_an_attention_file_that_makes_no_sense_is_refused(text: str, message: str, saved):
    _, folder = saved("clipped")
    (folder / "attention.json").write_text(text)
    with pytest.raises(interp.CheckpointError, match=message):
        interp.load(folder)


def test_variants_are_written_as_text_and_read_back():
    for kind in SETTINGS:
        spec = spec_of(kind) if kind != "softmax" else AttentionVariant()
        assert as_variant(str(spec)) == spec == AttentionVariant.from_json(json.loads(json.dumps(spec.to_json())))
    assert AttentionVariant.clipped(alpha=4, length=128).gamma == -4 / 128
    for wrong in ("clipped(gamma)", "clipped(gamma=x)", "clipped(opening=0.5)", "gated-linear(opening=1)", "gated-mlp(hidden=0)"):
        with pytest.raises(ValueError, match="setting|no opening|opening lies|hidden is"):
            as_variant(wrong)
    with pytest.raises(ValueError, match="AttentionVariant or one of"):
        as_variant(3)  # type: ignore[arg-type]


def test_what_cannot_run_a_variant_says_so(load):
    gated, clipped = variant_of(load("gpt2"), "gated-linear"), variant_of(load("gpt2"), "clipped")
    for model in (gated, clipped):
        with pytest.raises(ValueError, match="bridge.. refuses"):
            model.bridge()
    with pytest.raises(ValueError, match="gates beside them"):
        gated.refuse_gates("This")
    clipped.refuse_gates("This")
    with pytest.raises(ValueError, match="was not trained with; give them as tensors="):
        load("gpt2").with_attention("key-bias")
    block = clipped.anatomy.blocks[0]
    block.attention.layer_idx = 0
    q = torch.zeros(1, 4, 3, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match="dropout 0.1 with clipped"):
        seam.seam(block.attention, q, q, q, None, dropout=0.1)


def test_source_attribution_of_a_gated_head_sums_to_its_direct_contribution(load):
    model = variant_of(load("opt"), "gated-linear")
    correct, incorrect = [3, 4, 5], [6, 7, 8]
    sources = interp.source_attribution(model, PROMPTS, 1, 2, (correct, incorrect))
    heads = interp.direct_logit_attribution(model, PROMPTS, (correct, incorrect)).heads
    torch.testing.assert_close(sources.total, heads[:, 1, 2], rtol=0, atol=1e-10)
