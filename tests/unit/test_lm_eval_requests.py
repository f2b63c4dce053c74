"""What lm-eval hands over and gets back, without a model: gen_kwargs, model_args, and strings that carry more."""

import copy
import logging
import pickle
from typing import Any

import pytest

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook

from arts_plugin.api import Arts
from arts_plugin.errors import SettingsError
from arts_plugin.lm_eval.answer import Answer, handed_out
from arts_plugin.lm_eval.host import arguments
from arts_plugin.lm_eval.model import ArtsLM, _settings
from arts_plugin.lm_eval.requests import (
    ChatPrompt,
    Request,
    attach,
    attached,
    own_settings,
    read_gen_kwargs,
    settings_of,
)
from arts_plugin.settings import Settings
from arts_plugin.tree import ReasoningTree

STOCK = {"until": ["Question:", "</s>"], "do_sample": False, "temperature": 0.0}


def tree_of(*finished: tuple[str, int], unfinished: tuple[str, ...] = (), **values: Any) -> ReasoningTree:
    """A flat tree with one finished leaf for each (text, count); the second one is chosen, if there is one."""
    tree = ReasoningTree(strategy="arts", select="flow", scorer="logprob", **values)
    for text, count in finished:
        tree.add(0, text=text, count=count, terminal=True, stop="eos", token_ids=[1, 2], logprob=-1.0)
    for text in unfinished:
        tree.add(0, text=text, stop="delimiter")
    tree.chosen = min(2, len(tree.nodes) - 1) or None
    return tree


class TestGenKwargs:
    """`read_gen_kwargs`."""

    def test_stock_tasks_do_not_make_the_search_greedy(self, caplog: pytest.LogCaptureFixture) -> None:
        said: set[str] = set()
        with caplog.at_level(logging.WARNING, "lm_eval.arts"):
            settings, stops = read_gen_kwargs(STOCK, Settings(), said)
            read_gen_kwargs(STOCK, Settings(), said)
        assert settings == Settings()
        assert stops == ("Question:", "</s>")
        (record,) = caplog.records
        assert "do_sample, temperature does not touch the search" in record.message
        assert "temperature=0.6" in record.message

    def test_greedy_has_nothing_to_say(self, caplog: pytest.LogCaptureFixture) -> None:
        read_gen_kwargs(STOCK, Settings(strategy="greedy"), set())
        read_gen_kwargs({**STOCK, "arts_strategy": "greedy"}, Settings(), set())
        assert not caplog.records

    def test_the_temperature_it_names_is_the_one_in_force(self, caplog: pytest.LogCaptureFixture) -> None:
        read_gen_kwargs({"do_sample": True, "arts_temperature": 0.9}, Settings(), set())
        assert "temperature=0.9" in caplog.text

    @pytest.mark.parametrize(
        ("until", "stops"),
        [("END", ("END",)), (["a", "", "b"], ("a", "b")), (None, ()), ([], ()), ([7], ("7",))],
    )
    def test_until(self, until: object, stops: tuple[str, ...]) -> None:
        assert read_gen_kwargs({"until": until}, Settings(), set())[1] == stops

    @pytest.mark.parametrize("name", ["max_gen_toks", "max_new_tokens", "max_tokens"])
    def test_length(self, name: str) -> None:
        assert read_gen_kwargs({name: "77"}, Settings(), set())[0].max_gen_toks == 77

    def test_our_own_length_comes_first(self) -> None:
        kwargs = {"arts_max_gen_toks": 5, "max_gen_toks": 77}
        assert read_gen_kwargs(kwargs, Settings(), set())[0].max_gen_toks == 5

    def test_overrides(self) -> None:
        kwargs = {"arts_width": "4", "arts_budget_trajectories": 16.0, "arts_delimiter": "\\n\\n"}
        settings, _ = read_gen_kwargs(kwargs, Settings(beta=2.0), set())
        assert (settings.width, settings.budget_trajectories, settings.delimiter, settings.beta) == (4, 16, "\n\n", 2.0)

    @pytest.mark.parametrize("name", ["slots", "model", "trace", "n_ctx", "verifier", "flash_attn", "n_ubatch"])
    def test_what_belongs_to_the_run(self, name: str) -> None:
        with pytest.raises(SettingsError, match=f"arts_{name} in gen_kwargs.*--model_args"):
            read_gen_kwargs({f"arts_{name}": 1}, Settings(), set())

    def test_unknown_override(self) -> None:
        with pytest.raises(SettingsError, match=r"'widht'.*did you mean 'width'"):
            read_gen_kwargs({"arts_widht": 4}, Settings(), set())

    def test_other_keys_are_named_once(self, caplog: pytest.LogCaptureFixture) -> None:
        said: set[str] = set()
        for _ in range(2):
            read_gen_kwargs({"until": ["x"], "arts_width": 3, "stop_words": 1}, Settings(), said)
        assert [record.message for record in caplog.records] == [
            "gen_kwargs stop_words mean nothing to the arts model and are ignored"
        ]

    def test_left_as_they_are(self) -> None:
        kwargs = {**STOCK, "arts_width": 4, "max_gen_toks": 3}
        before = copy.deepcopy(kwargs)
        read_gen_kwargs(kwargs, Settings(), set())
        assert kwargs == before


