"""Coders on disk: what is written is read back, other tools' files mean the same here, and what is damaged or unsafe is refused."""

import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import saes
from saes import Config
from saes.coders import Coder
from saes.formats import circuit_tracer
from tests.saes.data import sparse_rows

KINDS = ("topk", "batchtopk", "jumprelu", "relu", "gated", "matryoshka")
X, _, CODES = sparse_rows(800)
SITES = {"input_site": "blocks.2.ln2.hook_normalized", "target_site": "blocks.2.hook_mlp_out"}


def trained(kind: str = "topk", transcoder: bool = True, **changes: object) -> Coder:
    config = Config(kind=kind, n_features=24, k=3, steps=15, batch_size=128, **SITES if transcoder else {})
    return saes.fit(X, CODES[:, :12] if transcoder else None, config.but(**changes))


def parts(d: int = 6, m: int = 10, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "W_enc": (d, m),
        "b_enc": (m,),
        "W_dec": (m, d),
        "b_dec": (d,),
        "b_gate": (m,),
        "b_mag": (m,),
        "r_mag": (m,),
        "W_skip": (d, d),
    }
    made = {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    return made | {"threshold": torch.rand(m, generator=generator)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("transcoder", [True, False])
@pytest.mark.parametrize("format", ["workbench", "saelens"])
def test_every_kind_is_read_back_as_it_was_written(kind, transcoder, format, tmp_path):
    coder = trained(kind, transcoder, skip=transcoder and kind in ("topk", "relu"))
    again = saes.load(coder.save(tmp_path / "coder", format=format))
    assert torch.equal(again(X), coder(X)) and torch.equal(again.encode(X), coder.encode(X))
    assert again.config == coder.config and again.info == coder.info and again.transcoder == coder.transcoder
    assert (again.input_site, again.target_site) == (coder.input_site, coder.target_site)


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "relu", "gated"])
def test_a_transcoder_for_circuit_tracer_is_read_back(kind, tmp_path):
    coder = trained(kind, skip=kind == "topk")
    coder.save(tmp_path / "set", format="circuit-tracer")
    again = saes.load(tmp_path / "set")
    assert torch.allclose(again(X), coder(X), atol=1e-6)
    assert (again.input_site, again.target_site) == (coder.input_site, coder.target_site)
    assert load_file(tmp_path / "set" / "layer_2.safetensors")["W_enc"].shape == (24, 16), "transposed against SAELens"


def test_a_set_for_circuit_tracer_has_every_layer_from_zero(tmp_path):
    coders = [trained("batchtopk", seed=seed) for seed in range(3)]
    circuit_tracer.write_set(coders, tmp_path / "set")
    for mine, again in zip(coders, circuit_tracer.read_set(tmp_path / "set"), strict=True):
        assert torch.allclose(again(X), mine(X), atol=1e-6)
    assert "model_kind: transcoder_set" in (tmp_path / "set" / "config.yaml").read_text()
    (tmp_path / "set" / "layer_1.safetensors").unlink()
    with pytest.raises(ValueError, match=r"layers \[0, 2\]"):
        circuit_tracer.read_set(tmp_path / "set")
    with pytest.raises(ValueError, match="autoencoder"):
        trained("topk", transcoder=False).save(tmp_path / "other", format="circuit-tracer")


def test_a_top_k_transcoder_becomes_a_jumprelu_with_k_active_features_on_average(tmp_path):
    coder = trained("topk")
    folder = coder.save(tmp_path / "coder", format="saelens")
    about, tensors = json.loads((folder / "cfg.json").read_text()), load_file(folder / "sae_weights.safetensors")
    assert about["architecture"] == "jumprelu_transcoder" and about["apply_b_dec_to_input"] is False
    assert about["metadata"]["sae_lens_version"] >= "6.0.0" and about["metadata"]["hook_name_out"] == SITES["target_site"]
    pre = X @ tensors["W_enc"] + tensors["b_enc"]
    assert abs(float((pre > tensors["threshold"]).sum(1).float().mean()) - 3) < 0.05


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("architecture", ["standard", "gated", "topk", "jumprelu", "skip_transcoder", "jumprelu_skip_transcoder"])
def test_files_of_saelens_mean_what_they_mean_there(architecture, centred, tmp_path):
    p, x = parts(), torch.randn(50, 6)
    centred = centred and "transcoder" not in architecture
    about = {
        "d_in": 6,
        "d_sae": 10,
        "architecture": architecture,
        "apply_b_dec_to_input": centred,
        "metadata": {"sae_lens_version": "6.20.0"},
    }
    about |= {"k": 3, "rescale_acts_by_decoder_norm": True} if architecture == "topk" else {}
    names = ["b_gate", "b_mag", "r_mag"] if architecture == "gated" else ["b_enc"]
    names += ["threshold"] * ("jumprelu" in architecture) + ["W_skip"] * ("skip" in architecture)
    save_file({name: p[name] for name in ("W_enc", "W_dec", "b_dec", *names)}, tmp_path / "sae_weights.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps(about))
    inner = x - p["b_dec"] if centred else x
    pre = inner @ p["W_enc"] + p["b_enc"]
    norms = p["W_dec"].norm(dim=1)
    if architecture == "gated":
        shared = inner @ p["W_enc"]
        z = (shared + p["b_gate"] > 0) * (shared * p["r_mag"].exp() + p["b_mag"]).relu()
    elif architecture == "topk":
        top = (pre * norms).topk(3)
        z = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu()) / norms
    else:
        z = pre.relu() * (pre > p["threshold"]) if "jumprelu" in architecture else pre.relu()
    expected = z @ p["W_dec"] + p["b_dec"] + (x @ p["W_skip"].T if "skip" in architecture else 0)
    coder = saes.load(tmp_path)
    assert torch.allclose(coder(x), expected, atol=1e-4)
    assert coder.transcoder == ("transcoder" in architecture)


