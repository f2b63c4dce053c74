"""Parts of backend `server`: addresses, circuits, tokens."""

from __future__ import annotations

import pytest

from arts_plugin.errors import SettingsError
from arts_server.faults import RetryError
from arts_server.pieces import pieces
from arts_server.replicas import FAILURES, Replica, addresses, choose

pytestmark = pytest.mark.usefixtures("impatient")


def test_addresses() -> None:
    given = "http://a:1/v1; https://b/v1/completions;http://a:1/;http://c/prefix/v1"
    assert addresses(given) == ["http://a:1", "https://b", "http://c/prefix"]
    for wrong, said in {
        None: "needs base_url",
        "": "needs base_url",
        "localhost:8000": "looks like",
        "ftp://a": "looks like",
        "http://me:secret@a/v1": "ARTS_API_KEY",
        "http://a/v1?key=secret": "ARTS_API_KEY",
    }.items():
        with pytest.raises(SettingsError, match=said) as error:
            addresses(wrong)
        assert "secret" not in str(error.value)


def test_a_circuit(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("arts_server.replicas.time.monotonic", lambda: clock[0])
    replica = Replica("http://a")
    for _ in range(FAILURES):
        assert replica.ready()
        replica.failed(replica.begin(), "down")
    assert not replica.ready()
    clock[0] += 0.011
    assert replica.ready()
    began = replica.begin()
    assert not replica.ready()  # one trial at a time
    replica.failed(began, "down")
    clock[0] += 0.011
    assert not replica.ready()  # twice as long this time
    clock[0] += 0.01
    assert replica.ready()
    replica.begin()
    replica.succeeded()
    assert replica.ready()
    assert replica.failures == 0


def test_choosing() -> None:
    home, other = Replica("http://a", in_flight=6), Replica("http://b", in_flight=5)
    assert choose([home, other], None, 2, 8) is other
    assert choose([home, other], home, 2, 8) is home
    home.in_flight = 8
    assert choose([home, other], home, 2, 8) is other  # spills over
    other.in_flight = 8
    assert choose([home, other], home, 2, 8) is home  # nobody has room: the cache decides
    home.failures, home.until = FAILURES, float("inf")
    assert choose([home, other], home, 2, 8) is other
    assert choose([home, other], home, 2, 8, {other}) is other  # there is nobody else
    home.failures = 0
    assert choose([home, other], home, 2, 8, {home}) is other
    home.failures = other.failures = FAILURES
    other.until = float("inf")
    assert choose([home, other], home, 2, 8) is None


def test_pieces() -> None:
    assert pieces(["a", " b", "\n\n"], "a b\n") == [b"a", b" b", b"\n\n"]  # beyond the stop string
    assert pieces(["a", "<|im_end|>"], "a") == [b"a", b""]
    assert pieces(["<think>", "a"], "a") == [b"", b"a"]
    smile = "\U0001f600".encode()
    assert pieces(["a", "", "", "\U0001f600", "b"], "a\U0001f600b") == [
        b"a",
        smile[:1],
        smile[1:2],
        smile[2:],
        b"b",
    ]
    assert pieces(["", ""], "") == [b"", b""]


@pytest.mark.parametrize(
    ("tokens", "text", "expected"),
    [
        (["Hello", "world", "\n"], " Hello world\n", [b" Hello", b" world", b"\n"]),  # SentencePiece, one by one
        (["The", "\u0120answer", "\u010a"], "The answer\n", [b"The", b" answer", b"\n"]),
        (["\u2581Hi", "\u2581you"], "Hi you", [b"Hi", b" you"]),
        (["caf", "\ufffd", "\ufffd", " au"], "caf\u00e9 au", [b"caf", b"\xc3", b"\xa9", b" au"]),
        (["caf", "\ufffd", "\ufffd"], "caf\u00e9", [b"caf", b"\xc3", b"\xa9"]),
        (["token_id:5", "token_id:6"], "Hello\n", [b"Hel", b"lo\n"]),
    ],
)
def test_pieces_of_tokens_spelt_otherwise(tokens: list[str], text: str, expected: list[bytes]) -> None:
    assert pieces(tokens, text) == expected
    assert b"".join(expected).decode() == text


def test_text_that_no_token_stands_for() -> None:
    with pytest.raises(RetryError, match="none of its tokens"):
        pieces(["a"], "ab")
