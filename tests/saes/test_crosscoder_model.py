"""Crosscoders in a model: replacement order, independent transcoders as a special case, measures, shared features."""

import json

import pytest
import torch

import interp
import saes
from saes import Block, Config
from saes.coders import Coder
from saes.crosscoders.evaluation import real_rows
from tests.tiny import D_MODEL, random_ids

DOUBLE = torch.float64


@pytest.fixture(scope="module")
def model(folders):
    return interp.load(folders["gpt2"], dtype="float64")


@pytest.fixture(scope="module")
def prompts():
    return interp.Prompts.from_ids([row[: 9 - i] for i, row in enumerate(random_ids(6, 9).tolist())])


def random_clt(model, threshold: float | None = 0.3, skip: bool = False, layers=None, seed: int = 0) -> saes.Crosscoder:
    """Random weights; where no threshold is given, top-k."""
    g = torch.Generator().manual_seed(seed)
    blocks, coders = saes.clt_blocks(model, layers), []
    for block in blocks:
        d_out = D_MODEL * len(block.writes)
        W_enc, W_dec = torch.randn(D_MODEL, 20, generator=g, dtype=DOUBLE), 0.1 * torch.randn(20, d_out, generator=g, dtype=DOUBLE)
        b_dec = torch.zeros(d_out, dtype=DOUBLE)
        b_dec[:D_MODEL] = torch.randn(D_MODEL, generator=g, dtype=DOUBLE)
        config = Config(kind="topk" if threshold is None else "jumprelu", n_features=20, k=4)
        level = None if threshold is None else torch.full((20,), threshold, dtype=DOUBLE)
        W_skip = 0.1 * torch.randn(d_out, D_MODEL, generator=g, dtype=DOUBLE) if skip else None
        b_enc = 0.1 * torch.randn(20, generator=g, dtype=DOUBLE)
        info = {"threshold": 0.7} if threshold is None else {}
        coders.append(Coder(W_enc, b_enc, W_dec, b_dec, config, level, W_skip, True, info).requires_grad_(False))
    widths = {site: D_MODEL for block in blocks for site in (*block.reads, *block.writes)}
    return saes.Crosscoder(blocks, tuple(coders), widths, {"model": model.name})


def test_outputs_are_the_sum_over_layers_of_codes_times_decoders(model, prompts):
    clt = random_clt(model)
    rows = real_rows(model, prompts, [*clt.reads, *clt.writes])
    out, codes = clt(rows), clt.encode(rows)
    for j, site in enumerate(clt.writes):
        slow = clt.coders[j].b_dec[:D_MODEL] + sum(codes[i] @ clt.decoder(i, site) for i in range(j + 1))
        assert torch.allclose(out[site], slow, atol=1e-12)
    for sparse, dense in zip(clt.encode_sparse(rows), codes, strict=True):
        assert torch.equal(sparse.dense(), dense)
    for site, y in clt.decode(clt.encode_sparse(rows)).items():
        assert torch.allclose(y, out[site], atol=1e-12)
    with pytest.raises(KeyError, match="does not write to"):
        clt.decoder(2, clt.writes[0])
    with pytest.raises(KeyError, match="Block 1 reads"):
        clt({clt.reads[0]: rows[clt.reads[0]]})


@pytest.mark.parametrize("threshold", [0.3, None])
def test_a_clt_that_writes_to_no_later_layer_is_independent_transcoders(model, prompts, threshold):
    clt = random_clt(model, threshold)
    alone = []
    for block, coder in zip(clt.blocks, clt.coders, strict=True):
        coder.W_dec[:, D_MODEL:] = 0
        config = Config(**{**vars(coder.config), "input_site": block.reads[0], "target_site": block.writes[0]})
        own = coder.W_dec[:, :D_MODEL].clone(), coder.b_dec[:D_MODEL].clone()
        alone.append(Coder(coder.W_enc, coder.b_enc, *own, config, coder.threshold, None, True))
    rows = real_rows(model, prompts, [*clt.reads, *clt.writes])
    out, codes = clt(rows), clt.encode(rows)
    for i, coder in enumerate(alone):
        x = rows[clt.reads[i]]
        assert torch.equal(codes[i], coder.encode(x)) and torch.allclose(out[clt.writes[i]], coder(x), atol=1e-12)
    ours, theirs = saes.crosscoder_replacements(model, prompts, clt), saes.replacements(model, prompts, alone)
    assert torch.allclose(model.logits(prompts, ours), model.logits(prompts, theirs), atol=1e-9)
    together, found = saes.evaluate_together(model, alone, prompts), saes.evaluate_crosscoder(model, clt, prompts)
    assert abs(together.ce_replaced - found.ce_replaced) < 1e-9 and abs(together.ce_ablated - found.ce_ablated) < 1e-9
    for i, coder in enumerate(alone):
        each = saes.evaluate(model, coder, prompts)
        assert abs(each.fvu - found.fvu[i]) < 1e-9 and abs(each.l0 - found.l0[i]) < 1e-9 and torch.equal(each.density, found.density[i])
        assert abs(each.ce_replaced - found.ce_alone[i]) < 1e-9 and abs(each.ce_ablated - found.ce_ablated_alone[i]) < 1e-9


