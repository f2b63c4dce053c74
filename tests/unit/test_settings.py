"""Values as hosts hand them over: lm-eval's model_args, YAML, a shell, Python."""

import importlib.util
from dataclasses import asdict, fields
from typing import Any

import pytest

from arts_plugin.coercion import unescape
from arts_plugin.errors import SettingsError
from arts_plugin.settings import Settings, coerce, describe


@pytest.mark.parametrize(
    ("name", "value", "result"),
    [
        ("n_gpu_layers", -1.0, -1),
        ("n_gpu_layers", "-1", -1),
        ("budget_trajectories", "8", 8),
        ("budget_trajectories", 8.0, 8),
        ("budget_trajectories", " +8 ", 8),
        ("budget_trajectories", "1e3", 1000),
        ("budget_trajectories", None, None),
        ("budget_trajectories", "none", None),
        ("budget_trajectories", "None", None),
        ("budget_trajectories", "", None),
        ("seed", "9007199254740993", 9007199254740993),  # a float would make it ...992
        ("seed", 9007199254740993, 9007199254740993),
        ("seed", -3.0, -3),
        ("budget_seconds", "2.5", 2.5),
        ("budget_seconds", 2, 2.0),
        ("temperature", 0, 0.0),
        ("temperature", "1e-3", 0.001),
        ("flash_attn", True, True),
        ("flash_attn", "False", False),
        ("flash_attn", 1, True),
        ("flash_attn", "off", False),
        ("flash_attn", "none", None),
        ("chat", True, "template"),
        ("chat", False, "plain"),
        ("chat", "auto", "auto"),
        ("model", "none", None),
        ("model", 7, "7"),
        ("trace", "runs/a", "runs/a"),
        ("verifier", "none", "none"),
        ("verifier", None, "none"),  # lm-eval and YAML turn the word into nothing
        ("delimiter", r"\n\n", "\n\n"),
        ("delimiter", "\n\n", "\n\n"),
        ("delimiter", r"regex:\n\s*", r"regex:\n\s*"),
    ],
)
def test_coercion(name: str, value: Any, result: Any) -> None:
    found = coerce(name, value)
    assert found == result
    assert type(found) is type(result)
    assert getattr(Settings.of({"budget_nodes": 1, name: value}), name) == result


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("budget_trajectories", "auto", "must be a number"),
        ("budget_trajectories", True, "must be a number"),
        ("budget_trajectories", [8], "must be a number"),
        ("budget_trajectories", {}, "must be a number"),
        ("budget_trajectories", "8.5", "must be a whole number"),
        ("budget_trajectories", 0, "at least 1"),
        ("budget_trajectories", -1.0, "at least 1"),
        ("budget_trajectories", "nan", "finite"),
        ("budget_trajectories", float("inf"), "finite"),
        ("budget_trajectories", "1e400", "finite"),
        ("seed", 10**400, "number"),
        ("budget_seconds", 0, "more than 0"),
        ("budget_seconds", "inf", "finite"),
        ("width", None, "needs a value"),
        ("width", "none", "must be a number"),
        ("width", 0, "at least 1"),
        ("width", 1 << 31, "at most 100000"),
        ("budget_trajectories", 1 << 31, "at most 100000"),
        ("slots", 0, "at least 1"),
        ("beta", -0.1, "at least 0"),
        ("temperature", -1, "at least 0"),
        ("top_p", 0, "more than 0"),
        ("top_p", 1.5, "at most 1"),
        ("top_k", -1, "at least 0"),
        ("min_p", 1, "below 1"),
        ("min_p", -0.5, "at least 0"),
        ("n_gpu_layers", -2, "at least -1"),
        ("n_ctx", 15, "at least 16"),
        ("flash_attn", "perhaps", "true or false"),
        ("flash_attn", 2, "true or false"),
        ("chat", "chatml", "'auto', 'template', 'plain'"),
        ("draw", "random", "'multinomial', 'systematic'"),
        ("draw", True, "'multinomial', 'systematic'"),
        ("delimiter", "", "empty"),
        ("delimiter", "regex:(", "regular expression"),
        ("delimiter", None, "needs a value"),
        ("extract", None, "needs a value"),
    ],
)
def test_refusal_names_the_setting_the_value_and_the_way_out(name: str, value: Any, words: str) -> None:
    with pytest.raises(SettingsError) as error:
        Settings.of({name: value})
    message = str(error.value)
    assert name in message
    assert words in message
    shown = f"{value:g}" if type(value) is float else repr(value)  # -1.0 may be shown as the -1 that was made of it
    assert shown in message or str(value) in message


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("budget_trajectory", "budget_trajectories"),
        ("temprature", "temperature"),
        ("top-k", "top_k"),
        ("delim", "delimiter"),
    ],
)
def test_unknown_names_come_with_close_matches(name: str, meant: str) -> None:
    with pytest.raises(SettingsError, match=f"unknown setting '{name}'; did you mean .*'{meant}'.*Known: ") as error:
        Settings.of({name: 1})
    assert all(field.name in str(error.value) for field in fields(Settings))


def test_a_name_like_no_other_gets_the_list_alone() -> None:
    with pytest.raises(SettingsError, match=r"unknown setting 'xyzzy'\. Known: "):
        Settings.of(xyzzy=1)


