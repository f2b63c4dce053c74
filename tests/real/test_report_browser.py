"""The report's page in a real headless browser (opt-in, see `tests.real.browser`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from arts_plugin.report.page import write_report
from tests.real.browser import SCHEMES, SIZES, launched, opened, shoot
from tests.report_runs import chain_tree, random_trees, write_run
from tests.unit.test_view import HOSTILE

pytestmark = pytest.mark.browser
browser = pytest.fixture(scope="module")(launched)


@SCHEMES
@SIZES
def test_nothing_sticks_out(
    browser: Any,
    tmp_path: Path,
    name: str,
    width: int,
    height: int,
    scheme: str,
) -> None:
    """No sideways scrolling of the page itself, at any width; nothing is loaded from elsewhere, and all pictures are there."""
    trees, gold = random_trees(40, 16, steps=6)
    file, _ = write_report(write_run(tmp_path / "run", trees, gold))
    page, troubles = opened(browser, file, "footer", viewport={"width": width, "height": height}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width and troubles == []
    pictures = page.evaluate("[...document.images].map(i => i.complete && i.naturalWidth > 0)")
    assert len(pictures) >= 3 and all(pictures)
    shoot(page, f"report-{name}-{scheme}", full_page=True)


def test_hostile_text_is_shown_and_does_nothing(browser: Any, tmp_path: Path) -> None:
    """In names of subjects and scorers, and in ids that are named because they were left out."""
    trees = [chain_tree(f"{text} {i}", ["2", "1"], [1.0, 0.0]) for i, text in enumerate(HOSTILE)]
    for tree in trees:
        tree.scorer = HOSTILE[0]
        for node in tree.nodes:
            node.scores = {HOSTILE[0]: node.log_flow or 0.0} if node.log_flow is not None else {}
    trees[1].nodes[-1].scores = {HOSTILE[0]: float("nan")}
    file, _ = write_report(write_run(tmp_path / "run", trees, {t.meta["id"]: "1" for t in trees}))
    page, troubles = opened(browser, file, "footer")
    assert page.evaluate("window.hacked") is None and troubles == []
    assert HOSTILE[0] in page.locator("body").inner_text()
