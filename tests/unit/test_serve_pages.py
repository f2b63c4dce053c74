"""Pages in a browser that call `arts serve`, and which of them may."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest
from served import HTTP, Serve, Served, ask, serving

from arts_plugin.errors import SettingsError
from arts_plugin.plugins import Plugins
from arts_plugin.serve.doors import check_origin

QUESTION = ask(messages=[{"role": "user", "content": "one way"}])
FOREIGN = [
    {"origin": "http://evil.example"},
    {"origin": "https://evil.example:8765", "sec-fetch-site": "cross-site"},
    {"origin": "null"},
    {"origin": ""},
    {"origin": "http://localhost:1"},
    {"origin": "http://localhost.evil.example"},
    {"origin": "file://"},
    {"origin": "chrome-extension://abc"},
    {"origin": "http://[::1"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"sec-fetch-site": "Cross-Site"},
]


@pytest.fixture
def serve(plugins: Plugins) -> Iterator[Serve]:
    yield from serving(plugins)


def post(served: Served, **headers: str) -> httpx.Response:
    named = {"content-type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return HTTP.post(f"{served.url}/v1/chat/completions", content=json.dumps(QUESTION), headers=named)


def test_pages_of_other_origins_are_turned_away_where_no_key_is_asked_for(serve: Serve) -> None:
    served = serve()
    for headers in FOREIGN:
        reply = post(served, **headers)
        assert reply.status_code == 403, headers
        assert "--cors_origin" in reply.json()["error"]["message"]
        assert served.get("/v1/models", **headers).status_code == 403
        assert "access-control-allow-origin" not in reply.headers
    assert served.backend.stats.decoded_tokens == 0


def test_clients_that_are_no_pages_and_pages_of_the_server_s_own_pass(serve: Serve) -> None:
    served = serve()
    own = served.url
    for headers in ({}, {"sec-fetch-site": "none"}, {"origin": own}, {"origin": own, "sec-fetch-site": "same-origin"}):
        assert post(served, **headers).status_code == 200, headers


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "json"])
def test_what_a_page_may_send_without_asking_is_refused(kind: str, serve: Serve) -> None:
    served = serve()
    reply = HTTP.post(f"{served.url}/v1/chat/completions", content=json.dumps(QUESTION), headers={"content-type": kind})
    assert reply.status_code == 415
    assert "application/json" in reply.json()["error"]["message"]
    assert post(served, content_type="Application/JSON; charset=utf-8").status_code == 200


@pytest.mark.parametrize("key", [None, "sk-right"])
def test_a_page_that_may(key: str | None, serve: Serve) -> None:
    """It asks before, with the headers that OpenAI's client for browsers sends, and then sends its request."""
    page, other = "http://localhost:3000", "http://evil.example"
    served = serve(key=key, origins=[page])
    asked = {"access-control-request-method": "POST"}
    asked["access-control-request-headers"] = "authorization,content-type,x-stainless-os"
    for origin, status in ((page, 200), (other, 400)):
        before = HTTP.options(f"{served.url}/v1/chat/completions", headers={"origin": origin, **asked})
        assert before.status_code == status
        assert (before.headers.get("access-control-allow-origin") == origin) == (origin == page)
    allowed = HTTP.options(f"{served.url}/v1/chat/completions", headers={"origin": page, **asked}).headers
    assert "POST" in allowed["access-control-allow-methods"]
    headers = {name.strip().lower() for name in allowed["access-control-allow-headers"].split(",")}
    assert {"authorization", "x-stainless-os"} <= headers
    right = {"authorization": f"Bearer {key}"} if key else {}
    reply = post(served, origin=page, sec_fetch_site="cross-site", **right)
    assert reply.status_code == 200
    assert reply.headers["access-control-allow-origin"] == page
    assert post(served, origin=page).status_code == (401 if key else 200)
    assert post(served, origin=other, **right).headers.get("access-control-allow-origin") is None


def test_any_page(serve: Serve) -> None:
    served = serve(origins=["*"])
    assert post(served, origin="http://evil.example").headers["access-control-allow-origin"] == "*"


def test_origins_are_checked() -> None:
    assert check_origin("http://LOCALHOST:3000/") == "http://localhost:3000"
    assert check_origin("*") == "*"
    for wrong in ("localhost:3000", "http://", "http://a/b", "", "null"):
        with pytest.raises(SettingsError, match="cors_origin is"):
            check_origin(wrong)
