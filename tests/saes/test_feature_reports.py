"""Reports of features equal what a slow loop over all tokens finds."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import interp
from interp.store.documents import as_documents
from saes import Coder, Config, features
from saes.features.examples import bin_of, collect, draw
from tests.tiny import D_MODEL, N_VOCAB

BANDS, TOP_N, PER_BAND, CONTEXT, BINS = 4, 3, 2, 2, 7


def coder_of(layer: int = 1, kind: str = "topk", seed: int = 0, n: int = 20, target: str | None = None) -> Coder:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    config = Config(kind, n, 4, input_site=f"blocks.{layer}.hook_resid_mid", target_site=target or f"blocks.{layer}.hook_mlp_out")  # type: ignore[arg-type]
    b_enc = random(n)
    b_enc[-1] = -1e6  # never active
    threshold = None if kind == "topk" else random(n).abs()
    return Coder(random(D_MODEL, n), b_enc, random(n, D_MODEL), random(D_MODEL), config, threshold, transcoder=True).requires_grad_(False)


@pytest.fixture(scope="module")
def model(folders) -> interp.Model:
    return interp.load(folders["gpt2"], dtype="float64")


@pytest.fixture(scope="module")
def documents() -> list[list[int]]:
    """No two begin alike: equal documents would have equal activations up to rounding, which differs between batches."""
    generator = np.random.default_rng(0)
    return [[3 + i, *generator.integers(3, N_VOCAB, generator.integers(0, 14)).tolist()] for i in range(17)]


def dense_codes(model, coder, documents) -> list[torch.Tensor]:
    """[pos, feature] of each document, run by itself."""
    prompts = [interp.Prompts.from_ids([ids]) for ids in documents]
    return [coder.encode(model.capture(one, [coder.input_site])[coder.input_site][0]) for one in prompts]


@pytest.mark.parametrize("kind", ["topk", "jumprelu"])
def test_recorded_codes_are_those_of_each_document_alone(model, documents, kind):
    coders = [coder_of(1, kind), coder_of(2, kind, seed=1)]
    with features.recorded(model, coders, documents, rows=4) as codes:
        for i, coder in enumerate(coders):
            whole = torch.cat(dense_codes(model, coder, documents))
            assert np.allclose(codes.matrix(i).toarray(), whole.numpy(), rtol=1e-9, atol=1e-9)
        folder = codes.folder
    assert not folder.exists()


def test_statistics_and_examples_equal_a_loop_over_all_tokens(model, documents):
    coder = coder_of()
    with features.recorded(model, coder, documents, rows=5) as codes:
        statistics, examples = collect(codes, 0, TOP_N, BANDS, PER_BAND, CONTEXT, BINS, seed=3)
        dense = codes.matrix().toarray()
    starts = as_documents(model, documents).starts
    texts = [dense[a:b] for a, b in zip(starts[:-1], starts[1:], strict=True)]
    for f in range(coder.n_features):
        values = dense[:, f]
        active = values[values > 0]
        assert statistics.active[f] == len(active)
        assert statistics.maximum[f] == max(active, default=0)
        assert np.isclose(statistics.mean[f], active.mean() if len(active) else 0, rtol=1e-12)
        assert statistics.histogram[f].tolist() == [sum(bin_of(active, values.max(), BINS) == i) for i in range(BINS)]
        peaks = [(float(t[:, f].max()), int(t[:, f].argmax()), d) for d, t in enumerate(texts) if t[:, f].max() > 0]
        assert statistics.active_documents[f] == len(peaks)
        wanted = [(features.TOP, *p) for p in sorted(peaks, key=lambda p: (-p[0], p[2]))[:TOP_N]]
        for band in reversed(range(BANDS)):
            within = [p for p in peaks if min(int(p[0] / values.max() * BANDS), BANDS - 1) == band]
            assert statistics.band_documents[f, band] == len(within)
            drawn = sorted(within, key=lambda p: draw(np.array([f]), np.array([p[2]]), 3)[0])[:PER_BAND]
            wanted += [(band, *p) for p in sorted(drawn, key=lambda p: (-p[0], p[2]))]
        found = examples.of(f)
        assert [(examples.band[e], examples.value[e], examples.pos[e], examples.document[e]) for e in found] == wanted
        for e in found:
            first, n, offset = examples.start[e], examples.length[e], examples.offset[e]
            document = examples.document[e]
            assert first == max(0, examples.pos[e] - CONTEXT)
            assert first + n == min(len(documents[document]), examples.pos[e] + CONTEXT + 1)
            assert examples.ids[offset : offset + n].tolist() == documents[document][first : first + n]
            assert examples.activations[offset : offset + n].tolist() == texts[document][first : first + n, f].tolist()
    assert statistics.active[-1] == 0
    assert len(examples.of(coder.n_features - 1)) == 0


def test_of_equal_activations_the_first_document_and_the_first_token_come_first(model, documents):
    coder = coder_of(kind="jumprelu")
    coder.W_enc[:, 0], coder.b_enc[0], coder.threshold[0] = 0.0, 2.0, 0.0  # active with exactly 2 on every token
    (reports,) = features.feature_reports(model, coder, documents, top=5, rows=4)
    one = reports[0]
    assert [(e.document, e.pos, e.value) for e in one.top] == [(d, 0, 2.0) for d in range(5)]
    assert one.density == 1
    assert one.shown() == f"5 of {len(documents)} documents"
    assert one.histogram[-1] == one.tokens == sum(map(len, documents))


def test_reports_do_not_depend_on_the_batches_and_those_of_several_coders_are_those_of_each(model, documents):
    coders = [coder_of(1), coder_of(2, "jumprelu", seed=1)]
    both = features.feature_reports(model, coders, documents, rows=3)
    for coder, one in zip(coders, both, strict=True):
        (alone,) = features.feature_reports(model, coder, documents, rows=17)
        assert alone.statistics.active.tolist() == one.statistics.active.tolist()
        assert alone.examples.document.tolist() == one.examples.document.tolist()
        assert alone.examples.ids.tolist() == one.examples.ids.tolist()
        assert np.allclose(alone.examples.activations, one.examples.activations, rtol=1e-9, atol=1e-9)


def test_a_drawn_band_is_an_even_draw():
    """Each of 50 documents is among the 5 smallest numbers about equally often over 2000 features."""
    feature, document = (x.ravel() for x in np.meshgrid(np.arange(2000), np.arange(50), indexing="ij"))
    order = draw(feature, document, 0).reshape(2000, 50).argsort(1)[:, :5]
    counts = np.bincount(order.ravel(), minlength=50)
    assert (counts > 130).all() and (counts < 275).all()  # mean 200, standard deviation 13.4
    assert (draw(feature, document, 0) != draw(feature, document, 1)).all()


@pytest.mark.parametrize("variant", ["gpt2", "opt", "neox", "opt-postln"])
def test_logit_weights_are_the_decoder_through_norm_and_unembedding(folders, variant):
    model = interp.load(folders[variant], dtype="float64")
    coder = coder_of(1)
    found = features.logit_weights(model, coder, [4, 2], k=N_VOCAB)
    x = coder.W_dec[torch.tensor([4, 2])]
    hf = model.hf
    layers = {"gpt2": [lambda: hf.transformer.ln_f], "opt": [lambda: hf.model.decoder.final_layer_norm]}
    layers["neox"] = [lambda: hf.gpt_neox.final_layer_norm]
    after = [lambda: hf.model.decoder.layers[1].final_layer_norm, lambda: hf.model.decoder.layers[2].self_attn_layer_norm]
    layers["opt-postln"] = [*after, lambda: hf.model.decoder.layers[2].final_layer_norm]
    for norm in layers[variant]:
        x = (x - x.mean(1, keepdim=True)) * norm().weight
    if variant == "opt-postln":
        x = x @ hf.model.decoder.project_out.weight.T
    logits = x @ hf.get_output_embeddings().weight.T
    assert torch.allclose(found.promoted, logits.gather(1, found.promoted_ids), rtol=1e-9, atol=1e-9)
    assert torch.allclose(found.promoted, logits.sort(1, descending=True).values, rtol=1e-9, atol=1e-9)
    assert torch.allclose(found.suppressed, logits.sort(1).values, rtol=1e-9, atol=1e-9)


def test_logit_weights_are_the_derivative_of_the_logits_up_to_a_factor(model):
    """A small step along a decoder row at the last block's end moves all logits along the weights."""
    coder = coder_of(2, target="blocks.2.hook_resid_post")
    prompts = interp.Prompts.from_ids([[5, 9, 4]])
    x = model.capture(prompts, ["blocks.2.hook_resid_post"])["blocks.2.hook_resid_post"][0, -1]
    direction = coder.W_dec[3]
    normed = (x - x.mean()) / x.var(unbiased=False).sqrt()
    direction = direction - direction.mean() - normed * (normed @ direction) / len(x)  # along it the norm's scale does not change
    coder.W_dec[3] = direction
    edits = [interp.Edit("blocks.2.hook_resid_post", "add", value=s * 1e-4 * direction, pos=-1) for s in (1, -1)]
    up, down = (model.logits(prompts, [edit])[0, -1] for edit in edits)
    found = features.logit_weights(model, coder, [3], k=N_VOCAB)
    measured = ((up - down) / 2e-4)[found.promoted_ids[0]]
    assert torch.nn.functional.cosine_similarity(measured, found.promoted[0], dim=0) > 1 - 1e-6


