"""Finding and comparing answers in text that may be anything at all."""

import time
from fractions import Fraction

import pytest

from arts_plugin.answers import extract
from arts_plugin.answers.extract import extract_auto
from arts_plugin.answers.graders import grade_exact, grade_numeric
from arts_plugin.answers.spelling import MAX_LENGTH
from arts_plugin.errors import SettingsError
from arts_plugin.hookspecs import Extractor


@pytest.mark.parametrize(
    ("extractor", "text", "answer"),
    [
        (extract.extract_boxed, r"so \boxed{1} or \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (extract.extract_boxed, r"\fbox{ 7 }", "7"),
        (extract.extract_boxed, r"\boxed{1} \boxed{2", "1"),  # the last one was cut off
        (extract.extract_boxed, r"\boxed{}", None),
        (extract.extract_boxed, "no box", None),
        (extract.extract_hashes, "#### 3\nmore\n#### 1,234 \n", "1,234"),
        (extract.extract_hashes, "####   \n", None),
        (extract.extract_hashes, "### 3", None),
        (extract.extract_phrase, "The answer is 4. The answer is: 5 apples.", "5"),
        (extract.extract_phrase, "The answer is 4. So the answer is", "4"),
        (extract.extract_phrase, "the final ANSWER IS\n\n-3.5%", "-3.5%"),
        (extract.extract_phrase, "The answer is blue. Then 7", "blue"),
        (extract.extract_phrase, "The answer is (B).", "(B)"),
        (extract.extract_phrase, "So the answer is 4 + 26 = 30 eggs.", "30"),
        (extract.extract_phrase, "the final answer is within \\boxed{}.", None),
        (extract.extract_phrase, "answer isnt 5", None),
        (extract.extract_phrase, r"The answer is $\frac{3}{4}$.", r"\frac{3}{4}"),
        (extract.extract_phrase, r"The answer is \$5.", r"\$5"),
        (extract.extract_number, "3 apples and $1,234.50, that is all 7", "7"),
        (extract.extract_number, "it costs $1,234.50.", "$1,234.50"),
        (extract.extract_number, "so 5, done", "5"),
        (extract.extract_number, "half is 1/2", "1/2"),
        (extract.extract_number, "none", None),
        (extract.extract_text, "  all of it \n", "all of it"),
        (extract.extract_text, " \n", None),
    ],
)
def test_extractors(extractor: Extractor, text: str, answer: str | None) -> None:
    assert extractor(text) == answer


def test_auto_prefers_what_the_model_marked() -> None:
    everything = "1 is a number. The answer is 2.\n#### 3\n\\boxed{4} and 5"
    assert extract_auto(everything) == "4"
    assert extract_auto(everything.replace("\\boxed{4}", "")) == "3"
    assert extract_auto("1 is a number. The answer is 2. And 5") == "2"
    assert extract_auto("1 is a number. And 5") == "5"
    assert extract_auto("nothing") is None


def test_a_number_and_what_follows_it_vote_together() -> None:
    """Punctuation after a number is no part of it."""
    found = {extract_auto(text) for text in ("It is 5", "It is 5.", "5, I think", "so: 5!", "(5)", "**5**")}
    assert found == {"5"}


def test_regex_extractor() -> None:
    assert extract.regex_extractor(r"x=(\d+)")("x=1, x=22") == "22"
    assert extract.regex_extractor(r"x=\d+")("x=1, x=22") == "x=22"
    assert extract.regex_extractor(r"x=(\d+)?")("x=1, x=") is None
    assert extract.regex_extractor("y")("x") is None
    with pytest.raises(SettingsError, match=r"'\('"):
        extract.regex_extractor("(")


@pytest.mark.parametrize(
    "spellings",
    [
        ["1000", "$1,000.00.", "1,000", " 1000.0 ", r"1000\%", "1e3", r"\$1000", r"\text{1000}", "+1000"],
        ["0.5", ".5", "0.50", "5e-1"],
        ["0", "-0", "0.000", "-0.0", "0e5"],
        ["-7", "- 7".replace(" ", ""), "-7.", "-7.00", "$-7$"],
        ["(B)", r"\text{(B)}", "(b)", " (B). "],
        ["x + 1", "x  +\n1"],
        ["Blue sky", "blue  sky."],
        ["123456789012345678901234567890123", "123,456,789,012,345,678,901,234,567,890,123.0"],
    ],
)
def test_spellings_of_one_answer_are_one_class(spellings: list[str]) -> None:
    assert all(grade_exact(spelling, spellings[0]) for spelling in spellings)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1000", "1001"),
        ("1,00", "100"),
        ("-5", "5"),
        ("0.1", "0.10000000000000000000000000000000001"),
        # Thirty digits that differ in the last one.
        ("123456789012345678901234567890", "123456789012345678901234567891"),
        ("1e999999999", "1e999999998"),
        ("nan", "inf"),
        ("", "0"),
        ("a", "b"),
    ],
)
def test_different_answers_are_different_classes(one: str, other: str) -> None:
    assert not grade_exact(one, other)
    assert not grade_exact(other, one)