def carrying(own: dict[str, Any], **gen_kwargs: Any) -> Instance:
    instance = Instance("generate_until", {}, ("q", gen_kwargs), 0)
    attach(instance, own_settings(own))
    return instance


class TestSettingsOfATask:
    """`settings_of`: what a task has of its own, below gen_kwargs and above the model's arguments."""

    def test_precedence(self) -> None:
        instance = carrying({"chat": "template", "width": "4", "beta": 2}, until=["x"], arts_width=3)
        settings, stops = settings_of(instance, Settings(width=8, beta=1.0, top_k=7), set())
        assert (settings.chat, settings.width, settings.beta, settings.top_k) == ("template", 3, 2.0, 7)
        assert stops == ("x",) and instance.args[1] == {"until": ["x"], "arts_width": 3}

    @pytest.mark.parametrize(
        ("gen_kwargs", "length"),
        [
            ({}, 5),
            ({"max_gen_toks": 9}, 9),
            ({"max_new_tokens": 9}, 9),
            ({"arts_max_gen_toks": 3, "max_gen_toks": 9}, 3),
        ],
    )
    def test_a_length_in_gen_kwargs_comes_first(self, gen_kwargs: dict[str, Any], length: int) -> None:
        assert settings_of(carrying({"max_gen_toks": 5}, **gen_kwargs), Settings(), set())[0].max_gen_toks == length

    def test_repeats(self) -> None:
        """One object as often as there are to be answers."""
        lm = ArtsLM.__new__(ArtsLM)
        lm.arts, lm._said, lm._world_size = Arts(Settings()), set(), 1
        lm.cache_hook = CacheHook(None)
        (read,) = lm._read([carrying({"chat": "template"})] * 3)
        assert (read.settings.chat, read.repeats) == ("template", 3)

    def test_requests_of_other_tasks(self) -> None:
        assert settings_of(Instance("generate_until", {}, ("q", {}), 0), Settings(), set()) == (Settings(), ())

    def test_pickled(self) -> None:
        twin = pickle.loads(pickle.dumps(carrying({"chat": "plain"})))
        assert attached(twin) == {"chat": "plain"} and twin == Instance("generate_until", {}, ("q", {}), 0)


