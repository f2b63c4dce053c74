"""Grammars that would end or hold up whoever compiles or follows them."""

from __future__ import annotations

import json
import threading

import pytest
from test_guides import Letters

from arts_plugin.backend import Grammar
from arts_plugin.engine import guide_process
from arts_plugin.engine.guide_process import Followed, check_grammar, nobody_waits
from arts_plugin.engine.guides import PROBLEM, Guide, Guides
from arts_plugin.errors import ArtsError, SettingsError
from arts_plugin.settings import Settings

pytest.importorskip("llguidance")


def nested(rules: int, depth: int, end: str) -> str:
    """Rules that lead from one to the next through groups inside groups."""
    names = [*(f"a{i}" for i in range(1, rules)), '"x"']
    made = (f"a{i} ::= {'(' * depth}{name}" + f' "b"){end}' * depth for i, name in enumerate(names))
    return "\n".join(["root ::= a0", *made])


def links(count: int) -> str:
    definitions = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(count)} | {f"d{count}": {"type": "null"}}
    return json.dumps({"$defs": definitions, "$ref": "#/$defs/d0"})


@pytest.mark.parametrize(
    "text",
    [
        nested(200, 24, "?"),
        nested(480, 8, "*"),
        nested(300, 4, "+"),
        "root ::= r0\n" + "".join(f"r{i} ::= r{i + 1}\n" for i in range(50_000)) + 'r50000 ::= "x"',
        "root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000,
    ],
    ids=["groups", "stars", "pluses", "chain", "parentheses"],
)
def test_a_grammar_that_takes_too_much_ends_nothing(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Followed or refused, in this process's life and in bounded time."""
    monkeypatch.setattr(guide_process, "COMPILE_SECONDS", 0.5)
    try:
        guide = Guides(Letters()).start(Grammar("grammar", text))
    except SettingsError as error:
        assert "grammar is not one that can be followed: " in str(error)
        assert len(str(error)) < 400
    else:
        assert guide is not None
        assert guide.allowed().any()


@pytest.mark.parametrize(
    "schema",
    ['{"items":' * 3000 + "{}" + "}" * 3000, '{"anyOf":[{},' * 400 + "{}" + "]}" * 400, links(30_000)],
    ids=["items", "alternatives", "links"],
)
def test_a_schema_that_is_nested_too_deeply_is_refused(schema: str) -> None:
    with pytest.raises(SettingsError, match="json_schema is not one that can be followed"):
        Settings.of(json_schema=schema)


def test_many_rules_side_by_side_are_no_chain() -> None:
    flat = {"$defs": {"n": {"type": "null"}}, "properties": {f"p{i}": {"$ref": "#/$defs/n"} for i in range(1000)}}
    check_grammar(Grammar("json_schema", json.dumps(flat)))


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar("grammar", "root ::= root"),
        Grammar("grammar", 'root ::= root "a"'),
        Grammar("json_schema", '{"type": "integer", "minimum": 5, "maximum": 3}'),
        Grammar("json_schema", '{"enum": []}'),
        Grammar("json_schema", '{"allOf": [{"type": "string"}, {"type": "integer"}]}'),
    ],
)
def test_what_no_text_follows_is_refused(grammar: Grammar) -> None:
    with pytest.raises(SettingsError, match="not one that can be followed") as refused:
        check_grammar(grammar)
    assert "<state>" not in str(refused.value)
    assert len(str(refused.value)) < 200


def test_masks_that_take_too_long_end_their_grammar_alone() -> None:
    guides = Guides(Letters())
    later = nested(100, 8, "*").replace("root ::= a0", 'root ::= [a-z]+ "." a0 | "z"')
    slow, quick = Grammar("grammar", later), Grammar("grammar", 'root ::= "yes"')
    held = guides.prepare(slow, bank=0.01)
    one, other = guides.start(slow), guides.start(quick)
    assert one is not None and other is not None
    one.take(ord("q"))
    assert one.allowed()[ord(".")]
    two = one.fork()
    one.take(ord("."))
    Guide.look([one, other, two])
    assert two.allowed()[ord(".")]  # known before
    two.take(ord("."))
    assert one.problem == two.problem == PROBLEM + "it takes too long to follow"
    assert not one.allowed().any()
    assert other.allowed().any()
    assert guides.prepare(slow) is not held  # the next who brings it begins anew


def test_a_process_ends_with_those_who_follow_its_grammar() -> None:
    guides = Guides(Letters())
    first = guides.start(Grammar("grammar", 'root ::= "0"'))
    assert first is not None
    process = first._followed._process
    for i in range(1, 6):
        guides.start(Grammar("grammar", f'root ::= "{i}"'))
    assert process.poll() is None
    assert first.fork().allowed().any()
    del first
    guides.start(Grammar("grammar", 'root ::= "6"'))
    assert process.poll() is not None


def test_there_are_not_any_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arts_plugin.engine.guides._MOST", 2)
    guides = Guides(Letters())
    kept = [guides.start(Grammar("grammar", f'root ::= "{i}"')) for i in range(2)]
    assert guides.start(Grammar("grammar", 'root ::= "1"')) is not None
    with pytest.raises(ArtsError, match="2 grammars are being followed"):
        guides.start(Grammar("grammar", 'root ::= "2"'))
    assert all(kept)


def test_nobody_waits_for_a_grammar_whose_client_has_gone() -> None:
    gone = threading.Event()
    threading.Timer(0.3, gone.set).start()
    token = nobody_waits.set(gone.is_set)
    try:
        with pytest.raises(SettingsError, match="takes too long"):
            Followed(Grammar("grammar", nested(480, 8, "*")), guide_process._bytes(), [256], bank=1.0)
        assert gone.is_set()
    finally:
        nobody_waits.reset(token)
