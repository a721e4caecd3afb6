"""Plans as files: what is read back acts as what was written, and only on the weights that it was made for."""

import json

import pytest
import torch

import interp
from interp import Edit
from interp.plan_files import load_plan, read_plan_file, save_plan
from interp.provenance import model_hash, weights_hash
from tests.tiny import random_ids

PROMPTS = interp.Prompts.from_ids(random_ids(2, 5))
PLAN = (Edit("blocks.1.attn.hook_v", "scale", -1.5, head=2), Edit("blocks.0.attn.hook_z", "scale", 0.25, head=0))


def test_a_plan_read_from_its_file_generates_what_the_plan_itself_generates(load, tmp_path):
    model = load("gpt2", "float32")
    path = save_plan(tmp_path / "plan.json", PLAN, model, {"purpose": "test"})
    read = load_plan(path, model)
    assert read == PLAN
    own, other, clean = (model.generate(PROMPTS, plan, 6).new_ids for plan in (PLAN, read, ()))
    assert own == other != clean
    assert read_plan_file(path)["about"] == {"purpose": "test"}


def test_values_that_are_large_tensors_are_kept_beside_the_file(load, tmp_path):
    model = load("gpt2", "float32")
    plan = (Edit("blocks.0.hook_resid_pre", "add", torch.randn(2, 5, 32)),)
    assert load_plan(save_plan(tmp_path / "plan.json", plan, model), model) == plan


def test_a_plan_for_other_weights_is_refused_unless_asked_for(load, tmp_path):
    path = save_plan(tmp_path / "plan.json", PLAN, load("gpt2", "float32"))
    with pytest.raises(ValueError, match="other weights"):
        load_plan(path, load("opt", "float32"))
    assert load_plan(path, load("opt", "float32"), any_weights=True) == PLAN


def test_sites_that_the_model_lacks_are_refused_when_written_and_when_read(load, tmp_path):
    model = load("gpt2", "float32")
    with pytest.raises(KeyError):
        save_plan(tmp_path / "plan.json", Edit("blocks.7.attn.hook_v", "zero"), model)
    path = save_plan(tmp_path / "plan.json", PLAN, model)
    data = json.loads(path.read_text())
    data["plan"][0]["site"] = "blocks.7.attn.hook_v"
    path.write_text(json.dumps(data))
    with pytest.raises(KeyError):
        load_plan(path, model)


@pytest.mark.parametrize("text", ["[1", "[]", '{"plan": []}', '{"format": "x", "model": "", "weights": "", "about": {}, "plan": []}'])
def test_what_is_no_plan_file_is_refused(text, load, tmp_path):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ValueError, match="plan.json"):
        load_plan(tmp_path / "plan.json", load("gpt2"))
    with pytest.raises(FileNotFoundError, match="absent.json"):
        load_plan(tmp_path / "absent.json", load("gpt2"))


def test_the_same_weights_under_another_attention_formula_are_another_model(load, folders, tmp_path):
    model = load("gpt2")
    clipped = model.with_attention("clipped")
    assert weights_hash(model) == weights_hash(clipped.with_attention("softmax")) == model_hash(folders["gpt2"]) != weights_hash(clipped)
    assert weights_hash(clipped) == weights_hash(model.with_attention("clipped")) != weights_hash(model.with_attention("softmax-1"))
    path = save_plan(tmp_path / "plan.json", Edit("blocks.0.attn.hook_z", "zero", head=1), clipped)
    load_plan(path, clipped)
    with pytest.raises(ValueError, match="other weights"):
        load_plan(path, model)
