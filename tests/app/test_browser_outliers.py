"""The pages of outliers and features in a real browser."""

from typing import Any
from urllib.parse import urlencode

import pytest

from tests.app.test_browser import PROMPT, address, settle, visitor, wait_for_address  # noqa: F401

pytestmark = pytest.mark.browser
WORDS = {"a": PROMPT, "t": "Mary", "f": "John"}


def open_page(page: Any, address: str, name: str, **more: str) -> None:  # noqa: F811
    page.goto(f"{address}/{name}?{urlencode(WORDS | more)}")
    page.wait_for_selector('[data-testid="stMetric"]')
    settle(page)


def test_a_click_on_the_norm_map_traces_that_dimension(visitor, address):  # noqa: F811
    page = visitor()
    open_page(page, address, "outliers")
    page.get_by_label("leaving L0").first.click()
    wait_for_address(page, "part=trace")
    assert "dim=0." in page.url
    page.get_by_text("Loss without it", exact=True).wait_for()


def test_the_graph_s_thresholds_need_no_server_and_a_feature_opens_its_dashboard(visitor, address):  # noqa: F811
    page = visitor()
    open_page(page, address, "features", model="demo-gpt2", features="graph", a="The capital of Denmark is", t="Copenhagen", f="Vilnius")
    shown = page.locator(".fgraph .shown")
    shown.wait_for()
    before, url = shown.inner_text(), page.url
    page.get_by_label("Share of the influence that nodes hold").fill("30")
    assert shown.inner_text() != before and page.url == url
    page.get_by_label("Share of the influence that nodes hold").fill("95")
    page.locator(".fgraph .node.feature").first.press("Enter")
    wait_for_address(page, "feature=")
    page.get_by_text("Strongest examples").wait_for()
