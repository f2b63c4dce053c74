"""A reward model on a server of its own as a verifier: its scalar for the question and the text so far."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from arts_plugin.backbone_verifier import PathAggregate, PathScore
from arts_plugin.errors import ArtsError, ModelError
from arts_plugin.settings import AUTO_SLOTS, Settings
from arts_plugin.verifier import StateView
from arts_server.dialect import name_digest, served
from arts_server.faults import RefusedError, RetryError, ServerError, shorten, shown
from arts_server.keys import Keys
from arts_server.replicas import Replica, addresses
from arts_server.transport import Transport
from arts_server.values import count, number
from arts_server.vocabulary import whole

log = logging.getLogger(__name__)

START = "vLLM: vllm serve MODEL --runner pooling, of a model with one or two outputs (...ForSequenceClassification)"
_IN_FLIGHT = 64
"""Requests for each replica with `slots=auto`."""
_PROBE = ("What is 2 plus 3?", "It is 5.")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """How a server is asked for rewards.

    Attributes:
        model: its name for the model.
        path: `/classify` for one judgement a text, `/pooling` for models that judge each token, of which the last counts.
        chat: whether it takes messages and puts them into the model's own chat template; otherwise it gets plain text.
        outputs: how many numbers a judgement is: one is a reward, two are logits of bad and good.
    """

    model: str
    path: str
    chat: bool
    outputs: int = 0

    def body(self, question: str, text: str) -> dict[str, Any]:
        """A request for the reward of an answer to a question."""
        question, text = whole(question), whole(text)
        asked: dict[str, Any] = {"input": f"{question}\n{text}"}
        if self.chat:
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": text}]
            asked = {"messages": turns, "add_generation_prompt": False}
        return {"model": self.model, "use_activation": False, **asked}


@dataclass(slots=True, eq=False)
class Place:
    """A state's side here.

    Attributes:
        home: the replica that has the question's texts in its cache; the root's counts.
        text: the trace so far.
        path: what its score is made of, once it has been read.
        computed: tokens that were read for it, and not yet asked for by `tokens_read`.
    """

    parent: Place | None = None
    home: Replica | None = None
    text: str = ""
    path: PathScore | None = None
    computed: int = 0

    @property
    def root(self) -> Place:
        """State 0."""
        place = self
        while place.parent is not None:
            place = place.parent
        return place


class RewardServer:
    """Scores states by a reward model behind vLLM's `/classify` or `/pooling`; see `arts_plugin.verifier.Verifier`.

    A single output r is taken for log F as it is: reward models are trained by the Bradley-Terry model (Bradley and Terry
    1952), in which a is preferred to b with odds of exp(r_a - r_b), and in those odds a search draws them. Of two outputs
    the log-probability of the second counts, as in published process reward models. The text so far is judged as a
    finished answer, for that is what these models have learned from; a path's score is that of its last state, unless
    `verifier_aggregate` says otherwise.

    A text that the server refuses (it is too long, for instance) counts as worthless, and that is said once.

    Raises:
        SettingsError: no `reward_url`, or one that is no address.
        ServerError: no server can be reached.
        ModelError: it has no such model, gives no rewards, or the replicas are not alike.
    """

    name = "reward"
    needs = frozenset({"text"})
    is_flow = False

    def __init__(self, settings: Settings) -> None:
        roots = addresses(settings.reward_url, "reward_url", "verifier=reward")
        bound = settings.slots if settings.slots != AUTO_SLOTS else _IN_FLIGHT * len(roots)
        self.aggregate: PathAggregate = settings.verifier_aggregate or "last"
        keys = Keys("reward_url", addresses(settings.base_url) if settings.base_url else ())
        self.transport = Transport(roots, settings.timeout, settings.max_retries, bound, keys)
        try:
            wanted = settings.verifier_model
            found = self.transport.each(lambda replica: _probe(self.transport, replica, wanted), "reward_url")
            self.endpoint = found[0]
            if any(endpoint != self.endpoint for endpoint in found):
                raise ModelError(
                    f"the servers of reward_url are not alike: {shorten('; '.join(map(str, dict.fromkeys(found))))}"
                )
        except BaseException:
            self.transport.close()
            raise
        self._room = asyncio.Semaphore(bound)
        self._said = False
        if not self.endpoint.chat:
            log.warning("%s puts no chat into a template: it gets questions and answers as plain text", roots[0])

    def identity(self) -> dict[str, str]:
        """What tells it from others in a run folder: its model's name, for a server does not show its weights."""
        return {"name": f"{self.name}: {self.endpoint.model}", "digest": name_digest(self.endpoint.model)}

    def close(self) -> None:
        """Let go of the connections."""
        self.transport.close()

    # The search's side.
    def open(self, prompt: str) -> Place:
        """State 0."""
        return Place()

    def fork(self, handle: object) -> Place:
        """A state one step further."""
        return Place(_place(handle))

    def drop(self, handle: object) -> None:
        """The server's cache is its own affair."""

    def tokens_read(self, handle: object) -> int:
        """Tokens of the texts that were sent for a state since this was last asked; the server's cache may have spared it
        most of them."""
        place = _place(handle)
        count, place.computed = place.computed, 0
        return count

    def score(self, states: Sequence[StateView]) -> npt.NDArray[np.float64]:
        """Rewards of states through the aggregate, [n]; one request each, all at once.

        Raises:
            ServerError: the servers cannot be asked any more.
        """
        if not states:
            return np.empty(0)
        places = [_place(state.handle) for state in states]
        wanted: dict[int, tuple[Place, StateView]] = {}
        for place, state in zip(places, states, strict=True):
            place.text = state.text
            if place.path is None and not _unmoved(place):
                wanted[id(place)] = place, state
        rewards = self.transport.do(self._ask(list(wanted.values())))
        outputs = dict(zip(wanted, rewards, strict=True))
        return np.array([_path(place, outputs).value(self.aggregate) for place in places])

    async def _ask(self, wanted: Sequence[tuple[Place, StateView]]) -> list[float]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._reward(place, state)) for place, state in wanted]
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _reward(self, place: Place, state: StateView) -> float:
        body = self.endpoint.body(state.question or state.prompt, state.text)
        try:
            async with self._room:
                reward, tokens = await self.transport.post(
                    self.endpoint.path, body, place.root, read=lambda reply: _read(reply, self.endpoint)
                )
        except RefusedError as error:
            reward, tokens = -math.inf, 0
            self._say(str(error))
        place.computed += tokens
        if math.isfinite(reward):
            return reward
        if place.parent is None:
            return 0.0  # a search that cannot begin finds nothing
        self._say(f"reward_url gives {reward} for a text")
        return -math.inf

    def _say(self, problem: str) -> None:
        if not self._said:
            self._said = True
            log.warning("%s; such states count as worthless", problem)