@pytest.mark.parametrize("variant", ["gpt2", "opt", "opt-postln", "neox", "neox-sequential"])
@pytest.mark.parametrize("skip", [False, True])
def test_features_of_a_layer_read_the_stream_as_the_replaced_layers_before_it_leave_it(folders, prompts, variant, skip):
    """Against the model whose MLPs are taken out one by one: their modules give back what the transcoder says."""
    model = interp.load(folders[variant], dtype="float64")
    clt = random_clt(model, skip=skip)
    plan = saes.crosscoder_replacements(model, prompts, clt)
    seen = model.capture(prompts, [*clt.reads, *clt.writes], edits=plan)
    real = torch.arange(prompts.width) < prompts.lengths[:, None]
    expected = clt({site: seen[site][real] for site in clt.reads})
    for site in clt.writes:
        assert torch.allclose(seen[site][real], expected[site], atol=1e-9)
    clean = model.capture(prompts, list(clt.reads))
    assert not torch.allclose(clean[clt.reads[-1]][real], seen[clt.reads[-1]][real], atol=1e-3)
    assert [edit.site for edit in plan] == list(clt.writes)


def test_one_site_alone_is_replaced_from_the_clean_run(model, prompts):
    clt = random_clt(model)
    (edit,) = saes.crosscoder_replacements(model, prompts, clt, [clt.writes[1]])
    rows = model.capture(prompts, list(clt.reads))
    real = torch.arange(prompts.width) < prompts.lengths[:, None]
    assert torch.allclose(edit.value[real], clt({site: rows[site][real] for site in clt.reads})[clt.writes[1]], atol=1e-12)
    with pytest.raises(ValueError, match="does not write to blocks.0.hook_resid_post"):
        saes.crosscoder_replacements(model, prompts, clt, ["blocks.0.hook_resid_post"])


def identity(sites: list[str]) -> saes.Crosscoder:
    """A crosscoder that gives back what it reads: each dimension as its positive and its negative part."""
    d = D_MODEL * len(sites)
    eye = torch.eye(d, dtype=DOUBLE)
    zeros = torch.zeros(2 * d, dtype=DOUBLE)
    both, config = torch.cat([eye, -eye], 1), Config(kind="relu", n_features=2 * d, k=1)
    coder = Coder(both, zeros, both.T.clone(), zeros[:d].clone(), config, threshold=zeros).requires_grad_(False)
    return saes.Crosscoder(saes.crosscoder_blocks(sites), (coder,), dict.fromkeys(sites, D_MODEL))


def test_a_crosscoder_that_gives_its_sites_back_loses_nothing(model, prompts):
    sites = [f"blocks.{layer}.hook_resid_post" for layer in range(3)]
    found = saes.evaluate_crosscoder(model, identity(sites), prompts)
    assert max(map(abs, found.fvu)) < 1e-12 and abs(found.ce_recovered - 1) < 1e-9 and abs(found.kl) < 1e-12
    assert abs(found.total_l0 - 3 * D_MODEL) < 1e-9 and all(abs(ce - found.ce_clean) < 1e-9 for ce in found.ce_alone)
    per_head = identity(["blocks.0.attn.hook_z", "blocks.1.attn.hook_z"])
    assert abs(saes.evaluate_crosscoder(model, per_head, prompts).kl) < 1e-12


def test_sizes_of_batches_change_nothing_and_results_have_tables_figures_and_json(model, prompts):
    clt = random_clt(model)
    few, many = (saes.evaluate_crosscoder(model, clt, prompts, rows=rows, ablation="mean") for rows in (1, 64))
    assert all(abs(v - many.summary()[name]) < 1e-9 for name, v in few.summary().items())
    found = saes.evaluate_crosscoder(model, clt, prompts, controls={"other": random_clt(model, seed=1)})
    frame = found.table()
    assert len(frame) == 6 and set(frame["coder"]) == {"jumprelu", "other"} and len(list(found.figure().data)) == 2
    assert abs(frame["l0"].tolist()[2] - found.total_l0) < 1e-9 and json.loads(found.to_json())["controls"]["other"]["fvu"]


