"""Options of one backend beside another: refused where nothing would read them."""

from pathlib import Path
from typing import Any

import click.testing
import pytest
from scripted import ScriptedBackend

from arts_plugin import cli, foreign
from arts_plugin.api import Arts
from arts_plugin.checkpoint import Backbone, Card, Proposer
from arts_plugin.errors import SettingsError
from arts_plugin.hookspecs import hookimpl
from arts_plugin.plugins import Plugins
from arts_plugin.settings import BACKENDS_OF, Settings, describe

HF, LLAMA, SERVER = "backend=hf", "backend=llama_cpp", "backend=server"


@pytest.mark.parametrize(
    ("given", "having"),
    [
        ({"base_url": "http://127.0.0.1:8000/v1"}, SERVER),
        ({"features_url": "http://127.0.0.1:8001"}, SERVER),
        ({"timeout": 5}, SERVER),
        ({"device": "cuda:0"}, HF),
        ({"device": "cpu"}, HF),
        ({"dtype": "bfloat16"}, HF),
        ({"quantize": "4bit"}, HF),
        ({"revision": "main"}, HF),
        ({"trust_remote_code": True}, HF),
        ({"backend": "hf", "n_gpu_layers": -1}, LLAMA),
        ({"backend": "hf", "flash_attn": False}, LLAMA),
        ({"backend": "hf", "cache_type_k": "q8_0"}, LLAMA),
        ({"backend": "hf", "base_url": "http://127.0.0.1:8000/v1"}, SERVER),
        ({"backend": "server", "dtype": "float16"}, HF),
        ({"backend": "server", "lora": "a.gguf"}, f"{HF} or {LLAMA}"),
        ({"backend": "server", "n_threads": 2}, f"{HF} or {LLAMA}"),
        ({"backend": "server", "frequency_penalty": 0.5}, f"{HF} or {LLAMA}"),
        ({"backend": "server", "grammar": 'root ::= "a"'}, f"{HF} or {LLAMA}"),
        ({"verifier": "logprob", "device": "cuda"}, HF),
    ],
)
def test_refused_with_the_backend_that_has_it(given: dict[str, Any], having: str) -> None:
    (name,) = given.keys() - {"backend", "verifier"}
    with pytest.raises(SettingsError) as error:
        Arts(**given)
    backend = given.get("backend", "llama_cpp")
    assert f"{name} is {getattr(Settings.of(given), name)!r}, an option of {having}." in str(error.value)
    assert f"The backend is {backend}, which would ignore it: set {having}, or leave {name} away" in str(error.value)


def test_every_option_of_a_backend_at_once() -> None:
    with pytest.raises(SettingsError, match=r"device is .*hf; dtype is .*hf\. .*would ignore them: set backend=hf, or"):
        Arts(device="cuda", dtype="float32")
    with pytest.raises(SettingsError, match="set the backend that you mean"):
        Arts(backend="server", device="cuda", n_gpu_layers=1)


def test_on_the_command_line() -> None:
    for command in (["solve", "2+2?"], ["serve"]):
        done = click.testing.CliRunner().invoke(cli.main, [*command, "--base_url", "http://127.0.0.1:8000/v1"])
        assert (
            done.exit_code == 1 and "base_url is 'http://127.0.0.1:8000/v1', an option of backend=server" in done.output
        )


def test_the_default_is_no_demand() -> None:
    """It asks for nothing that another backend does not do."""
    defaults = {name: default for name, default, _ in describe() if name in BACKENDS_OF}
    for backend in ("llama_cpp", "hf", "server"):
        Arts(backend=backend, **defaults)


def test_every_option_is_some_backends_own() -> None:
    for name, backends in BACKENDS_OF.items():
        assert backends < {"llama_cpp", "hf", "server"}, f"{name} of all is no option of a backend"


def test_an_engine_made_by_hand_has_read_its_options() -> None:
    Arts(Settings.of(device="cpu"), engine=ScriptedBackend({}))


def verifier_of(folder: Path, adapter: str) -> str:
    body = Backbone("m", "sha256:0", "m.gguf", 4)
    proposer = Proposer("m", "sha256:0", 4)
    Card("v", proposer, ("", ""), "\n", "last", "terminal", "identity", True, backbone=body).save(folder)
    file = folder / adapter
    file.parent.mkdir(exist_ok=True)
    file.touch()
    return str(folder)


def test_a_verifier_with_a_model_of_its_own(tmp_path: Path) -> None:
    """It runs on a backend of its own, with that one's options; what only the proposer reads stays refused."""
    lora = verifier_of(tmp_path / "lora", "adapter/adapter_model.safetensors")
    exported = verifier_of(tmp_path / "exported", "adapter.gguf")
    Arts(verifier=lora, device="cuda:0", dtype="bfloat16")
    Arts(backend="hf", verifier=exported, n_gpu_layers=-1)
    Arts(verifier="qwen_math_prm", quantize="4bit")
    Arts(verifier="reward", reward_url="http://127.0.0.1:8002", timeout=5)
    for given in (
        {"verifier": lora, "revision": "main"},
        {"verifier": exported, "device": "cuda:0"},
        {"verifier": "qwen_math_prm", "base_url": "http://127.0.0.1:8000/v1"},
        {"verifier": "reward", "reward_url": "http://127.0.0.1:8002", "base_url": "http://127.0.0.1:8000/v1"},
    ):
        with pytest.raises(SettingsError, match="would ignore it"):
            Arts(**given)


def test_plugins_of_others_get_what_they_are_given() -> None:
    """Nobody knows which options they read."""

    class Theirs:
        @hookimpl
        def arts_register_backends(self, register: Any) -> None:
            register("theirs", lambda settings, features: ScriptedBackend({}))

        @hookimpl
        def arts_register_verifiers(self, register: Any) -> None:
            register("judge", lambda settings: None)

    registry = Plugins()
    registry.register(Theirs(), "theirs")
    Arts(backend="theirs", registry=registry, device="cuda", base_url="http://127.0.0.1:8000/v1")
    Arts(verifier="judge", registry=registry, device="cuda")


def test_one_question_cannot_change_the_model() -> None:
    with (
        Arts(engine=ScriptedBackend({})) as arts,
        pytest.raises(SettingsError, match=r"device, n_ctx: a loaded model keeps its own .*Arts"),
    ):
        arts.solve("2 + 2?", n_ctx=100, device="cuda")


def test_names_of_others_are_not_ours() -> None:
    known = {name for name, _, _ in describe()}
    assert not known & foreign._NAMES.keys()
