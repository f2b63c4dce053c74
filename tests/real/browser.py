"""Pages in a real headless browser. Opt-in: `pip install playwright` and ARTS_TEST_BROWSER=/path/to/chromium.

With ARTS_TEST_SHOTS=FOLDER, pictures of the pages are left there, to be looked at.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BROWSER = os.environ.get("ARTS_TEST_BROWSER")
if not BROWSER:
    pytest.skip("ARTS_TEST_BROWSER names no browser", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api")

SCHEMES = pytest.mark.parametrize("scheme", ["light", "dark"])
SIZES = pytest.mark.parametrize(("name", "width", "height"), [("desktop", 1440, 900), ("phone", 390, 844)])


def launched() -> Iterator[Any]:
    """A browser, closed at the end."""
    with playwright.sync_playwright() as started:
        made = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield made
        made.close()


def opened(browser: Any, page: Path, ready: str = "body[data-ready]", **context: Any) -> tuple[Any, list[str]]:
    """A page, and everything that went wrong in it or left it."""
    troubles: list[str] = []
    made = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **context}).new_page()
    made.on("pageerror", lambda error: troubles.append(f"error: {error}"))
    made.on("console", lambda message: troubles.append(f"console: {message.text}"))
    made.on("dialog", lambda dialog: (troubles.append("dialog"), dialog.dismiss()))
    made.on(
        "request", lambda request: troubles.append(f"request: {request.url}") if _leaves(request.url, page) else None
    )
    made.goto(page.as_uri())
    made.wait_for_selector(ready)
    return made, troubles


def _leaves(url: str, page: Path) -> bool:
    return url != page.as_uri() and not url.startswith("data:")


def shoot(page: Any, name: str, full_page: bool) -> None:
    """A picture, where they are wanted."""
    if shots := os.environ.get("ARTS_TEST_SHOTS"):
        page.screenshot(path=str(Path(shots) / f"{name}.png"), full_page=full_page)