@pytest.mark.parametrize("transcode", [True, False])
def test_files_of_sparsify_mean_what_they_mean_there(transcode, tmp_path):
    p, x = parts(), torch.randn(50, 6)
    tensors = {"encoder.weight": p["W_enc"].T, "encoder.bias": p["b_enc"], "W_dec": p["W_dec"], "b_dec": p["b_dec"], "W_skip": p["W_skip"]}
    save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "sae.safetensors")
    about = {
        "activation": "topk",
        "expansion_factor": 2,
        "num_latents": 0,
        "k": 3,
        "d_in": 6,
        "transcode": transcode,
        "skip_connection": True,
    }
    (tmp_path / "cfg.json").write_text(json.dumps(about))
    top = ((x if transcode else x - p["b_dec"]) @ p["W_enc"] + p["b_enc"]).topk(3)
    z = torch.zeros(50, 10).scatter(1, top.indices, top.values.relu())
    assert torch.allclose(saes.load(tmp_path)(x), z @ p["W_dec"] + p["b_dec"] + x @ p["W_skip"].mT, atol=1e-5)


def test_files_of_dictionary_learning_openai_and_gemma_scope_mean_what_they_mean_there(tmp_path):
    p, x = parts(), torch.randn(50, 6)
    relu = ((x - p["b_dec"]) @ p["W_enc"] + p["b_enc"]).relu() @ p["W_dec"] + p["b_dec"]
    linear = {"encoder.weight": p["W_enc"].T.contiguous(), "decoder.weight": p["W_dec"].T.contiguous()}
    for name, biases in {
        "dictionary": {"encoder.bias": p["b_enc"], "bias": p["b_dec"]},
        "openai": {"latent_bias": p["b_enc"], "pre_bias": p["b_dec"]},
    }.items():
        (tmp_path / name).mkdir()
        save_file(linear | biases, tmp_path / name / "ae.safetensors")
        assert torch.allclose(saes.load(tmp_path / name)(x), relu, atol=1e-5), name
    pre = x @ p["W_enc"] + p["b_enc"]
    jump = (pre.relu() * (pre > p["threshold"])) @ p["W_dec"] + p["b_dec"]
    np.savez(tmp_path / "params.npz", **{name: p[name].numpy() for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")})
    assert torch.allclose(saes.load(tmp_path / "params.npz")(x), jump, atol=1e-5)


def test_a_file_that_lacks_tensors_is_refused_with_their_names(tmp_path):
    folder = trained().save(tmp_path / "coder", format="saelens")
    kept = load_file(folder / "sae_weights.safetensors")
    save_file({k: v for k, v in kept.items() if k not in ("W_dec", "threshold")}, folder / "sae_weights.safetensors")
    with pytest.raises(ValueError, match="lacks W_dec, threshold; it holds W_enc, b_dec, b_enc"):
        saes.load(folder)
    save_file(kept | {"b_dec": kept["b_dec"] * float("nan")}, folder / "sae_weights.safetensors")
    with pytest.raises(ValueError, match="b_dec of .* NaN"):
        saes.load(folder)
    save_file(kept | {"b_dec": torch.zeros(5)}, folder / "sae_weights.safetensors")
    with pytest.raises(ValueError, match="W_dec is .24, 12.*has .24, 5."):
        saes.load(folder)
    (folder / "sae_weights.safetensors").write_bytes(b"half a file")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        saes.load(folder)


def test_pickles_are_refused_and_the_message_says_what_to_do(tmp_path):
    torch.save({"encoder.weight": torch.zeros(3)}, tmp_path / "ae.pt")
    with pytest.raises(ValueError, match=r"ae.pt is a pickle.*saes.convert"):
        saes.load(tmp_path)
    np.savez(tmp_path / "params.npz", W_enc=np.array([object()], dtype=object))
    with pytest.raises(ValueError, match="not an archive of plain arrays"):
        saes.load(tmp_path / "params.npz")


def test_what_is_no_coder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        saes.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no coder of a known format.*holds nothing"):
        saes.load(tmp_path)
    with pytest.raises(ValueError, match="No format 'onnx'"):
        trained().save(tmp_path / "x", format="onnx")
    coder = trained()
    coder.save(tmp_path / "coder")
    about = json.loads((tmp_path / "coder" / "coder.json").read_text())
    about["config"]["n_feature"] = 3
    (tmp_path / "coder" / "coder.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="no field 'n_feature'. Did you mean 'n_features'"):
        saes.load(tmp_path / "coder")


def test_a_save_that_fails_leaves_the_coder_that_was_there(tmp_path, monkeypatch):
    before = trained(seed=1)
    before.save(tmp_path / "coder")
    monkeypatch.setattr("saes.formats.workbench.write_text", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trained(seed=2).save(tmp_path / "coder")
    assert torch.equal(saes.load(tmp_path / "coder")(X), before(X))
    assert [p.name for p in tmp_path.iterdir()] == ["coder"], "no temporary folder stays"


def test_a_set_whose_layers_differ_in_k_is_not_read_back_with_the_first_ones_k(tmp_path):
    coders = [trained("topk", k=k) for k in (3, 1)]
    circuit_tracer.write_set(coders, tmp_path / "set")
    for coder, again in zip(coders, circuit_tracer.read_set(tmp_path / "set"), strict=True):
        assert float((again.encode(X) > 0).sum(1).float().mean()) == pytest.approx(coder.config.k, rel=0.25), "as thresholds"


def test_a_negative_threshold_means_the_same_to_circuit_tracer_which_does_not_rectify(tmp_path):
    coder = trained("relu")
    assert coder.threshold is not None
    coder.threshold -= 0.3
    coder.save(tmp_path / "set", format="circuit-tracer")
    stored = load_file(tmp_path / "set" / "layer_2.safetensors")
    pre, threshold = X @ stored["W_enc"].T + stored["b_enc"], stored.get(circuit_tracer.THRESHOLD)
    theirs = pre.relu() if threshold is None else pre * (pre > threshold)
    assert torch.allclose(theirs, coder.encode(X), atol=1e-5)


def test_a_folder_that_holds_something_else_is_not_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for format in ("workbench", "saelens", "circuit-tracer"):
        with pytest.raises(ValueError, match=r"notes.txt"):
            trained().save(tmp_path, format=format)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_folders_have_the_permissions_that_the_user_gives(tmp_path):
    before = os.umask(0o077)
    try:
        folder = trained().save(tmp_path / "coder")
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o077 == 0


def test_a_coder_saved_before_there_was_a_beta2_says_what_it_was_trained_with(tmp_path):
    folder = trained().save(tmp_path / "coder")
    assert saes.load(folder).config.details.beta2 == trained().config.details.beta2
    about = json.loads((folder / "coder.json").read_text())
    del about["config"]["details"]["beta2"]
    (folder / "coder.json").write_text(json.dumps(about))
    assert saes.load(folder).config == trained().config.but(beta2=0.999)
    assert saes.bundled("demo-opt")[0].config.details.beta2 == 0.999
    assert Config.from_json({}).details.beta2 == Config().details.beta2, "what a user leaves out is today's default"


def test_the_config_survives_json_and_names_what_it_does_not_know():
    config = Config(kind="matryoshka", n_features=64, k=4).but(groups=(0.5, 1.0), clip=2.0, lr=0.1)
    assert Config.from_json(json.loads(json.dumps(config.to_json()))) == config
    for wrong, message in [
        ({"kind": "topkk"}, "Did you mean 'topk'"), ({"k": 65, "n_features": 64}, "k=65 is more than n_features=64"),
        ({"steps": -1}, "steps=-1"), ({"lr": float("nan")}, "lr=nan"), ({"frozen": "both"}, "frozen='both'"),
        ({"details": {"warmpu": 0.1}}, "Did you mean 'warmup'"), ({"batch_size": 1.5}, "batch_size=1.5"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message.replace("(", "\\(")):
            Config.from_json(wrong)
