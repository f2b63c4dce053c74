"""`lm_eval --model arts`: every request becomes a tree, and the chosen trajectory is what lm-eval scores."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm_eval.api.model import CacheHook, hash_args
from lm_eval.utils import simple_parse_args_string
from tqdm import tqdm

from arts_plugin.api import Arts
from arts_plugin.backend import Message
from arts_plugin.errors import SettingsError, did_you_mean
from arts_plugin.foreign import ours
from arts_plugin.lm_eval import host
from arts_plugin.lm_eval.answer import Answer, handed_out
from arts_plugin.lm_eval.chats import Chats
from arts_plugin.lm_eval.contract import DescribedLM
from arts_plugin.lm_eval.likelihood import LikelihoodLM
from arts_plugin.lm_eval.ranks import Ranks, of_this_process
from arts_plugin.lm_eval.requests import Request, attached, said_once, settings_of
from arts_plugin.lm_eval.truncation import PromptTruncation
from arts_plugin.search.job import Job
from arts_plugin.settings import Settings, describe
from arts_plugin.tree import ReasoningTree

log = logging.getLogger("lm_eval.arts")

_ALIASES = {"pretrained": "model", "path": "model"}
_BATCH_SIZES = frozenset({"batch_size", "max_batch_size"})
"""Arguments that lm-eval passes to every model; what is batched here are branches, and their number is `slots`."""

_MADE_WITH, _REFUSED = "arts: made with", "arts: refused"
"""Our own entries in lm-eval's cache, beside the answers."""


