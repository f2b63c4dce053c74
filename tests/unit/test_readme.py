"""What the README shows is what the code has."""

from __future__ import annotations

from pathlib import Path

import pytest

from arts_plugin.settings import describe

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["pyproject.toml", "arts_example.py"])
def test_the_plugin_is_shown_as_it_is(name: str) -> None:
    assert (ROOT / "examples" / "plugin" / name).read_text(encoding="utf-8").strip() in README


def test_every_setting_is_documented_with_its_default() -> None:
    for name, default, doc in describe():
        shown = "" if default is None else f"`{default!r}`"
        assert f"| `{name}` | {shown} | {doc} |" in README


def test_nothing_is_left_to_fill_in() -> None:
    assert "@@" not in README