def test_controls_are_trained_on_the_prompts(model, prompts):
    config = Config(n_features=12, k=2, steps=3, batch_size=1000)
    clt = saes.train_crosscoder(model, saes.clt_blocks(model), config.but(batch_size=16), prompts)
    found = saes.evaluate_crosscoder(model, clt, prompts, controls=True)
    assert list(found.controls) == ["frozen decoder", "frozen encoder", "random"]
    assert len({found.mean_fvu, *(each.mean_fvu for each in found.controls.values())}) == 4, "four trainings"
    prepared = saes.crosscoder_controls(model, clt.blocks, config.but(batch_size=16), prompts)
    assert torch.equal(prepared["random"].coders[0].W_dec, prepared["frozen decoder"].coders[0].W_dec)
    assert not torch.equal(prepared["random"].coders[0].W_dec, prepared["frozen encoder"].coders[0].W_dec)


def test_a_crosscoder_of_another_model_is_refused(model, prompts, folders):
    clt = random_clt(model)
    for coder in clt.coders:
        coder.W_enc.data = torch.randn(16, 20, dtype=DOUBLE)
    narrow = saes.Crosscoder(clt.blocks, clt.coders, {**clt.widths, **dict.fromkeys(clt.reads, 16)})
    with pytest.raises(ValueError, match="it is of another model"):
        saes.evaluate_crosscoder(model, narrow, prompts)
    deeper = saes.Crosscoder((Block(("blocks.7.ln2.hook_normalized",), ("blocks.7.hook_mlp_out",)),), random_clt(model, layers=[2]).coders,
                             {"blocks.7.ln2.hook_normalized": D_MODEL, "blocks.7.hook_mlp_out": D_MODEL})  # fmt: skip
    with pytest.raises(KeyError, match=r"blocks\.7"):
        saes.evaluate_crosscoder(model, deeper, prompts)
    with pytest.raises(ValueError, match="3 blocks and 2 coders"):
        saes.Crosscoder(clt.blocks, clt.coders[:2], clt.widths)
    with pytest.raises(ValueError, match="its sites are"):
        saes.Crosscoder(clt.blocks, clt.coders[::-1], clt.widths)


def test_features_of_one_site_and_shared_ones_are_told_apart():
    """Rows of two sites: six directions that both have, and three of each site alone. One site is ten times as large."""
    g = torch.Generator().manual_seed(0)
    codes = torch.zeros(4000, 12).scatter_(1, torch.rand(4000, 12, generator=g).topk(2).indices, 1 + torch.rand(4000, 2, generator=g))
    frames = [torch.linalg.qr(torch.randn(16, 16, generator=g)).Q[:12] for _ in range(2)]
    frames[0][6:9], frames[1][9:] = 0, 0
    rows = {"a": codes @ frames[0], "b": 10 * (codes @ frames[1])}
    config = Config(n_features=24, k=2, steps=250, batch_size=256, lr=0.02, dead_after=2000)
    source = interp.store.Memory(rows)
    trained = saes.train_crosscoder(source, saes.crosscoder_blocks(["a", "b"]), config)
    found = saes.sharing(trained)
    truth = torch.cat([frames[0], frames[1]], 1)
    near = saes.cosine(trained.coders[0].W_dec / torch.tensor([1.0] * 16 + [10.0] * 16), truth).abs()
    matched = near.argmax(0)
    assert float(near.amax(0).min()) > 0.9 and found.scaled
    relative = found.relative[matched, 0]
    assert torch.allclose(relative[:6], torch.tensor(0.5, dtype=DOUBLE), atol=0.1), relative
    assert bool((relative[6:9] < 0.1).all()) and bool((relative[9:] > 0.9).all())
    assert set(matched[6:9].tolist()) <= set(found.exclusive("b").tolist()) and set(matched[:6].tolist()) <= set(found.shared().tolist())
    assert len(found.table()) == 48 and len(list(found.figure().data)) == 2 and json.loads(found.to_json())["sites"] == ["a", "b"]
    assert bool((found.effective_sites[matched[:6]] > 1.8).all()) and bool((found.effective_sites[matched[6:]] < 1.2).all())
