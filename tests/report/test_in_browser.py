"""The report in headless Chromium: no complaints, both themes, a phone's width, and by keyboard alone."""

import pytest

pytest.importorskip("jinja2", reason="jinja2, of the extra `report`, is not installed")

from c2f_jax.report.page import write
from c2f_jax.runs.workdir import read_config
from tests.browser import pages

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report(finished, tmp_path_factory):
    workdir, _ = finished
    return write(workdir, read_config(workdir), output=tmp_path_factory.mktemp("report") / "report.html")


def focused(page):
    return page.evaluate("document.activeElement.id || document.activeElement.textContent")


def test_report(report):
    with pages() as page_of:
        colours = set()
        for scheme, width in (("light", 1200), ("dark", 400)):
            page, complaints = page_of(scheme, width)
            page.goto(report.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") == width  # nothing sticks out
            colours.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
            broken = "[...document.images].filter(image => !image.complete || image.naturalWidth === 0).length"
            assert page.evaluate(broken) == 0 and page.locator("img").count() > 10
            assert complaints == []
        assert len(colours) == 2

        page, complaints = page_of("light", 1200)
        page.goto(report.as_uri())
        # Classes: typed into the filter, counted, sorted with the keyboard.
        rows = page.locator("#class-table tbody tr")
        assert rows.count() == 16
        page.focus("#class-filter")
        page.keyboard.type("RED-capped ")
        assert page.locator("#class-table tbody tr:visible").count() == 8
        assert page.inner_text("#class-count") == "8 classes"
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        assert focused(page) == "class"
        page.keyboard.press("Enter")
        names = page.locator("#class-table tbody th").all_text_contents()
        assert names == sorted(names)
        page.keyboard.press("Enter")
        assert page.locator("#class-table tbody th").all_text_contents() == sorted(names, reverse=True)
        assert page.locator("#class-table th").first.get_attribute("aria-sort") == "descending"
        # Images: right ones, by arrow keys.
        cards = page.locator(".card[data-class]:visible")
        everything = cards.count()
        page.focus("#image-right")
        page.keyboard.press("ArrowDown")
        right = cards.count()
        assert right == page.locator('.card[data-right="yes"]').count()
        page.keyboard.press("ArrowDown")
        assert cards.count() == everything - right
        # A confused pair opens by keyboard and shows images; boxes go and come back.
        first = page.locator(".pair summary").first
        first.focus()
        page.keyboard.press("Enter")
        assert page.locator(".pair[open] .photo:visible").count() > 0
        boxes = page.locator(".box:visible")
        assert boxes.count() > 0
        page.focus("#show-boxes")
        page.keyboard.press("Space")
        assert boxes.count() == 0
        assert complaints == []
