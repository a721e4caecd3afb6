"""Training: what is learned, that it repeats and resumes bit for bit, and what is refused."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import saes
from saes import Config
from saes.fitting import batch_rows
from saes.trainer import Trainer
from saes.weights import Scaling
from tests.saes.data import orthonormal_rows, sparse_rows

KINDS = ("topk", "batchtopk", "jumprelu", "relu", "gated", "matryoshka")
SMALL = Config(n_features=32, k=2, steps=60, batch_size=128)


def same(a: saes.Coder, b: saes.Coder) -> bool:
    mine, others = a.state_dict(), b.state_dict()
    return mine.keys() == others.keys() and all(torch.equal(mine[name], others[name]) for name in mine)


@pytest.mark.parametrize("kind", ["topk", "batchtopk"])
def test_orthonormal_directions_are_found(kind):
    x, directions, codes = orthonormal_rows()
    config = Config(kind=kind, n_features=16, k=2, steps=400, batch_size=256)
    found = saes.recovery(saes.fit(x, config=config), directions, x, codes)
    assert found.mcc > 0.99 and found.f1 > 0.97 and found.explained_variance > 0.97 and found.uniqueness == 1, found.summary()


def test_a_transcoder_finds_the_encoder_and_the_decoder():
    x, encoder, codes = orthonormal_rows()
    decoder = torch.nn.functional.normalize(torch.randn(16, 12, generator=torch.Generator().manual_seed(7)), dim=1)
    coder = saes.fit(x, codes @ decoder + 3, Config(n_features=24, k=2, steps=500, batch_size=256))
    found = saes.recovery(coder, decoder, x, codes, codes @ decoder + 3)
    assert coder.transcoder and found.mcc > 0.98 and found.explained_variance > 0.97, found.summary()
    assert saes.cosine(coder.W_enc.T, encoder).abs().max(0).values.mean() > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(kind):
    x, _, _ = sparse_rows(2000)
    config = SMALL.but(kind=kind, steps=20)
    assert same(saes.fit(x, config=config), saes.fit(x, config=config))
    assert not same(saes.fit(x, config=config), saes.fit(x, config=config.but(seed=1)))


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_training_ends_with_the_bits_of_one_that_was_not(kind, tmp_path):
    x, _, _ = sparse_rows(1500)
    config = SMALL.but(kind=kind, steps=40, dead_after=300, resample_every=12, skip=kind == "gated")
    whole = saes.fit(x, config=config)

    class Killed(Exception):
        pass

    def kill(done: int, total: int) -> None:
        if done == 25:
            raise Killed

    state = tmp_path / "state.safetensors"
    with pytest.raises(Killed):
        saes.fit(x, config=config, checkpoint=state, checkpoint_every=10, progress=kill)
    assert same(saes.fit(x, config=config, checkpoint=state), whole)
    with pytest.raises(ValueError, match="another training of coder: k"):
        saes.fit(x, config=config.but(k=1), checkpoint=state)
    for other in (x + 1, x.flip(0)):
        with pytest.raises(ValueError, match="on other rows"):
            saes.fit(other, config=config, checkpoint=state)


def test_a_checkpoint_from_before_there_was_a_beta2_goes_on_with_the_one_it_had(tmp_path):
    x, _, _ = sparse_rows(600)
    config, state = SMALL.but(steps=20, beta2=0.999), tmp_path / "state.safetensors"
    whole = saes.fit(x, config=config, checkpoint=state, checkpoint_every=10)
    with safe_open(state, "pt") as file:
        tensors, about = {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["state"])  # noqa: SIM118
    del about["trainers"]["coder"]["config"]["details"]["beta2"]
    save_file(tensors, state, metadata={"state": json.dumps(about)})
    with pytest.raises(ValueError, match=r"another training of coder: beta2 \(0.999 there, 0.95 here\) differ"):
        saes.fit(x, config=config.but(beta2=Config().details.beta2), checkpoint=state)
    assert same(saes.fit(x, config=config, checkpoint=state), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_inference_does_not_depend_on_the_batch(kind):
    x, _, _ = sparse_rows(1500)
    coder = saes.fit(x, config=SMALL.but(kind=kind))
    z = coder.encode(x[:64])
    assert torch.allclose(torch.cat([coder.encode(row) for row in x[:64].split(1)]), z, atol=1e-5)
    assert torch.equal((coder.encode(x[:64].flip(0)).flip(0) != 0), z != 0)
    assert torch.allclose(coder.encode_sparse(x[:64]).dense(), z, atol=1e-6)
    assert torch.allclose(coder.decode(coder.encode_sparse(x[:64])), coder(x[:64]), atol=1e-5)
    assert torch.allclose(coder.encode(x[0]), z[0], atol=1e-5) and coder.encode(x[:6].view(2, 3, -1)).shape == (2, 3, 32)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_ends_near_the_active_features_that_were_asked_for(kind):
    x, _, _ = sparse_rows()
    coder = saes.fit(x, config=Config(kind=kind, n_features=48, k=3, steps=400, batch_size=128))
    l0 = float((coder.encode(x) != 0).sum(1).float().mean())
    assert l0 <= 3 if kind == "topk" else 2 < l0 < 4.5, l0


def test_folding_the_scaling_changes_nothing_but_the_units():
    x, _, codes = sparse_rows(1000, dtype=torch.float64)
    y = 5 * codes[:, :12] - 2
    inputs, targets = Scaling.of(x), Scaling.of(y)
    for kind in KINDS:
        trainer = Trainer(SMALL.but(kind=kind, skip=True), inputs, targets, x[:500], transcoder=True)
        for step in range(20):
            rows = batch_rows(len(x), 128, 0, step)
            trainer.step(x[rows], y[rows])
        W_enc, b_enc, threshold = trainer.rule.encoder(trainer.weights, trainer.sample)
        pre = inputs.apply(x) @ W_enc + b_enc
        kept = pre >= pre.topk(2).values[:, -1:] if threshold is None else pre > threshold
        inside = trainer.weights.reconstruct(pre.relu() * kept, inputs.apply(x))
        coder = trainer.finish()
        assert torch.allclose(coder(x), targets.scale * inside + targets.mean, atol=1e-9), kind
        assert torch.allclose(coder.W_dec.norm(dim=1), torch.ones(32, dtype=torch.float64), atol=1e-12)


def test_the_result_does_not_depend_on_the_units_of_the_data():
    x, _, _ = sparse_rows(1000, dtype=torch.float64)
    a, b = saes.fit(x, config=SMALL), saes.fit(100 * x + 7, config=SMALL)
    assert torch.allclose(100 * a(x) + 7, b(100 * x + 7), atol=1e-6)


@pytest.mark.parametrize("part", ["decoder", "encoder"])
def test_what_is_frozen_keeps_its_random_start_and_explains_less(part):
    x, directions, codes = sparse_rows()
    config = Config(n_features=24, k=2, steps=300, batch_size=128)
    trained, control = saes.fit(x, config=config), saes.fit(x, config=config.but(frozen=part))
    random = saes.fit(x, config=config.but(steps=0))
    weight = "W_dec" if part == "decoder" else "W_enc"
    direction = torch.nn.functional.normalize(getattr(control, weight), dim=1 if part == "decoder" else 0)
    start = torch.nn.functional.normalize(getattr(random, weight), dim=1 if part == "decoder" else 0)
    assert torch.allclose(direction, start, atol=1e-5)
    better, worse = (saes.recovery(c, directions, x, codes) for c in (trained, control))
    assert better.explained_variance > worse.explained_variance + 0.05 and better.mcc > worse.mcc


def test_metrics_go_to_a_file_line_by_line_and_to_a_function(tmp_path):
    x, _, _ = sparse_rows(500)
    seen: list = []
    saes.fit(x, config=SMALL.but(steps=150), metrics=seen.append)
    saes.fit(x, config=SMALL.but(steps=150), metrics=tmp_path / "metrics.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == seen and [line["step"] for line in lines] == [100, 150]
    assert {"loss", "fvu", "l0", "dead", "lr", "penalty"} <= lines[0].keys()


def test_each_pass_sees_every_row_once_in_another_order():
    first, second = (torch.cat([batch_rows(12, 4, 0, step) for step in steps]) for steps in (range(3), range(3, 6)))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(12)) and not torch.equal(first, second)


@pytest.mark.parametrize(
    ("x", "y", "config", "message"),
    [
        (torch.full((100, 4), float("nan")), None, {}, "Row 0 of x holds NaN"),
        (torch.randn(100, 4), torch.full((100, 2), float("inf")), {}, "Row 0 of y holds NaN or infinity"),
        (torch.randn(100, 4), torch.randn(99, 4), {}, "100 rows and y 99"),
        (torch.ones(100, 4), None, {}, "rows are the same"),
        (torch.randn(100), None, {}, "tensor \\[row, d\\]"),
        (torch.ones(100, 4, dtype=torch.long), None, {}, "floating-point"),
        (torch.randn(1, 4), None, {}, "at least two rows"),
        (torch.randn(100, 4), None, {"lr": 1e30, "kind": "relu", "penalty": 0.0}, "learning rate"),
    ],
)
def test_rows_that_cannot_be_learned_from_are_refused(x, y, config, message):
    with pytest.raises(ValueError, match=message):
        saes.fit(x, y, Config(n_features=8, k=2, steps=8, batch_size=50, **config))


def test_a_coder_whose_features_all_died_is_refused_with_what_to_do():
    x, _, _ = sparse_rows(300)
    config = Config(kind="relu", n_features=24, k=3, penalty=1e4, lr=0.5, steps=60, batch_size=64)
    with pytest.raises(ValueError, match="Every feature of the relu coder is dead.*Lower penalty"):
        saes.fit(x, config=config)
