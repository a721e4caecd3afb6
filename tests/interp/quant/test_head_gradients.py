"""The gradient estimate is the derivative of the loss along each head's scale, and exact where the loss is linear in it."""

import pytest
import torch

import interp
from interp import Edit, quant
from tests.tiny import N_HEADS, N_LAYERS, VARIANTS

PROMPTS = interp.Prompts.from_ids([[2, 9, 4, 9, 17, 9, 4, 8], [2, 11, 5], [2, 40, 40, 7, 40]])


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_estimate_is_minus_the_derivative_of_the_loss_by_the_heads_scale(variant, load, monkeypatch):
    model = load(variant)
    found = quant.head_gradient(model, PROMPTS)

    def mean_loss(layer, head, factor):
        per_token = interp.loss_per_token(model.logits(PROMPTS, Edit(f"blocks.{layer}.attn.hook_z", "scale", factor, head=head)), PROMPTS)
        return float(per_token[~per_token.isnan()].mean())

    for layer in range(N_LAYERS):
        for head in range(N_HEADS):
            slope = (mean_loss(layer, head, 1 + 1e-4) - mean_loss(layer, head, 1 - 1e-4)) / 2e-4
            assert float(found[layer, head]) == pytest.approx(-slope, rel=1e-5, abs=1e-7)
    monkeypatch.setattr("interp.quant.head_gradients.BUDGET", 1)
    torch.testing.assert_close(quant.head_gradient(model, PROMPTS), found)


def test_for_heads_scaled_down_to_little_it_is_the_exact_ablation(folders):
    model = interp.load(folders["gpt2"], dtype="float64")
    with torch.no_grad():
        for block in model.anatomy.blocks:
            block.weight_out().mul_(1e-4)
    exact = quant.head_report(model, PROMPTS)["loss_zero"]
    torch.testing.assert_close(quant.head_gradient(model, PROMPTS), exact, rtol=0.05, atol=1e-8)
