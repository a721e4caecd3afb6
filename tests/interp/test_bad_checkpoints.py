"""Checkpoints that cannot be trusted are refused by name; old but sound ones load."""

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import interp
from tests.tiny import save_tiny, tiny_hf

REFUSALS = (ValueError, KeyError, FileNotFoundError)
LN = "transformer.h.1.ln_1.weight"


def refused(name: object, *said: str, **options: object) -> None:
    with pytest.raises(REFUSALS) as caught:
        interp.load(name, **options)
    for pattern in said:
        assert re.search(pattern, str(caught.value)), f"{caught.value} lacks {pattern!r}"


def weights(folder: Path) -> Path:
    return folder / "model.safetensors"


def with_tensors(folder: Path, change: Callable[[dict], object], variant: str = "gpt2") -> Path:
    save_tiny(variant, folder)
    tensors = load_file(weights(folder))
    change(tensors)
    save_file(tensors, weights(folder), metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("name", ["no/such/folder", "nosuch", "a/b", "./zz", "~nosuchuser/model", "", " ", "x" * 5000, None, 5, "a b?"])
def test_names_of_nothing_are_refused_with_the_names_that_exist(name):
    with pytest.raises(FileNotFoundError, match="Bundled models"):
        interp.load(name)


def test_a_bundled_name_with_a_slip_of_the_finger_is_named(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="Did you mean 'demo-gpt2'"):
        interp.load("demo-gtp2")
    with pytest.raises(FileNotFoundError, match="Bundled") as refusal:
        interp.load("./gpt2")
    assert "Did you mean" not in str(refusal.value)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "model").write_text("")
    with pytest.raises(REFUSALS) as caught:
        interp.load(tmp_path / "model")
    assert "it is a file" in str(caught.value)


CONFIGS = {
    "": "not JSON", "{": "not JSON", "\xff": "not JSON", "[]": "no JSON object", "5": "no JSON object", "null": "no JSON object",
    '{"model_type": 5}': "5.*gpt2, opt", '{"model_type": "bert"}': "bert.*gpt2, opt", "{}": "None.*gpt2, opt",
}  # fmt: skip


@pytest.mark.parametrize("text", CONFIGS)
def test_configs_that_cannot_be_read_or_are_of_other_models_are_refused(text, tmp_path):
    save_tiny("gpt2", tmp_path)
    (tmp_path / "config.json").write_text(text, encoding="latin1")
    refused(tmp_path, "config.json", CONFIGS[text])


FIELDS = [
    {"n_head": 0}, {"n_head": 3}, {"n_layer": "abc"}, {"n_layer": 5}, {"n_layer": 2}, {"n_layer": -1}, {"n_embd": 48}, {"n_embd": None},
    {"activation_function": "nope"}, {"vocab_size": 60}, {"n_inner": 7}, {"layer_norm_epsilon": "x"}, {"n_positions": 0},
    {"add_cross_attention": True}, {"dtype": "nope"},
]  # fmt: skip


@pytest.mark.parametrize("fields", FIELDS, ids=str)
def test_configs_that_disagree_with_the_weights_or_with_themselves_are_refused(fields, tmp_path):
    save_tiny("gpt2", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | fields))
    refused(tmp_path, str(tmp_path))


def test_folders_without_config_or_weights_are_refused(tmp_path):
    save_tiny("gpt2", tmp_path)
    weights(tmp_path).unlink()
    refused(tmp_path, "no .safetensors", "config.json")
    weights(tmp_path).mkdir()
    refused(tmp_path, "no .safetensors")
    (tmp_path / "config.json").unlink()
    refused(tmp_path, "no config.json")


@pytest.mark.parametrize("dtype", [None, "float32"])
@pytest.mark.parametrize("keep", [0, 3, 8, 100, -10])
def test_truncated_weights_are_refused(keep, dtype, tmp_path):
    save_tiny("gpt2", tmp_path)
    weights(tmp_path).write_bytes(weights(tmp_path).read_bytes()[:keep])
    refused(tmp_path, str(tmp_path), dtype=dtype)


@pytest.mark.parametrize("content", [b"garbage" * 1000, struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 2) + b"{}"])
def test_files_that_are_no_weights_are_refused(content, tmp_path):
    save_tiny("gpt2", tmp_path)
    weights(tmp_path).write_bytes(content)
    refused(tmp_path, str(tmp_path))


