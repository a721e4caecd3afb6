"""What a coder cannot be trained on or made of is refused in one line that says what to do: from the library and the command line."""

import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import interp
import saes
from saes import Config
from saes.cli import app
from tests.saes.data import sparse_rows
from tests.tiny import random_ids

SITES = ["blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out"]
BASE = Config(n_features=24, k=3, steps=4, batch_size=32, input_site=SITES[0], target_site=SITES[1])
ROWS = [row[:8] for row in random_ids(30, 8).tolist()]


@pytest.fixture(scope="module")
def store(folders, tmp_path_factory) -> Path:
    model = interp.load(folders["gpt2"])
    return interp.harvest(model, ROWS, SITES, tmp_path_factory.mktemp("store") / "store", shard_bytes=8000).folder


@pytest.fixture
def copy(store, tmp_path) -> Path:
    return Path(shutil.copytree(store, tmp_path / "copy"))


def refused(model: Path, store: Path, out: Path, *words: str) -> str:
    """The one line that the command line says."""
    given = ["transcoder", str(model), "-o", str(out), "--store", str(store), "--layers", "1", "-m", "24", "-k", "3", "--steps", "4"]
    done = CliRunner().invoke(app, [*given, "--batch-size", "32", *words], env={"COLUMNS": "400"})
    assert done.exit_code == 2 and len(done.output.strip().splitlines()) == 1, done.output
    assert not (out / SITES[1]).exists()
    return done.output


def test_a_store_of_another_model_is_refused(folders, store, tmp_path):
    said = refused(folders["opt"], store, tmp_path / "out")
    assert "was harvested from" in said and "Harvest from that one into another folder." in said


def test_a_site_that_the_store_lacks_is_named_with_those_that_it_has(folders, store, tmp_path):
    said = refused(folders["gpt2"], store, tmp_path / "out", "--layers", "0")
    assert "blocks.0.ln2.hook_normalized" in said and SITES[0] in said
    with pytest.raises(ValueError, match=r"no rows of blocks.0.hook_mlp_out; there are some of"):
        saes.train(interp.open_store(store), BASE.but(target_site="blocks.0.hook_mlp_out"))


def test_a_shard_that_was_cut_short_is_refused_with_what_to_do(folders, copy, tmp_path):
    shard = sorted(copy.glob("0*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    said = refused(folders["gpt2"], copy, tmp_path / "out")
    assert shard.name in said and "run the same harvest again" in said


def test_a_shard_whose_numbers_are_not_finite_is_refused(copy):
    shard = sorted(copy.glob("0*.safetensors"))[0]
    data = bytearray(shard.read_bytes())
    data[-400:] = b"\xff" * 400  # NaN in float32
    shard.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"hold NaN or infinity; harvest in float32, or choose another site"):
        saes.train(interp.open_store(copy), BASE)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_a_store_of_smaller_numbers_trains_a_coder_in_float32(dtype, folders, tmp_path):
    store = interp.harvest(interp.load(folders["gpt2"]), ROWS, SITES, tmp_path / "store", dtype=dtype)
    coder = saes.train(store, BASE)
    assert isinstance(coder, saes.Coder) and coder.W_dec.dtype == torch.float32
    with pytest.raises(ValueError, match=f"holds {dtype}, asked for float32. Harvest in that dtype"):
        interp.open_store(store.folder, dtype="float32")


def test_more_active_features_than_there_are_is_refused(folders, store, tmp_path):
    assert "k=30 is more than n_features=24" in refused(folders["gpt2"], store, tmp_path / "out", "-k", "30")


def test_rows_that_are_not_finite_or_all_the_same_are_refused_and_so_is_a_coder_of_dead_features():
    x, _, _ = sparse_rows(300)
    config = Config(n_features=24, k=3, steps=20, batch_size=64)
    with pytest.raises(ValueError, match="Row 7 of x holds NaN or infinity; drop such rows"):
        saes.fit(torch.where(torch.arange(300)[:, None] == 7, torch.nan, x), config=config)
    with pytest.raises(ValueError, match="rows are the same: there is nothing to learn"):
        saes.fit(torch.ones(300, 5), config=config)
    with pytest.raises(ValueError, match="is dead: no row activates one. Lower penalty"):
        saes.fit(x, config=config.but(kind="relu", penalty=1e4, lr=0.5, steps=60))
