"""A headless Chromium for tests; they skip where there is none."""

import shutil
from contextlib import contextmanager

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def pages():
    """(scheme, width) -> (a page, what it complained of: errors, and requests to other than files and loopback)."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])

        def page(scheme, width):
            complaints = []
            context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})
            found = context.new_page()
            found.set_default_timeout(60_000)
            found.on(
                "console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None
            )
            found.on("pageerror", lambda error: complaints.append(str(error)))
            found.on(
                "request",
                lambda request: (
                    None
                    if request.url.startswith(("file:", "data:", "blob:", "http://127.0.0.1:"))
                    else complaints.append(request.url)
                ),
            )
            return found, complaints

        yield page
        browser.close()
