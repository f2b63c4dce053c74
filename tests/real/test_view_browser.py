"""The viewer in a real headless browser (opt-in, see `tests.real.browser`)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from arts_plugin.report.view import write_view
from tests.real.browser import SCHEMES, SIZES, launched, opened, shoot
from tests.report_runs import chain_tree, random_trees, write_run
from tests.unit.test_view import HOSTILE

pytestmark = pytest.mark.browser
browser = pytest.fixture(scope="module")(launched)


def test_hostile_text_is_shown_and_does_nothing(browser: Any, tmp_path: Path) -> None:
    """In questions, ids, steps and answers, wherever they are shown."""
    trees = [chain_tree(f"{text} {i}", [text, "1"], [1.0, 0.0]) for i, text in enumerate(HOSTILE)]
    for tree, text in zip(trees, HOSTILE, strict=True):
        tree.prompt = tree.meta["question"] = tree.nodes[1].text = tree.scorer = text
    page, troubles = opened(
        browser, write_view(write_run(tmp_path / "run", trees, {t.meta["id"]: "1" for t in trees}))[0]
    )
    for number in range(len(HOSTILE)):
        page.locator(f"#row-{number}").click()
        page.wait_for_selector(f'body[data-ready="{number}"]')
        for node in page.locator(".node").all():
            node.locator("circle").click()
        page.locator("#search").fill(HOSTILE[number][:10].strip("\x00\u2028\u2029"))
        page.locator("#search").fill("")
    assert page.evaluate("window.hacked") is None and troubles == []
    page.locator("#row-0").click()
    page.wait_for_selector('body[data-ready="0"]')
    page.locator("#node-1 circle").click()
    assert HOSTILE[0] in page.locator("#question").inner_text()
    assert HOSTILE[0] in page.locator("#details").inner_text()
    page.locator("#row-4").click()
    page.wait_for_selector('body[data-ready="4"]')
    assert "U+202E" in page.locator("#question").inner_text() and "\u202e" not in page.locator("body").inner_text()


def test_keys_filters_and_what_is_marked(browser: Any, tmp_path: Path) -> None:
    trees, gold = random_trees(40, 8)
    page, troubles = opened(browser, write_view(write_run(tmp_path / "run", trees, gold))[0])
    page.locator("#list").focus()
    page.keyboard.press("ArrowDown")
    page.wait_for_selector('body[data-ready="1"]')
    page.locator("#tree").focus()
    page.keyboard.press("Home")
    assert page.locator("#details h2").first.inner_text() == "The prompt"
    page.keyboard.press("ArrowRight")
    assert page.locator("#details h2").first.inner_text() == "Step 1"
    right = sum(n.answer == "1" for n in trees[1].nodes)
    assert page.locator("#tree tspan.right").count() == right and page.locator("#tree tspan.wrong").count() == 8 - right
    assert "★" in page.locator(f"#node-{trees[1].chosen} text").text_content()
    page.locator("#filter").select_option("none")
    none = sum(not any(n.answer == "1" for n in t.nodes) for t in trees)
    assert page.locator("#count").inner_text() == f"{none} of 40 questions" and troubles == []


def test_a_thousand_trees_of_sixty_four_traces(browser: Any, tmp_path: Path) -> None:
    """Rows in the page are bounded, trees are unpacked one at a time; times are printed, not asserted."""
    trees, gold = random_trees(1000, 64, steps=8)
    file = write_view(write_run(tmp_path / "run", trees, gold))[0]
    start = time.monotonic()
    page, troubles = opened(browser, file)
    loaded = time.monotonic() - start
    assert page.locator(".row").count() < 40 and page.locator(".node").count() == 64 * 8 + 1
    start = time.monotonic()
    for place in range(0, 66 * 1000, 6600):
        page.evaluate(f"document.getElementById('list').scrollTop = {place}")
        page.wait_for_timeout(1)
        assert page.locator(".row").count() < 40
    scrolled = time.monotonic() - start
    start = time.monotonic()
    page.locator("#search").fill("p99")
    page.locator("#row-999").click()
    page.wait_for_selector('body[data-ready="999"]')
    print(
        f"{file.stat().st_size / 1e6:.0f} MB: loaded in {loaded:.2f} s, scrolled ten times in {scrolled:.2f} s, found and "
        f"opened a tree in {time.monotonic() - start:.2f} s, heap {page.evaluate('performance.memory.usedJSHeapSize') / 1e6:.0f} MB"
    )
    assert troubles == []


@SCHEMES
@SIZES
def test_nothing_sticks_out(browser: Any, tmp_path: Path, name: str, width: int, height: int, scheme: str) -> None:
    """No sideways scrolling of the page itself, at any width."""
    trees, gold = random_trees(12, 16, steps=6)
    file = write_view(write_run(tmp_path / "run", trees, gold))[0]
    page, troubles = opened(browser, file, viewport={"width": width, "height": height}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width and troubles == []
    shoot(page, f"view-{name}-{scheme}", full_page=name == "phone")
