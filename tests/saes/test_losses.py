"""Parts of the loss: where gradients go, and what the straight-through estimators are."""

import pytest
import torch

import saes
from saes import Config
from saes.dead import auxiliary, resample
from saes.sparse import Codes
from saes.sparsity.jumprelu import jumprelu, step
from saes.sparsity.rule import threshold_for
from saes.sparsity.topk import TopK
from saes.trainer import Trainer
from saes.weights import Scaling, Weights
from tests.saes.data import sparse_rows

DOUBLE = torch.float64


def weights(config: Config, d: int = 6) -> Weights:
    return Weights(d, d, config, tied=True, generator=torch.Generator().manual_seed(5), dtype=DOUBLE)


def trainer(**changes: object) -> tuple[Trainer, torch.Tensor]:
    x, _, _ = sparse_rows(600, dtype=DOUBLE)
    config = Config(n_features=40, k=3, steps=100, batch_size=100).but(**changes)
    return Trainer(config, Scaling.of(x), Scaling.of(x), x[:200], transcoder=False), x


def test_the_auxiliary_gradient_reaches_encoder_and_decoder_of_dead_features_and_nothing_else():
    w, x, residual = weights(Config(n_features=12, k=2)), torch.randn(20, 6, dtype=DOUBLE), torch.randn(20, 6, dtype=DOUBLE)
    dead = torch.tensor([1, 4, 9])
    auxiliary(w, x, residual, dead, 2).backward()
    alive = torch.tensor([i for i in range(12) if i not in dead])
    for grad in (w.W_enc.grad.T, w.W_dec.grad, w.b_enc.grad):
        assert grad[dead].abs().sum() > 0 and grad[alive].abs().sum() == 0


def test_the_auxiliary_loss_is_that_of_dense_autograd():
    w, x, residual = weights(Config(n_features=12, k=2)), torch.randn(20, 6, dtype=DOUBLE), torch.randn(20, 6, dtype=DOUBLE)
    dead = torch.tensor([0, 2, 3, 7, 11])
    pre = (x @ w.W_enc + w.b_enc)[:, dead]
    kept = torch.zeros_like(pre).scatter(1, pre.topk(3).indices, 1.0)
    slow = (residual - (pre.relu() * kept) @ w.W_dec[dead]).square().sum() / residual.square().sum()
    fast = auxiliary(w, x, residual, dead, 3)
    assert torch.allclose(fast, slow, atol=1e-12)
    for a, b in zip(torch.autograd.grad(fast, (w.W_enc, w.W_dec)), torch.autograd.grad(slow, (w.W_enc, w.W_dec)), strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_dead_features_come_alive_by_the_auxiliary_loss_and_only_by_it():
    dead = {}
    for coefficient in (0.0, 0.2):
        one, x = trainer(aux_coefficient=coefficient, dead_after=300, lr=0.02, decay=0.0, warmup=0.0)
        with torch.no_grad():
            one.weights.b_enc[:20] = -2.5
        for i in range(50):
            one.step(x[(i % 6) * 100 : (i % 6 + 1) * 100])
        dead[coefficient] = len(one.dead())
    assert dead[0.0] >= 16 and dead[0.2] <= 13, dead


def test_resampled_features_point_at_what_was_missed_and_lose_their_momentum():
    one, x = trainer(dead_after=100)
    for _ in range(3):
        one.step(x[:100])
    residual = torch.randn(100, 16, dtype=DOUBLE)
    dead, before = torch.tensor([3, 8]), one.weights.W_dec.detach().clone()
    resample(one.weights, one.optimizer, one.inputs.apply(x[:100]), residual, dead, torch.Generator().manual_seed(0))
    near = (torch.nn.functional.normalize(residual, dim=1) @ one.weights.W_dec[dead].T).max(0)
    assert torch.allclose(near.values, torch.ones(2, dtype=DOUBLE))
    rows = torch.nn.functional.normalize(one.inputs.apply(x[:100])[near.indices], dim=1)
    assert torch.allclose(torch.nn.functional.normalize(one.weights.W_enc[:, dead].T, dim=1), rows)
    assert one.optimizer.state[one.weights.W_dec]["exp_avg"][dead].abs().sum() == 0
    assert one.optimizer.state[one.weights.W_enc]["exp_avg_sq"][:, dead].abs().sum() == 0
    others = torch.tensor([i for i in range(40) if i not in dead])
    assert torch.equal(one.weights.W_dec[others], before[others])


def test_straight_through_estimators_are_equations_11_and_12():
    pre = torch.tensor([[0.9, 1.1, 2.0, -1.0]], dtype=DOUBLE, requires_grad=True)
    threshold = torch.full((4,), 1.0, dtype=DOUBLE, requires_grad=True)
    assert torch.equal(jumprelu(pre, threshold, 0.5), torch.tensor([[0, 1.1, 2.0, 0]], dtype=DOUBLE))
    to_pre, to_threshold = torch.autograd.grad(jumprelu(pre, threshold, 0.5).sum(), (pre, threshold))
    assert torch.equal(to_pre, torch.tensor([[0, 1, 1, 0]], dtype=DOUBLE))
    assert torch.allclose(to_threshold, torch.tensor([-2.0, -2.0, 0, 0], dtype=DOUBLE)), "- threshold / bandwidth inside the window"
    (to_threshold,) = torch.autograd.grad(step(pre, threshold, 0.5).sum(), threshold)
    assert torch.allclose(to_threshold, torch.tensor([-2.0, -2.0, 0, 0], dtype=DOUBLE)), "- 1 / bandwidth inside the window"


def test_the_steps_estimator_is_the_slope_of_the_smoothed_l0():
    """For values spread evenly around the threshold the mean of the estimator is the derivative of the expected L0."""
    pre = torch.linspace(0, 2, 200_001, dtype=DOUBLE)[:, None]
    threshold = torch.tensor([1.0], dtype=DOUBLE, requires_grad=True)
    (slope,) = torch.autograd.grad(step(pre, threshold, 0.3).mean(0).sum(), threshold)
    counted = ((pre > 1.01).double().mean() - (pre > 0.99).double().mean()) / 0.02
    assert abs(float(slope) - float(counted)) < 1e-3


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_thresholds_learn_in_every_precision(precision):
    x, _, _ = sparse_rows(600)
    config = Config(kind="jumprelu", n_features=40, k=3, steps=60, batch_size=100).but(precision=precision)
    one = Trainer(config, Scaling.of(x), Scaling.of(x), x[:200], transcoder=False)
    before = one.parameters["rule.log_threshold"].detach().clone()
    for i in range(30):
        one.step(x[(i % 6) * 100 : (i % 6 + 1) * 100])
    after = one.parameters["rule.log_threshold"]
    assert after.dtype == torch.float32 and (after - before).abs().mean() > 0.005


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "matryoshka", "jumprelu", "relu", "gated"])
def test_bfloat16_products_train_every_kind(kind):
    x, _, _ = sparse_rows(600)
    coder = saes.fit(x, config=Config(kind=kind, n_features=24, k=3, steps=10, batch_size=64).but(precision="bfloat16"))
    assert coder.W_enc.dtype == torch.float32 and bool(torch.isfinite(coder(x)).all())


