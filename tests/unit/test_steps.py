"""Where steps and traces end, token by token, against a twin that reads everything again at every token."""

import codecs
import random
import re
from collections.abc import Iterable

import pytest

from arts_plugin.errors import SettingsError
from arts_plugin.steps import Delimiter, StepEnd, StepScanner


def scan(
    pieces: Iterable[str | bytes], delimiter: str = "\n", stops: tuple[str, ...] = ()
) -> tuple[int, str, StepEnd | None]:
    """Push until a step ends: (tokens pushed, text of the step, end)."""
    scanner = StepScanner(Delimiter(delimiter), stops)
    pushed = 0
    for piece in pieces:
        pushed += 1
        end = scanner.push(piece.encode() if isinstance(piece, str) else piece)
        if end:
            scanner.cut(end)
            return pushed, scanner.flush(), end
    return pushed, scanner.text, None


@pytest.mark.parametrize(
    ("pieces", "delimiter", "tokens", "text"),
    [
        (["one", "\n", "two"], "\n", 2, "one\n"),
        (["one", "\ntw", "o"], "\n", 2, "one\ntw"),  # the overshoot of a token belongs to the step
        (["one\n\ntwo\n"], "\n", 1, "one\n\ntwo\n"),
        (["one", "\n", "x", "\n", "\n", "y"], "\n\n", 5, "one\nx\n\n"),
        (["a##", "#", "#b"], "####", 3, "a####b"),
        (["Step 1", "2", ":", " x"], r"regex:\d+:", 3, "Step 12:"),
        (["\n", " ", "\n\n", "one", "\n"], "\n", 5, "\n \n\none\n"),  # blank lines join the step that follows
    ],
)
def test_delimiters(pieces: list[str], delimiter: str, tokens: int, text: str) -> None:
    assert scan(pieces, delimiter) == (tokens, text, StepEnd("delimiter", keep_tokens=tokens))


@pytest.mark.parametrize(
    ("pieces", "delimiter"),
    [
        (["a+b", "|c"], "a|c"),  # a plain string is no expression
        (["aab"], "a+b"),
        (["\n", "\n\n", " "], "\n"),  # a blank run is no step
        (["one", " ", "two"], "\n"),
    ],
)
def test_no_delimiter(pieces: list[str], delimiter: str) -> None:
    assert scan(pieces, delimiter) == (len(pieces), "".join(pieces), None)


@pytest.mark.parametrize("spec", ["", "regex:", "regex:(", "regex:x*", "regex:$", "regex:a|"])
def test_impossible_delimiters_are_refused_by_name(spec: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(repr(spec))):
        Delimiter(spec)


def test_characters_split_over_tokens() -> None:
    """Nothing is decoded before it is complete, and no token is counted before its last character."""
    scanner = StepScanner(Delimiter("。"))
    smile = "😀".encode()
    seen = []
    for byte in [*smile, *"é。".encode()]:
        end = scanner.push(bytes([byte]))
        seen.append(scanner.text)
    assert seen == ["", "", "", "😀", "😀", "😀é", "😀é", "😀é", "😀é。"]
    assert end == StepEnd("delimiter", keep_tokens=9)


@pytest.mark.parametrize(
    "data", [b"\xff", b"ab\xc3(", b"\xe2\x82", b"\xf0\x9f\x98", b"\x80\x80\xc3\xa9", b"\xc3\xc3\xa9", b"\xed\xa0\x80"]
)
def test_invalid_bytes_read_as_python_replaces_them(data: bytes) -> None:
    for width in (1, 2, 5):
        scanner = StepScanner(Delimiter("\n"))
        for at in range(0, len(data), width):
            scanner.push(data[at : at + width])
        assert scanner.flush() == data.decode("utf-8", "replace")
        assert scanner.flush() == data.decode("utf-8", "replace")


def test_a_character_may_be_spread_over_two_steps() -> None:
    scanner = StepScanner(Delimiter("\n"))
    assert scanner.push(b"a\n\xc3") is not None
    first = scanner.text
    scanner.begin_step()
    scanner.push(b"\xa9b")
    assert (first, scanner.text) == ("a\n", "éb")


