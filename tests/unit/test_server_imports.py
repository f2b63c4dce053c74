"""What `pip install 'arts-plugin[server]'` brings is enough: no torch, no transformers, no llama.cpp is ever imported."""

from __future__ import annotations

import subprocess
import sys

from scripted_server import ScriptedServer

SCRIPT = """
import sys
banned = ("torch", "transformers", "llama_cpp", "lm_eval", "tokenizers", "huggingface_hub")
class Ban:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in banned:
            raise ImportError(f"{name} is not installed")
sys.meta_path.insert(0, Ban())
from arts_plugin import Arts
for judge in ({"verifier": "none"}, {"verifier": "reward", "reward_url": sys.argv[1]}):
    with Arts(backend="server", base_url=sys.argv[1], budget_trajectories=2, **judge) as arts:
        print(arts.solve("one").n_finished)
import arts_plugin.serve.app, arts_plugin.serve.service
assert not [name for name in sys.modules if name.split(".")[0] in banned]
"""


def test_nothing_else_is_needed() -> None:
    server = ScriptedServer(rewards="/classify")
    try:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, server.url], capture_output=True, text=True, timeout=120, check=False
        )
    finally:
        server.kill()
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2", "2"]