@pytest.mark.parametrize("name", ["max_tokens", "n", "K"])
def test_names_that_mean_several_things_do_not_exist(name: str) -> None:
    with pytest.raises(SettingsError, match="unknown setting"):
        Settings.of({name: 1})


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (r"\n", "\n"),
        (r"\t\r\0", "\t\r\0"),
        (r"\x41\u00e9", "Aé"),
        (r"\\n", r"\n"),  # an escaped backslash is one backslash
        (r"\\\n", "\\\n"),
        (r"\d \{ \ ", r"\d \{ \ "),  # no escapes of Python's
        ("Ende\\", "Ende\\"),
        (r"\xZZ \u12", r"\xZZ \u12"),
        ("\né", "\né"),
        (r"regex:\n", r"regex:\n"),
    ],
)
def test_escapes(raw: str, text: str) -> None:
    assert unescape(raw) == text


def test_only_the_delimiter_is_unescaped() -> None:
    assert Settings.of(model=r"C:\new\table", extract=r"regex:\d+", trace=r"\n").model == r"C:\new\table"
    assert Settings.of(trace=r"\n").trace == r"\n"


def test_a_search_without_end_is_refused() -> None:
    with pytest.raises(SettingsError, match="no budget is set"):
        Settings.of(budget_trajectories=None)
    for name in ("budget_tokens", "budget_seconds", "budget_nodes"):
        assert getattr(Settings.of({"budget_trajectories": None, name: 5}), name) == 5


def test_overrides_keep_the_rest_and_are_checked_together() -> None:
    base = Settings.of(width=3, budget_tokens=9)
    changed = base.with_({"slots": "4"}, seed=1)
    assert (changed.width, changed.budget_tokens, changed.slots, changed.seed) == (3, 9, 4, 1)
    assert base.slots == Settings().slots
    assert base.with_({"budget_trajectories": None}).budget_tokens == 9
    with pytest.raises(SettingsError, match="no budget is set"):
        base.with_(budget_trajectories=None, budget_tokens=None)
    # Keywords win over the mapping.
    assert base.with_({"width": 5}, width=6).width == 6


def test_settings_survive_their_own_record() -> None:
    """run.json holds the resolved settings; read again, they are the same."""
    made = Settings.of(delimiter=r"\n\n", budget_seconds=3, flash_attn="off", chat=True, verifier=None, seed=2**60 + 1)
    assert Settings.of(asdict(made)) == made
    assert Settings.of(asdict(Settings())) == Settings()


def test_defaults_pass_their_own_checks_and_are_described() -> None:
    assert Settings.of() == Settings()
    for name, default, doc in describe():
        assert getattr(Settings(), name) == default
        assert doc[0].isupper() or doc.startswith(("`", "K,", "llama.cpp", "hf: ", "server: ")), name
        assert doc.endswith((".", ")")), name


def test_the_shape_of_a_tree_does_not_depend_on_where_it_is_grown() -> None:
    base = Settings().shaping()
    assert Settings.of(model="x.gguf", n_threads=3, n_gpu_layers=-1, trace="here").shaping() == base
    for name, value in {
        "seed": 1,
        "width": 3,
        "slots": 2,
        "temperature": 0.1,
        "delimiter": "x",
        "budget_nodes": 3,
    }.items():
        assert Settings.of({name: value}).shaping() != base, name


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
@pytest.mark.parametrize(
    ("arguments", "name", "result"),
    [
        ("budget_trajectories=16", "budget_trajectories", 16),
        ("budget_trajectories=none,budget_nodes=9", "budget_trajectories", None),
        ("n_gpu_layers=-1", "n_gpu_layers", -1),
        ("n_gpu_layers=-1.0", "n_gpu_layers", -1),
        ("verifier=none", "verifier", "none"),
        ("flash_attn=True", "flash_attn", True),
        ("flash_attn=false", "flash_attn", False),
        (r"delimiter=\n\n", "delimiter", "\n\n"),
        ("seed='9007199254740993'", "seed", 9007199254740993),
        ("temperature=1e-1", "temperature", 0.1),
        ("chat=true", "chat", "template"),
        ("model=SmolLM2.gguf", "model", "SmolLM2.gguf"),
        ("tensor_split=1;2", "tensor_split", "1;2"),
    ],
)
def test_what_lm_eval_makes_of_model_args(arguments: str, name: str, result: Any) -> None:
    from lm_eval.utils import simple_parse_args_string

    found = getattr(Settings.of(simple_parse_args_string(arguments)), name)
    assert found == result
    assert type(found) is type(result)


NAMES = [
    "model",
    "trace",
    "verifier",
    "verifier_model",
    "lora",
    "chat_template",
    "grammar",
    "json_schema",
    "revision",
    "device",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("a\0b", "NUL"),
        ("a\ud800b", "half of a surrogate pair"),
        ("n" * 256, "256 bytes"),
        ("/tmp/" + "\u00e9" * 128, "256 bytes"),
        ("~nobody-of-that-name/file", "no user of that name"),
        ("d/" * 3000, "file systems take 255 and 4095"),
    ],
)
def test_names_that_no_file_can_have(name: str, value: str, said: str) -> None:
    """In front of everything that would look for them."""
    with pytest.raises(SettingsError, match=f"{name} is .*{said}") as error:
        Settings.of({name: value})
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("name", ["delimiter", "think_end_token", "extract"])
@pytest.mark.parametrize("half", ["\ud800", "\udfff", "a\udce9", "\ude00\ud83d", "\\ud800"])
def test_texts_that_nobody_writes(name: str, half: str) -> None:
    if "\\" in half and name != "delimiter":  # the one that is unescaped
        return
    with pytest.raises(SettingsError, match="half of a surrogate pair"):
        Settings.of({name: half})


def test_odd_names_that_files_may_have() -> None:
    """Bytes that are no UTF-8 come from a shell as such; and a text may hold what no name can."""
    assert Settings.of(model="caf\udce9.gguf", trace="n" * 255).model == "caf\udce9.gguf"
    assert Settings.of(delimiter="\\0", think_end_token="x" * 300).delimiter == "\0"
