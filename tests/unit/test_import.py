"""Importing is cheap: no model library comes in before it is asked for."""

import json
import os
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "llama_cpp", "lm_eval", "datasets", "vllm", "matplotlib", "safetensors")


def imported_by(code: str) -> set[str]:
    """Names of the top-level packages in a fresh interpreter after `code`."""
    program = f"{code}\nimport json, sys\nprint(json.dumps(sorted({{m.split('.')[0] for m in sys.modules}})))"
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        # -S leaves out .pth files: what they import is not ours to answer for, and tested in downstream/.
        [sys.executable, "-S", "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    "code",
    [
        "import arts_plugin",
        "import arts_plugin.plugins, arts_plugin.builtin, arts_llama_cpp.plugin",
        "from arts_plugin import Arts, ReasoningTree, Settings, hookimpl",
        "import arts_plugin.search.driver, arts_plugin.verifier, arts_plugin.sampling, arts_plugin.steps",
        "import arts_plugin.answers.extract, arts_plugin.answers.graders",
        "import arts_plugin.cli, arts_plugin.training.commands, arts_plugin.checkpoint, arts_plugin.value_head",
        "import arts_plugin.training.sdf, arts_plugin.training.rescore, arts_plugin.training.compare",
        "from arts_plugin.plugins import Plugins\n"
        "import arts_plugin.builtin\n"
        "plugins = Plugins(load=False)\n"
        "plugins.register(arts_plugin.builtin, 'builtin')\n"
        "assert plugins.infos()",
    ],
)
def test_no_model_library_is_imported(code: str) -> None:
    modules = imported_by(code)
    assert "arts_plugin" in modules
    assert not modules & set(HEAVY)


def test_the_package_alone_imports_no_numpy() -> None:
    assert "numpy" not in imported_by("import arts_plugin")
    assert "numpy" in imported_by("import arts_plugin.sampling")


def test_every_public_name_is_there() -> None:
    import arts_plugin

    for name in arts_plugin.__all__:
        assert getattr(arts_plugin, name) is not None
        assert name in dir(arts_plugin)
    with pytest.raises(AttributeError, match="'no_such'"):
        _ = arts_plugin.no_such  # type: ignore[attr-defined]
