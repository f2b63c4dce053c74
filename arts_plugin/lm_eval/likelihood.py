"""The log-likelihood half of the model `arts`: requests encoded as lm-eval's own models encode them, scored together."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from arts_plugin.backend import Backend, Scored
from arts_plugin.errors import ArtsError, PromptTooLongError
from arts_plugin.lm_eval.chats import Chats
from arts_plugin.lm_eval.releases import rolling_answer, rolling_text
from arts_plugin.lm_eval.requests import ChatPrompt
from arts_plugin.lm_eval.truncation import Truncation

Encoded = tuple[list[int], list[int]]
"""Token ids of a context and of its continuation."""


class LikelihoodLM(TemplateLM):
    """Answers lm-eval's requests `loglikelihood` and `loglikelihood_rolling`.

    Attributes:
        backend_engine: what scores; it gets all requests at once, and batches them.
    """

    backend_engine: Backend
    _chats: Chats

    # Contexts and continuations.
    def _encode_pair(self, context: str, continuation: str) -> Encoded:
        """Token ids as lm-eval's `hf` model has them, with at least one for a continuation that is not empty.

        White space at the context's end goes with the continuation, and the continuation is what `context + continuation`
        has beyond the context's number of tokens. Where a token spans the join, that may be nothing: such a continuation is
        encoded by itself.
        """
        if chat := self._chats.behind(context):
            return self._encode_after_chat(chat, continuation)
        kept = context.rstrip()
        continuation = context[len(kept) :] + continuation
        if kept:
            return self._joined(kept, continuation)
        prefix, tokens = self.prefix_token_id, self._bare(continuation)
        # A continuation that begins with the prefix token itself does not get it twice.
        return [prefix], tokens[1:] if tokens[:1] == [prefix] and len(tokens) > 1 else tokens

    def _joined(self, context: str, continuation: str) -> Encoded:
        head = self.tok_encode(context)
        return head, self.tok_encode(context + continuation)[len(head) :] or self._encode_alone(continuation)

    def _encode_after_chat(self, chat: ChatPrompt, continuation: str) -> Encoded:
        """What follows a generation prompt is a text of its own; what follows a begun answer is joined to it."""
        if chat.add_generation_prompt or chat.messages[-1]["role"] != "assistant":
            tokens = self._chats.encode(chat.messages, chat.add_generation_prompt).token_ids
            return list(tokens), self._encode_alone(continuation)
        begun = list(self._chats.encode(chat.messages[:-1], True).token_ids)
        said = chat.messages[-1]["content"]
        kept = said.rstrip()
        continuation = said[len(kept) :] + continuation
        if not kept:
            return begun, self._encode_alone(continuation)
        head, rest = self._joined(kept, continuation)
        return begun + head[len(self.tok_encode("")) :], rest  # BOS stands at the beginning of the chat

    def _encode_alone(self, text: str) -> list[int]:
        """Tokens of a text that follows another. SentencePiece's vocabularies would put a space before it, but not behind a
        line break, which is a token of its own there."""
        if self._adds_space:
            mark = len(self._bare("\n"))
            if tokens := self._bare(f"\n{text}")[mark:]:
                return tokens
        return self._bare(text)

    @cached_property
    def _adds_space(self) -> bool:
        mark, both = self._bare("\n"), self._bare("\na")
        return both[: len(mark)] == mark and both != mark + self._bare("a")

    def _bare(self, text: str) -> list[int]:
        return list(self.tok_encode(text, add_special_tokens=False))

    # Log-likelihoods.
    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Scored]:
        """(log-probability in nats, would greedy decoding give it) of each request's continuation.

        Raises:
            ArtsError: a continuation is empty. Nothing has been computed then.
            PromptTooLongError: a continuation does not fit the context. Nothing has been computed then.
        """
        asked = tqdm(requests, desc="Tokenizing inputs", disable=disable_tqdm or self.rank != 0)
        encoded = [(request.args, *self._encode_pair(*request.args[:2])) for request in asked]
        return self._loglikelihood_tokens(encoded, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[Scored]:
        _refuse_empty(requests)
        pairs = _fitted(requests, self.backend_engine.info.longest_pair)
        quiet = disable_tqdm or self.rank != 0
        with tqdm(total=len(requests), desc="Running loglikelihood requests", disable=quiet) as bar:

            def keep(place: int, score: Scored) -> None:
                if requests[place][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[place][0], score)
                bar.update()

            return self.backend_engine.loglikelihood(pairs, keep)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
        """Log-likelihood of whole texts in nats, in windows of the context's length with one token of overlap; as a pair with
        False where lm-eval asks for that (see `arts_plugin.lm_eval.releases`)."""
        windows = [self._windows(rolling_text(request.args)) for request in requests]
        owners = [place for place, own in enumerate(windows) for _ in own]
        parts: list[dict[int, float]] = [{} for _ in requests]
        answers: list[Any] = [None] * len(requests)
        quiet = disable_tqdm or self.rank != 0
        with tqdm(total=len(requests), desc="Running loglikelihood_rolling requests", disable=quiet) as bar:

            def finish(place: int) -> None:
                total = sum(parts[place][window] for window in sorted(parts[place]))
                answers[place] = rolling_answer(requests[place].args, total)
                self.cache_hook.add_partial("loglikelihood_rolling", requests[place].args, answers[place])
                bar.update()

            def keep(window: int, score: Scored) -> None:
                own = parts[owners[window]]
                own[window] = score[0]
                if len(own) == len(windows[owners[window]]):
                    finish(owners[window])

            for place, own in enumerate(windows):
                if not own:  # an empty text
                    finish(place)
            self.backend_engine.loglikelihood([window for own in windows for window in own], keep)
        return answers

    def _windows(self, text: str) -> list[Encoded]:
        windows = get_rolling_token_windows(
            token_list=self._bare(text),
            prefix_token=self.prefix_token_id,
            max_seq_len=self.backend_engine.info.longest_pair - 1,
            context_len=1,
        )
        return [make_disjoint_window(window) for window in windows]


def _refuse_empty(requests: Sequence[tuple[Any, list[int], list[int]]]) -> None:
    empty = [place for place, (_, _, continuation) in enumerate(requests) if not continuation]
    if empty:
        asked = requests[empty[0]][0]
        after = f" after {asked[0][-60:]!r}" if asked else ""
        raise ArtsError(
            f"{len(empty)} of {len(requests)} continuations are empty (the first is that of request {empty[0]}{after}): "
            "there is nothing to score; look at the task's doc_to_choice and doc_to_target"
        )


def _fitted(requests: Sequence[tuple[Any, list[int], list[int]]], longest: int) -> list[Encoded]:
    """Contexts cut on the left to what fits together with their continuations, as lm-eval's own models do it.

    Raises:
        PromptTooLongError: a continuation does not fit with a single token of context.
    """
    fitted: list[Encoded] = []
    cut = Truncation("contexts")
    for place, (_, context, continuation) in enumerate(requests):
        room = longest - len(continuation)
        if room < 1:
            raise PromptTooLongError(
                f"the continuation of request {place} has {len(continuation)} tokens; at most {longest - 1} fit the context. "
                "Raise n_ctx, if the model allows it"
            )
        fitted.append((list(cut.keep(tuple(context), room)), continuation))
    cut.tell("as with lm-eval's own models; a larger n_ctx keeps them, if the model allows it")
    return fitted
