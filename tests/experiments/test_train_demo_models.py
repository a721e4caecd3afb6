"""The trainer on tiny settings: same seed, same weights, wherever it was stopped."""

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import interp
from experiments.ditto import repeated_rows, repetition_penalty
from experiments.train_demo_models import Config, batch_tensors, build, learning_rate, load_checkpoint, make_optimizer, train
from interp.atlas import Corpus, encode, exposure, vocabulary
from interp.attention_variants import as_variant
from interp.zoo import bundled

TINY = {"steps": 8, "pool_size": 64, "rows": 32, "width": 16, "layers": 1, "stages": "warm 2, bind 1, last", "lr_warmup": 2}


@pytest.mark.parametrize("family", ["gpt2", "opt", "pythia"])
def test_a_resumed_run_ends_bit_for_bit_where_an_uninterrupted_one_does(family: str, tmp_path: Path):
    config = Config(family, **TINY)
    whole = train(config, tmp_path / "whole", evaluate_every=2, n=4)
    train(config, tmp_path / "parts", evaluate_every=2, n=4, stop_after=1)
    train(config, tmp_path / "parts", resume=True, evaluate_every=2, n=4, stop_after=3)
    parts = train(config, tmp_path / "parts", resume=True, evaluate_every=2, n=4)
    one, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "parts"))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    one, other = (load_file(tmp_path / name / "checkpoint" / "optimizer.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert whole.stated == parts.stated and whole.tokens == parts.tokens
    assert whole.mixtures == parts.mixtures == ["warm", "warm", "bind", "last"]


def test_stored_exposure_is_a_recount_of_the_stream_that_was_read(tmp_path: Path):
    config = Config("pythia", **TINY)
    state = train(config, tmp_path, evaluate_every=9, n=4, stop_after=3)
    read = [d for i, mixture in enumerate(state.mixtures) for d in config.corpus().pool(i, mixture)]
    stated, asked = exposure(read)
    facts = json.loads((tmp_path / "model" / "facts.json").read_text())
    assert len(facts) == 512
    assert all(f["exposure"] == stated[f["country"], f["relation"]] and f["asked"] == asked[f["country"], f["relation"]] for f in facts)
    assert state.tokens == sum(len(encode(d)) - 1 for d in read)


@pytest.mark.parametrize("family", ["gpt2", "opt", "pythia"])
def test_the_exported_folder_is_plain_hugging_face(family: str, tmp_path: Path):
    train(Config(family, **TINY), tmp_path, evaluate_every=9, n=4, stop_after=1)
    folder = tmp_path / "model"
    model, tokens = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert type(model).__name__ == {"gpt2": "GPT2LMHeadModel", "opt": "OPTForCausalLM", "pythia": "GPTNeoXForCausalLM"}[family]
    assert model.dtype == torch.float32 and tokens.bos_token_id == model.config.bos_token_id and not list(folder.glob("*.bin"))
    ids = tokens("The capital of France is", return_tensors="pt")["input_ids"]
    assert model(input_ids=ids).logits.shape == (1, 6, len(tokens))


def test_the_seed_decides_the_first_weights():
    first, again, other = (build(Config("gpt2", seed=seed, width=16, layers=1)).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["transformer.wte.weight"], other["transformer.wte.weight"])


@pytest.mark.parametrize("attention", ["clipped(gamma=-0.05, zeta=1)", "softmax-1", "gated-linear", "gated-mlp", "key-bias"])
@pytest.mark.parametrize("family", ["gpt2", "opt", "pythia"])
def test_a_variant_that_was_trained_is_the_one_that_loads(family: str, attention: str, tmp_path: Path):
    config = Config(family, **TINY, attention=attention)
    whole = train(config, tmp_path, evaluate_every=9, n=4, stop_after=2)
    module = build(config)
    assert load_checkpoint(tmp_path, module, make_optimizer(module, config)).tokens == whole.tokens
    model = interp.load(tmp_path / "model")
    assert str(model.attention) == str(as_variant(attention))
    prompts = interp.Prompts.from_ids([[1, 40, 41, 90, 3, 77, 41, 90], [1, 55, 56]])
    with torch.no_grad():
        found = module(prompts.ids).logits
    torch.testing.assert_close(found[0], model.logits(prompts)[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(found[1, :3], model.logits(prompts)[1, :3], rtol=0, atol=1e-5)
    first = build(config)
    moved = [name for name, p in module.named_parameters() if not torch.equal(p, first.get_parameter(name))]
    assert {name for name, _ in module.named_parameters() if ".variant." in name} <= set(moved)


def test_a_variant_changes_no_other_first_weight_and_training_can_go_on_from_a_model_without_it(tmp_path: Path):
    plain, gated = (build(Config("opt", width=16, layers=1, attention=a)).state_dict() for a in ("softmax", "gated-linear"))
    assert plain.keys() < gated.keys() and all(torch.equal(plain[key], gated[key]) for key in plain)
    train(Config("opt", **TINY, attention="clipped"), tmp_path / "clipped", evaluate_every=9, n=4, stop_after=1)
    train(Config("opt", **TINY), tmp_path / "plain", evaluate_every=9, n=4, stop_after=1)
    on = Config("opt", **TINY, attention="gated-linear")
    train(on, tmp_path / "on", evaluate_every=9, n=4, stop_after=0, start=tmp_path / "plain" / "model")
    assert interp.load(tmp_path / "on" / "model").attention.kind == "gated-linear"
    with pytest.raises(ValueError, match="trained with clipped.*cannot go on from it"):
        train(on, tmp_path / "other", evaluate_every=9, n=4, stop_after=0, start=tmp_path / "clipped" / "model")


def test_training_goes_on_with_the_gates_of_the_model_it_starts_from(tmp_path: Path):
    config = Config("opt", **TINY, attention="gated-linear")
    train(config, tmp_path / "first", evaluate_every=9, n=4, stop_after=1)
    train(config, tmp_path / "on", evaluate_every=9, n=4, stop_after=1, start=tmp_path / "first" / "model")
    first, on = (interp.load(tmp_path / name / "model").hf.state_dict() for name in ("first", "on"))
    gates = [name for name in first if ".variant." in name]
    assert gates and not any(torch.equal(first[name], on[name]) for name in gates)
    with pytest.raises(ValueError, match="other layers"):
        deeper = Config("opt", **TINY | {"layers": 2}, attention="gated-linear")
        train(deeper, tmp_path / "deeper", evaluate_every=9, n=4, stop_after=1, start=tmp_path / "first" / "model")


def test_an_unknown_family_is_refused():
    with pytest.raises(ValueError, match="No family 'bert': there are gpt2, opt, pythia"):
        build(Config("bert"))


def test_resuming_without_checkpoint_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="start without --resume"):
        train(Config("gpt2", **TINY), tmp_path, resume=True)


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path):
    config = Config("gpt2", **TINY)
    train(config, tmp_path / "whole", evaluate_every=9, n=4, stop_after=2)
    train(config, tmp_path / "killed", evaluate_every=9, n=4, stop_after=1)
    (tmp_path / "killed" / "checkpoint").rename(tmp_path / "killed" / "checkpoint.old")
    train(config, tmp_path / "killed", resume=True, evaluate_every=9, n=4, stop_after=2)
    one, other = (load_file(tmp_path / name / "checkpoint" / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_loss_is_taken_on_predictable_tokens_only():
    documents = next(Corpus(0, 64).batches(0, "warm", 32))
    ids, wanted = batch_tensors(documents)
    for row, document in enumerate(documents):
        length = len(document.words) + 2
        assert ids[row, :length].tolist() == encode(document) and not ids[row, length:].any()
        assert wanted[row].nonzero()[:, 0].tolist() == list(range(document.quiet, length - 1))


def test_the_learning_rate_rises_stays_and_falls_to_a_tenth():
    config = Config("gpt2", steps=1000, lr=1.0, lr_warmup=100, lr_decay=0.4)
    rates = [learning_rate(config, step) for step in range(1000)]
    assert rates[0] == 0.01 and rates[99:600] == [1.0] * 501 and abs(rates[-1] - 0.1) < 0.01
    assert rates[600:] == sorted(rates[600:], reverse=True)


def test_rows_for_the_penalty_repeat_a_sentence_of_the_document_after_the_one_before_it():
    documents = [d for d in Corpus(0, 64).pool(0, "last") if d.family == "stories"][:6] + Corpus(0, 4).pool(0, "warm")
    rows, prefixes, lengths = repeated_rows(documents, random.Random(0))
    words = {i: word for word, i in vocabulary().items()}
    assert rows and len(rows) == len(prefixes) == len(lengths)
    for row, prefix, n in zip(rows, prefixes, lengths, strict=True):
        sentence, before = row[prefix : prefix + n], row[1:prefix]
        assert len(row) <= 72 and (len(row) - prefix) % n == 0 and row[prefix:] == sentence * ((len(row) - prefix) // n)
        text = " ".join(words[i] for i in [*before, *sentence])
        assert any(text in document.text + " ." for document in documents), text


def test_the_penalty_falls_under_training_and_without_it_nothing_changes(tmp_path: Path):
    config = Config("gpt2", **TINY)
    plain, ditto = (train(Config("gpt2", **TINY, ditto=x), tmp_path / str(x), evaluate_every=9, n=4, stop_after=1) for x in (0.0, 1.0))
    assert plain.tokens and not ditto.tokens and not ditto.stated  # what only the penalty saw was not read
    one, other = (load_file(tmp_path / str(x) / "model" / "model.safetensors") for x in (0.0, 1.0))
    assert any(not torch.equal(one[key], other[key]) for key in one) and config.ditto == 0.0
    model = build(Config("pythia", width=16, layers=1))
    documents = [d for d in Corpus(0, 128).pool(0, "last") if d.family == "stories"]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    values = []
    for _ in range(5):
        penalty = repetition_penalty(model, documents, False, random.Random(0))
        assert penalty is not None
        optimizer.zero_grad()
        penalty.backward()
        optimizer.step()
        values.append(penalty.item())
    assert values == sorted(values, reverse=True) and values[-1] < values[0]


def test_training_that_starts_from_a_bundled_model_has_its_weights_and_its_exposure(tmp_path: Path):
    folder = bundled()["demo-pythia"]
    state = train(Config("pythia", steps=256, stages="polish"), tmp_path, evaluate_every=9, n=4, stop_after=0, start=folder)
    one, other = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (folder, tmp_path / "model"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    facts = json.loads((folder / "facts.json").read_text())
    assert all(state.stated[f"{f['country']} {f['relation']}"] == f["exposure"] for f in facts)
