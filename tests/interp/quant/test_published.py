"""Every published quantity equals a slow computation of it; rows without weights or text say so, and none is lost."""

import json
import math
from pathlib import Path

import pytest
import torch

import interp
from interp import Edit, quant
from interp.quant.published import QUANTITIES, PublishedRow
from tests.tiny import WORDS

FILE = Path(__file__).parents[3] / "experiments" / "configs" / "quantizability_published.json"
TEXT = " ".join(word for i in range(40) for word in (WORDS[i], WORDS[(7 * i) % 47], WORDS[(3 * i + 1) % 47]))


def row(quantity, target=0.0, tolerance=1e9, **arguments):
    return PublishedRow("made-up", quantity, target, tolerance, arguments, "source", "nobody")


def measured(worded, published, **options):
    (check,) = quant.check_published("made-up", [published], TEXT, weights=worded, device="cpu", **options).checks
    assert check.status == "pass" and check.measured is not None
    return check.measured


def cut(model, length, bos):
    ids = model.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    ids = [2, *ids] if bos == "once" else ids
    step = length - (bos is True)
    return [([2] if bos is True else []) + ids[i : i + step] for i in range(0, len(ids) - step + 1, step)]


def slow_perplexity(model, rows, edits=()):
    losses = [-torch.log_softmax(model.logits(interp.Prompts.from_ids([r]), edits)[0, :-1], -1)[range(len(r) - 1), r[1:]] for r in rows]
    return math.exp(float(torch.cat(losses).double().mean()))


@pytest.mark.parametrize("bos", [False, True, "once"])
def test_perplexity_is_that_of_one_window_at_a_time(worded, bos):
    model = interp.load(worded)
    rows = cut(model, 16, bos)
    assert measured(worded, row("perplexity", context=16, bos=bos)) == pytest.approx(slow_perplexity(model, rows), rel=1e-5)
    part = measured(worded, row("perplexity", context=16, bos=bos), windows=2)
    assert part == pytest.approx(slow_perplexity(model, rows[:2]), rel=1e-5)


def test_sizes_in_the_stream_and_what_a_dimension_is_worth(worded):
    model = interp.load(worded)
    rows = cut(model, 16, False)
    site = "blocks.1.hook_resid_post"
    stream = torch.stack([model.capture(interp.Prompts.from_ids([r]), site)[site][0, 3] for r in rows]).abs().mean(0)
    where = {"layer": 1, "pos": 3, "context": 16, "bos": False}
    assert measured(worded, row("massive_value", dim=5, **where)) == pytest.approx(float(stream[5]), rel=1e-5)
    assert measured(worded, row("massive_dim", **where)) == int(stream.argmax())
    gone = Edit(site, "project_out", torch.eye(model.d_model)[5], pos=3)
    change = slow_perplexity(model, rows, gone) - slow_perplexity(model, rows)
    assert measured(worded, row("perplexity_change", dim=5, **where)) == pytest.approx(change, abs=1e-4)
    stats = quant.activation_statistics(model, interp.Prompts.from_ids(rows))
    assert measured(worded, row("outlier_dimensions", context=16, bos=False)) == len(stats.outlier_dimensions)


def test_sink_rates_of_natural_random_and_repeated_prompts_and_with_position_embeddings_swapped(worded):
    model = interp.load(worded)
    rows = interp.Prompts.from_ids(cut(model, 16, False)[:3])
    patterns = model.capture(rows, "blocks.*.attn.hook_pattern").values()
    alpha = torch.stack([x[..., 0].mean(-1) for x in patterns])
    natural = row("sink_rate", length=16, eps=0.2, kind="natural", bos=False)
    assert measured(worded, natural, probes=3) == pytest.approx(100 * float((alpha > 0.2).double().mean()))
    for kind in ("random", "repeated"):
        assert 0 <= measured(worded, row("sink_rate", length=16, eps=0.2, kind=kind, bos=False), probes=5) <= 100
    with torch.no_grad():
        table = model.anatomy.pos_embed.weight
        table[[0, 5]] = table[[5, 0]].clone()
    alpha = torch.stack([x[:, :, 5:, 5].mean(-1) for x in model.capture(rows, "blocks.*.attn.hook_pattern").values()])
    swapped = row("sink_rate", length=16, eps=0.1, kind="natural", bos=False, swap=5, key=5)
    assert measured(worded, swapped, probes=3) == pytest.approx(100 * float((alpha > 0.1).double().mean()))


def test_a_row_passes_within_its_tolerance_and_fails_beyond(worded):
    value = measured(worded, row("perplexity", context=16, bos=False))
    rows = [row("perplexity", value + shift, 0.5, context=16, bos=False) for shift in (0.4, -0.4, 0.6)]
    table = quant.check_published("made-up", rows, TEXT, weights=worded)
    assert [check.status for check in table.checks] == ["pass", "pass", "fail"] and not table.passed
    assert quant.check_published("made-up", rows[:2], TEXT, weights=worded).passed
    assert list(table.table()["status"]) == ["pass", "pass", "fail"] and json.loads(table.to_json())["passed"] is False


def test_without_weights_or_text_every_row_says_what_it_needs(worded, tmp_path):
    rows = quant.read_published(FILE)
    table = quant.check_published("gpt2", rows, TEXT, weights=tmp_path / "nothing")
    assert len(table.checks) == sum(r.model == "gpt2" for r in rows) > 10 and not table.passed
    assert {check.status for check in table.checks} == {"needs weights"}
    assert all(check.said.startswith("needs gpt2 weights: interp.load(") and "FileNotFoundError" in check.said for check in table.checks)
    (check,) = quant.check_published("made-up", [row("perplexity", context=16, bos=False)], weights=worded).checks
    assert check.status == "needs text"
    (check,) = quant.check_published("made-up", [row("sink_rate", length=8, eps=0.3, kind="random", bos=False)], weights=worded).checks
    assert check.status == "pass"
    with pytest.raises(ValueError, match="No published rows for 'nope'; there are rows for gpt2"):
        quant.check_published("nope", rows)


def test_the_file_of_rows_is_whole_and_what_cannot_be_computed_is_listed_with_its_reason():
    rows = quant.read_published(FILE)
    assert {r.quantity for r in rows} == {*QUANTITIES, "excluded"} and all(r.source for r in rows)
    for r in rows:
        assert (r.tolerance is None) == (r.quantity == "excluded") and (r.note or r.quantity != "excluded")
    table = quant.check_published("facebook/opt-13b", [r for r in rows if r.quantity == "excluded"])
    assert {check.status for check in table.checks} == {"excluded"} and not table.passed


def test_files_that_are_no_rows_are_refused(tmp_path):
    file = tmp_path / "rows.json"
    good = vars(row("perplexity", context=16)) | {"arguments": {"context": 16}}
    for change, said in (({"quantity": "nope"}, "no quantity 'nope'"), ({"more": 1}, "a row has")):
        file.write_text(json.dumps({"rows": [good | change]}))
        with pytest.raises(ValueError, match=said):
            quant.read_published(file)
    file.write_text("[]")
    with pytest.raises(ValueError, match="no rows"):
        quant.read_published(file)
    with pytest.raises(FileNotFoundError):
        quant.read_published(tmp_path / "none.json")


def test_text_without_a_tokenizer_is_refused_with_a_way_out(folders):
    with pytest.raises(ValueError, match="no tokenizer"):
        quant.check_published("made-up", [row("perplexity", context=8, bos=False)], TEXT, weights=folders["gpt2"], device="cpu")
