"""Edges of models with other attention formulas: run by the same formula, or refused."""

import pytest
import torch

import interp
from circuits.edges.forward import Forward
from circuits.nodes.qk_fix import attention_scores
from interp import Prompts

PROMPTS = Prompts.from_ids([[3, 7, 11, 5, 20], [9, 4, 12, 13, 14]])


@pytest.mark.parametrize("attention", ["clipped(gamma=-0.15, zeta=1.1)", "normalized-clipped(alpha=0.5)", "softmax-1"])
@pytest.mark.parametrize("variant", ["gpt2", "neox", "opt"])
def test_a_forward_in_edges_computes_the_variant(variant: str, attention: str, folders):
    model = interp.load(folders[variant], dtype="float64", attention=attention)
    forward = Forward.of(model, PROMPTS.width)
    with torch.no_grad():
        trace = forward.run_prompts(PROMPTS)
    torch.testing.assert_close(trace.logits, PROMPTS.last(model.logits(PROMPTS)), rtol=0, atol=1e-9)
    q, k, v = trace.qkv[1]
    earlier = forward.rotate(k[:, :2]), v[:, :2]
    z = forward.attend(model.anatomy.blocks[1], q[:, 2:], k[:, 2:], v[:, 2:], earlier)
    torch.testing.assert_close(z, trace.z[1][:, 2:], rtol=0, atol=1e-9)


def test_gates_and_the_fix_of_queries_and_keys_are_refused(folders):
    plain = interp.load(folders["gpt2"], dtype="float64")
    shapes = {"weight": (4, 8), "bias": (4,)}
    gates = {f"blocks.{i}.attn.{name}": torch.ones(shape) for i in range(plain.n_layers) for name, shape in shapes.items()}
    with pytest.raises(ValueError, match="gated-linear.* gates beside them"):
        Forward.of(plain.with_attention("gated-linear", gates), 5)
    model = plain.with_attention("softmax-1")
    forward = Forward.of(model, 5)
    x = torch.zeros(1, 5, 4, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match="knows softmax alone; layer 0 has softmax-1"):
        attention_scores(forward, model.anatomy.blocks[0], x, x)