def test_stop_strings_within_a_step() -> None:
    pushed, text, end = scan(["an", "swer", "</", "s", "> more"], stops=("</s>",))
    assert (pushed, text, end) == (5, "answer", StepEnd("stop", keep_tokens=2))
    # A token that reaches into the stop string is not kept, though some of its text is.
    pushed, text, end = scan(["an", "swer<", "/s>"], stops=("</s>",))
    assert (pushed, text, end) == (3, "answer", StepEnd("stop", keep_tokens=1))
    # The first of several in the text wins, not in the list, and a stop string before a delimiter.
    assert scan(["xbbaa"], stops=("aa", "bb"))[1] == "x"
    assert scan(["one\nStop"], stops=("Stop",))[2] == StepEnd("stop", keep_tokens=0)
    assert scan(["one", "\n"], stops=("\n",))[1:] == ("one", StepEnd("stop", keep_tokens=1))
    assert scan(["one", "\n"], stops=("", "two"))[2] == StepEnd("delimiter", keep_tokens=2)


def test_a_stop_string_across_steps_takes_back_what_it_covers() -> None:
    scanner = StepScanner(Delimiter("\n"), ("\n\nQ:",))
    for piece in ("one", ".", "\n"):
        end = scanner.push(piece.encode())
    assert end == StepEnd("delimiter", keep_tokens=3)
    scanner.begin_step()
    assert scanner.tail_tokens == 3  # the three characters before lie in three tokens
    assert scanner.push(b"\n") is None
    assert scanner.push(b"Q") is None
    end = scanner.push(b":")
    assert end == StepEnd("stop", keep_tokens=0, cut_chars=1, cut_tokens=1)
    scanner.cut(end)
    assert scanner.flush() == ""


def test_a_stop_string_may_reach_back_over_several_steps() -> None:
    scanner = StepScanner(Delimiter("|"), ("abc|d|e",))
    for piece in ("x", "ab", "c|"):
        scanner.push(piece.encode())
    scanner.begin_step()
    assert scanner.push(b"d|") is not None
    scanner.begin_step()
    assert scanner.push(b"e") == StepEnd("stop", keep_tokens=0, cut_chars=6, cut_tokens=3)


def test_a_token_with_half_of_the_cut_character_is_not_kept() -> None:
    """Its bytes belong to the stop string, though they added no character."""
    assert scan(["ab", b"\xc3", b"\xa9"], stops=("é",))[1:] == ("ab", StepEnd("stop", keep_tokens=1))
    assert scan(["ab", b"\xc3", b"\xa9x"], stops=("x",))[1:] == ("abé", StepEnd("stop", keep_tokens=2))
    scanner = StepScanner(Delimiter("\n"), ("é",))
    scanner.push(b"a\n")
    scanner.push(b"\xc3")
    scanner.begin_step()
    assert scanner.push(b"\xa9") == StepEnd("stop", keep_tokens=0, cut_chars=0, cut_tokens=1)


def test_tokens_without_text_are_kept_before_the_cut_and_dropped_after_it() -> None:
    assert scan(["a", "", "STOP", ""], stops=("STOP",))[2] == StepEnd("stop", keep_tokens=2)


def test_forks_are_independent() -> None:
    scanner = StepScanner(Delimiter("\n"), ("end",))
    scanner.push(b"a e")
    scanner.push(b"\xc3")
    twin = scanner.fork()
    assert scanner.push(b"\xa9\n") == StepEnd("delimiter", keep_tokens=3)
    scanner.begin_step()
    assert twin.push(b"\xa8n") is None
    assert twin.push(b" end") == StepEnd("stop", keep_tokens=3)
    twin.cut(StepEnd("stop", keep_tokens=3))
    assert twin.flush() == "a eèn "
    assert scanner.text == ""
    scanner.push(b"end")
    assert scanner.text == "end"


# The slow twin.


def decoded(pieces: list[bytes], final: bool = False) -> str:
    return codecs.getincrementaldecoder("utf-8")("replace").decode(b"".join(pieces), final)


