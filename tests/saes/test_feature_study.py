"""Parts of the study of known variables: levels, probes, and which layer counts."""

import numpy as np
import pandas as pd
import pytest
import torch

from experiments import feature_variables as study
from saes.features.variables import gather


def f1(said: torch.Tensor, held: torch.Tensor) -> float:
    both = float((said & held).sum())
    return 2 * both / max(1.0, float(said.sum() + held.sum()))


@pytest.mark.parametrize("seed", range(5))
def test_the_level_of_a_probe_is_the_best_of_all_also_where_scores_are_equal(seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 6, (40,), generator=generator).float()
    held = torch.rand(40, generator=generator) < 0.3
    level, found = study.best_level(scores, held)
    assert found == pytest.approx(max(f1(scores >= value, held) for value in scores.unique()), abs=1e-6)
    assert f1(scores >= level, held) == pytest.approx(found, abs=1e-6)


def test_a_probe_finds_a_planted_direction_and_nothing_where_there_is_nothing():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 12, generator=generator) * 3 + 5
    direction = torch.randn(12, generator=generator)
    planted = (x - 5) @ direction > 6
    noise = torch.rand(4000, generator=generator) < 0.2
    held = torch.stack([planted, noise], 1)
    config = study.Config(probe_steps=200, probe_rows=512)
    scores = study.logistic(x[:2000], held[:2000], x, config)
    marks = [(int(t), "context", f"v{v}") for t, v in held.nonzero().tolist()]
    table = study.probe_table(scores, held, gather(4000, marks), np.arange(2000, 3000), np.arange(3000, 4000))
    assert table["f1"][0] > 0.95
    assert table["f1"][1] < 0.45  # always saying yes reaches 1/3


def test_the_layer_of_a_variable_is_chosen_where_features_are_chosen():
    first = pd.DataFrame({"variable": ["a", "b"], "chosen_f1": [0.9, 0.1], "f1": [0.2, 0.8]})
    second = pd.DataFrame({"variable": ["a", "b"], "chosen_f1": [0.5, 0.3], "f1": [0.7, 0.4]})
    found = study.best_layer([first, second])
    assert found["layer"].tolist() == [0, 1]
    assert found["f1"].tolist() == [0.2, 0.4]


def test_neurons_are_codes_of_all_tokens_in_order(folders):
    import interp
    from interp.store.documents import as_documents

    model = interp.load(folders["gpt2"])
    documents = as_documents(model, [[5, 9, 4, 7], [3], [8, 6]])
    found = study.neuron_codes(model, documents, 1).toarray()
    site = "blocks.1.mlp.hook_post"
    alone = [model.capture(interp.Prompts.from_ids([ids]), [site])[site][0] for ids in ([5, 9, 4, 7], [3], [8, 6])]
    assert np.allclose(found, torch.cat(alone).relu().numpy(), atol=1e-5)
