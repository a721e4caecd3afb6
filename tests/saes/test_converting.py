"""Pickled coders of other tools mean the same after conversion, and no pickle runs anything; coders by name from the hub."""

import gzip
import json
import os
import pickle
import sys
import types
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

import saes
from saes.formats import hub
from tests.saes.data import sparse_rows
from tests.saes.test_formats import parts

P, ROWS = parts(), torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
LINEAR = {"encoder.weight": P["W_enc"].T.contiguous(), "decoder.weight": P["W_dec"].T.contiguous()}


def near(a: torch.Tensor, b: torch.Tensor) -> bool:
    """To 1e-6 of the largest number."""
    return float((a - b).abs().max()) <= 1e-6 * float(b.abs().max())


def exact(name: str) -> torch.Tensor:
    return P[name].double()


@pytest.fixture
def installed(monkeypatch) -> type:
    """The class of transcoder_circuits' configs, as if its repository were installed: to write files with."""
    module = types.ModuleType("sae_training.config")
    made = type("LanguageModelSAERunnerConfig", (), {"__module__": "sae_training.config"})
    module.LanguageModelSAERunnerConfig = made  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sae_training", types.ModuleType("sae_training"))
    monkeypatch.setitem(sys.modules, "sae_training.config", module)
    return made


@pytest.mark.parametrize("transcoder", [True, False])
def test_files_of_transcoder_circuits_are_converted_without_its_classes(transcoder, installed, tmp_path, monkeypatch):
    cfg = installed()
    fields = {"is_transcoder": transcoder, "hook_point": "blocks.8.ln2.hook_normalized", "out_hook_point": "blocks.8.hook_mlp_out"}
    vars(cfg).update(fields, model_name="gpt2-small", dtype=torch.float32, device=torch.device("cuda"), d_in=6, lr=4e-4)
    b_out = torch.randn(6, generator=torch.Generator().manual_seed(2))
    state = {name: P[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")} | ({"b_dec_out": b_out} if transcoder else {})
    torch.save({"cfg": cfg, "state_dict": OrderedDict(state)}, tmp_path / "tc.pt")
    monkeypatch.delitem(sys.modules, "sae_training.config")
    monkeypatch.delitem(sys.modules, "sae_training")
    saes.convert(tmp_path / "tc.pt", tmp_path / "out")
    coder = saes.load(tmp_path / "out")
    z = ((ROWS.double() - exact("b_dec")) @ exact("W_enc") + exact("b_enc")).relu()
    expected = z @ exact("W_dec") + (b_out.double() if transcoder else exact("b_dec"))
    assert near(coder(ROWS).double(), expected) and near(coder.encode(ROWS).double(), z)
    assert coder.transcoder == transcoder and coder.input_site == "blocks.8.ln2.hook_normalized"
    assert coder.target_site == ("blocks.8.hook_mlp_out" if transcoder else coder.input_site) and coder.info["model"] == "gpt2-small"


def reference(name: str) -> tuple[dict[str, torch.Tensor], dict[str, str], torch.Tensor, torch.Tensor]:
    """(state dict, config of the trainer, codes, reconstruction) of a class of dictionary_learning, in float64 from its definition."""
    x, W_enc, W_dec, b_dec = ROWS.double(), exact("W_enc"), exact("W_dec"), exact("b_dec")
    pre, plain, norm = (x - b_dec) @ W_enc + exact("b_enc"), x @ W_enc + exact("b_enc"), exact("W_dec").norm(dim=1)
    square = {name: P[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    if name == "AutoEncoder":
        return LINEAR | {"encoder.bias": P["b_enc"], "bias": P["b_dec"]}, {}, pre.relu(), pre.relu() @ W_dec + b_dec
    if name == "AutoEncoderNew":
        return LINEAR | {"encoder.bias": P["b_enc"], "decoder.bias": P["b_dec"]}, {}, plain.relu(), plain.relu() @ W_dec + b_dec
    if name == "AutoEncoderTopK":
        top = pre.topk(3)
        z = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
        return LINEAR | {"encoder.bias": P["b_enc"], "b_dec": P["b_dec"], "k": torch.tensor(3)}, {}, z, z @ W_dec + b_dec
    if name == "GatedAutoEncoder":
        shared, gain = (x - b_dec) @ W_enc, exact("r_mag").exp()
        z = (shared + exact("b_gate") > 0) * (shared * gain + exact("b_mag")).relu()
        state = LINEAR | {"decoder_bias": P["b_dec"], "r_mag": P["r_mag"], "gate_bias": P["b_gate"], "mag_bias": P["b_mag"]}
        return state, {}, z * norm, z @ W_dec + b_dec
    if name == "JumpReluAutoEncoder":
        z = (plain * (plain > exact("threshold"))).relu()
        return square | {"threshold": P["threshold"]}, {}, z * norm, z @ W_dec + b_dec
    z = pre.relu() * (pre > 0.5)
    level = {"k": torch.tensor(3), "threshold": torch.tensor(0.5)}
    if name == "BatchTopKSAE":
        return LINEAR | level | {"encoder.bias": P["b_enc"], "b_dec": P["b_dec"]}, {"dict_class": name}, z, z @ W_dec + b_dec
    return square | level | {"group_sizes": torch.tensor([4, 6])}, {"dict_class": name}, z, z @ W_dec + b_dec


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("AutoEncoder", "relu"), ("AutoEncoderNew", "relu"), ("AutoEncoderTopK", "topk"), ("GatedAutoEncoder", "gated"),
        ("JumpReluAutoEncoder", "jumprelu"), ("BatchTopKSAE", "batchtopk"), ("MatryoshkaBatchTopKSAE", "matryoshka"),
    ],
)  # fmt: skip
def test_files_of_dictionary_learning_are_converted(name, kind, tmp_path):
    state, about, z, expected = reference(name)
    torch.save(OrderedDict(state), tmp_path / "ae.pt")
    (tmp_path / "config.json").write_text(json.dumps({"trainer": about}))
    coder = saes.convert(tmp_path / "ae.pt", tmp_path / "out", format="saelens")
    assert coder.config.kind == kind and near(coder(ROWS).double(), expected) and near(coder.encode(ROWS).double(), z)
    assert torch.equal(saes.load(tmp_path / "out")(ROWS), coder(ROWS))


def test_a_batchtopk_coder_whose_threshold_was_never_set_is_refused(tmp_path):
    state, about, _, _ = reference("BatchTopKSAE")
    torch.save(state | {"threshold": torch.tensor(-1.0)}, tmp_path / "ae.pt")
    (tmp_path / "config.json").write_text(json.dumps({"trainer": about}))
    with pytest.raises(ValueError, match="threshold -1.0: a BatchTopK coder whose threshold was never set"):
        saes.convert(tmp_path / "ae.pt", tmp_path / "out")


def test_files_of_openai_are_converted_and_rows_that_it_normalises_must_be_meant(tmp_path):
    state = LINEAR | {"pre_bias": P["b_dec"], "latent_bias": P["b_enc"], "stats_last_nonzero": torch.zeros(10, dtype=torch.long)}
    pre = (ROWS.double() - exact("b_dec")) @ exact("W_enc") + exact("b_enc")
    torch.save(OrderedDict(state | {"activation": "ReLU", "activation_state_dict": OrderedDict()}), tmp_path / "relu.pt")
    coder = saes.convert(tmp_path / "relu.pt", tmp_path / "relu")
    assert near(coder(ROWS).double(), pre.relu() @ exact("W_dec") + exact("b_dec"))
    torch.save(OrderedDict(state | {"activation": "TopK", "activation_state_dict": {"k": 3, "postact_fn": "ReLU"}}), tmp_path / "topk.pt")
    with pytest.raises(ValueError, match="normalises each row.*normalized=True"):
        saes.convert(tmp_path / "topk.pt", tmp_path / "topk")
    coder = saes.convert(tmp_path / "topk.pt", tmp_path / "topk", normalized=True)
    top = pre.topk(3)
    z = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    assert coder.config.k == 3 and near(coder(ROWS).double(), z @ exact("W_dec") + exact("b_dec"))
    torch.save(OrderedDict(state | {"activation": "Identity"}), tmp_path / "other.pt")
    with pytest.raises(ValueError, match="activation 'Identity'"):
        saes.convert(tmp_path / "other.pt", tmp_path / "other")


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.path}",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
@pytest.mark.parametrize("where", ["alone", "beside tensors", "in the config", "plain pickle", "compressed", "old torch"])
def test_a_hostile_pickle_runs_nothing(where, installed, tmp_path):
    bomb, mark = Bomb(tmp_path / "ran"), tmp_path / "ran"
    cfg = installed()
    cfg.is_transcoder, cfg.inside = False, bomb
    state = {name: P[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
    file = tmp_path / {"plain pickle": "tc.pkl", "compressed": "tc.pkl.gz"}.get(where, "ae.pt")
    data = {"alone": bomb, "beside tensors": state | {"x": bomb}}.get(where, {"cfg": cfg, "state_dict": state})
    if where == "compressed":
        file.write_bytes(gzip.compress(pickle.dumps(data)))
    elif where == "plain pickle":
        file.write_bytes(pickle.dumps(data))
    else:
        torch.save(data, file, _use_new_zipfile_serialization=where != "old torch")
    with pytest.raises(ValueError, match=r"it is not read\. If you trust it, run in the environment that wrote it"):
        saes.convert(file, tmp_path / "out")
    assert not mark.exists() and not (tmp_path / "out").exists()
    os.system(f"touch {mark}")  # noqa: S605 - the bomb is one: what it calls does write
    assert mark.exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([1, 2], "holds list; expected a state dict"), ({"weight": torch.zeros(2)}, "holds no coder of .*: it has weight"),
        ({"cfg": {"is_transcoder": True}, "state_dict": {"W_enc": P["W_enc"]}}, "lacks b_enc, W_dec, b_dec, b_dec_out; it holds W_enc"),
        (LINEAR | {"encoder.bias": P["b_enc"]}, "lacks b_dec; it holds decoder.weight"),
        (LINEAR | {"encoder.bias": P["b_enc"] * float("nan"), "bias": P["b_dec"]}, "encoder.bias of .* holds NaN"),
        (LINEAR | {"encoder.bias": P["b_enc"], "bias": P["b_dec"], "k": 99}, "k=99 is more than n_features=10"),
    ],
)  # fmt: skip
def test_what_is_no_coder_is_refused_by_the_converter(data, message, tmp_path):
    data = {name: torch.tensor(v) if isinstance(v, int) else v for name, v in data.items()} if isinstance(data, dict) else data
    torch.save(data, tmp_path / "ae.pt")
    with pytest.raises(ValueError, match=message):
        saes.convert(tmp_path / "ae.pt", tmp_path / "out")
    with pytest.raises(ValueError, match=r"ae.pt is a pickle.*saes.convert\('.*ae.pt', 'NEW FOLDER'\)"):
        saes.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="No file"):
        saes.convert(tmp_path / "nowhere.pt", tmp_path / "out")
    (tmp_path / "ae.pt").write_bytes((tmp_path / "ae.pt").read_bytes()[:300])
    with pytest.raises(ValueError, match="is damaged"):
        saes.convert(tmp_path / "ae.pt", tmp_path / "out")


