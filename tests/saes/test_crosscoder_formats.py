"""Crosscoders on disk and from the command line: round trips, the layout of circuit-tracer's tensors, refusals."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import interp
import saes
from interp.store import Memory
from saes import Block, Config
from saes.cli import app
from saes.crosscoders.evaluation import real_rows
from tests.tiny import random_ids

FAST = ["-m", "24", "-k", "3", "--steps", "3", "--batch-size", "16"]


@pytest.fixture(scope="module")
def model(folders):
    return interp.load(folders["gpt2"])


@pytest.fixture(scope="module")
def rows(model):
    prompts = interp.Prompts.from_ids(random_ids(60, 9).tolist())
    clt = saes.clt_blocks(model)
    return real_rows(model, prompts, [*(block.reads[0] for block in clt), *clt[0].writes])


@pytest.fixture(scope="module")
def trained(model, rows):
    def train(kind: str, **changes: object) -> saes.Crosscoder:
        config = Config(kind=kind, n_features=40, k=4, steps=10, batch_size=64).but(**changes)  # type: ignore[arg-type]
        return saes.train_crosscoder(Memory(rows), saes.clt_blocks(model), config)

    return {kind: train(kind) for kind in ("topk", "batchtopk", "relu", "jumprelu")} | {"skip": train("topk", skip=True)}


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "relu", "jumprelu", "skip"])
def test_the_workbenchs_own_folder_loses_nothing(trained, rows, tmp_path, kind):
    clt = trained[kind]
    again = saes.load_crosscoder(clt.save(tmp_path / "clt"))
    assert again.blocks == clt.blocks and again.widths == clt.widths and again.info == clt.info
    for a, b in zip(again.coders, clt.coders, strict=True):
        assert a.config == b.config and a.info == b.info and a.state_dict().keys() == b.state_dict().keys()
        assert all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())
    assert all(torch.equal(y, clt(rows)[site]) for site, y in again(rows).items())
    clt.save(tmp_path / "clt")  # what stands there is replaced


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "relu", "jumprelu"])
def test_circuit_tracers_files_read_back_the_same(trained, rows, tmp_path, kind):
    clt = trained[kind]
    again = saes.load_crosscoder(clt.save(tmp_path / "clt", "circuit-tracer"))
    assert again.blocks == clt.blocks and [c.config.kind for c in again.coders] == [kind if kind != "batchtopk" else "jumprelu"] * 3
    for site, y in again(rows).items():
        assert torch.allclose(y, clt(rows)[site], atol=1e-6)
    for a, b in zip(again.encode(rows), clt.encode(rows), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_the_files_of_circuit_tracer_are_laid_out_as_it_reads_them(trained, rows, model, tmp_path):
    """Its own formula on its own names: features = x W_enc^T + b_enc above the threshold; slot j of W_dec writes to layer i + j."""
    clt = trained["jumprelu"]
    folder = clt.save(tmp_path / "clt", "circuit-tracer")
    d, n = model.d_model, model.n_layers
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        ["config.yaml", *(f"W_{kind}_{i}.safetensors" for kind in ("enc", "dec") for i in range(n))]
    )
    lines = dict(line.split(": ") for line in (folder / "config.yaml").read_text().splitlines())
    assert lines["model_kind"] == "cross_layer_transcoder"
    assert (lines["feature_input_hook"], lines["feature_output_hook"]) == ("ln2.hook_normalized", "hook_mlp_out")
    out = [torch.zeros(()) for _ in range(n)]
    for i in range(n):
        t = load_file(folder / f"W_enc_{i}.safetensors") | load_file(folder / f"W_dec_{i}.safetensors")
        assert {name: tuple(x.shape) for name, x in t.items()} == {
            f"W_enc_{i}": (40, d), f"b_enc_{i}": (40,), f"b_dec_{i}": (d,), f"threshold_{i}": (40,), f"W_dec_{i}": (40, n - i, d),
        }  # fmt: skip
        pre = rows[f"blocks.{i}.ln2.hook_normalized"] @ t[f"W_enc_{i}"].T + t[f"b_enc_{i}"]
        features = pre * (pre > t[f"threshold_{i}"])
        out[i] = out[i] + t[f"b_dec_{i}"]
        for j in range(n - i):
            out[i + j] = out[i + j] + features @ t[f"W_dec_{i}"][:, j]
    for i, y in enumerate(out):
        assert torch.allclose(y, clt(rows)[f"blocks.{i}.hook_mlp_out"], atol=1e-5)


def test_a_top_k_is_a_threshold_to_circuit_tracer_with_about_k_features(trained, rows, tmp_path):
    clt = trained["topk"]
    folder = clt.save(tmp_path / "clt", "circuit-tracer")
    for i in range(3):
        t = load_file(folder / f"W_enc_{i}.safetensors")
        pre = rows[f"blocks.{i}.ln2.hook_normalized"] @ t[f"W_enc_{i}"].T + t[f"b_enc_{i}"]
        assert abs(float((pre > t[f"threshold_{i}"]).sum(1).double().mean()) - 4) < 0.5


def test_what_cannot_be_written_or_read_is_refused(trained, rows, model, tmp_path):
    with pytest.raises(ValueError, match="no skip term"):
        trained["skip"].save(tmp_path / "a", "circuit-tracer")
    config = Config(n_features=40, k=4, steps=0, batch_size=64)
    later = saes.train_crosscoder(Memory(rows), saes.clt_blocks(model, [1, 2]), config)
    with pytest.raises(ValueError, match="all layers from 0"):
        later.save(tmp_path / "a", "circuit-tracer")
    acausal = saes.train_crosscoder(Memory(rows), saes.crosscoder_blocks(["blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"]), config)
    with pytest.raises(ValueError, match="all layers from 0"):
        acausal.save(tmp_path / "a", "circuit-tracer")
    with pytest.raises(ValueError, match="No format 'saelens'"):
        acausal.save(tmp_path / "a", "saelens")
    for format in ("workbench", "circuit-tracer"):
        folder = trained["topk"].save(tmp_path / format, format)
        with pytest.raises(ValueError, match="Call saes.load_crosscoder"):
            saes.load(folder)
    with pytest.raises(FileNotFoundError, match="No crosscoder at"):
        saes.load_crosscoder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is no crosscoder of a known format"):
        saes.load_crosscoder(tmp_path)


def test_damaged_files_are_refused_by_name(trained, tmp_path):
    folder = trained["jumprelu"].save(tmp_path / "clt", "circuit-tracer")
    tensors = load_file(folder / "W_dec_1.safetensors")
    save_file({"W_dec_1": tensors["W_dec_1"][:, :1].contiguous()}, folder / "W_dec_1.safetensors")
    with pytest.raises(ValueError, match=r"W_dec_1 of .* is \(40, 1, 32\)"):
        saes.load_crosscoder(folder)
    bad = tensors["W_dec_1"].clone()
    bad[0, 0, 0] = float("nan")
    save_file({"W_dec_1": bad}, folder / "W_dec_1.safetensors")
    with pytest.raises(ValueError, match="W_dec_1 of .* holds NaN"):
        saes.load_crosscoder(folder)
    (folder / "W_dec_1.safetensors").unlink()
    with pytest.raises(ValueError, match=r"W_enc of layers \[0, 1, 2\] and W_dec of \[0, 2\]"):
        saes.load_crosscoder(folder)
    own = trained["jumprelu"].save(tmp_path / "own")
    about = json.loads((own / "crosscoder.json").read_text())
    (own / "crosscoder.json").write_text(json.dumps(about | {"version": 9}))
    with pytest.raises(ValueError, match="has version 9"):
        saes.load_crosscoder(own)


def test_blocks_of_any_shape_are_written_in_the_own_folder(rows, tmp_path):
    a, b, c = (f"blocks.{layer}.hook_mlp_out" for layer in range(3))
    blocks = [Block((a, b), (c,)), Block((b,), (b, c))]
    found = saes.train_crosscoder(Memory(rows), blocks, Config(n_features=12, k=2, steps=2, batch_size=32))
    again = saes.load_crosscoder(found.save(tmp_path / "a"))
    assert all(torch.equal(y, found(rows)[site]) for site, y in again(rows).items())


# --- the command line -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("the king went to the red city and the queen gave a drink to John .\n" * 20)
    return str(path)


def call(*words: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, list(words), env={"COLUMNS": "160"})
    return done.exit_code, done.output, done.stdout


@pytest.mark.parametrize("format", ["workbench", "circuit-tracer"])
def test_a_cross_layer_transcoder_is_trained_written_and_measured(worded, text, tmp_path, format):
    status, output, _ = call("clt", str(worded), "--out", str(tmp_path), "--text", text, "--format", format, *FAST)
    assert status == 0, output
    clt = saes.load_crosscoder(tmp_path / "cross-layer-transcoder")
    assert len(clt.blocks) == 3 and clt.coders[0].n_features == 24 and clt.coders[0].config.k == 3
    assert "blocks.2.hook_mlp_out" in output and "All sites replaced: CE" in output
    assert not (tmp_path / "checkpoint.safetensors").exists() and (tmp_path / "training.jsonl").read_text().count("\n") == 3


@pytest.mark.parametrize("causal", [[], ["--causal"]])
def test_a_crosscoder_comes_as_json(worded, text, tmp_path, causal):
    words = ("crosscoder", str(worded), "-o", str(tmp_path), "-s", "blocks.*.hook_resid_post", "--text", text, "--json", *FAST, *causal)
    status, output, stdout = call(*words)
    assert status == 0, output
    found = json.loads(stdout)
    assert [row["site"] for row in found["sites"]] == [f"blocks.{layer}.hook_resid_post" for layer in range(3)]
    assert len(saes.load_crosscoder(found["folder"]).blocks) == (3 if causal else 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["clt", "--layers", "0,2"], "takes neighbouring layers in order"),
        (["clt", "--layers", "7"], "no layer 7: the model has layers 0-2"),
        (["clt", "--format", "saelens"], "No format 'saelens'"),
        (["clt", "--format", "circuit-tracer", "--skip"], "no skip term"),
        (["clt", "--format", "circuit-tracer", "--layers", "1,2"], "all layers from 0"),
        (["clt", "--kind", "gated", "--text", "TEXT"], "Crosscoders are of kind"),
        (["clt", "-k", "25"], "k=25 is more than n_features=24"),
        (["clt"], "Give one of --text FILE, --atlas N and --store DIR"),
        (["crosscoder", "-s", "blocks.0.hook_resid_post"], "at least two sites"),
        (["crosscoder", "-s", "blocks.7.hook_resid_post"], "blocks.7.hook_resid_post"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(worded, text, tmp_path, words, message):
    given = [text if word == "TEXT" else word for word in words]
    status, output, _ = call(given[0], str(worded), "--out", str(tmp_path), *FAST, *given[1:])
    assert status == 2 and message in output and len(output.strip().splitlines()) == 1, output
