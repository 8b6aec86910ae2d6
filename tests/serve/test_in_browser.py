"""The page in headless Chromium: images chosen, dropped and pasted, told to a screen reader, by keyboard alone."""

import base64

import pytest

from tests.browser import pages
from tests.serve.test_serve import BIRDS, png, start

pytestmark = pytest.mark.slow

GIVE = """([data, kind]) => {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    const moved = new DataTransfer();
    moved.items.add(new File([bytes], kind + ".png", { type: "image/png" }));
    const event = kind === "paste"
        ? new ClipboardEvent("paste", { clipboardData: moved, bubbles: true })
        : new DragEvent("drop", { dataTransfer: moved, bubbles: true, cancelable: true });
    document.body.dispatchEvent(event);
}"""

DRAWN = "document.querySelector('canvas').toDataURL()"


def test_page(finished, tmp_path):
    with pages() as page_of:
        server, address = start(finished[0])
        try:
            look(page_of, address, tmp_path)
        finally:
            server.terminate()
            assert server.wait(30) == 0


def look(page_of, address, folder):
    names = [folder / "a <b>bird.png", folder / "b.png"]
    for name, image in zip(names, BIRDS, strict=False):
        name.write_bytes(png(image))
    (folder / "notes.txt").write_text("no image")
    for scheme, width in (("light", 1000), ("dark", 400)):
        page, complaints = page_of(scheme, width)
        page.goto(address)
        # To the button by Tab alone.
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "choose"
        page.set_input_files("#choose", [str(name) for name in names])
        page.locator("#results table").nth(1).wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.locator("#results h2").all_text_contents() in (
            ["b.png", "a <b>bird.png"],
            ["a <b>bird.png", "b.png"],
        )
        page.get_by_text("2 images seen").wait_for()
        assert page.locator("#status").get_attribute("role") == "status"
        words = page.locator("#results canvas").first.get_attribute("aria-label")
        assert "its box from" in words
        before = page.evaluate(DRAWN)
        page.focus("#show-heat")
        page.keyboard.press("Space")
        assert page.evaluate(DRAWN) != before
        for number, kind in enumerate(("paste", "drop"), start=3):
            page.evaluate(GIVE, [base64.b64encode(png(BIRDS[2])).decode(), kind])
            page.locator("#results table").nth(number - 1).wait_for()
        assert complaints == []
        page.set_input_files("#choose", str(folder / "notes.txt"))
        page.locator(".error").wait_for()
        assert "not an image of a known format" in page.inner_text(".error")
        assert all("422" in complaint for complaint in complaints)  # Chromium names each refusal
        page.focus("#clear")
        page.keyboard.press("Enter")
        assert page.locator("#results > li").count() == 0