def test_a_coder_off_the_residual_stream_has_no_logit_weights(model, documents):
    coder = coder_of(1, target="blocks.1.ln2.hook_normalized")
    with pytest.raises(ValueError, match="not on the residual stream"):
        features.logit_weights(model, coder)
    assert features.feature_reports(model, coder, documents)[0][0].promoted == ()


def test_nearest_features_and_cosines_equal_plain_ones():
    coder = coder_of()
    unit = torch.nn.functional.normalize(coder.W_dec, dim=1)
    near = (unit @ unit.T).fill_diagonal_(-2)
    ids, values = features.nearest_features(coder, 3)
    assert ids.tolist() == near.argsort(1, descending=True)[:, :3].tolist()
    assert torch.allclose(values, near.gather(1, ids))
    both = (torch.nn.functional.normalize(coder.W_enc.T, dim=1) * unit).sum(1)
    assert torch.allclose(features.encoder_decoder_cosine(coder), both)


def test_saved_reports_come_back_as_they_were(model, documents, tmp_path):
    (reports,) = features.feature_reports(model, coder_of(), documents)
    back = features.load_reports(reports.save(tmp_path / "saved"))
    assert [back[i].to_json() for i in range(len(back))] == [reports[i].to_json() for i in range(len(reports))]
    assert back.table().equals(reports.table())
    assert json.loads(reports.to_json())[0]["feature"] == 0
    with pytest.raises(FileNotFoundError, match="features.json"):
        features.load_reports(tmp_path)
    with pytest.raises(KeyError, match="0-19"):
        back[20]


