"""The backend that the core sees: steps are requests, siblings are one request, and a question stays on one replica."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from itertools import groupby

from arts_plugin.backend import (
    EngineStats,
    FloatArray,
    Generation,
    Grammar,
    Message,
    ModelInfo,
    OpenCost,
    Pair,
    Prompt,
    Report,
    Scored,
    StepResult,
)
from arts_plugin.ends import TraceEnds
from arts_plugin.errors import ArtsError, EmptyPromptError, ModelError, PromptTooLongError, SettingsError
from arts_plugin.randomness import branch_key
from arts_plugin.settings import AUTO_SLOTS, Settings, grammar_of
from arts_plugin.steps import Delimiter
from arts_server.dialect import Dialect, name_digest, probe
from arts_server.faults import shorten
from arts_server.features import PoolingServer
from arts_server.keys import HIDDEN, Keys, redact_after
from arts_server.likelihood import PromptScorer
from arts_server.reader import Landed, StepReader
from arts_server.replicas import addresses
from arts_server.states import Question, Run, ServerState
from arts_server.steps import Outcome
from arts_server.transport import Transport
from arts_server.vocabulary import ServerVocabulary

log = logging.getLogger(__name__)

SLOTS_A_REPLICA = 64
"""Branches for each replica with `slots=auto`: engines batch them, and hold back what they have no room for."""
_WAIT = 0.25


class ServerBackend:
    """OpenAI-compatible engines, as `arts_plugin.backend.Backend` describes it.

    Args:
        features: whether hidden states at step ends are wanted; they come from `features_url`, if there is one.

    Raises:
        SettingsError: an address that is none, or a constraint that a server cannot keep to over several steps.
        ServerError: no server can be reached.
        ModelError: they serve no such model, or different ones, or `features_url` serves another.
    """

    any_thread = True

    def __init__(self, settings: Settings, *, features: bool = False) -> None:
        _refuse(grammar_of(settings), settings.frequency_penalty, settings.presence_penalty)
        self._reading = threading.Lock()  # what is known of special tokens is one book
        roots = addresses(settings.base_url)
        self.slots = settings.slots if settings.slots != AUTO_SLOTS else SLOTS_A_REPLICA * len(roots)
        self.transport = Transport(roots, settings.timeout, settings.max_retries, self.slots, Keys(base=roots))
        try:
            self.dialect = self._agree(settings.model)
            pooling = None
            if features and settings.features_url is not None:
                beside = addresses(settings.features_url, "features_url")
                pooling = PoolingServer(self.transport.beside(beside, Keys("features_url", roots)))
            self.pooling = pooling
            self.vocabulary = ServerVocabulary(
                self.transport,
                self.dialect,
                settings.chat_template,
                settings.enable_thinking,
                settings.parse_special,
            )
            if pooling is not None and self.dialect.ids:
                pooling.check(self.dialect.model, self.vocabulary.tokenize)
            self.info = self._info(settings)
        except BaseException:
            self.transport.close()
            raise
        for remark in self.dialect.remarks():
            log.warning("%s: %s", roots[0], remark)
        self.stats = EngineStats(slots=self.slots)
        self.reader = StepReader(self.transport, self.dialect, pooling)
        self.scorer = PromptScorer(self.transport, self.dialect, self.info.longest_pair, self.slots)
        self._queue: list[tuple[ServerState, Run]] = []
        self._landed: queue.SimpleQueue[Landed] = queue.SimpleQueue()
        self._jobs: dict[int, tuple[Future[None], set[int]]] = {}
        self._active = 0
        self._submitted = 0
        self._leaked = False

    def _agree(self, model: str | None) -> Dialect:
        """What all replicas can do; one that is another is refused."""
        found = self.transport.each(lambda replica: probe(self.transport, replica, model), "base_url")
        if any(dialect != found[0] for dialect in found):
            raise ModelError(
                f"the replicas of base_url are not alike: {shorten('; '.join(map(str, dict.fromkeys(found))))}"
            )
        return found[0]

    def _info(self, settings: Settings) -> ModelInfo:
        n_ctx = self.dialect.n_ctx or settings.n_ctx
        return ModelInfo(
            name=self.dialect.model,
            n_ctx=n_ctx,
            n_vocab=0,
            n_embd=self.pooling.n_embd if self.pooling else 0,
            bos=next(iter(self.vocabulary.bos), -1),
            chat_template=self.vocabulary.chat_template,
            counted=self.dialect.ids,
            details={"description": f"served by {self.dialect.owner or 'an OpenAI-compatible server'}"},
            n_pair=n_ctx - 1,  # servers generate at least one token
        )

    def digest(self) -> str:
        """A digest of the model's name: a server does not show its weights."""
        return name_digest(self.dialect.model)

    # Text.
    def encode(self, text: str) -> Prompt:
        """A plain prompt."""
        with self._reading:
            return self.vocabulary.encode(text)

    def encode_chat(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> Prompt:
        """A chat in the model's template."""
        with self._reading:
            return self.vocabulary.encode_chat(messages, add_generation_prompt)

    def spelling(self, token: int) -> str | None:
        """The text of a control token, or of another that the server's tokeniser never splits; None for any other id.

        Raises:
            ModelError: the server gives no token ids.
        """
        return self.vocabulary.spelling(token)

    # Engine.
    def open(self, prompt: Prompt, generation: Generation, problem: int) -> ServerState:
        """State 0; nothing is sent before a fork of it runs."""
        sampling, n_prompt, n_ctx = generation.sampling, len(prompt.token_ids), self.info.n_ctx
        _refuse(generation.grammar, sampling.frequency_penalty, sampling.presence_penalty)
        if not prompt.text and not n_prompt:
            raise EmptyPromptError("the prompt is empty: it has no token to begin from")
        limit = generation.max_gen_toks
        if self.dialect.ids:  # stand-ins for tokens cannot be counted
            if n_prompt >= n_ctx:
                raise PromptTooLongError(
                    f"the prompt has {n_prompt} tokens and the server's context {n_ctx}: no room for an answer; shorten the "
                    "prompt, or start the server with a longer context"
                )
            limit = min(limit, n_ctx - n_prompt)
        delimiter = Delimiter(generation.delimiter)
        # A chain is asked for whole only where a reply says what ended it.
        ends = TraceEnds.of(generation.stops, generation.think_end, prompt, self.vocabulary.controls)
        question = Question(prompt, generation, delimiter, ends, limit, generation.chains and self.dialect.whole)
        return ServerState(question, (), "", ends.scanner(delimiter), branch_key(sampling.seed, problem))

    def open_cost(self, state: ServerState) -> OpenCost:
        """Prompt tokens of all the question's requests so far: computed, and found in the server's cache."""
        question = state.question
        return OpenCost(question.sent - question.cached, question.cached)

    def fork(self, state: ServerState, index: int) -> ServerState:
        """A branch that starts where `state` stands."""
        return state.fork(index)

    def drop(self, state: ServerState) -> None:
        """Forget an idle state: the server keeps what it likes of its prefix."""
        if state.run:
            raise ArtsError("a submitted state cannot be dropped; cancel it")

    def submit(self, state: ServerState, max_tokens: int, allowance: int | None = None) -> None:
        """Queue one step; requests leave with the next `poll`, siblings together."""
        if state.run:
            raise ArtsError("the state was submitted before and is not finished")
        if state.over:
            raise ArtsError("this state's trace has ended; nothing goes on from it")
        if max_tokens < 1:
            raise ArtsError(f"max_tokens is {max_tokens}; a step has at least one token")
        room = state.question.limit - len(state.tokens)
        most = min(max_tokens, room, max_tokens if allowance is None else allowance)
        state.run = Run(self._submitted, most, allowance)
        self._submitted += 1
        self._queue.append((state, state.run))
        self._active += 1

    def refill_cost(self, state: ServerState) -> int:
        """0: what a server computes again is its own affair, and told by `open_cost`."""
        return 0

    def cancel(self, state: ServerState) -> tuple[int, int]:
        """Take a submitted state out. A request of which nothing is wanted any more is closed; what it had generated is
        known only where steps are streamed."""
        run = state.run
        if run is None:
            raise ArtsError("only a submitted state can be cancelled")
        self._queue = [pair for pair in self._queue if pair[1] is not run]
        self._forget(run, cancel=True)
        self._active -= 1
        state.run, state.over = None, True
        return run.decoded, 0

    def _forget(self, run: Run, cancel: bool = False) -> None:
        job, others = self._jobs.pop(run.number, (None, set()))
        others.discard(run.number)
        if cancel and job is not None and not others:
            job.cancel()

    @property
    def n_active(self) -> int:
        """Branches submitted and not finished."""
        return self._active

    def poll(self) -> list[StepResult]:
        """Send what is queued, and wait a moment for steps that end; none may have."""
        self._dispatch()
        began = time.perf_counter()
        arrived: list[Landed] = []
        try:
            arrived.append(self._landed.get(timeout=_WAIT))
            while True:
                arrived.append(self._landed.get_nowait())
        except queue.Empty:
            pass
        self.stats.decodes += 1
        self.stats.occupied += self._active
        # In the order of submission, as far as they came together.
        wanted = [landed for landed in sorted(arrived, key=_number) if self._wanted(landed)]
        if fatal := next((landed.error for landed in wanted if landed.fatal), None):
            for landed in wanted:  # all stay submitted, so that they can be cancelled, or come with the next call
                if not landed.fatal:
                    self._landed.put(landed)
            raise fatal
        results = [self._settle(landed) for landed in wanted]
        self.stats.decode_seconds += time.perf_counter() - began
        return results

    def _wanted(self, landed: Landed) -> bool:
        return landed.state.run is landed.run

    def _settle(self, landed: Landed) -> StepResult:
        state, run, outcome = landed.state, landed.run, landed.outcome
        self._forget(run)
        self._active -= 1
        state.run, state.origin = None, None
        self.stats.decoded_tokens += run.decoded
        error: BaseException | None = landed.error
        tokens, text = state.tokens, state.text
        if outcome is not None:
            tokens, text = tokens[: len(tokens) - outcome.cut_tokens], text[: len(text) - outcome.cut_chars]
            try:
                outcome = self._without_keys(text, outcome)
            except ArtsError as failed:  # of its tokeniser: nothing of the step is kept
                outcome, error = None, failed
        if outcome is None:
            state.over = True
            return StepResult(state, "", (), 0.0, "error", True, decoded=run.decoded, error=str(error))
        assert landed.scanner is not None
        state.tokens, state.text = (*tokens, *outcome.token_ids), text + outcome.text
        state.scanner, state.over, state.hidden = landed.scanner, outcome.terminal, landed.feature
        state.rest = landed.rest
        return StepResult(
            state,
            outcome.text,
            outcome.token_ids,
            outcome.logprob,
            outcome.stop,
            outcome.terminal,
            feature=landed.feature,
            decoded=run.decoded,
            cut_chars=outcome.cut_chars,
            cut_tokens=outcome.cut_tokens,
        )

    def _without_keys(self, before: str, outcome: Outcome) -> Outcome:
        """A step in which no key of ours stands, as text or as tokens: a server knows them, and a tree is kept and shown."""
        text = redact_after(before, outcome.text)
        if text == outcome.text:
            return outcome
        if not self._leaked:
            log.warning("a server writes a key of this run into its answers; it is replaced by %s there", HIDDEN)
            self._leaked = True
        return replace(outcome, text=text, token_ids=tuple(self.vocabulary.tokenize(text)))

    def _dispatch(self) -> None:
        for group in self._groups():
            members = {run.number for _, run in group}
            job = self.transport.start(self.reader.advance(group, self._landed.put))
            for _, run in group:
                self._jobs[run.number] = (job, members)
        self._queue.clear()

    def _groups(self) -> Iterator[list[tuple[ServerState, Run]]]:
        """What goes into one request: siblings that have not moved, are numbered in sequence and may take as many tokens."""
        order = sorted(self._queue, key=lambda pair: (id(pair[0].origin), pair[1].max_tokens, pair[0].index))
        for _, members in groupby(
            enumerate(order), key=lambda e: (id(e[1][0].origin), e[1][1].max_tokens, e[1][0].index - e[0])
        ):
            group = [pair for _, pair in members]
            state = group[0][0]
            # Whole traces differ in length: together, the short ones would keep their slots until the longest ends.
            question = state.question
            together = self.dialect.many and self.dialect.whole and not question.streams and not question.ahead
            if state.origin is not None and together and question.generation.sampling.temperature > 0:
                yield group
            else:
                yield from ([pair] for pair in group)

    # Scoring.
    def loglikelihood(self, pairs: Sequence[Pair], report: Report | None = None) -> list[Scored]:
        """See `arts_server.likelihood`."""
        return self.scorer.run(pairs, report)

    def tree_features(
        self, tokens: Sequence[Sequence[int]], parents: Sequence[int | None], cut: Sequence[int]
    ) -> FloatArray:
        """Hidden states of a recorded tree.

        Raises:
            ModelError: no `features_url` is given.
        """
        if self.pooling is None or not self.dialect.ids:
            raise ModelError("hidden states come from a pooling server of the same model; give features_url=")
        paths: list[tuple[int, ...]] = []
        for own, parent, taken in zip(tokens, parents, cut, strict=True):
            above = paths[parent] if parent is not None else ()
            paths.append((*above[: len(above) - taken], *own))
        return self.transport.do(self.pooling.states(paths))

    def close(self) -> None:
        """Cancel what is under way and close the connections."""
        self.transport.close()


def _refuse(grammar: Grammar | None, *penalties: float) -> None:
    """What depends on a trace's earlier steps, which to a server are but a prompt."""
    if grammar or any(penalties):
        raise SettingsError(
            "grammar, json_schema, frequency_penalty and presence_penalty need a model in process: a server would begin "
            "them anew with every step; repetition_penalty and logit_bias go with backend=server"
        )


def _number(landed: Landed) -> int:
    return landed.run.number