class SlowTwin:
    """Keeps every token of the trace and reads all of it again each time."""

    def __init__(self, delimiter: str, stops: tuple[str, ...]) -> None:
        self.pattern, self.stops = Delimiter(delimiter).pattern(), stops
        self.tokens: list[bytes] = []
        self.first = 0  # of this step

    @property
    def start(self) -> int:
        return len(decoded(self.tokens[: self.first]))

    def push(self, piece: bytes) -> str | tuple[str, int, str] | None:
        """None, "delimiter", or ("stop", tokens of the trace to keep, text of the trace to keep)."""
        self.tokens.append(piece)
        whole = decoded(self.tokens)
        places = [whole.find(stop) for stop in self.stops if stop in whole]
        if places:
            at = min(places)
            # A token is kept if it and all before it say nothing beyond the cut, not even the start of a character.
            keep = sum(len(decoded(self.tokens[: i + 1], final=True)) <= at for i in range(len(self.tokens)))
            return "stop", keep, whole[:at]
        step = whole[self.start :]
        body = step.lstrip()
        return "delimiter" if body and self.pattern.search(step, len(step) - len(body)) else None

    def begin_step(self) -> None:
        self.first = len(self.tokens)


ALPHABET = [b"a", b"b", b"ab", b"\n", b"\n\n", b" ", b"", b"b\na", b"#", b"##", "é".encode(), "é\n".encode()]
ALPHABET += [b"\xc3", b"\xa9", b"\xe2", b"\x82\xac", b"a\xe2", b"\xff", "€#".encode(), b"\n\xe2\x82"]
DELIMITERS = ["\n", "\n\n", "#", "b\n", "regex:[#€]", "regex:a+b", "é"]
STOPS = ["ab", "b\n", "\n\n#", "é", "€", "#ab", "a\nb\n", "\ufffd", "aéb", "\n \n"]


@pytest.mark.parametrize("block", range(20))
def test_random_streams_agree_with_the_slow_twin(block: int) -> None:
    """Also where a step is cut at a token limit, which may be in the middle of a character."""
    for seed in range(20 * block, 20 * block + 20):
        compare(random.Random(seed))


def compare(rng: random.Random) -> None:
    delimiter = rng.choice(DELIMITERS)
    stops = tuple(rng.sample(STOPS, rng.randint(0, 3)))
    limit = rng.choice([2, 5, 50])
    scanner, slow = StepScanner(Delimiter(delimiter), stops), SlowTwin(delimiter, stops)
    texts: list[str] = []
    in_step = 0
    for _ in range(80):
        if rng.random() < 0.1:
            scanner = scanner.fork()
        piece = rng.choice(ALPHABET)
        in_step += 1
        end, expected = scanner.push(piece), slow.push(piece)
        assert "".join(texts) + scanner.text == decoded(slow.tokens)
        if isinstance(expected, tuple):
            assert end is not None and end.reason == "stop"
            _, tokens, text = expected
            scanner.cut(end)
            before = "".join(texts)
            assert before[: len(before) - end.cut_chars] + scanner.flush() == text
            assert slow.first - end.cut_tokens + end.keep_tokens == tokens
            assert end.cut_tokens <= scanner.tail_tokens
            return
        assert (end.reason if end else None) == expected
        if end:
            assert end.keep_tokens == in_step
        if end or in_step == limit:
            texts.append(scanner.text)
            scanner.begin_step()
            slow.begin_step()
            in_step = 0
    before = "".join(texts)
    assert before + scanner.flush() == decoded(slow.tokens, final=True)


def test_the_random_streams_reach_every_case() -> None:
    """Guards the test above: stops within a step, across steps, and steps cut inside a character all occur."""
    seen: set[str] = set()
    for seed in range(400):
        rng = random.Random(seed)
        delimiter, stops = rng.choice(DELIMITERS), tuple(rng.sample(STOPS, rng.randint(0, 3)))
        limit = rng.choice([2, 5, 50])
        scanner, in_step = StepScanner(Delimiter(delimiter), stops), 0
        for _ in range(80):
            rng.random()
            in_step += 1
            end = scanner.push(rng.choice(ALPHABET))
            if end and end.reason == "stop":
                seen.add("across" if end.cut_chars else "half" if end.cut_tokens else "within")
                break
            seen.add("delimiter" if end else "none")
            if end or in_step == limit:
                scanner.begin_step()
                in_step = 0
    assert seen == {"across", "half", "within", "delimiter", "none"}
