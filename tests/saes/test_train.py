"""Training live from a model: all coders from one forward, the right rows for each, resumed bit for bit."""

import pytest
import torch

import interp
import saes
from interp.store import Memory
from saes import Config
from tests.tiny import VARIANTS, random_ids

BASE = Config(n_features=48, k=4, steps=12, batch_size=64)


@pytest.fixture(scope="module")
def model(folders):
    return interp.load(folders["gpt2"])


@pytest.fixture(scope="module")
def documents():
    return [row[: 9 - i % 4] for i, row in enumerate(random_ids(60, 9).tolist())]


def same(a: saes.Coder, b: saes.Coder) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_coders_trained_together_are_those_trained_alone(model, documents):
    configs = saes.mlp_transcoders(model, BASE)
    together = saes.train(model, configs, documents)
    assert [c.target_site for c in together] == [f"blocks.{layer}.hook_mlp_out" for layer in range(3)]
    assert all(c.transcoder and c.info["model"] == model.name for c in together)
    assert same(together[1], saes.train(model, configs[1], documents))
    assert not saes.train(model, Config(**{**vars(BASE), "input_site": "blocks.1.hook_resid_post"}), documents).transcoder


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_transcoder_reads_what_its_mlp_reads(folders, variant):
    model = interp.load(folders[variant], dtype="float64")
    configs = saes.mlp_transcoders(model, BASE)
    assert [(c.input_site, c.target_site) for c in configs] == [(b.reads[0], b.writes[0]) for b in saes.clt_blocks(model)]
    prompts = interp.Prompts.from_ids(random_ids(2, 6).tolist())
    for config in configs:
        source, target = str(config.input_site), str(config.target_site)
        clean, edited = (model.capture(prompts, [target], edits=edits)[target] for edits in ([], [interp.Edit(source, "zero", pos=3)]))
        changed = (clean - edited).abs().amax(2) > 1e-9
        assert changed[:, 3].all() and not changed[:, :3].any(), f"{source} is no input of {target}"
    with pytest.raises(KeyError, match=r"blocks.7"):
        saes.mlp_transcoders(model, BASE, layers=[7])


def test_training_that_was_interrupted_goes_on_bit_for_bit(model, documents, tmp_path):
    configs = saes.mlp_transcoders(model, BASE.but(steps=20), layers=[0, 2])
    whole = saes.train(model, configs, documents)

    def kill(done: int, total: int) -> None:
        if done == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        saes.train(model, configs, documents, checkpoint=tmp_path / "state", checkpoint_every=6, progress=kill)
    again = saes.train(model, configs, documents, checkpoint=tmp_path / "state")
    assert all(same(a, b) for a, b in zip(again, whole, strict=True))
    with pytest.raises(ValueError, match="Give another folder"):
        saes.train(model, configs[:1], documents, checkpoint=tmp_path / "state")


def test_a_store_tensors_and_the_live_model_train_the_same_coders(model, documents, tmp_path):
    configs = saes.mlp_transcoders(model, BASE, layers=[1])
    sites = [configs[0].input_site, configs[0].target_site]
    store = interp.harvest(model, documents, sites, tmp_path / "store")
    tensors = {site: store.rows(site) for site in sites}
    live = saes.train(model, configs[0], documents)
    assert same(live, saes.train(store, configs[0])) and live.info["model"] == model.name
    for given in ({"documents": documents}, {"drop_bos": True}, {"context": 5}):
        with pytest.raises(ValueError, match="only with a model"):
            saes.train(store, configs[0], **given)
    memory = Memory(tensors, [len(d) for d in documents])
    assert same(live, saes.train(memory, configs[0]))
    x, y = (tensors[site] for site in sites)
    assert saes.evaluate(model, live, interp.Prompts.from_ids(documents)).tokens == len(x) == len(y)


def test_what_cannot_be_trained_is_refused(model, documents):
    with pytest.raises(ValueError, match="says what it reads"):
        saes.train(model, BASE, documents)
    configs = saes.mlp_transcoders(model, BASE)
    with pytest.raises(ValueError, match="needs documents"):
        saes.train(model, configs)
    with pytest.raises(ValueError, match="agree in steps"):
        saes.train(model, [configs[0], configs[1].but(steps=3)], documents)
    with pytest.raises(KeyError, match=r"blocks\.7"):
        saes.train(model, configs[0].but(target_site="blocks.7.hook_mlp_out"), documents)
    with pytest.raises(ValueError, match="no batch of 1000000"):
        saes.train(model, configs[0].but(batch_size=10**6), documents)
    rows = torch.full((500, 4), float("nan"))
    with pytest.raises(ValueError, match="Rows of a hold NaN"):
        saes.train(Memory({"a": rows}), BASE.but(input_site="a"))
    with pytest.raises(ValueError, match="no rows of b; there are some of a"):
        saes.train(Memory({"a": rows}), BASE.but(input_site="b"))