async def _probe(transport: Transport, replica: Replica, model: str | None) -> Endpoint:
    """How this server is asked.

    Raises:
        ModelError: it has no such model, or judges no text.
        RetryError: see `arts_server.faults`.
    """
    name = str((await served(transport, replica, model, "verifier_model"))["id"])
    problems: list[str] = []
    for path in ("/classify", "/pooling"):
        for chat in (True, False):
            endpoint = Endpoint(name, path, chat)
            try:
                numbers = _numbers(await transport.ask(replica, path, endpoint.body(*_PROBE)), path)
            except (ServerError, RefusedError) as error:
                problems.append(str(error))
                continue
            if len(numbers) not in {1, 2}:
                raise ModelError(f"{replica.root}{path} judges by {len(numbers)} numbers, not one or two. {START}")
            return replace(endpoint, outputs=len(numbers))
    raise ModelError(f"{replica.root} gives no rewards: {'; '.join(dict.fromkeys(problems))}. {START}")


def _read(reply: dict[str, Any], endpoint: Endpoint) -> tuple[float, int]:
    """(log F, tokens that were read)."""
    numbers = _numbers(reply, endpoint.path)
    if len(numbers) != endpoint.outputs:
        raise RetryError(f"{endpoint.path} judges by {len(numbers)} numbers, and by {endpoint.outputs} before")
    usage = reply.get("usage")
    return _log_flow(numbers), (count(usage.get("prompt_tokens")) if isinstance(usage, dict) else None) or 0


def _log_flow(numbers: Sequence[float]) -> float:
    if len(numbers) == 1:
        return numbers[0]
    bad, good = numbers
    if min(numbers) >= 0 and abs(bad + good - 1) < 1e-4:  # a server that knows no `use_activation` gives probabilities
        return math.log(good) if good else -math.inf
    return good - float(np.logaddexp(bad, good))


def _numbers(reply: dict[str, Any], path: str) -> list[float]:
    """The last judgement of a reply for one text.

    Raises:
        RetryError: there is none.
    """
    data = reply.get("data")
    entry = data[0] if isinstance(data, list) and len(data) == 1 and isinstance(data[0], dict) else {}
    found = entry.get("probs" if path == "/classify" else "data")
    if isinstance(found, list) and found and isinstance(found[-1], list):
        found = found[-1]  # one for each token
    if not isinstance(found, list) or not found:
        raise RetryError(f"{path} gives no judgement of one text: {shown(reply)}")
    return [number(value, f"{path} gives a judgement") for value in found]


def _unmoved(place: Place) -> bool:
    """Whether a state stands where its parent stood: its step had no text."""
    return place.parent is not None and place.parent.text == place.text


def _path(place: Place, outputs: dict[int, float]) -> PathScore:
    """A state's path; its parents, which may come together with it, are read first."""
    if place.path is None:
        if place.parent is None:
            place.path = PathScore.root(outputs[id(place)])
        else:  # a step without text is no step to judge again
            above = _path(place.parent, outputs)
            place.path = above if _unmoved(place) else above.then(outputs[id(place)])
    return place.path


def _place(handle: object) -> Place:
    if not isinstance(handle, Place):
        raise ArtsError(f"a verifier was given a handle that is not its own: {handle!r}")
    return handle