# --- the hub ------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    """A repository with a coder in `layer_3/width_24`, and what snapshot_download would fetch of it."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    x, _, _ = sparse_rows(300)
    coder = saes.fit(x, config=saes.Config(n_features=24, k=3, steps=2, batch_size=64))
    remote = tmp_path / "remote"
    for place in ("layer_3/width_24", "layer_3/width_24/older", "layer_4"):
        coder.save(remote / place)
    (remote / "layer_3/width_24/ae.pt").write_bytes(b"pickle")
    (remote / "only_pickle").mkdir()
    (remote / "only_pickle/ae.pt").write_bytes(b"pickle")

    def download(repo, *, revision, local_files_only, allow_patterns, ignore_patterns):
        assert repo == "owner/repo" and revision in (None, "v2") and not local_files_only
        names = [str(p.relative_to(remote)) for p in remote.rglob("*") if p.is_file()]
        for name in filter_repo_objects(names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            (target := tmp_path / "cache" / name).parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((remote / name).read_bytes())
        (tmp_path / "cache").mkdir(exist_ok=True)
        return str(tmp_path / "cache")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return tmp_path


@pytest.mark.parametrize("name", ["hub:owner/repo/layer_3/width_24", "hub:owner/repo@v2/layer_3/width_24/"])
def test_a_coder_of_the_hub_is_fetched_alone_and_without_pickles(name, repository):
    coder = saes.load(name)
    assert torch.equal(coder.W_dec, saes.load(repository / "remote/layer_3/width_24").W_dec)
    fetched = sorted(str(p.relative_to(repository / "cache")) for p in (repository / "cache").rglob("*") if p.is_file())
    assert fetched == ["layer_3/width_24/coder.json", "layer_3/width_24/coder.safetensors"]


def test_what_the_hub_cannot_give_is_said_with_what_to_do(repository, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"holds no safetensors or npz file.*Pickles.*saes.convert"):
        saes.load("hub:owner/repo/only_pickle")
    with pytest.raises(FileNotFoundError, match="name the folder of one coder"):
        saes.load("hub:owner/repo")
    for wrong in ("hub:owner", "hub:owner/repo/../secret", "hub:owner/repo/*", "hub: a/b"):
        with pytest.raises(ValueError, match="is no name of a coder on the hub; write hub:owner/repo"):
            saes.load(wrong)


def test_offline_the_cache_is_asked_and_its_lack_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE is set and it is not in the local cache: unset it"):
        saes.load("hub:owner/no-such-repository/folder")


def test_one_file_of_the_hub_comes_with_the_descriptions_beside_it():
    from huggingface_hub.utils import filter_repo_objects

    names = ["l/params.npz", "l/other.npz", "l/cfg.json", "l/deep/cfg.json", "cfg.json"]
    allowed, ignored = hub.patterns("l/params.npz")
    assert sorted(filter_repo_objects(names, allow_patterns=allowed, ignore_patterns=ignored)) == ["l/cfg.json", "l/params.npz"]


def test_the_command_line_converts_and_refuses_in_one_line(tmp_path):
    from typer.testing import CliRunner

    from saes.cli import app

    torch.save(LINEAR | {"encoder.bias": P["b_enc"], "bias": P["b_dec"]}, tmp_path / "ae.pt")
    done = CliRunner().invoke(app, ["convert", str(tmp_path / "ae.pt"), "--out", str(tmp_path / "out")], env={"COLUMNS": "200"})
    assert done.exit_code == 0 and "Written:" in done.output and saes.load(tmp_path / "out").n_features == 10
    done = CliRunner().invoke(app, ["convert", str(tmp_path / "no.pt"), "--out", str(tmp_path / "out")], env={"COLUMNS": "200"})
    assert done.exit_code == 2 and "No file" in done.output and len(done.output.strip().splitlines()) == 1