def test_sparse_and_dense_steps_of_top_k_are_the_same_step():
    x = torch.randn(30, 6, dtype=DOUBLE)
    grads = []
    for dense_above in (0.0, 1.0):
        config = Config(n_features=12, k=3).but(dense_above=dense_above)
        w = weights(config)
        outcome = TopK(config, w, x)(w, x, x)
        assert isinstance(outcome.codes, Codes) == (dense_above == 1.0)
        outcome.error.backward()
        grads.append((w.W_enc.grad, w.W_dec.grad, w.b_enc.grad, w.b_dec.grad))
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(*grads, strict=True))


def test_the_batch_s_largest_are_kept_whatever_the_search_starts_from():
    x, _, _ = sparse_rows(64, dtype=DOUBLE)
    config = Config(kind="batchtopk", n_features=40, k=3)
    w = weights(config, 16)
    rule = saes.trainer.RULES["batchtopk"](config, w, x)
    dense = w.pre(x).detach()
    level = dense.flatten().topk(3 * 64).values.min()
    expected = dense * (dense >= level)
    for start in (0.0, 0.5 * float(level), 100.0):
        rule.level = start
        assert torch.allclose(rule.codes(w, x)[0].dense(), expected, atol=1e-12)


def test_matryoshka_s_error_is_the_mean_over_prefixes():
    x, _, _ = sparse_rows(50, dtype=DOUBLE)
    config = Config(kind="matryoshka", n_features=40, k=3).but(groups=(0.25, 0.5, 1.0))
    w = weights(config, 16)
    outcome = saes.trainer.RULES["matryoshka"](config, w, x)(w, x, x)
    z = outcome.codes.dense()
    slow = [(x - z[:, :n] @ w.W_dec[:n] - w.b_dec).square().sum(1).mean() for n in (10, 20, 40)]
    assert torch.allclose(outcome.error, sum(slow) / 3, atol=1e-12)
    assert torch.allclose(outcome.residual, x - z @ w.W_dec - w.b_dec, atol=1e-12)


def test_the_gradient_along_decoder_rows_is_removed_and_rows_keep_norm_one():
    one, x = trainer()
    one.step(x[:100])
    along = (one.weights.W_dec.grad * one.weights.W_dec).sum(1)
    assert along.abs().max() < 0.05 and torch.allclose(one.weights.W_dec.norm(dim=1), torch.ones(40, dtype=DOUBLE), atol=1e-12)
    w = weights(Config(n_features=12, k=2))
    w.W_dec.grad = torch.randn(12, 6, dtype=DOUBLE)
    w.remove_parallel_gradient()
    assert (w.W_dec.grad * w.W_dec).sum(1).abs().max() < 1e-12


def test_the_threshold_lets_k_through_on_average():
    pre = torch.randn(500, 30, generator=torch.Generator().manual_seed(0))
    assert abs(float((pre > threshold_for(pre, 4)).sum(1).float().mean()) - 4) < 0.01
    assert threshold_for(-pre.abs(), 4) == 0
