"""Metrics go to TensorBoard or Weights & Biases only where asked, beside the log file, and a missing package is said."""

import sys
import types

import pytest

import saes
from saes.loggers import logger
from tests.saes.data import sparse_rows


@pytest.fixture
def sent(monkeypatch) -> list[tuple[str, object, int]]:
    """(name, number, step) of all that fake packages were given."""
    found: list[tuple[str, object, int]] = []

    class SummaryWriter:
        def __init__(self, folder: str):
            found.append(("opened", folder, 0))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            found.append((name, value, step))

        def flush(self) -> None: ...

    board, bias = types.ModuleType("torch.utils.tensorboard"), types.ModuleType("wandb")
    board.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]

    def init(project: str) -> types.SimpleNamespace:
        found.append(("opened", project, 0))
        return types.SimpleNamespace(log=lambda numbers, step: found.extend((name, value, step) for name, value in numbers.items()))

    bias.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    monkeypatch.setitem(sys.modules, "wandb", bias)
    return found


@pytest.mark.parametrize("where", ["tensorboard:runs/a", "wandb:project"])
def test_every_number_of_a_logged_step_is_sent_and_stands_in_the_file_too(where, sent, tmp_path):
    x, _, _ = sparse_rows(300)
    config = saes.Config(n_features=24, k=3, steps=8, batch_size=64)
    saes.fit(x, config=config, metrics=(tmp_path / "log", logger(where)))
    assert sent[0] == ("opened", where.partition(":")[2], 0)
    assert {name for name, _, _ in sent[1:]} == {f"coder/{name}" for name in ("loss", "fvu", "l0", "dead", "lr", "penalty")}
    assert {step for _, _, step in sent[1:]} == {8} and (tmp_path / "log").read_text().count("\n") == 1


@pytest.mark.parametrize(("where", "module"), [("tensorboard:runs", "torch.utils.tensorboard"), ("wandb:project", "wandb")])
def test_a_package_that_is_not_installed_is_named(where, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=f"not installed.*pip install {where.partition(':')[0]}"):
        logger(where)


@pytest.mark.parametrize("where", ["wandb", "tensorboard:", "mlflow:x"])
def test_another_place_is_refused(where):
    with pytest.raises(ValueError, match="write tensorboard:DIR or wandb:PROJECT"):
        logger(where)
