"""Backend `server` on llama-server: ids, log-probabilities and counts that it only tells token by token."""

from __future__ import annotations

from typing import Any

import pytest
from scripted_server import LLAMA_SERVER
from server_searches import Make, Serve

from arts_plugin.settings import Settings
from arts_server.backend import ServerBackend
from arts_server.faults import ServerError

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.mark.parametrize("ornament", ["", " \u00e9\U0001f600!"])
def test_streams_give_the_tokens_that_whole_replies_give(ornament: str, serve: Serve, arts: Make) -> None:
    trees = []
    for dialect in ("vllm", "llama-server"):
        # Under a budget of nodes both go step by step, so that they draw alike.
        with arts(serve(dialect=dialect, ornament=ornament), budget_nodes=100) as search:
            trees.append(search.solve("one"))
    whole, streamed = trees
    assert [node.token_ids for node in whole.nodes] == [node.token_ids for node in streamed.nodes]
    assert [node.text for node in whole.nodes] == [node.text for node in streamed.nodes]
    assert len({t.text for t in streamed.trajectories()}) > 1
    for node in streamed.nodes[1:]:
        untold = sum(byte >= 0x80 for byte in node.token_ids) - sum(char > "\x7f" for char in node.text)
        assert node.logprob == pytest.approx(-0.5 * (len(node.token_ids) - untold))
        assert bool(ornament) == bool(untold) or "answer" in node.text
    assert {t.stop for t in streamed.trajectories()} == {"eos"}


def test_what_was_cached_is_booked(serve: Serve, arts: Make) -> None:
    server = serve(dialect="llama-server")
    with arts(server) as search:
        tree = search.solve("one")
    assert tree.cost.cached_tokens == sum(len(body["prompt"]) - 2 for body in server.completions)
    assert all(body["timings_per_token"] and body["stream"] for body in server.completions)


def test_chats_are_rendered_there(serve: Serve) -> None:
    backend = ServerBackend(Settings(backend="server", base_url=serve(dialect="llama-server").url))
    prompt = backend.encode_chat([{"role": "user", "content": "a"}])
    assert bytes(prompt.token_ids) == b"[user] a\n[assistant] "
    assert backend.dialect.ids and backend.dialect.logprobs and not backend.dialect.whole
    assert backend.info.n_ctx == 2048  # of a slot, not of the model
    backend.close()


@pytest.mark.parametrize("parse_special", [False, True])
def test_special_tokens_in_a_plain_prompt(parse_special: bool, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text that is cut so that the server finds no special token in it, or left as it is."""

    def with_a_special_token(handler: Any, body: dict[str, Any]) -> dict[str, Any]:
        parts = [list(part.encode()) for part in body["content"].split("<end>")]
        return {"tokens": sum(([1000, *part] for part in parts[1:]), parts[0])}

    monkeypatch.setitem(LLAMA_SERVER, "/tokenize", with_a_special_token)
    url = serve(dialect="llama-server").url
    backend = ServerBackend(Settings(backend="server", base_url=url, parse_special=parse_special))
    expected = (*b"a", 1000, *b"b") if parse_special else tuple(b"a<end>b")
    assert backend.encode("a<end>b").token_ids == expected
    assert 1000 not in backend.encode_chat([{"role": "user", "content": "a<end>b"}]).token_ids
    backend.close()


@pytest.mark.parametrize("reply", [{}, {"tokens": []}, {"tokens": ["x"]}])
def test_a_tokeniser_that_makes_no_sense(
    reply: dict[str, Any], serve: Serve, arts: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(dialect="llama-server", ornament="\u00e9")
    with arts(server, max_retries=1, slots=1, budget_trajectories=1) as search:
        answer = LLAMA_SERVER["/tokenize"]
        broken = lambda handler, body: reply if body.keys() == {"content"} else answer(handler, body)  # noqa: E731
        monkeypatch.setitem(LLAMA_SERVER, "/tokenize", broken)
        with pytest.raises(ServerError, match="/tokenize answers with"):
            search.solve("one")
