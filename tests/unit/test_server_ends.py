"""Backend `server`: stop strings after the thinking, and control tokens by their ids."""

from __future__ import annotations

from typing import Any

import pytest
from scripted_server import ScriptedServer
from server_searches import Make, Serve

from arts_plugin.backend import Generation, Prompt
from arts_plugin.errors import ModelError, SettingsError
from arts_plugin.settings import Settings
from arts_plugin.testing import Trace, run
from arts_server.backend import ServerBackend

pytestmark = pytest.mark.usefixtures("impatient")
CONTROL = "<|im_start|>"
PROMPT = Prompt("q\n", tuple(b"q\n"))
"""Traces are "line 0 N", "line 1 N" and "The answer is N"."""


def traces(server: ScriptedServer, generation: Generation) -> list[Trace]:
    backend = ServerBackend(Settings(backend="server", base_url=server.url, slots=4))
    try:
        return run(backend, PROMPT, generation, range(3))
    finally:
        backend.close()


@pytest.mark.parametrize("dialect", ["vllm", "llama-server", "text"])
@pytest.mark.parametrize("chains", [True, False])
@pytest.mark.parametrize("delimiter", ["\n", "regex:\n"])
def test_stop_strings_wait_for_the_end_of_thinking(dialect: str, chains: bool, delimiter: str, serve: Serve) -> None:
    generation = Generation(stops=("line 0", "e 1 ", "answer"), delimiter=delimiter, chains=chains, think_end="line 1")
    server = serve(dialect=dialect)
    for trace in traces(server, generation):
        assert trace.text.startswith("line 0 ") and trace.text.endswith("\nThe ")
        assert trace.steps[-1].stop == "stop"
    for body in server.completions:  # what stands in the thought is never sent before its end
        text = body["prompt"] if isinstance(body["prompt"], str) else bytes(body["prompt"]).decode()
        stops = set(body.get("stop", ())) - {"\n"}
        assert stops <= ({"line 0", "e 1 ", "answer"} if "line 1" in text else {"line 1"})


def hides(server: ScriptedServer, token: int) -> ScriptedServer:
    """Have it end each line with a control token, which it does not show."""
    server.ornament, server.controls = "@", {CONTROL: token}

    def alter(choice: dict[str, Any]) -> None:
        at = [i for i, spelled in enumerate(choice["logprobs"]["tokens"]) if spelled == "@"]
        for i in at:
            choice["logprobs"]["tokens"][i], choice["token_ids"][i] = CONTROL, token
        choice["text"] = choice["text"].replace("@", "")

    server.alter = alter
    return server


@pytest.mark.parametrize("stop", [CONTROL, f"{CONTROL}\nline"])
def test_control_tokens_end_traces(stop: str, serve: Serve) -> None:
    server = hides(serve(), 1000)
    for trace in traces(server, Generation(stops=(stop, "never"), chains=True)):
        assert trace.text.startswith("line 0 ") and "\n" not in trace.text
        assert trace.steps[-1].stop == "stop" and 1000 not in trace.tokens
    assert {tuple(body.get("stop_token_ids", ())) for body in server.completions} == {
        (1000,) if stop == CONTROL else ()
    }


def test_control_tokens_end_thinking(serve: Serve) -> None:
    server = hides(serve(), 1000)
    for trace in traces(server, Generation(stops=("line 0", "line 1"), chains=True, think_end=CONTROL)):
        thought, end, answer = trace.text.partition(CONTROL)
        assert thought.startswith("line 0 ") and end and answer == "\n"
    assert all(body["stop_token_ids"] == [1000] for body in server.completions)


def test_an_end_of_the_servers_own_is_no_stop(serve: Serve) -> None:
    """An engine names a further end of generation by its id; what was not asked for ends the trace."""
    server = serve()
    server.controls = {CONTROL: 1000}
    server.alter = lambda choice: choice.update(stop_reason=1000) if choice["stop_reason"] is None else None
    found = traces(server, Generation(stops=(CONTROL,), chains=True, think_end="never"))
    assert [trace.steps[-1].stop for trace in found] == ["eos"] * 3
    assert all(trace.text.count("\n") == 2 and "answer is" in trace.text for trace in found)


def test_the_id_of_the_end_of_thinking(serve: Serve, arts: Make) -> None:
    server = hides(serve(), 1000)
    with arts(server, think_end_token=1000) as search:
        tree = search.solve("one")
        assert tree.meta["think_end"] == CONTROL and all(CONTROL in t.text for t in tree.trajectories())
        for wrong in (65, 4711):  # a letter, and nothing
            with pytest.raises(
                SettingsError, match=f"think_end_token is {wrong}, which is no control token of scripted"
            ):
                search.solve("one", think_end_token=wrong)
    with (
        arts(serve(dialect="text"), chat="plain", think_end_token=1000) as search,
        pytest.raises(ModelError, match="named by its id, 1000, and this server gives none"),
    ):
        search.solve("one")
