"""What OpenAI's clients send and expect, beside a plain question."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served import Serve, ask, serving

from arts_plugin.plugins import Plugins
from arts_plugin.run import read_trees
from arts_plugin.serve.protocol import BadRequestError, Limits, read
from arts_plugin.settings import Settings


@pytest.fixture
def serve(plugins: Plugins) -> Iterator[Serve]:
    yield from serving(plugins)


def refused(kind: Any = "chat", **body: Any) -> BadRequestError:
    with pytest.raises(BadRequestError) as caught:
        read(kind, body, "scripted", Settings(), Limits())
    return caught.value


@pytest.mark.parametrize("message", [{"content": None}, {}, {"content": None, "tool_calls": []}, {"refusal": None}])
def test_an_assistant_s_message_may_have_no_content(message: dict[str, Any]) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", **message}, {"role": "user", "content": "r"}]
    (made,) = read("chat", ask(messages=turns), "scripted", Settings(), Limits())
    assert made.messages[1] == {"role": "assistant", "content": ""}


def test_tool_calls_are_refused_as_such() -> None:
    turn = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    assert "tool calls" in str(refused(messages=[turn]))
    assert "images" not in str(refused(messages=[turn]))
    assert "role user" in str(refused(messages=[{"role": "user"}]))


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("value", [-5, 0, "many", 1.5])
def test_an_error_names_the_client_s_own_field(field: str, value: Any) -> None:
    error = refused(**ask(**{field: value}))
    assert str(error).startswith(f"{field} is {value!r}")
    assert "max_gen_toks" not in str(error)
    assert error.param == field


def test_an_error_in_a_field_of_ours_names_that() -> None:
    error = refused(**ask(arts={"max_gen_toks": -5}))
    assert (error.param, str(error).startswith("max_gen_toks is -5")) == ("arts", True)
    assert refused(**ask(temperature=-1)).param == "temperature"
    shape = {"type": "json_schema", "json_schema": {"schema": {"type": "frob"}}}
    pytest.importorskip("llguidance")
    assert refused(**ask(response_format=shape)).param == "response_format"


@pytest.mark.parametrize(
    "nothing", [{"suffix": ""}, {"suffix": None}, {"tools": []}, {"logprobs": None}, {"echo": False}]
)
def test_fields_that_ask_for_nothing(nothing: dict[str, Any]) -> None:
    (made,) = read("text", {"prompt": "q", **nothing}, "scripted", Settings(), Limits())
    assert made.prompt == "q"


def test_models(serve: Serve) -> None:
    served = serve()
    assert served.get("/v1/models/").json() == served.get("/v1/models").json()
    assert served.get("/v1/models/scripted/").json()["id"] == "scripted"
    for reply in (served.chat("one way", model="other"), served.get("/v1/models/other")):
        assert reply.status_code == 404
        assert reply.json()["error"]["code"] == "model_not_found"


class TestPrompts:
    """Of text completions."""

    @pytest.mark.parametrize(
        ("raw", "want"),
        [
            ("a", ["a"]),
            (["a"], ["a"]),
            (["a", "b"], ["a", "b"]),
            ([1, 2], [(1, 2)]),
            ([[1, 2], [3]], [(1, 2), (3,)]),
        ],
    )
    def test_texts_and_token_ids(self, raw: Any, want: list[Any]) -> None:
        assert [made.prompt for made in read("text", {"prompt": raw}, "scripted", Settings(), Limits())] == want

    @pytest.mark.parametrize(
        "raw", [None, "", [], [""], ["a", ""], [1, "a"], [True], [[]], [-1], [1 << 40], [1.5], 5, {}, [[1], None]]
    )
    def test_others_are_refused(self, raw: Any) -> None:
        assert "prompt is a text or a list of token ids" in str(refused("text", prompt=raw))

    def test_several_are_answered_together(self, serve: Serve) -> None:
        served = serve()
        alone = served.post("/v1/completions", prompt="one way", seed=3).json()
        both = served.post("/v1/completions", prompt=["q", "one way"], seed=3).json()
        assert [choice["index"] for choice in both["choices"]] == [0, 1]
        assert both["choices"][1]["text"] == alone["choices"][0]["text"]
        assert [about["answer"] for about in both["arts"]][1] == "3"
        assert both["usage"]["completion_tokens"] == sum(about["cost"]["decoded_tokens"] for about in both["arts"])
        assert served.get("/health").json()["waiting"] == 0

    def test_each_takes_a_place(self, serve: Serve) -> None:
        served = serve(limits=Limits(waiting=3))
        assert served.post("/v1/completions", prompt=["one way"] * 3).status_code == 200
        assert "allows 3 at most" in served.post("/v1/completions", prompt=["one way"] * 4).json()["error"]["message"]
        assert served.get("/health").json()["waiting"] == 0

    def test_one_that_cannot_be_searched_is_told(self, serve: Serve) -> None:
        served = serve()
        reply = served.post("/v1/completions", prompt=["one way", "q" * 300])
        assert (reply.status_code, "300 tokens" in reply.text) == (400, True)
        assert served.post("/v1/completions", prompt=["one way", "q"], stream=True).status_code == 400
        assert "token ids" in served.post("/v1/completions", prompt=[1, 2]).json()["error"]["message"]
        assert served.post("/v1/completions", prompt="one way").status_code == 200


class TestSeeds:
    """A request without a seed gets one of its own, which its answer tells."""

    @pytest.mark.parametrize("none", [{}, {"seed": None}, {"seed": -1}, {"arts": {"seed": -1}}])
    def test_fresh(self, none: dict[str, Any], serve: Serve) -> None:
        served = serve(own_seed=False)
        seeds = [served.chat("q", **none).json()["arts"]["seed"] for _ in range(4)]
        assert len(set(seeds)) == 4

    def test_the_told_one_finds_the_same(self, serve: Serve) -> None:
        served = serve(own_seed=False)
        first = served.chat("q").json()
        again = served.chat("q", seed=first["arts"]["seed"]).json()
        assert again["choices"] == first["choices"]
        assert served.chat("q", seed=7).json()["arts"]["seed"] == 7

    def test_where_nothing_is_drawn_the_seed_stays(self, serve: Serve, tmp_path: Path) -> None:
        """So that a run folder still answers a question that it knows."""
        served = serve(own_seed=False, trace=str(tmp_path / "run"))
        for _ in range(2):
            served.chat("one way", temperature=0)
            served.chat("one way", arts={"strategy": "greedy"}, temperature=0)
            served.chat("one way", seed=5)
        assert len(list(read_trees(tmp_path / "run"))) == 2
        served.chat("one way")
        served.chat("one way")
        assert len(list(read_trees(tmp_path / "run"))) == 4

    def test_the_server_s_own(self, serve: Serve) -> None:
        served = serve(own_seed=True, seed=11)
        assert served.chat("q").json()["arts"]["seed"] == 11