class ArtsLM(DescribedLM, LikelihoodLM):
    """Amortized Reasoning Tree Search as an lm-eval model.

    Args:
        keywords: any setting of `arts_plugin.settings.Settings`, as a string or a value; `pretrained` and `path` are
            other names of `model`.

    Raises:
        SettingsError: an unknown or impossible argument.
        ModelError: the model cannot be loaded.
    """

    # No @register_model: the decorator would fill the registry before lm-eval's own models do.

    def __init__(self, **keywords: Any) -> None:
        super().__init__()
        settings = _settings(keywords)
        self._seeded = "seed" in keywords
        self._ranks = of_this_process(settings.device)
        if self._ranks is not None:
            self._rank, self._world_size = self._ranks.rank, self._ranks.world_size
            settings = _of_a_rank(settings, self._ranks)
        self.arts = Arts(settings)
        self._take_seed()
        self._show_logs()
        self.backend_engine = self.arts.backend
        self._said: set[str] = set()
        self._chats = Chats(self.backend_engine)
        self._truncation = PromptTruncation(self.backend_engine.info)

    def _take_seed(self) -> None:
        """lm-eval's `--seed`, its first number, unless the arguments have one. A model may be made before it is known."""
        seed = host.running().seed
        if seed is not None and not self._seeded:
            self.arts.reseed(seed)

    @staticmethod
    def _show_logs() -> None:
        """lm-eval shows the loggers under its own name; what the search says belongs there."""
        logging.getLogger("arts_plugin").parent = log

    # Construction: the command line gives a dict and lm-eval's own arguments, the API a string.
    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> ArtsLM:
        """From `key=value,...`; what lm-eval adds gives way to what the user wrote."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> ArtsLM:
        """From a dict."""
        return cls(**host.arguments(arg_dict, additional_config or {}))

    # Several processes, each with its share of the questions.
    @property
    def device(self) -> Any:
        """Where numbers are put that processes exchange."""
        return self._ranks.device if self._ranks else "cpu"

    def all_gather(self, tensor: Any) -> Any:
        """The tensors of all processes."""
        return self._ranks.all_gather(tensor) if self._ranks else tensor

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """The objects of all processes, at `dst`."""
        return self._ranks.gather_object(obj, dst) if self._ranks else [obj]

    def barrier(self) -> None:
        """Wait for all processes."""
        if self._ranks:
            self._ranks.barrier()

    # Text.
    def apply_chat_template(self, chat_history: list[Message], add_generation_prompt: bool = True) -> str:
        """A rendered chat, which remembers its messages.

        Raises:
            ModelError: the model has no chat template.
        """
        return self._chats.render(chat_history, add_generation_prompt)

    @property
    def eot_token_id(self) -> int:
        """The end-of-text token; where the model has none, what stands before a text without context."""
        return self.backend_engine.info.eos if self.backend_engine.info.eos >= 0 else self.prefix_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context: BOS, or else the end-of-text token."""
        tokens = self.backend_engine.encode("").token_ids
        info = self.backend_engine.info
        return tokens[0] if tokens else info.bos if info.bos >= 0 else info.eos

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Tokens of a text; a rendered chat keeps its special tokens, anything else has none."""
        if chat := self._chats.behind(string):
            return list(self._chats.encode(chat.messages, chat.add_generation_prompt).token_ids)
        tokens = self.backend_engine.encode(string).token_ids
        bos = self.backend_engine.encode("").token_ids
        return list(tokens[len(bos) :] if add_special_tokens is False else tokens)

    # lm-eval's cache. Its keys know nothing of the model or of how it was asked.
    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Take up lm-eval's cache; what was refused there is asked again.

        Raises:
            SettingsError: its answers were made by another model or with other settings.
        """
        super().set_cache_hook(cache_hook)
        self._take_seed()
        cache = cache_hook.dbdict
        if cache is None:
            return
        mine = {"model": self.backend_engine.digest(), **self.arts.settings.shaping()}
        # A setting that the cache is older than had its default.
        theirs = {**Settings().shaping(), **cache.setdefault(_MADE_WITH, mine)}
        differ = [f"{key} was {theirs.get(key)!r} and is {mine[key]!r}" for key in mine if theirs.get(key) != mine[key]]
        if differ:
            raise SettingsError(
                f"the answers in lm-eval's cache were made otherwise: {'; '.join(differ)}. Use another --use_cache"
            )
        for key in cache.pop(_REFUSED, []):
            cache.pop(key, None)

    def _cached(self, gen_kwargs: dict[str, Any]) -> bool:
        return self.cache_hook.dbdict is not None and not gen_kwargs.get("do_sample", False)

    def _cache(self, args: tuple[str, dict[str, Any]], answer: Answer) -> None:
        cache = self.cache_hook.dbdict
        if cache is not None and answer.search["error"]:
            # lm-eval will cache the empty answer whatever is done here; the next run takes it out.
            cache[_REFUSED] = [*cache.get(_REFUSED, []), hash_args("generate_until", args)]
        else:
            self.cache_hook.add_partial("generate_until", args, answer)

    # Generation.
    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The chosen trajectory's text for each request, as `Answer`. All requests go into one engine."""
        self._take_seed()
        reads = list(self._read(requests))
        for read in reads:
            self._truncation.room(read.settings)
        answers: dict[int, list[Answer]] = {}
        try:
            for read, tree in self._search(reads, disable_tqdm):
                own = attached(requests[read.place])
                answers[read.place] = handed_out(tree, read.repeats, self.arts.settings.trace, own)
                self._cache(requests[read.place].args, answers[read.place][0])
        finally:
            self._truncation.warn()
        return [answer for read in reads for answer in answers[read.place]]

    def _read(self, requests: list[Any]) -> Iterator[Request]:
        users = host.running().gen_kwargs
        at = 0
        while at < len(requests):
            end = at + 1
            while end < len(requests) and requests[end] is requests[at]:  # `repeats: N` gives one object N times
                end += 1
            context, gen_kwargs = requests[at].args
            repeats = end - at
            if self.world_size > 1 and requests[at].repeats:
                # lm-eval evens out the processes' shares with the last request once more, N times.
                repeats = min(repeats, requests[at].repeats)
                end = at + repeats
            if repeats > 1 and self._cached(gen_kwargs):
                raise SettingsError(
                    f"repeats: {repeats} with --use_cache: lm-eval would hand out the last trajectory {repeats} times "
                    "when it reads its cache; leave --use_cache away (trace= resumes a run)"
                )
            own = {name: value for name, value in users.items() if name in gen_kwargs}
            settings, stops = settings_of(requests[at], self.arts.settings, self._said, own)
            if repeats > 1 and (settings.strategy == "greedy" or not settings.temperature):
                said_once(
                    self._said,
                    f"repeats: {repeats} under greedy decoding gives the same answer {repeats} times; "
                    "strategy=best_of_n samples",
                )
            wanted = settings.budget_trajectories
            if wanted is not None and wanted < repeats:
                said_once(self._said, f"repeats: {repeats} raises budget_trajectories from {wanted} to {repeats}")
                settings = settings.with_(budget_trajectories=repeats)
            yield Request(context, settings, stops, repeats, at)
            at = end

    def _search(self, reads: list[Request], disable_tqdm: bool) -> Iterator[tuple[Request, ReasoningTree]]:
        alike: dict[Request, list[Request]] = {}
        for read in reads:
            alike.setdefault(read, []).append(read)
        first = {read.place: same for read, same in alike.items()}
        stats = self.backend_engine.stats
        tokens, seconds = stats.decoded_tokens, stats.decode_seconds
        quiet = disable_tqdm or self.rank != 0
        with tqdm(total=len(reads), desc="Running generate_until requests", disable=quiet) as bar:
            for event in self.arts.events(self._job(read) for read in alike):
                rate = (stats.decoded_tokens - tokens) / max(stats.decode_seconds - seconds, 1e-9)
                bar.set_postfix_str(f"{rate:.0f} tokens/s", refresh=False)
                if event.kind == "finished":
                    if event.tree.meta.get("error_code") == SettingsError.code:
                        raise SettingsError(event.tree.error)  # of the run or a task: an empty answer would be scored
                    for read in first[event.job.meta["request"]]:
                        bar.update()
                        if event.tree.error:
                            log.warning("request %d was refused: %s", read.place, event.tree.error)
                        yield read, event.tree

    def _job(self, read: Request) -> Job:
        prompt = self._truncation.fit(self._chats.prompt(read.context, read.settings.chat), read.settings)
        return self.arts.job(prompt, read.settings, read.stops, {"request": read.place})


def _of_a_rank(settings: Settings, ranks: Ranks) -> Settings:
    """A GPU for each process of a machine, and a run folder for each."""
    changes: dict[str, Any] = {}
    if settings.backend == "hf" and settings.device in {None, "cuda"} and ranks.device.type == "cuda":
        changes["device"] = f"cuda:{ranks.local}"
    if settings.trace is not None:
        changes["trace"] = str(Path(settings.trace) / f"rank-{ranks.rank}")
    return settings.with_(changes)


def _settings(keywords: dict[str, Any]) -> Settings:
    """Settings from model_args.

    Raises:
        SettingsError: an unknown argument, or two names for one.
    """
    known = {name for name, _, _ in describe()}
    values: dict[str, Any] = {}
    for key, value in keywords.items():
        name = _ALIASES.get(key, key)
        if name in _BATCH_SIZES:
            if name == "batch_size" and value is not None:
                # `auto:4` asks lm-eval's own models to look again now and then.
                values["slots"] = "auto" if str(value).startswith("auto") else value
            continue
        if name not in known:
            raise SettingsError(
                f"unknown argument {key!r} in model_args{ours(key) or did_you_mean(key, known | set(_ALIASES))}"
            )
        if name in values:
            raise SettingsError(f"{key} and another name of {name} are both given; one is enough")
        values[name] = value
    return Settings.of(values)
