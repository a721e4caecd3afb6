"""Blocks trained together: the loss and its gradients, what one block comes to, resuming, recovery of a planted truth."""

import pytest
import torch

import interp
import saes
from interp.store import Memory
from saes import Block, Config
from saes.crosscoders.joint import Joint
from saes.ground_truth import cosine, hungarian
from saes.sparse import Codes
from saes.sparsity.jumprelu import jumprelu, step
from tests.tiny import random_ids

DOUBLE = torch.float64
BASE = Config(n_features=20, k=3, steps=12, batch_size=64)
CHAIN = (Block(("a",), ("u", "v", "w")), Block(("b",), ("v", "w")), Block(("c",), ("w",)))
"""A cross-layer transcoder of three layers."""
WIDTHS = {"a": 6, "b": 5, "c": 6, "u": 6, "v": 4, "w": 7}


def rows(n: int = 300, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        site: 3 * torch.randn(n, d, generator=g, dtype=DOUBLE) + torch.randn(d, generator=g, dtype=DOUBLE) for site, d in WIDTHS.items()
    }


def same(a: saes.Crosscoder, b: saes.Crosscoder) -> bool:
    states = [[*coder.state_dict().values()] for c in (a, b) for coder in c.coders]
    half = len(states) // 2
    return all(torch.equal(x, y) for s, t in zip(states[:half], states[half:], strict=True) for x, y in zip(s, t, strict=True))


def dense_loss(joint: Joint, data: dict[str, torch.Tensor], aux: bool) -> torch.Tensor:
    """The same loss written out with dense products and one bias for each site."""
    x = {site: (data[site] - s.mean) / s.scale for site, s in joint.scalings.items()}
    trainers = list(joint.trainers.values())
    k, out, loss = joint.config.k, {}, torch.zeros((), dtype=DOUBLE)
    codes = []
    for block, trainer in zip(joint.blocks, trainers, strict=True):
        w = trainer.weights
        pre = torch.cat([x[s] for s in block.reads], 1) @ w.W_enc + w.b_enc
        if joint.config.kind == "relu":
            z = pre.relu()
            loss = loss + trainer.penalty * z.sum(1).mean()
        elif joint.config.kind == "jumprelu":
            threshold, width = trainer.parameters["rule.log_threshold"].exp(), joint.config.details.bandwidth
            z = jumprelu(pre, threshold, width)
            loss = loss + trainer.penalty * 1 / (0.1 * joint.config.steps) * (step(pre, threshold, width).sum(1).mean() / k - 1).square()
        elif joint.config.kind == "topk":
            z = pre.relu() * torch.zeros_like(pre).scatter(1, pre.topk(k).indices, 1.0)
        else:
            level = pre.flatten().topk(k * len(pre)).values.min()
            z = pre.relu() * (pre >= level)
        codes.append(z)
        for site, part in zip(block.writes, w.W_dec.split([WIDTHS[s] for s in block.writes], 1), strict=True):
            out[site] = out.get(site, 0) + z @ part
    for i, (block, trainer) in enumerate(zip(joint.blocks, trainers, strict=True)):
        for site, bias in zip(block.writes, trainer.weights.b_dec.split([WIDTHS[s] for s in block.writes]), strict=True):
            if max(j for j, other in enumerate(joint.blocks) if site in other.writes) == i:
                out[site] = out[site] + bias
    for site, y in out.items():
        loss = loss + (x[site] - y).square().sum(1).mean() / WIDTHS[site]
    if aux:
        for block, trainer in zip(joint.blocks, trainers, strict=True):
            w, dead = trainer.weights, trainer.dead()
            residual = torch.cat([(x[s] - out[s]).detach() for s in block.writes], 1)
            pre = (torch.cat([x[s] for s in block.reads], 1) @ w.W_enc + w.b_enc)[:, dead]
            n = min(len(dead), sum(WIDTHS[s] for s in block.writes) // len(block.writes) // 2)
            z = pre.relu() * torch.zeros_like(pre).scatter(1, pre.topk(n).indices, 1.0)
            share = (residual - z @ w.W_dec[dead]).square().sum() / residual.square().sum()
            loss = loss + joint.config.aux_coefficient * share
    return loss


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "relu", "jumprelu"])
@pytest.mark.parametrize("blocks", [CHAIN, saes.crosscoder_blocks(["a", "b", "v"]), saes.crosscoder_blocks(["u", "v", "w"], causal=True)])
def test_the_loss_and_all_gradients_are_those_of_dense_autograd(kind, blocks):
    data = rows()
    joint = Joint(blocks, BASE.but(kind=kind), data)
    parameters = [p for t in joint.trainers.values() for p in t.parameters.values()]
    with torch.no_grad():
        for p, g in zip(parameters, range(len(parameters)), strict=True):
            if p.ndim == 1 and p.shape[0] == BASE.n_features:
                p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(g), dtype=DOUBLE)
    for trainer in joint.trainers.values():
        trainer.rows_seen = 10**6
        trainer.last_fired[7:] = 10**6  # the first seven count as dead
    batch = {site: x[:50] for site, x in data.items()}
    done = joint.forward({site: joint.scalings[site].apply(batch[site]) for site in joint.sites})
    fast = joint.loss(done, [t.dead() for t in joint.trainers.values()])
    slow = dense_loss(joint, batch, aux=True)
    assert torch.allclose(fast, slow, rtol=1e-9)
    for a, b in zip(torch.autograd.grad(fast, parameters), torch.autograd.grad(slow, parameters, allow_unused=True), strict=True):
        assert torch.allclose(a, torch.zeros_like(a) if b is None else b, rtol=1e-9, atol=1e-12)