@pytest.mark.parametrize(
    ("answer", "gold", "equal"),
    [
        ("3/4", "0.75", True),
        ("0.75", "3/4", True),
        ("6/8", "3/4", True),
        ("1,000", "1000.0", True),
        ("-1/3", "1/-3", True),
        ("1/3", "0.333333333", False),
        ("50%", "50", True),
        ("x", "x", False),  # no number
        ("x", "1", False),
        ("", "", False),
        ("1/0", "1/0", False),
        ("nan", "nan", False),
        ("inf", "inf", False),
        ("123456789012345678901234567890", "123456789012345678901234567891", False),
    ],
)
def test_grade_numeric(answer: str, gold: str, equal: bool) -> None:
    assert grade_numeric(answer, gold) is equal


BOMBS = [
    "1e999999999",
    "-1E+999999999",
    "1e-999999999",
    "1e99999999999999999999999",
    "9**9**9**9",
    "9^9^9^9",
    "(" * 50_000,
    "9" * 50_000,
    "9" * 4301,
    "1/" + "3" * 50_000,
    "0." + "0" * 50_000 + "1",
    "__import__('os').system('false')",
    "{0.__class__}",
    "%s%n" * 1000,
    "sNaN",
    "-sNaN123",
    "Infinity",
    "1_0_0",
    "\ud800",
    "\0" * 1000,
    "$" * 50_000,
    ",1" * 20_000,
    "\\text{" * 10_000,
    "\\left" * 10_000,
    " " * 50_000 + "1",
]


@pytest.mark.parametrize("bomb", BOMBS, ids=[ascii(bomb[:24]) for bomb in BOMBS])
def test_bombs_are_data(bomb: str) -> None:
    """Nothing is evaluated, raised or waited for, whatever stands in the answer."""
    began = time.thread_time()
    grade_exact(bomb, "1")
    assert grade_numeric(bomb, "17") is False
    assert grade_numeric("17", bomb) is False
    grade_numeric(bomb, bomb)
    assert time.thread_time() - began < 1


EXTRACTORS = [getattr(extract, f"extract_{name}") for name in ("auto", "boxed", "hashes", "phrase", "number", "text")]
HOSTILE = [
    "answer is" + "\n" * 20_000,
    "answer is" + "\t :" * 10_000,
    "answer" + " " * 20_000 + "is",
    "answer is " * 5_000,
    "answer " * 10_000,
    "1" + "," * 30_000,
    "1," * 30_000,
    "1/" * 30_000,
    "-" * 30_000,
    "$" * 30_000,
    "####" * 10_000,
    "####" + " " * 30_000 + "\n",
    "\\boxed{" * 10_000,
    "\\boxed" + "{" * 30_000,
    "\\boxed{" * 10_000 + "}" * 10_000,
    "\\boxed 9" * 10_000,
    "\nanswer:" * 10_000,
    "\n" + "*#> " * 10_000,
    "correct " * 10_000 + "option",
    "#### 1. a\n" * 5_000,
    "#### Step 1\n" * 5_000,
    "The answer is not " * 5_000,
    "the answer is (A) or " * 5_000,
    "$x$ " * 10_000,
    "1 1/" * 10_000,
    "7{,}" * 10_000,
    "\\frac{1}" * 10_000,
    "(A) is " * 10_000,
    "}" * 30_000,
    "1." * 20_000,
    "9" * 30_000,
    "\ud800 \0 \u2028 answer is \ud800",
]


@pytest.mark.parametrize("text", HOSTILE, ids=[ascii(text[:16]) for text in HOSTILE])
def test_hostile_text_takes_no_time(text: str) -> None:
    began = time.thread_time()
    for extractor in EXTRACTORS:
        answer = extractor(text)
        assert answer is None or 0 < len(answer) <= MAX_LENGTH
    assert time.thread_time() - began < 1


def test_equal_fractions_are_exact() -> None:
    assert Fraction(1, 3) != Fraction("0.3333333333333333333333333")
    assert not grade_numeric("1/3", "0." + "3" * 90)
