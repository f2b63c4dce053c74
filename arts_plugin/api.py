"""ARTS from Python: `with Arts(model=..., budget_trajectories=16) as arts: tree = arts.solve("...")`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from arts_plugin import checkpoint, prompts
from arts_plugin.answers.extract import regex_extractor
from arts_plugin.backend import Backend, Prompt
from arts_plugin.errors import NotWrittenError, SettingsError, unknown_name
from arts_plugin.hookspecs import Extractor
from arts_plugin.options import refuse_misplaced
from arts_plugin.plugins import Plugins, plugins
from arts_plugin.run import RunFolder
from arts_plugin.search.driver import Event, SearchDriver
from arts_plugin.search.job import Job
from arts_plugin.search.select import RULE_OF, RULES, default_rule
from arts_plugin.settings import AUTO_SLOTS, OF_THE_RUN, Settings
from arts_plugin.steps import REGEX_PREFIX
from arts_plugin.tree import ReasoningTree
from arts_plugin.verifier import Verifier, close

log = logging.getLogger(__name__)

NO_VERIFIER = (
    "no trained verifier is loaded: states are scored by the model's own mean token log-probability, which is a weak "
    "judge of reasoning; the search is not the paper's ARTS without one"
)


class Arts:
    """A proposer, a strategy and a verifier, ready to search.

    The model is loaded when it is first needed, and freed by `close` or at the end of a `with` block. Not
    thread-safe: one thread owns the model.

    Args:
        settings: resolved settings; or give any of them as keywords (see `arts_plugin.settings.Settings`).
        registry: plugins to use; default: those of the process.
        scorer: a verifier that was made by hand, in place of what `verifier` names.
        engine: a backend that was made by hand, in place of what `backend` names; whoever made it closes it.

    Raises:
        SettingsError: an unknown or impossible setting, or an option of another backend.
        UnknownNameError: a strategy, verifier, extractor or selection rule that nobody registered.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        registry: Plugins | None = None,
        scorer: Verifier | None = None,
        engine: Backend | None = None,
        **keywords: Any,
    ) -> None:
        self.settings = (settings or Settings()).with_(keywords)
        self.plugins = registry or plugins()
        self._check_names(self.settings)
        self._said: set[str] = set()
        self._remarks: list[str] = []
        self._run: RunFolder | None = None
        self._scorer, self._engine = scorer, engine
        self._place = self._find_verifier()
        if engine is None:
            refuse_misplaced(self.settings, self.plugins, self._place)
        self._extractor_named = lru_cache(maxsize=64)(self._make_extractor)

    def _check_names(self, settings: Settings) -> None:
        for kind, name in (("strategy", settings.strategy), ("backend", settings.backend)):
            if name not in self.plugins.registrations(kind):
                raise unknown_name(kind, name, self.plugins.registrations(kind))
        if settings.select is not None and settings.select not in RULES:
            raise unknown_name("selection rule", settings.select, RULES)
        if settings.extract.startswith(REGEX_PREFIX):
            regex_extractor(settings.extract[len(REGEX_PREFIX) :])
        elif settings.extract not in self.plugins.registrations("extractor"):
            raise unknown_name("extractor", settings.extract, self.plugins.registrations("extractor"))

    def _find_verifier(self) -> Path | None:
        """The folder of a trained verifier that was asked for by name, path or hub id."""
        name, registered = self.settings.verifier, self.plugins.registrations("verifier")
        if self._scorer or name in {"auto", "none"} or name in registered:
            return None
        place = checkpoint.find(name)
        if place is None:
            raise unknown_name("verifier", name, [*registered, *checkpoint.shipped(), "auto", "none"])
        return place

    @cached_property
    def _registered_verifier(self) -> Verifier | None:
        name = self.settings.verifier
        if self._scorer or name not in self.plugins.registrations("verifier"):
            return self._scorer
        made: Verifier = self.plugins.make("verifier", name, self.settings)
        return made

    @cached_property
    def trained(self) -> checkpoint.TrainedVerifier | None:
        """The trained verifier that is in use: the one named, or the shipped one that matches the proposer.

        Raises:
            ArtsError: its files are damaged, or the proposer's hidden states are of another size.
        """
        place = self._place
        if self._registered_verifier is not None:
            return None
        if place is None:
            found = checkpoint.matching(self.backend) if self.settings.verifier == "auto" else None
            if found is None:
                return None
            place = checkpoint.shipped_folder() / found[0]
        trained = checkpoint.load(place, self.settings)
        self._remarks = trained.card.remarks(self.backend, self.settings)
        return trained

    @cached_property
    def verifier(self) -> Verifier | None:
        """What scores states; None while the mean token log-probability stands in."""
        return self.trained.verifier if self.trained else self._registered_verifier

    def _extractor(self, settings: Settings) -> Extractor:
        return self._extractor_named(settings.extract)

    def _make_extractor(self, name: str) -> Extractor:
        if name.startswith(REGEX_PREFIX):
            return regex_extractor(name[len(REGEX_PREFIX) :])
        made: Extractor = self.plugins.make("extractor", name)
        return made

    @cached_property
    def backend(self) -> Backend:
        """The proposer's engine, loaded when it is first asked for.

        Raises:
            ModelError: the model cannot be loaded.
        """
        if self._engine is not None:
            return self._engine
        # A trained verifier can only be matched to a model that is loaded; hidden states cost about a percent.
        registered, name = self._registered_verifier, self.settings.verifier
        reads = name != "none" if registered is None else "features" in registered.needs
        features = self.settings.features or reads
        made: Backend = self.plugins.make("backend", self.settings.backend, self.settings, features=features)
        self.settings = _with_slots(self.settings, made)
        return made

    @cached_property
    def run_folder(self) -> RunFolder | None:
        """The run folder, if `trace` names one.

        Raises:
            RunFolderError: it holds other settings, or is in use.
        """
        if self.settings.trace is None:
            return None
        info = self.backend.info
        model = {"name": info.name, "digest": self.backend.digest(), **info.details}
        scores = self.trained or self._registered_verifier
        trained: dict[str, str] = getattr(scores, "identity", dict)()  # a scorer without weights need not have it
        self._run = RunFolder(self.settings.trace, self.settings, model, trained)
        return self._run

    def reseed(self, seed: int) -> None:
        """Search with this seed from now on. A run folder has one: it is closed, and refused if its was another."""
        if seed != self.settings.seed:
            self.settings = replace(self.settings, seed=seed)
            self._close_run()

    def _close_run(self) -> None:
        if self._run is not None:
            self._run.close()
            self._run = None
        self.__dict__.pop("run_folder", None)

    # Questions.
    def prompt(self, question: str, settings: Settings | None = None) -> Prompt:
        """The prompt of a bare question: see `arts_plugin.prompts`."""
        chat = (settings or self.settings).chat
        return prompts.encode(self.backend, prompts.question_text(question), chat)

    def solve(
        self, question: str, *, on_event: Callable[[Event], None] | None = None, **overrides: Any
    ) -> ReasoningTree:
        """Search one question. `on_event` is called with each step as it comes; `overrides` are settings for this call."""
        return self.solve_many([question], on_event=on_event, **overrides)[0]

    def solve_many(
        self, questions: Sequence[str], *, on_event: Callable[[Event], None] | None = None, **overrides: Any
    ) -> list[ReasoningTree]:
        """Search questions together, batched over all their branches; their trees in the order of the questions.

        A question that cannot be searched has `tree.error` set and the others their trees.
        """
        trees: dict[int, ReasoningTree] = {}
        for event in self.stream(questions, **overrides):
            if on_event:
                on_event(event)
            if event.kind == "finished":
                trees[event.job.meta["number"]] = event.tree
        return [trees[i] for i in range(len(questions))]

    def stream(self, questions: Sequence[str], **overrides: Any) -> Iterator[Event]:
        """What happens, as it happens: steps as they are taken into a tree, and each tree's end.

        `event.job.meta["number"]` is the question's number.

        Raises:
            SettingsError: an override of what belongs to the model or the verifier.
        """
        if shared := sorted(OF_THE_RUN & overrides.keys()):
            raise SettingsError(
                f"{', '.join(shared)}: a loaded model keeps its own for all questions; give it to Arts(...)"
            )
        settings = self.settings.with_(overrides) if overrides else self.settings
        jobs = (
            self.job(self.prompt(question, settings), settings, meta={"number": i, "question": question})
            for i, question in enumerate(questions)
        )
        return self.events(jobs)

    # Jobs.
    def resolved(self, settings: Settings) -> Settings:
        """Settings with what only the loaded model can tell: `slots=auto`, and the text of a `think_end_token` given by its id.

        Raises:
            SettingsError: that id is no control token.
        """
        return _with_think_end(_with_slots(settings, self.backend), self.backend)

    def job(
        self,
        prompt: Prompt,
        settings: Settings | None = None,
        stops: Sequence[str] = (),
        meta: dict[str, Any] | None = None,
    ) -> Job:
        """A search job; what follows from the settings is filled in and said once."""
        settings = self.resolved(settings or self.settings)
        self._check_names(settings)
        if settings.temperature == 0 and settings.strategy != "greedy":
            self._say(
                f"temperature is 0, so every trajectory would be the same: {settings.strategy!r} becomes 'greedy'"
            )
            settings = replace(settings, strategy="greedy")
        # A single chain is not chosen by anything.
        if self.trained and settings.strategy != "greedy":
            self._say_of_the_verifier(self.trained.card, prompt)
        preferred = self.trained.card.select if self.trained else None
        rule = settings.select or RULE_OF.get(settings.strategy) or preferred or default_rule(self.verifier is not None)
        guided = settings.strategy == "arts" or (settings.strategy != "greedy" and rule in {"flow", "weighted_vote"})
        if self.verifier is None and guided:
            self._say(NO_VERIFIER)
        return Job(prompt, replace(settings, select=rule), tuple(stops), dict(meta or {}))

    def _say_of_the_verifier(self, card: checkpoint.Card, prompt: Prompt) -> None:
        other_format = "it was trained on prompts of another format (those of `arts solve`)"
        for remark in [*self._remarks, *([] if card.same_prompt(prompt.text) else [other_format])]:
            self._say(f"verifier {card.name!r}: {remark}; its flows may mean less")

    def events(self, jobs: Iterable[Job], *, must_keep: bool = False) -> Iterator[Event]:
        """Run jobs; those that the run folder has finished come from there, and jobs that are equal to a running one
        share its tree.

        Args:
            must_keep: whether the run ends where the run folder cannot take a tree (the disk is full, for instance), for what
                lives by the folder. Otherwise that is said, and the tree is handed out.

        Raises:
            NotWrittenError: a tree that must be kept cannot be.
        """
        folder = self.run_folder
        waiting: dict[str, list[Job]] = {}
        kept: list[Event] = []
        finished: set[str] = set()

        def fresh() -> Iterator[Job]:
            for job in jobs:
                key = job.key()
                known = folder.get(key) if folder is not None else None
                if known is not None:
                    kept.append(Event("finished", job, known))
                    finished.add(key)
                elif key in waiting:
                    waiting[key].append(job)
                else:
                    waiting[key] = [job]
                    yield job

        driver = self.driver = self.new_driver()
        try:
            for event in driver.events(fresh()):
                yield from _emptied(kept)
                if event.kind == "finished":
                    key = event.job.key()
                    # A search that the user cut short is not what the next run should find.
                    wanted = folder is not None and event.tree.ended_by != "cancelled"
                    if not wanted or self._keep(folder, key, event.tree, must_keep):
                        finished.add(key)
                    yield from (Event("finished", job, event.tree) for job in waiting.pop(key))
                else:
                    yield event
        except Exception:
            self._say_what_is_kept(len(finished))
            raise
        yield from _emptied(kept)

    def _keep(self, folder: RunFolder | None, key: str, tree: ReasoningTree, must: bool) -> bool:
        """Put a tree into the run folder, if there is one; whether it is there now."""
        try:
            if folder is not None:
                folder.put(key, tree)
        except NotWrittenError as error:
            if must:
                raise
            self._say(f"what is found goes on to whoever asked for it, but is not kept: {error}")
            return False
        return True

    def _say_what_is_kept(self, finished: int) -> None:
        """A run ends in an error: what of it is not lost."""
        trace = self.settings.trace
        if trace is not None:
            log.error(
                "the run ends here: %d question(s) were finished and are kept in trace=%s; the same command goes on with the rest",
                *(finished, trace),
            )
        elif finished:
            log.error(
                "the run ends here, and with it what %d finished question(s) had found; trace=FOLDER would keep that, and the "
                "same command would then go on with the rest",
                finished,
            )

    def new_driver(self, *, fair: bool = False) -> SearchDriver:
        """What runs jobs on this proposer; see `arts_plugin.search.driver.SearchDriver`."""
        return SearchDriver(self.backend, self.plugins, self.verifier, self._extractor, fair=fair)

    def _say(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            log.warning(message)

    def close(self) -> None:
        """Free the model and the run folder. Idempotent."""
        self._close_run()
        if "backend" in self.__dict__:
            if self._engine is None:
                self.backend.close()
            del self.__dict__["backend"]
        # A scorer that was handed in is its owner's, like an engine.
        trained = self.__dict__.get("trained")
        made = trained.verifier if trained else self.__dict__.get("_registered_verifier")
        if made is not None and made is not self._scorer:
            close(made)
            self.__dict__.pop("_registered_verifier", None)
        for name in ("trained", "verifier"):
            self.__dict__.pop(name, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _with_slots(settings: Settings, backend: Backend) -> Settings:
    """`slots=auto` is a number once the model is loaded."""
    return settings if settings.slots != AUTO_SLOTS else replace(settings, slots=backend.slots)


def _with_think_end(settings: Settings, backend: Backend) -> Settings:
    """A `think_end_token` that is a token's id, as lm-eval's own models take it too, becomes the token's text.

    Raises:
        SettingsError: it is no token, or one of ordinary text.
    """
    end = settings.think_end_token
    if end is None or not end.isdecimal():
        return settings
    text = backend.spelling(int(end))
    if text is None:
        raise SettingsError(
            f"think_end_token is {end}, which is no control token of {backend.info.name} ({backend.info.n_vocab} tokens): "
            "give the id of one, or the text that ends the thinking, </think> for example"
        )
    return replace(settings, think_end_token=text)


def _emptied(events: list[Event]) -> Iterator[Event]:
    while events:
        yield events.pop(0)