def test_no_dense_codes_are_made_where_codes_are_sparse():
    joint = Joint(CHAIN, BASE, rows())
    done = joint.forward({site: joint.scalings[site].apply(x) for site, x in rows().items()})
    assert all(isinstance(outcome.codes, Codes) and len(outcome.codes.values) == 300 * BASE.k for outcome in done.outcomes)


def test_penalties_weigh_a_code_by_the_norm_of_its_concatenated_decoder():
    """A penalty that is told the norms sees no difference between a code and one twice as large whose decoders are half as long."""
    joint = Joint(CHAIN, BASE.but(kind="relu"), rows())
    for _ in range(3):
        joint.step(rows(64))
    batch = {site: joint.scalings[site].apply(x) for site, x in rows(64).items()}
    for trainer, outcome in zip(joint.trainers.values(), joint.forward(batch).outcomes, strict=True):
        assert isinstance(outcome.codes, torch.Tensor) and outcome.penalty is not None
        size = torch.rand(20, dtype=DOUBLE) + 0.5
        weighed = ((outcome.codes * size) * (trainer.weights.W_dec / size[:, None]).norm(dim=1)).sum(1).mean()
        assert torch.allclose(outcome.penalty, weighed)


def test_dead_features_start_again_towards_what_all_their_sites_miss():
    joint = Joint(CHAIN, BASE.but(resample_every=2, dead_after=10), rows())
    with torch.no_grad():
        joint.trainers["block 0"].weights.b_enc[:5] = -100
    joint.step(rows(64))
    joint.step(rows(64))
    weights = joint.trainers["block 0"].weights
    assert bool((weights.b_enc[:5] == 0).all()) and torch.allclose(weights.W_dec.norm(dim=1), torch.ones(20, dtype=DOUBLE))
    parts = weights.W_dec[:5].split([WIDTHS[site] for site in CHAIN[0].writes], 1)
    assert all(bool((part.norm(dim=1) > 0.01).all()) for part in parts)