def test_damaged_reports_are_refused_with_what_is_missing(model, documents, tmp_path):
    (reports,) = features.feature_reports(model, coder_of(), documents[:4])
    about, arrays = (reports.save(tmp_path) / name for name in ("features.json", "features.safetensors"))
    text, tensors = about.read_text(), load_file(arrays)
    tensors.pop("examples.band")
    for damage, said in [
        (lambda: about.write_text(text[:100]), "features.json is not JSON"),
        (lambda: about.write_text(text.replace('"words"', '"word"')), "features.json lacks words; it has model"),
        (lambda: about.write_text(text.replace('"version": 1', '"version": 7')), "has version 7; this program reads 1"),
        (lambda: (about.write_text(text), save_file(tensors, arrays)), "lacks examples.band; export the features again"),
    ]:
        damage()
        with pytest.raises(ValueError, match=said):
            features.load_reports(tmp_path)


def test_activations_on_a_prompt_are_the_codes_of_its_tokens(model, documents):
    coder = coder_of()
    found = features.feature_activations(model, coder, interp.Prompts.from_ids(documents), rows=4)
    for row, dense in enumerate(dense_codes(model, coder, documents)):
        assert np.allclose(found.dense(row), dense.numpy(), rtol=1e-9, atol=1e-9)
        largest = dense.max(0).values
        assert found.top(row, 3) == [i for i in largest.argsort(descending=True).tolist() if largest[i] > 0][:3]
        assert found.n_active(row) == int((largest > 0).sum())
    assert len(found.table()) == sum(int((d > 0).sum()) for d in dense_codes(model, coder, documents))
    assert json.loads(found.to_json())["n_features"] == 20
    with pytest.raises(ValueError, match="no prompt 17"):
        found.dense(17)


def test_figures_and_tables_show_what_was_found(model, documents):
    (reports,) = features.feature_reports(model, coder_of(), documents)
    one = reports[reports.alive[0]]
    assert list(one.figure().data[0].y) == list(one.histogram)
    assert len(one.table()) == sum(len(e.tokens) for e in one.examples)
    assert reports.figure().data[0].x.min() == -5  # the dead feature
    weights = features.logit_weights(model, coder_of(), [7, 3], k=4)
    table = weights.table()
    assert len(table) == 2 * 2 * 4
    assert table.query("feature == 3 and direction == 'promoted'")["value"].tolist() == weights.promoted[1].tolist()
    assert list(weights.figure(1).data[0].x) == [*weights.suppressed[1].tolist(), *weights.promoted[1].flip(0).tolist()]
    assert json.loads(weights.to_json())["features"] == [7, 3]
    for wrong in ([20], []):
        with pytest.raises(KeyError, match="0-19, at least one"):
            features.logit_weights(model, coder_of(), wrong)
    found = features.feature_activations(model, coder_of(), interp.Prompts.from_ids(documents[:1]))
    assert np.array_equal(np.array(found.figure(0, 4).data[0].z), found.dense(0)[:, found.top(0, 4)].T)


def test_impossible_requests_are_refused(model, documents):
    for options, said in ({"top": 0}, "top=0"), ({"context": -1}, "context=-1"), ({"bands": 0}, "bands=0"):
        with pytest.raises(ValueError, match=said):
            features.feature_reports(model, coder_of(), documents, **options)
    with pytest.raises(KeyError, match="no feature 99"):
        features.feature_report(model, coder_of(), 99, documents)
    with pytest.raises(ValueError, match="at least one coder"), features.recorded(model, [], documents):
        pass
