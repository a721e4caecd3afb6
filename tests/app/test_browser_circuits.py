"""The page of patching and circuits as a person uses it, in a real browser, with mouse and keyboard."""

from typing import Any
from urllib.parse import unquote, urlencode

import pytest

from app import circuit_answers, pair_answers
from app.case import PAIR, Case, CircuitView, PatchMap
from app.service import Service
from tests.app.test_browser import PROMPT, address, copied, settle, visitor, wait_for, wait_for_address  # noqa: F401

pytestmark = pytest.mark.browser

OTHER = "John and Mary went to the store , Anna gave a drink to"
WORDS = {"a": PROMPT, "b": OTHER, "t": "Mary", "f": "John"}


@pytest.fixture(scope="module")
def expected(speaking) -> tuple[Service, Case]:
    """The numbers that the page must show."""
    folder = speaking["gpt2"]
    return Service(folder), Case(folder, PROMPT, "Mary", "John", corrupt=OTHER)


def open_circuits(page: Any, address: str, **more: str) -> None:  # noqa: F811
    page.goto(f"{address}/circuits?{urlencode(WORDS | more)}")
    page.wait_for_selector('[data-testid="stMetric"]')
    settle(page)


def test_a_click_on_a_cell_shows_its_run_and_the_copied_link_brings_it_back(visitor, address, expected):  # noqa: F811
    from dataclasses import replace

    service, case = expected
    page = visitor()
    open_circuits(page, address)
    page.get_by_label("Layer 1, position 9 John / Anna").click()
    value = f"{pair_answers.patched_cell(service, replace(case, patch=PatchMap(cell='1.9'))).value:.3f}"
    wait_for(page, "Run on B, patched", value)
    wait_for_address(page, "cell=1.9")
    page.get_by_text("B into A (noising)").click()
    wait_for_address(page, "way=noise")
    noised = f"{pair_answers.patched_cell(service, replace(case, patch=PatchMap(way='noise', cell='1.9'))).value:.3f}"
    wait_for(page, "Run on A, patched", noised)
    other = visitor()
    other.goto(copied(page, "Copy link"))
    wait_for(other, "Run on A, patched", noised)
    assert "circuits.patch(" in copied(page, "Copy Python")


def test_the_map_is_used_with_the_keyboard(visitor, address):  # noqa: F811
    page = visitor()
    open_circuits(page, address, site="z", grid="head")
    page.get_by_label("Layer 0, head 0").focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowRight", "Enter"):
        page.keyboard.press(key)
    wait_for_address(page, "cell=1.2")
    page.get_by_role("button", name="Add as edit: a1.2:zero").click()
    wait_for_address(page, "e=a1.2:zero")
    assert "cell=1.2" in page.url and "e=a1.2:zero" in unquote(page.url)


def test_the_size_slider_gives_another_circuit(visitor, address, expected):  # noqa: F811
    from dataclasses import replace

    service, case = expected
    found = circuit_answers.found(service, replace(case, circuit=CircuitView(PAIR, "eap", size=0.3)))
    page = visitor()
    open_circuits(page, address, show="circuit", task=PAIR, method="eap", size="0.3")
    for size in (0.3, 0.2, 0.15):
        wait_for_address(page, f"size={size}")
        i = found.at(size)
        wait_for(page, "Edges", f"{found.curve.n_edges[i]} of {found.scores.graph.n_edges}")
        wait_for(page, "Faithfulness", f"{float(found.curve.values[i]):.3f}")
        page.get_by_role("slider").press("ArrowLeft")


def test_a_node_of_the_drawing_is_followed_with_the_keyboard(visitor, address):  # noqa: F811
    page = visitor()
    open_circuits(page, address, show="circuit", task=PAIR, method="eap", size="1")
    page.get_by_role("button", name="Input:").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.get_by_text("is read by: showing").wait_for()
    wait_for_address(page, "node=a0.h")
    page.locator(".curve circle.dot").first.click()
    wait_for_address(page, "size=0.005")
    assert "node=a0.h" in page.url and "size=0.005" in page.url


def test_prompts_of_different_lengths_and_hostile_ones_are_text(visitor, address):  # noqa: F811
    page = visitor()
    page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    page.goto(f"{address}/circuits?{urlencode(WORDS | {'b': 'John and Mary', 'node': '<img src=x>', 'cell': '<b>'})}")
    page.get_by_text("Position i of one run goes into").wait_for()
    page.get_by_role("button", name="Make B a copy of A").click()
    page.get_by_text("A and B are the same prompt").wait_for()
    page.goto(f"{address}/circuits?{urlencode(WORDS | {'b': '<img src=x onerror=alert(1)>'})}")
    page.get_by_text("does not know").wait_for()
    settle(page)
    assert page.locator("img[src=x]").count() == 0


def test_without_a_clipboard_the_text_is_shown(visitor, address):  # noqa: F811
    page = visitor()
    page.add_init_script("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    open_circuits(page, address)
    page.get_by_role("button", name="Copy Python").click()
    assert "circuits.patch(" in page.get_by_role("textbox", name="Copy Python").input_value()
