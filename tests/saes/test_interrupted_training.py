"""A training that is killed, wherever, loses nothing but the steps since its last checkpoint, and ends with the same bytes."""

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import interp
import saes
import saes.fitting
import saes.training
from saes import Config
from saes.cli import app
from tests.saes.data import sparse_rows
from tests.tiny import random_ids

STEPS, LOGGED, KEPT = 120, 7, 10
"""Steps in all, between two lines of the log, and between two checkpoints: a checkpoint stands beside and between lines."""
X, _, _ = sparse_rows(600)


@pytest.fixture(autouse=True)
def lines_often(monkeypatch):
    monkeypatch.setattr(saes.training, "EVERY", LOGGED)
    monkeypatch.setattr(saes.fitting, "EVERY", LOGGED)


@pytest.fixture(scope="module")
def store(folders, tmp_path_factory) -> interp.Store:
    model = interp.load(folders["gpt2"])
    sites = [s for layer in (0, 2) for s in (f"blocks.{layer}.ln2.hook_normalized", f"blocks.{layer}.hook_mlp_out")]
    return interp.harvest(model, [row[:9] for row in random_ids(60, 9).tolist()], sites, tmp_path_factory.mktemp("store") / "store")


def from_store(store: interp.Store, out: Path) -> None:
    """Two transcoders together, written to `out`, with a log and a checkpoint."""
    sites = [(f"blocks.{layer}.ln2.hook_normalized", f"blocks.{layer}.hook_mlp_out") for layer in (0, 2)]
    base = Config(n_features=48, k=4, steps=STEPS, batch_size=64, dead_after=500)
    configs = [base.but(kind=kind, input_site=x, target_site=y) for kind, (x, y) in zip(("topk", "jumprelu"), sites, strict=True)]
    state = out / "state.safetensors"
    coders = saes.train(store, configs, metrics=out / "training.jsonl", checkpoint=state, checkpoint_every=KEPT)
    assert isinstance(coders, list)
    for coder in coders:
        coder.save(out / str(coder.target_site))
    state.unlink()


def from_the_command_line(folder: Path, text: Path, out: Path) -> None:
    """`interp train transcoder`, with checkpoints as often as above."""
    saes.training.train = partial(saes.training.train, checkpoint_every=KEPT)  # in a process of its own
    words = [
        "transcoder",
        str(folder),
        "-o",
        str(out),
        "--text",
        str(text),
        "-m",
        "24",
        "-k",
        "3",
        "--steps",
        str(STEPS),
        "--batch-size",
        "32",
    ]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output


def files(folder: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: data for name, data in found.items() if not any(part.startswith(".") for part in Path(name).parts)}


def kill_and_resume(work: Callable[[Path], None], out: Path, delay: float) -> bool:
    """Starts the work in a process of its own, kills it (signal 9) after `delay` seconds; whether it was still running."""
    child = multiprocessing.get_context("fork").Process(target=lambda: (work(out), os._exit(0)))
    child.start()
    time.sleep(delay)
    child.kill()
    child.join(60)
    return child.exitcode == -signal.SIGKILL


def uninterrupted(work: Callable[[Path], None], out: Path) -> tuple[dict[str, bytes], float]:
    start = time.perf_counter()
    child = multiprocessing.get_context("fork").Process(target=lambda: (work(out), os._exit(0)))
    child.start()
    child.join(300)
    assert child.exitcode == 0
    return files(out), time.perf_counter() - start


def check_kills(work: Callable[[Path], None], tmp_path: Path, kills: int, seed: int) -> None:
    whole, seconds = uninterrupted(work, tmp_path / "whole")
    draw, out, interrupted = random.Random(seed), tmp_path / "out", 0
    while interrupted < kills:
        if kill_and_resume(work, out, draw.uniform(0.1, 0.9) * seconds):
            interrupted += 1
            continue
        assert files(out) == whole, "that one came to its end"
        out = tmp_path / f"out-{interrupted}-{draw.random()}"
    assert uninterrupted(work, out)[0] == whole
    steps = [json.loads(line)["step"] for line in whole["training.jsonl"].splitlines()]
    assert sorted(set(steps)) == [*range(LOGGED, STEPS, LOGGED), STEPS] and len(steps) % len(set(steps)) == 0
    assert not list(out.glob("*state*")) and not list(out.glob("*checkpoint*"))


def test_two_kills_lose_nothing(store, tmp_path):
    check_kills(partial(from_store, store), tmp_path, kills=2, seed=0)


@pytest.mark.slow
def test_twenty_kills_of_a_training_from_a_store_lose_nothing(store, tmp_path):
    check_kills(partial(from_store, store), tmp_path, kills=20, seed=1)


@pytest.mark.slow
def test_twenty_kills_of_the_command_line_lose_nothing(worded, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the king went to the red city and the queen gave a drink to John .\n" * 20)
    check_kills(partial(from_the_command_line, worded, text), tmp_path, kills=20, seed=2)


@pytest.mark.parametrize("at", [9, 55, STEPS])
def test_a_log_has_no_step_twice_and_the_coder_its_last_metrics_wherever_a_fit_stopped(at, tmp_path):
    config = Config(n_features=32, k=3, steps=STEPS, batch_size=64)
    options: dict[str, Any] = {"checkpoint_every": KEPT}
    whole = saes.fit(X, config=config, metrics=tmp_path / "whole", **options)

    def stop(done: int, total: int) -> None:
        if done == at:
            raise KeyboardInterrupt

    options |= {"metrics": tmp_path / "log", "checkpoint": tmp_path / "state"}
    with pytest.raises(KeyboardInterrupt):
        saes.fit(X, config=config, progress=stop, **options)
    with (tmp_path / "log").open("a") as stream:
        stream.write('{"step": 1')  # a line cut short
    (tmp_path / ".state.0.part").write_text("half")
    again = saes.fit(X, config=config, **options)
    assert (tmp_path / "log").read_text() == (tmp_path / "whole").read_text()
    assert again.info == whole.info and torch.equal(again.W_dec, whole.W_dec)
    assert at == STEPS or not (tmp_path / ".state.0.part").exists(), "what a kill left of a checkpoint goes with the next one"


def test_a_log_without_a_checkpoint_is_only_added_to_and_what_is_no_log_is_not_cut(tmp_path):
    config = Config(n_features=32, k=3, steps=8, batch_size=64)
    saes.fit_many(X, None, [config, config.but(seed=1)], metrics=tmp_path / "log")
    assert (tmp_path / "log").read_text().count("\n") == 4
    (tmp_path / "notes.txt").write_text("mine\n")
    with pytest.raises(ValueError, match=r"notes.txt is no log of a training"):
        saes.fit(X, config=config, metrics=tmp_path / "notes.txt", checkpoint=tmp_path / "state")
    assert (tmp_path / "notes.txt").read_text() == "mine\n"
