"""Likelihoods from backend `server`, and hidden states from a server beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scripted_server import state_of
from server_searches import Serve

from arts_plugin.backend import Generation, Prompt
from arts_plugin.errors import ArtsError, ModelError, PromptTooLongError
from arts_plugin.settings import Settings
from arts_server.backend import ServerBackend
from arts_server.faults import RefusedError

pytestmark = pytest.mark.usefixtures("impatient")


def test_likelihoods(serve: Serve) -> None:
    backend = ServerBackend(Settings(backend="server", base_url=serve().url))
    assert backend.loglikelihood([(tuple(b"ab"), tuple(b"cde"))]) == [(-0.75, True)]
    with pytest.raises(ArtsError, match="continuation 1 has no tokens"):
        backend.loglikelihood([(tuple(b"ab"), tuple(b"cde")), (tuple(b"a"), ())])
    with pytest.raises(PromptTooLongError, match="together at most 4095"):  # the server generates one token more
        backend.loglikelihood([((97,) * 4090, (97,) * 6)])
    with pytest.raises(PromptTooLongError, match="at least one token"):
        backend.loglikelihood([((), (1,))])
    backend.close()


@pytest.mark.parametrize("strict", [False, True])
def test_likelihoods_by_echo(strict: bool, serve: Serve) -> None:
    """Also where prompt_logprobs is refused; which way it is, is found out once."""
    server = serve(scores="echo", strict=strict)
    backend = ServerBackend(Settings(backend="server", base_url=server.url, slots=1))
    pairs = [(tuple(b"ab"), tuple(b"cde")), (tuple(b"A"), tuple(b"c")), (tuple(b"ab"), tuple(b"cDe"))]
    assert backend.loglikelihood(pairs) == [(-0.75, True), (-0.25, True), (-0.75, False)]
    assert backend.loglikelihood(pairs[:1]) == [(-0.75, True)]
    assert sum("prompt_logprobs" in body for body in server.seen) == (0 if strict else 1)
    assert sum(bool(body.get("echo")) for body in server.seen) == 4
    backend.close()


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("scores", ["prompt_logprobs", "echo"])
def test_a_refusal_of_one_prompt(strict: bool, scores: str, serve: Serve) -> None:
    """Is its own where others were scored."""
    server = serve(scores=scores, strict=strict)
    backend = ServerBackend(Settings(backend="server", base_url=server.url))
    backend.loglikelihood([(tuple(b"ab"), tuple(b"cde"))])
    server.refuse = lambda prompt: "bad" in prompt
    with pytest.raises(RefusedError, match="this prompt is refused"):
        backend.loglikelihood([(tuple(b"bad"), tuple(b"cde"))])
    backend.close()


@pytest.mark.parametrize(
    ("strict", "said"), [(False, "nor echo"), (True, "unknown field prompt_logprobs.*unknown field echo")]
)
def test_no_likelihoods_at_all(strict: bool, said: str, serve: Serve) -> None:
    backend = ServerBackend(Settings(backend="server", base_url=serve(scores=None, strict=strict).url))
    with pytest.raises(ModelError, match=said):
        backend.loglikelihood([(tuple(b"ab"), tuple(b"cde"))])
    backend.close()


def test_an_echo_with_tokens_of_the_servers_own(serve: Serve) -> None:
    """A BOS that it adds would shift every log-probability."""
    server = serve(scores="echo")

    def with_bos(choice: dict[str, Any]) -> None:
        told = choice["logprobs"]
        if "top_logprobs" in told:
            told["token_logprobs"].insert(0, None)
            told["top_logprobs"].insert(0, None)

    server.alter = with_bos
    backend = ServerBackend(Settings(backend="server", base_url=server.url))
    with pytest.raises(ModelError, match="adds some of its own"):
        backend.loglikelihood([(tuple(b"ab"), tuple(b"cde"))])
    backend.close()


def test_more_likelihoods_than_requests_at_once(serve: Serve) -> None:
    """Each is reported as it arrives; what was reported before an error stays known."""
    server = serve()
    backend = ServerBackend(Settings(backend="server", base_url=server.url, slots=2))
    pairs = [((97,), (99,) * (1 + n % 5)) for n in range(20)]
    told: dict[int, tuple[float, bool]] = {}
    scores = backend.loglikelihood(pairs, told.__setitem__)
    assert scores == [(-0.25 * len(rest), True) for _, rest in pairs]
    assert told == dict(enumerate(scores))
    server.refuse = lambda prompt: "z" in prompt
    told.clear()
    with pytest.raises(RefusedError):  # the others end with it
        backend.loglikelihood([*pairs, (tuple(b"z"), (99,)), *pairs], told.__setitem__)
    assert {place: told[place] for place in range(18)} == dict(enumerate(scores[:18]))
    backend.close()


def test_features_are_those_of_the_last_kept_tokens(serve: Serve) -> None:
    server, pooling = serve(), serve(model="pooling")
    settings = Settings(backend="server", base_url=server.url, features_url=pooling.url)
    backend = ServerBackend(settings, features=True)
    assert backend.info.n_embd == 8
    prompt = tuple(b"q\n")
    root = backend.open(Prompt("q", prompt), Generation(stops=("answer",)), 1)
    state = backend.fork(root, 0)
    backend.submit(state, 50)
    tokens, parents, cut, seen = [list(prompt)], [None], [0], []
    while backend.n_active:
        for result in backend.poll():
            tokens.append(list(result.token_ids))
            parents.append(len(tokens) - 2)  # type: ignore[arg-type]
            cut.append(result.cut_tokens)
            assert result.feature is not None
            seen.append(result.feature)
            if not result.terminal:
                backend.submit(result.state, 50)  # type: ignore[arg-type]
    assert np.array_equal(root.feature, state_of(list(prompt)))  # type: ignore[arg-type]
    whole = [token for step in tokens for token in step]
    assert np.array_equal(seen[-1], state_of(whole))
    assert np.array_equal(backend.tree_features(tokens, parents, cut)[1:], np.stack(seen))
    backend.close()


@pytest.mark.parametrize("generating", ["vllm", "llama-server"])
def test_states_of_another_model_are_refused(generating: str, serve: Serve) -> None:
    """Of the same size, but with another vocabulary."""
    server, pooling = serve(dialect=generating), serve(model="other")
    pooling.shift = 1
    settings = Settings(backend="server", base_url=server.url, features_url=pooling.url)
    with pytest.raises(ModelError, match=r"serves other, which has another vocabulary than scripted.*features_url"):
        ServerBackend(settings, features=True)


def test_states_of_a_model_of_another_name_are_said(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """It may be the same; a server that tells no tokens may be any."""
    for pooling in (serve(model="other"), serve(model="other", dialect="text")):
        caplog.clear()
        settings = Settings(backend="server", base_url=serve().url, features_url=pooling.url)
        ServerBackend(settings, features=True).close()
        assert "features_url serves other and base_url scripted" in caplog.text


def test_states_of_length_one_are_refused(serve: Serve) -> None:
    pooling = serve(model="pooling", normalise=True)
    settings = Settings(backend="server", base_url=serve().url, features_url=pooling.url)
    with pytest.raises(ModelError, match=r"length one.*use_activation"):
        ServerBackend(settings, features=True)
