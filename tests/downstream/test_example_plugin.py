"""The README's plugin, installed for real beside the package and run on a real model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models import THREADS, smollm2

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the plugin as pip installs it."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target"]
    done = subprocess.run(
        [*command, str(target), str(ROOT / "examples" / "plugin")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return target


def arts(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.path.insert(0, {str(site)!r}); from arts_plugin.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, timeout=300
    )


def test_it_is_listed_with_its_origin(site: Path) -> None:
    done = arts(site, "plugins", "--json")
    infos = {info["name"]: info for info in json.loads(done.stdout)}
    assert infos["example"]["origin"] == "arts-plugin-example"
    assert infos["example"]["version"] == "0.1.0"
    assert infos["example"]["provides"] == [["strategy", "wide"], ["extractor", "last_word"]]
    assert "arts_finished" in infos["example"]["hooks"]


def test_its_strategy_searches_a_real_model(site: Path) -> None:
    threads = ["--n_threads", str(THREADS)] if THREADS else []
    done = arts(
        site, "solve", "What is 2 + 3?", "--json", "--model", smollm2(), "--strategy", "wide", "--extract", "last_word",
        "--width", "3", "--budget-nodes", "9", "--max_gen_toks", "40", *threads,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any(line.startswith("[example] ") for line in lines)
    tree = json.loads(next(line for line in lines if line.startswith("{")))
    assert tree["strategy"] == "wide"
    assert sum(node["count"] for node in tree["nodes"][1:]) <= 9
    assert len([node for node in tree["nodes"] if node["parent"] == 0]) >= 2
