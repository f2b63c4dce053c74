"""Grammars, token by token: what may come next against all that could, on a vocabulary that can be enumerated."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from arts_plugin.backend import Grammar
from arts_plugin.engine.guides import Guide, Guides
from arts_plugin.errors import SettingsError
from arts_plugin.settings import Settings, biases

pytest.importorskip("llguidance")


class Letters:
    """All bytes, some longer pieces (one of them twice), two ends and a control token."""

    n_embd, n_ctx_train = 1, 100
    pieces = (*(bytes([byte]) for byte in range(256)), b"", b"", b"", b"no", b"n", b"o1", b'{"', b'": ', b"es")
    n_vocab = len(pieces) + 3  # models pad their vocabulary
    eog = frozenset({256, 257})

    def piece(self, token: int) -> bytes:
        return self.pieces[token] if token < len(self.pieces) else b""


ENDS = {256, 257}
YES = Grammar("grammar", 'root ::= "yes" | "no" [0-9]+')
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "integer"}, "sure": {"type": "boolean"}},
    "required": ["answer", "sure"],
    "additionalProperties": False,
}


def begin(grammar: Grammar) -> Guide:
    made = Guides(Letters()).start(grammar)
    assert made is not None
    return made


def allowed(guide: Guide) -> set[int]:
    mask = guide.allowed()
    assert mask.shape == (Letters.n_vocab,)
    return set(np.flatnonzero(mask).tolist())


def prefixes(text: str) -> bool:
    """Whether `text` begins something of YES's language; a plain twin."""
    return "yes".startswith(text) or "no".startswith(text) or re.fullmatch("no[0-9]*", text) is not None


def forced(text: str) -> str:
    """What every text of the language that begins so goes on with."""
    found = ""
    while text + found != "yes" and not re.fullmatch("no[0-9]+", text + found):
        following = [chr(byte) for byte in range(128) if prefixes(text + found + chr(byte))]
        if len(following) != 1:
            break
        found += following[0]
    return found


def test_what_is_allowed_is_what_can_go_on() -> None:
    """Texts of the language up to five bytes, by all ways of spelling them; what is forced, in its longest tokens."""
    words = Letters()
    waiting, seen = [("", begin(YES))], 0
    while waiting:
        text, guide = waiting.pop()
        want = {
            token
            for token in range(258, Letters.n_vocab)
            if words.piece(token) and prefixes(text + words.piece(token).decode())
        }
        want |= {byte for byte in range(128) if prefixes(text + chr(byte))}
        if text == "yes" or re.fullmatch("no[0-9]+", text):
            want |= ENDS
        certain = forced(text).encode()
        short = {token for token in want - ENDS if len(words.piece(token)) < len(certain)}
        if any(words.piece(token) == certain for token in want):
            want -= {token for token in short if certain.startswith(words.piece(token))}
        assert allowed(guide) == want, text
        seen += 1
        if len(text) < 4:
            for token in want - ENDS - set(range(ord("2"), ord("9") + 1)):
                fork = guide.fork()
                fork.take(token)
                waiting.append((text + words.piece(token).decode(), fork))
    assert seen > 20


def test_forks_go_their_own_ways() -> None:
    one = begin(YES)
    two = one.fork()
    one.take(ord("y"))
    two.take(259)
    assert allowed(one) == {264}
    assert allowed(two) == set(range(ord("0"), ord("9") + 1))


def test_a_schema_is_followed_to_its_end() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        guide, text = begin(Grammar("json_schema", json.dumps(SCHEMA))), b""
        for _ in range(300):
            # Digits and blanks are rare, so that it ends.
            choices = sorted(allowed(guide))
            likely = [c for c in choices if c not in map(ord, "0123456789 \n\r\t")] or choices
            token = int(rng.choice(likely if rng.random() < 0.9 else choices))
            if token in ENDS:
                break
            guide.take(token)
            text += Letters().piece(token)
        found = json.loads(text)
        assert isinstance(found["answer"], int)
        assert isinstance(found["sure"], bool)


def test_what_is_wrong_is_said() -> None:
    guide = begin(YES)
    guide.take(ord("x"))
    assert guide.problem
    assert not guide.allowed().any()
    for bad in ('root ::= "a', "root ::= x ::=", 'other ::= "a"'):
        with pytest.raises(SettingsError, match="grammar is not one"):
            Settings.of(grammar=bad)
    with pytest.raises(SettingsError, match="json_schema is not one that can be followed: Invalid type"):
        Settings.of(json_schema='{"type": "frob"}')
    with pytest.raises(SettingsError, match="neither a file"):
        Settings.of(grammar="missing.gbnf")
    with pytest.raises(SettingsError, match="both set"):
        Settings.of(grammar=YES.text, json_schema="{}")


def test_a_file_is_what_stands_in_it(tmp_path: Path) -> None:
    (tmp_path / "yes.gbnf").write_text(YES.text)
    assert Settings.of(grammar=str(tmp_path / "yes.gbnf")) == Settings.of(grammar=YES.text)
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    assert Settings.of(json_schema=str(tmp_path / "schema.json")) == Settings.of(json_schema=SCHEMA)


def test_biases() -> None:
    assert (
        biases(" 42:-100; 7:2.5;")
        == ((7, 2.5), (42, -100.0))
        == biases(Settings.of(logit_bias={42: -100, 7: 2.5}).logit_bias)
    )
    for bad in ("x:1", "-1:1", "5", "5:x", "5:nan"):
        with pytest.raises(SettingsError, match="logit_bias"):
            Settings.of(logit_bias=bad)


def test_settings_at_their_defaults_change_no_key() -> None:
    assert not {"grammar", "logit_bias", "repetition_penalty"} & Settings().identity().keys()
    assert Settings.of(repetition_penalty=1.1).identity()["repetition_penalty"] == 1.1