class TestModelArgs:
    """Values as lm-eval's command line and API make them."""

    def test_coercion(self) -> None:
        raw = {"n_gpu_layers": -1.0, "slots": "8", "budget_tokens": "none", "delimiter": "\\n\\n", "seed": 7}
        settings = _settings(raw)
        assert (settings.n_gpu_layers, settings.slots, settings.budget_tokens) == (-1, 8, None)
        assert (settings.delimiter, settings.seed) == ("\n\n", 7)
        assert _settings({"n_gpu_layers": "-1.0"}).n_gpu_layers == -1

    @pytest.mark.parametrize(
        ("given", "host", "expected"),
        [
            ({}, {"batch_size": 1, "device": "cuda:0"}, {}),
            ({}, {"batch_size": "1", "device": None}, {}),
            ({}, {"batch_size": "8"}, {"slots": 8}),
            ({}, {"batch_size": "auto"}, {"slots": "auto"}),
            ({}, {"batch_size": "auto:4"}, {"slots": "auto"}),
            ({"slots": 3}, {"batch_size": "8"}, {"slots": 3}),
            ({"batch_size": "8"}, {"batch_size": "2"}, {"slots": 8}),
            ({"backend": "hf"}, {"device": "cpu"}, {"backend": "hf", "device": "cpu"}),
            ({"backend": "hf", "device": "cpu"}, {"device": "cuda:0"}, {"backend": "hf", "device": "cpu"}),
            ({"backend": "llama_cpp"}, {"device": "cpu"}, {}),
        ],
    )
    def test_what_lm_eval_adds(self, given: dict[str, Any], host: dict[str, Any], expected: dict[str, Any]) -> None:
        assert _settings(arguments(given, {"max_batch_size": None, **host})) == Settings.of(**expected)

    def test_a_gpu_that_is_not_there_was_not_asked_for(self) -> None:
        torch = pytest.importorskip("torch")
        made = arguments({"backend": "hf"}, {"device": "cuda:0"})
        assert made == {"backend": "hf", **({"device": "cuda:0"} if torch.cuda.is_available() else {})}

    @pytest.mark.parametrize("device", ["cuda:1", "mps"])
    @pytest.mark.parametrize("backend", ["llama_cpp", "server"])
    def test_a_device_that_would_be_ignored(self, backend: str, device: str) -> None:
        with pytest.raises(SettingsError, match=rf"--device {device}: it is for backend=hf"):
            arguments({"backend": backend}, {"device": device})

    def test_the_flag_for_data_sets_is_no_option_of_the_model(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import datasets

        given = {"trust_remote_code": True}
        assert arguments(given, {}) == given
        monkeypatch.setattr(datasets.config, "HF_DATASETS_TRUST_REMOTE_CODE", True, raising=False)
        assert arguments(given, {}) == {}
        assert arguments({**given, "backend": "hf"}, {}) == {**given, "backend": "hf"}

    @pytest.mark.parametrize("name", ["model", "pretrained", "path"])
    def test_names_of_the_model(self, name: str) -> None:
        assert _settings({name: "m.gguf"}).model == "m.gguf"

    def test_two_names_of_the_model(self) -> None:
        with pytest.raises(SettingsError, match="pretrained and another name of model"):
            _settings({"model": "a", "pretrained": "b"})

    def test_unknown(self) -> None:
        with pytest.raises(SettingsError, match=r"unknown argument 'budget_trajectory'.*'budget_trajectories'"):
            _settings({"budget_trajectory": 8})

    @pytest.mark.parametrize(
        ("name", "meant"),
        [
            ("max_length", "n_ctx"),
            ("max_model_len", "n_ctx"),
            ("peft", "lora"),
            ("load_in_4bit", "quantize=4bit"),
            ("load_in_8bit", "quantize=8bit"),
            ("parallelize", "device=auto"),
            ("tensor_parallel_size", "device=auto"),
            ("gpu_memory_utilization", "where the server is started"),
            ("tokenizer", "the model's own"),
            ("add_bos_token", "BOS"),
            ("num_concurrent", "slots"),
            ("max_tokens", "max_gen_toks"),
        ],
    )
    def test_names_of_other_models(self, name: str, meant: str) -> None:
        with pytest.raises(SettingsError, match=f"unknown argument '{name}' in model_args; here: .*{meant}"):
            _settings({name: 1})
        with pytest.raises(SettingsError, match=f"unknown setting '{name}'; here: .*{meant}"):
            Settings.of({name: 1})


class TestAnswer:
    """Strings that carry a tree's trajectories through lm-eval."""

    def test_one_positional_argument(self) -> None:
        answer = Answer.of(tree_of(("a", 1), ("b", 2)))
        gold: Any = type(answer)("x")
        assert gold == "x" and (gold.trajectories, gold.cost, gold.search) == ([], {}, {})
        assert type(answer)() == ""

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_pickling(self, protocol: int) -> None:
        answer = Answer.of(tree_of(("a", 1), ("b", 2)))
        for twin in (pickle.loads(pickle.dumps(answer, protocol)), copy.deepcopy(answer)):
            assert type(twin) is Answer and twin == "b"
            assert [(t["text"], t["count"], t["chosen"]) for t in twin.trajectories] == [
                ("a", 1, False),
                ("b", 2, True),
            ]
            assert (twin.trajectories, twin.cost, twin.search) == (answer.trajectories, answer.cost, answer.search)

    def test_chat_prompt(self) -> None:
        messages = [{"role": "user", "content": "hi"}]
        prompt = ChatPrompt("<|user|>hi", messages, False)
        twin = pickle.loads(pickle.dumps(prompt))
        assert type(twin) is ChatPrompt and twin == "<|user|>hi"
        assert (twin.messages, twin.add_generation_prompt) == (messages, False)
        plain = type(prompt)("text")
        assert plain == "text" and plain.messages == []

    def test_equal_questions_are_equal_wherever_they_stand(self) -> None:
        one, two = Request("q", Settings(), ("s",), 1, 0), Request("q", Settings(), ("s",), 1, 9)
        assert one == two and hash(one) == hash(two)
        assert one != Request("q", Settings(), ("s",), 2, 0)


class TestHandedOut:
    """`repeats: N`."""

    def test_the_chosen_one_first(self) -> None:
        assert handed_out(tree_of(("a", 1), ("b", 1), ("c", 1)), 3) == ["b", "a", "c"]

    def test_as_often_as_drawn(self) -> None:
        assert handed_out(tree_of(("a", 2), ("b", 2)), 4) == ["b", "a", "a", "b"]

    def test_as_many_as_asked_for(self) -> None:
        assert handed_out(tree_of(("a", 1), ("b", 1), ("c", 1)), 1) == ["b"]

    def test_unfinished_ones_follow_then_nothing(self) -> None:
        answers = handed_out(tree_of(("a", 1), ("b", 1), unfinished=("c",)), 5)
        assert answers == ["b", "a", "c", "", ""]
        assert all(len(answer.trajectories) == 2 for answer in answers)

    def test_nothing_finished(self) -> None:
        assert handed_out(tree_of(unfinished=("a", "b")), 3) == ["b", "a", ""]

    def test_greedy_would_find_the_same_again(self) -> None:
        tree = tree_of(("a", 1))
        tree.strategy = "greedy"
        assert handed_out(tree, 3) == ["a", "a", "a"]

    def test_trajectories_are_there_once(self) -> None:
        """However many answers carry them, in memory and in a pickle."""
        tree = tree_of(*((f"text number {i} " * 50, 1) for i in range(64)))
        answers = handed_out(tree, 64)
        copies: list[Answer] = pickle.loads(pickle.dumps(answers))
        for found in (answers, copies):
            assert all(answer.trajectories is found[0].trajectories for answer in found)
        assert copies == answers and len(pickle.dumps(answers)) < 3 * len(pickle.dumps(answers[0]))

    def test_refused(self) -> None:
        (answer,) = handed_out(tree_of(error="too long"), 1)
        assert answer == "" and answer.search["error"] == "too long" and answer.trajectories == []
