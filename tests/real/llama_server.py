"""Build llama.cpp's own server into a folder: `python tests/real/llama_server.py FOLDER`.

Its sources come in the source distribution of llama-cpp-python, in the version of `constraints.txt`, so that both engines are
the same llama.cpp. It takes a C++ compiler, cmake and some ten minutes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "BUILD_SHARED_LIBS": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
    "LLAMA_OPENSSL": "OFF",
}


def server_of(folder: Path) -> Path:
    """The program."""
    return folder / "llama-server"


def build(folder: Path) -> None:
    """Make it, unless it is there."""
    if server_of(folder).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    (version,) = re.findall(r"^llama-cpp-python==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    wanted = f"llama-cpp-python=={version}"
    subprocess.run([*pip, "--no-binary", "llama-cpp-python", wanted, "--dest", folder], check=True)
    (archive,) = folder.glob("llama_cpp_python-*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    (source,) = folder.glob("llama_cpp_python-*/vendor/llama.cpp")
    options = [f"-D{name}={value}" for name, value in OPTIONS.items()]
    subprocess.run(["cmake", "-S", source, "-B", folder / "build", *options], check=True)
    jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1))
    subprocess.run(["cmake", "--build", folder / "build", "--target", "llama-server", "-j", jobs], check=True)
    (made,) = (path for path in (folder / "build").rglob("llama-server") if path.is_file())
    made.rename(server_of(folder))


if __name__ == "__main__":
    build(Path(sys.argv[1]))