def test_a_site_has_one_bias():
    crosscoder = saes.train_crosscoder(Memory(rows()), CHAIN, BASE)
    assert crosscoder.coders[0].b_dec[6:].abs().sum() == 0 and crosscoder.coders[1].b_dec[4:].abs().sum() == 0
    assert all(bool(coder.b_dec[:4].abs().min() > 0) for coder in crosscoder.coders)


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "jumprelu", "relu"])
@pytest.mark.parametrize("skip", [False, True])
def test_one_block_from_one_site_to_another_is_the_transcoder(kind, skip):
    data = {site: x.float() for site, x in rows().items()}
    config = BASE.but(kind=kind, skip=skip)
    crosscoder = saes.train_crosscoder(Memory(data), [Block(("a",), ("v",))], config)
    coder = saes.train(Memory(data), config.but(input_site="a", target_site="v"))
    assert isinstance(coder, saes.Coder)
    for name, tensor in crosscoder.coders[0].state_dict().items():
        assert torch.allclose(tensor, coder.state_dict()[name], rtol=1e-5, atol=1e-6), name


def test_one_block_of_one_site_is_the_autoencoder():
    data = {site: x.float() for site, x in rows().items()}
    crosscoder = saes.train_crosscoder(Memory(data), [Block(("a",), ("a",))], BASE)
    coder = saes.train(Memory(data), BASE.but(input_site="a"))
    assert isinstance(coder, saes.Coder)
    assert torch.allclose(crosscoder({"a": data["a"]})["a"], coder(data["a"]), rtol=1e-4, atol=1e-5)
    assert not crosscoder.coders[0].transcoder


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "jumprelu", "relu"])
@pytest.mark.parametrize("skip", [False, True])
def test_folded_scales_change_neither_codes_nor_outputs(kind, skip):
    data = rows()
    joint = Joint(CHAIN, BASE.but(kind=kind, skip=skip, steps=20), data)
    for _ in range(20):
        joint.step(data)
    found = joint.finish()
    scaled = {site: joint.scalings[site].apply(x) for site, x in data.items()}
    inside = saes.Crosscoder(CHAIN, tuple(t.finish() for t in joint.trainers.values()), joint.widths)
    for site, y in inside(scaled).items():
        assert torch.allclose(found(data)[site], y * joint.scalings[site].scale + joint.scalings[site].mean, atol=1e-9)
    for a, b in zip(found.encode(data), inside.encode(scaled), strict=True):
        assert torch.equal(a != 0, b != 0) and bool((a != 0).any())


def test_training_that_was_interrupted_goes_on_bit_for_bit(folders, tmp_path):
    model = interp.load(folders["gpt2"])
    documents = [row[: 9 - i % 4] for i, row in enumerate(random_ids(60, 9).tolist())]
    blocks, config = saes.clt_blocks(model), BASE.but(kind="batchtopk", steps=20, n_features=48)
    whole = saes.train_crosscoder(model, blocks, config, documents)

    def kill(done: int, total: int) -> None:
        if done == 15:
            raise KeyboardInterrupt

    options = {"checkpoint": tmp_path / "state"}
    with pytest.raises(KeyboardInterrupt):
        saes.train_crosscoder(model, blocks, config, documents, checkpoint_every=6, progress=kill, **options)
    assert same(saes.train_crosscoder(model, blocks, config, documents, **options), whole)
    with pytest.raises(ValueError, match="Give another folder"):
        saes.train_crosscoder(model, saes.clt_blocks(model, [1, 2]), config, documents, **options)
    elsewhere = [Block(b.reads, tuple(site.replace("mlp", "attn") for site in b.writes)) for b in blocks]
    with pytest.raises(ValueError, match=r"target_site \('blocks.0.hook_mlp_out.*' there, 'blocks.0.hook_attn_out.*' here\) differ"):
        saes.train_crosscoder(model, elsewhere, config, documents, **options)
    store = interp.harvest(model, documents, [*whole.reads, *whole.writes], tmp_path / "store")
    assert same(saes.train_crosscoder(store, blocks, config), whole) and whole.info["model"] == model.name


