"""The explorer as a person uses it, in a real browser: numbers on the page, links that carry them, two people at once."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

import app

pytestmark = pytest.mark.browser

MAIN = Path(app.__file__).parent / "main.py"
PROMPT = "John and Mary went to the store , John gave a drink to"
PATIENCE = 90_000  # milliseconds; a loaded machine is slow, and nothing here is about speed
IDLE = '[data-testid="stApp"][data-test-script-state="notRunning"]'
# Streamlit looks for its server below the page's own path first; a deep link makes it log these two.
EXPECTED = re.compile(r"/(heads|circuits|recall|features|outliers)/_stcore/(health|host-config)")


@pytest.fixture(scope="module")
def address(speaking) -> Iterator[str]:
    """A running explorer on the tiny GPT-2."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", str(MAIN), "--server.headless", "true", "--server.port", str(port)]
    environment = os.environ | {"WORKBENCH_MODEL": speaking["gpt2"], "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=MAIN.parents[1])
    url = f"http://localhost:{port}"
    try:
        wait_until_healthy(url)
        yield url
    finally:
        server.terminate()
        try:
            server.wait(PATIENCE / 1000)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def wait_until_healthy(url: str) -> None:
    end = time.monotonic() + PATIENCE / 1000
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(f"{url}/_stcore/health", timeout=5).read()
            return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"The explorer did not answer within {PATIENCE / 1000:.0f} s.")


@pytest.fixture
def visitor(chromium, address) -> Iterator[Callable[[], Any]]:
    """visitor() is a new person's browser page; what its console complains of fails the test."""
    contexts, complaints = [], []

    def new() -> Any:
        context = chromium.new_context(viewport={"width": 1400, "height": 1200}, permissions=["clipboard-read", "clipboard-write"])
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda m: complaints.append(f"{m.text} {m.location}") if m.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        return page

    yield new
    for context in contexts:
        context.close()
    assert not [text for text in complaints if not EXPECTED.search(text)]


def settle(page: Any) -> None:
    """Until the server has nothing more to send."""
    page.wait_for_selector(IDLE)
    page.wait_for_timeout(250)
    page.wait_for_selector(IDLE)


def number(page: Any, label: str) -> Any:
    return page.locator('[data-testid="stMetric"]', has_text=label).locator('[data-testid="stMetricValue"]')


def metric(page: Any, label: str) -> str:
    return number(page, label).inner_text()


def wait_for(page: Any, label: str, value: str | re.Pattern[str]) -> str:
    """Until the number is this one; what it then is."""
    from playwright.sync_api import expect

    expect(number(page, label)).to_have_text(value, timeout=PATIENCE)
    return metric(page, label)


def wait_for_change(page: Any, label: str, before: str) -> str:
    return wait_for(page, label, re.compile(rf"^(?!{re.escape(before)}$)"))


def wait_for_address(page: Any, part: str) -> None:
    """Until the address holds this: it is written when a run is done, after all that the run draws."""
    page.wait_for_url(lambda url: part in unquote(url))
    settle(page)


def copied(page: Any, label: str) -> str:
    """What one click on a button puts into the clipboard."""
    page.get_by_role("button", name=label).click()
    page.get_by_role("button", name="Copied").wait_for()
    return page.evaluate("navigator.clipboard.readText()")


def open_heads(page: Any, address: str, **more: str) -> None:
    from urllib.parse import urlencode

    page.goto(f"{address}/heads?{urlencode({'a': PROMPT, 't': 'Mary', 'f': 'John', **more})}")
    page.wait_for_selector('[data-testid="stMetric"]')
    settle(page)


def test_from_the_first_page_to_a_head(visitor, address):
    page = visitor()
    page.goto(address)
    page.get_by_text("Look inside a language model").wait_for()
    page.get_by_text("Indirect object").wait_for()
    page.get_by_role("link", name="Heads").first.click()
    page.wait_for_selector('[data-testid="stMetric"]')
    settle(page)
    page.get_by_label(re.compile("^Head 1.2:")).click()
    page.get_by_text("Scale this head").wait_for()
    wait_for_address(page, "head=1.2")
    page.get_by_text("Where does it look?").wait_for()
    assert "head=1.2" in page.url


