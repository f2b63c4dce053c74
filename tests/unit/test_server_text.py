"""Backend `server` on servers that know only text, and cannot say why they stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
from server_searches import QUESTIONS, Make, Serve, found

from arts_plugin.errors import ModelError
from arts_plugin.settings import Settings
from arts_server.backend import ServerBackend

pytestmark = pytest.mark.usefixtures("impatient")


def test_finds_what_it_would_find_with_ids(serve: Serve, arts: Make, caplog: pytest.LogCaptureFixture) -> None:
    server = serve(dialect="text")
    with arts(server, chat="plain") as search:
        trees = search.solve_many(QUESTIONS)
    assert "continued as text" in caplog.text
    assert "log-probabilities" in caplog.text
    assert all(body["stream"] and "stop" not in body for body in server.completions)
    with arts(serve(), chat="plain") as search:
        assert found(search.solve_many(QUESTIONS)) == found(trees)


@pytest.mark.parametrize("fault", ["half stream", "cut stream", "500", "drop", "half"])
def test_faults(fault: str, serve: Serve, arts: Make) -> None:
    server = serve(dialect="text")
    server.faults.extend([None, fault, fault])
    with arts(server, chat="plain") as search:
        trees = search.solve_many(QUESTIONS)
    with arts(serve(dialect="text"), chat="plain") as search:
        assert found(search.solve_many(QUESTIONS)) == found(trees)


def test_no_likelihoods(serve: Serve) -> None:
    backend = ServerBackend(Settings(backend="server", base_url=serve(dialect="text").url))
    with pytest.raises(ModelError, match="takes no token ids"):
        backend.loglikelihood([((1,), (2,))])
    backend.close()


def test_a_template_of_ones_own(serve: Serve, arts: Make, tmp_path: Path) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}\n[assistant] ")
    server = serve(dialect="text")
    with arts(server, chat_template=str(template)) as search:
        search.solve("one")
    assert server.completions[0]["prompt"].startswith("<user>one")
    with arts(serve(dialect="text"), chat="template") as search, pytest.raises(ModelError, match="chat_template="):
        search.solve("one")


def test_a_template_that_needs_what_a_server_does_not_tell(
    serve: Serve, arts: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("{% for m in messages %}{{ m.content + eos_token }}{% endfor %}")
    with arts(serve(dialect="text"), chat_template=str(template)) as search:
        search.solve("one")
    assert "uses eos_token, which a server does not tell" in caplog.text