def planted(n: int = 4000, d: int = 16, true: int = 8) -> tuple[dict[str, torch.Tensor], tuple[Block, ...], list[torch.Tensor]]:
    """Three layers of features, two of each active in a row, that write to their own output and to all later ones."""
    g = torch.Generator().manual_seed(3)
    data, written, truth = {}, [torch.zeros(n, d) for _ in range(3)], []
    for i in range(3):
        chosen = torch.rand(n, true, generator=g).topk(2).indices
        codes = torch.zeros(n, true).scatter_(1, chosen, 1 + torch.rand(n, 2, generator=g))
        data[f"x{i}"] = codes @ torch.linalg.qr(torch.randn(d, d, generator=g)).Q[:true]
        decoder = torch.nn.functional.normalize(torch.randn(true, 3 - i, d, generator=g), dim=2)
        truth.append(decoder.flatten(1))
        for j in range(i, 3):
            written[j] = written[j] + codes @ decoder[:, j - i]
    outputs = [f"y{j}" for j in range(3)]
    blocks = tuple(Block((f"x{i}",), tuple(outputs[i:])) for i in range(3))
    return data | dict(zip(outputs, written, strict=True)), blocks, truth


def test_a_planted_cross_layer_dictionary_is_found_and_with_frozen_decoders_it_is_not():
    data, blocks, truth = planted()
    config = Config(n_features=16, k=2, steps=250, batch_size=256, lr=0.02, dead_after=2000)

    def mcc(crosscoder: saes.Crosscoder) -> float:
        found = [cosine(c.W_dec, t).abs() for c, t in zip(crosscoder.coders, truth, strict=True)]
        return sum(float(each[hungarian(each)].mean()) for each in found) / 3

    ours = saes.train_crosscoder(Memory(data), blocks, config)
    frozen = saes.train_crosscoder(Memory(data), blocks, config.but(frozen="decoder", steps=5))  # however long: decoders stay
    assert mcc(ours) > 0.97 and mcc(frozen) < 0.6
    for site, y in ours(data).items():
        assert float((y - data[site]).square().sum() / (data[site] - data[site].mean(0)).square().sum()) < 0.05


def test_what_cannot_be_trained_is_refused():
    source = Memory({site: x.float() for site, x in rows().items()})
    with pytest.raises(ValueError, match="of kind topk, batchtopk, jumprelu, relu; given 'gated'"):
        saes.train_crosscoder(source, CHAIN, BASE.but(kind="gated"))
    with pytest.raises(ValueError, match="copy a site to itself"):
        saes.train_crosscoder(source, saes.crosscoder_blocks(["a", "b"]), BASE.but(skip=True))
    with pytest.raises(ValueError, match="The blocks say what is read"):
        saes.train_crosscoder(source, CHAIN, BASE.but(input_site="a"))
    with pytest.raises(ValueError, match="no rows of z; there are some of a"):
        saes.train_crosscoder(source, [Block(("z",), ("a",))], BASE)
    with pytest.raises(ValueError, match="Give blocks"):
        saes.train_crosscoder(source, [], BASE)
    with pytest.raises(ValueError, match="k=30 is more than n_features=20"):
        BASE.but(k=30)
    with pytest.raises(ValueError, match="each site once"):
        Block(("a", "a"), ("b",))
    with pytest.raises(ValueError, match="at least two sites"):
        saes.crosscoder_blocks(["a"])
    bad = rows()
    bad["v"][17, 2] = float("nan")
    with pytest.raises(ValueError, match="Rows of v hold NaN"):
        saes.train_crosscoder(Memory(bad), CHAIN, BASE)


def test_layers_with_a_gap_are_refused(folders):
    model = interp.load(folders["gpt2"])
    assert [b.writes[0] for b in saes.clt_blocks(model, [1, 2])] == ["blocks.1.hook_mlp_out", "blocks.2.hook_mlp_out"]
    for layers in ([0, 2], [1, 0], []):
        with pytest.raises(ValueError, match="neighbouring layers"):
            saes.clt_blocks(model, layers)
    with pytest.raises(ValueError, match="no layer 3"):
        saes.clt_blocks(model, [2, 3])