def test_a_curated_prompt_opens_with_its_words(visitor, address):
    page = visitor()
    page.goto(address)
    page.get_by_role("link", name="Look at its heads").first.click()
    page.wait_for_url(re.compile("/heads"))
    settle(page)  # the tiny model does not know these words: a message with a way on, and no traceback
    page.get_by_text("does not know").wait_for()
    page.get_by_role("button", name="Start over").click()
    page.wait_for_selector('[data-testid="stMetric"]')
    assert not page.get_by_text("does not know").count()


def test_scaling_changes_the_numbers_and_the_link_carries_them(visitor, address):
    page = visitor()
    open_heads(page, address, head="1.2")
    clean = metric(page, "Logit difference")
    slider = page.get_by_role("slider")
    slider.focus()
    for _ in range(4):
        slider.press("ArrowLeft")
    wait_for_address(page, "e=a1.2*0.6")  # where the last of the four moves ends, whichever runs were made on the way
    edited = wait_for_change(page, "Logit difference", clean)
    other = visitor()
    other.goto(copied(page, "Copy link"))
    assert wait_for(other, "Logit difference", edited) == metric(page, "Logit difference") != clean


def test_the_curve_sets_the_factor_and_back_undoes_it(visitor, address):
    page = visitor()
    open_heads(page, address, head="0.1")
    clean = metric(page, "Logit difference")
    page.locator(".curve circle.dot").first.click()
    wait_for_address(page, "e=a0.1*-2")
    edited = wait_for_change(page, "Logit difference", clean)
    page.get_by_role("button", name="Remove this edit").or_(
        page.locator('button:has([data-testid="stIconMaterial"]:text("close"))')
    ).first.click()
    wait_for(page, "KL to clean", "0.000")
    wait_for(page, "Logit difference", clean)
    page.wait_for_url(lambda url: "e=" not in url)
    page.go_back()
    wait_for(page, "Logit difference", edited)
    wait_for_address(page, "e=a0.1*-2")
    assert metric(page, "Logit difference") == edited != clean


def test_the_grid_is_used_with_the_keyboard(visitor, address):
    page = visitor()
    open_heads(page, address)
    page.get_by_label(re.compile("^Head 0.0:")).focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.get_by_text("Scale this head").wait_for()
    wait_for_address(page, "head=1.1")
    assert "head=1.1" in unquote(page.url)


def test_two_people_with_different_edits_see_their_own_numbers(visitor, address):
    first, second, calm = visitor(), visitor(), visitor()
    edits = {first: "a1.2*-2", second: "a0.1:zero,m1:zero@-1", calm: ""}
    expected = {}
    for page, e in edits.items():
        open_heads(page, address, **({"e": e} if e else {}))
        expected[page] = metric(page, "Logit difference")
    assert len(set(expected.values())) == 3
    for page, e in edits.items():  # all three at once, with words that nothing is remembered of
        page.goto(f"{address}/heads?a=Anna+{PROMPT.replace(' ', '+')}&t=Mary&f=John" + (f"&e={e}" if e else ""))
    again = {}
    for page in edits:
        page.get_by_label("Prompt").and_(page.locator('[value^="Anna"]')).wait_for()
        settle(page)
        again[page] = metric(page, "Logit difference")
    assert len(set(again.values())) == 3 and metric(calm, "KL to clean") == "0.000"
    for page, e in edits.items():
        open_heads(page, address, **({"e": e} if e else {}))
        assert metric(page, "Logit difference") == expected[page]


def test_a_hostile_link_shows_text(visitor, address):
    page = visitor()
    page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    page.goto(f"{address}/heads?a=%3Cimg+src%3Dx+onerror%3Dalert(1)%3E&e=%3Cscript%3Ealert(2)%3C/script%3E&t=%3Cb%3E")
    page.get_by_text("does not know").wait_for()
    settle(page)
    assert page.locator("img[src=x]").count() == 0
