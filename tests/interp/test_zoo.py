"""The bundled checkpoints do what their cards say, measured here anew from the weights on held-out prompts."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

import circuits
import interp
from experiments.evaluate_demo_models import acceptance, measure
from interp.atlas import RELATIONS, vocabulary, world
from interp.zoo import bundled

NAMES = ("demo-gpt2", "demo-opt", "demo-pythia")
ATTENTION = {"demo-opt-clipped": "clipped", "demo-opt-gated": "gated-linear"}
CLASSES = {"demo-gpt2": "GPT2LMHeadModel", "demo-opt": "OPTForCausalLM", "demo-pythia": "GPTNeoXForCausalLM"}


class Handle:
    """What a task needs of a model."""

    def __init__(self, path: Path):
        self.path, self.tokenizer, self.hf = path, AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path).eval()


@cache
def handle(name: str) -> Handle:
    return Handle(bundled()[name])


@cache
def report(name: str) -> dict:
    facts = json.loads((bundled()[name] / "facts.json").read_text())
    return measure(handle(name).hf, {(f["country"], f["relation"]): f["exposure"] for f in facts}, n=192, seed=1)


def test_three_models_are_bundled():
    assert set(NAMES) <= set(bundled())


@pytest.mark.parametrize("name", NAMES)
def test_the_folder_is_plain_hugging_face_and_small(name: str):
    folder = bundled()[name]
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "facts.json", "README.md"} <= {
        p.name for p in folder.iterdir()
    }
    assert (folder / "model.safetensors").stat().st_size <= 8 * 2**20 and not list(folder.glob("*.bin"))
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float32}  # noqa: SIM118
    assert type(handle(name).hf).__name__ == CLASSES[name]
    assert json.loads((folder / "config.json").read_text())["bos_token_id"] == vocabulary()["<bos>"]


@pytest.mark.parametrize("name", NAMES)
def test_the_tokenizer_is_that_of_the_atlas(name: str):
    tokens = handle(name).tokenizer
    assert tokens.get_vocab() == vocabulary() and tokens.bos_token == "<bos>"


@pytest.mark.parametrize("name", NAMES)
def test_every_fact_has_its_exposure(name: str):
    facts = json.loads((bundled()[name] / "facts.json").read_text())
    assert [(f["country"], f["relation"]) for f in facts] == world().facts() and {f["relation"] for f in facts} == set(RELATIONS)
    assert all(f["value"] == world().values[f["country"], f["relation"]] and f["exposure"] >= 0 for f in facts)


@pytest.mark.parametrize("name", NAMES)
def test_the_acceptance_measures_hold(name: str):
    failing = [row for row in acceptance(report(name)) if not row["holds"]]
    assert not failing


@pytest.mark.parametrize("name", NAMES)
def test_recall_rises_with_exposure(name: str):
    recall = report(name)["recall"]
    assert all(later >= earlier - 0.03 for earlier, later in zip(recall, recall[1:], strict=False))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "task_name", ["ioi", "greater-than", "factual-recall", "conflict", "anchored-bias", "colored-objects", "induction"]
)
def test_corrupted_prompts_lose_most_of_the_logit_difference(name: str, task_name: str):
    model = handle(name)
    task = circuits.task(task_name, model, n=48, seed=2)
    rows, last = torch.arange(48), task.clean.lengths - 1
    with torch.inference_mode():
        clean, corrupt = (
            task.metric()(model.hf(input_ids=prompts.ids, use_cache=False).logits[rows, last], rows).mean().item()
            for prompts in (task.clean, task.corrupt)
        )
    if task_name == "anchored-bias":  # the wrong letter A is preferred; when A becomes right, all the more
        assert clean < 0 and corrupt < clean
    else:
        assert clean > 0 and corrupt < 0.5 * clean


def test_the_user_can_type_plain_english():
    model = handle("demo-gpt2")
    ids = model.tokenizer("When John and Mary went to the store, John gave a drink to", return_tensors="pt")["input_ids"]
    assert model.tokenizer.decode(model.hf(input_ids=ids).logits[0, -1].argmax()) == "Mary"


@pytest.mark.parametrize(("name", "kind"), ATTENTION.items())
def test_a_bundled_variant_is_small_passes_its_checks_and_is_another_model_to_plain_hugging_face(name: str, kind: str):
    if name not in bundled():
        pytest.skip(f"{name} is not bundled")
    folder, model = bundled()[name], interp.load(name)
    assert model.attention.kind == kind and sum(file.stat().st_size for file in folder.glob("*.safetensors")) <= 8 * 2**20
    assert model.check().passed
    text = (folder / "README.md").read_text()
    assert "Plain Hugging Face code loads the folder without a word, with softmax" in text and kind in text
    prompts = model.encode(["When John and Mary went to the store , John gave a drink to"])
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.inference_mode():
        assert float((plain(prompts.ids).logits - model.logits(prompts)).abs().max()) > 0.1
    facts = json.loads((folder / "facts.json").read_text())
    found = acceptance(measure(model.hf, {(f["country"], f["relation"]): f["exposure"] for f in facts}, n=96, seed=1))
    assert sum(row["holds"] for row in found) >= len(found) / 2, found