CHANGES = {
    "missing": (lambda x: x.pop(LN), ["lacks 1", LN]),
    "extra": (lambda x: x.update({"transformer.h.9.ln_1.weight": torch.ones(3)}), ["holds 1", "h.9.ln_1"]),
    "of another shape": (lambda x: x.update({LN: torch.ones(3)}), [LN, r"\(3,\)", r"\(32,\)"]),
    "NaN": (lambda x: x[LN].fill_(float("nan")), [LN, "NaN"]),
    "infinite": (lambda x: x[LN].fill_(float("inf")), [LN, "infinities"]),
    "whole numbers": (lambda x: x.update({k: v.to(torch.int8) for k, v in x.items()}), ["floating-point"]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_tensors_that_are_wrong_are_refused_by_name_and_quietly(name, tmp_path, caplog):
    change, said = CHANGES[name]
    refused(with_tensors(tmp_path, change), str(tmp_path), *said)
    assert not caplog.records


def test_a_pickle_is_never_read(tmp_path):
    save_tiny("gpt2", tmp_path)
    weights(tmp_path).rename(tmp_path / "kept")

    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    torch.save({"x": Bomb()}, tmp_path / "pytorch_model.bin")
    refused(tmp_path, "pickle", "pytorch_model.bin", "interp convert")
    assert not (tmp_path / "exploded").exists()


INDICES = ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 5}}', '{"weight_map": {"a": "missing.safetensors"}}']


@pytest.mark.parametrize("text", INDICES)
def test_indices_that_name_no_files_are_refused(text, tmp_path):
    save_tiny("gpt2", tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(text)
    refused(tmp_path, "model.safetensors.index.json")


def test_shards_load_together_and_not_when_one_is_damaged_or_missing(tmp_path):
    tiny_hf("gpt2").save_pretrained(tmp_path, max_shard_size="50KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    prompts = interp.Prompts.from_ids([[5, 6, 7]])
    assert len(shards) > 1
    with torch.no_grad():
        wanted = tiny_hf("gpt2")(prompts.ids).logits
    torch.testing.assert_close(interp.load(tmp_path).logits(prompts), wanted, atol=1e-5, rtol=1e-5)
    shards[1].write_bytes(shards[1].read_bytes()[:-5])
    refused(tmp_path, str(tmp_path))
    shards[1].unlink()
    refused(tmp_path, shards[1].name, "missing")


@pytest.mark.parametrize("text", ["garbage", "{}", "[]", '{"version": "1.0"}'])
def test_broken_tokenizers_are_refused(text, tmp_path):
    save_tiny("gpt2", tmp_path)
    (tmp_path / "tokenizer.json").write_text(text)
    refused(tmp_path, "tokenizer", str(tmp_path))


def test_unknown_dtypes_and_devices_are_refused(folders):
    for dtype in ("int8", torch.int8, 5, "half", ""):
        refused(folders["gpt2"], "float64, float32", dtype=dtype)
    for device in ("gpu", "mps", "meta", None, 5):
        refused(folders["gpt2"], "auto, cpu", device=device)
    refused(folders["gpt2"], device_map="nonsense")


MASKS = {
    "gpt2": lambda x: x.update({f"transformer.h.{i}.attn.{n}": torch.ones(1, 1, 4, 4) for i in range(3) for n in ("bias", "masked_bias")}),
    "neox": lambda x: (
        x.update({f"gpt_neox.layers.{i}.attention.rotary_emb.inv_freq": torch.ones(2) for i in range(3)})
        or x.update({f"gpt_neox.layers.{i}.attention.{n}": torch.ones(1) for i in range(3) for n in ("bias", "masked_bias")})
    ),
    "opt": lambda x: x.update({"lm_head.weight": x["model.decoder.embed_tokens.weight"].clone()}),
}
PREFIX = {"gpt2": "transformer.", "opt": "model."}


@pytest.mark.parametrize("variant", MASKS)
def test_the_constants_and_ties_of_old_checkpoints_do_not_matter(variant, tmp_path):
    prompts = interp.Prompts.from_ids([[5, 6, 7]])
    with torch.no_grad():
        wanted = tiny_hf(variant)(prompts.ids).logits
    model = interp.load(with_tensors(tmp_path / "masks", MASKS[variant], variant))
    torch.testing.assert_close(model.logits(prompts), wanted, atol=1e-5, rtol=1e-5)

    def strip(tensors: dict) -> None:
        for name in list(tensors):
            tensors[name.removeprefix(PREFIX[variant])] = tensors.pop(name)

    if variant in PREFIX:
        bare = interp.load(with_tensors(tmp_path / "bare", strip, variant))
        torch.testing.assert_close(bare.logits(prompts), wanted, atol=1e-5, rtol=1e-5)


def test_the_dtype_of_the_checkpoint_is_kept_unless_another_is_asked_for(tmp_path):
    save_tiny("gpt2", tmp_path, torch.float64)
    assert interp.load(tmp_path).dtype == torch.float64
    assert interp.load(tmp_path, dtype="bfloat16").dtype == torch.bfloat16
    assert interp.load(str(tmp_path), dtype=torch.float32).dtype == torch.float32
