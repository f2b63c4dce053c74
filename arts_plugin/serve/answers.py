"""How an answer is said in OpenAI's completion protocol: whole, in parts, and errors."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from arts_plugin.serve.protocol import Ask
from arts_plugin.serve.thinking import said
from arts_plugin.tree import ReasoningTree


def finish_reason(tree: ReasoningTree, stopped: bool) -> str:
    """OpenAI's word for why the chosen trajectory ended. `stopped`: whether its answer was cut at a stop string since."""
    if stopped:
        return "stop"
    chosen = None if tree.chosen is None else tree.trajectory(tree.chosen)
    return "stop" if chosen is not None and chosen.stop in {"eos", "stop"} else "length"


def failure(tree: ReasoningTree) -> str | None:
    """Why there is no answer, if the chosen trajectory ended in an error: it is chosen only where all did."""
    if tree.chosen is None or tree.nodes[tree.chosen].stop != "error":
        return None
    told = dict.fromkeys(str(error) for error in tree.meta.get("errors", ()))
    return f"every trajectory ended in an error: {'; '.join(told) or 'no reason was given'}"


def usage(tree: ReasoningTree) -> dict[str, Any]:
    """Tokens: the prompt's, all that the proposer generated for the search, of which the answer is a part, and what a
    verifier with a model of its own has read, which is in no total."""
    cost = tree.cost
    return {
        "prompt_tokens": cost.prompt_tokens,
        "completion_tokens": cost.decoded_tokens,
        "total_tokens": cost.prompt_tokens + cost.decoded_tokens,
        "verifier_tokens": cost.verifier_tokens,
        "prompt_tokens_details": {"cached_tokens": cost.cached_tokens},
    }


def about(tree: ReasoningTree) -> dict[str, Any]:
    """The field `arts` of an answer: what the search found, and what it cost."""
    chosen = None if tree.chosen is None else tree.trajectory(tree.chosen)
    return {
        "answer": tree.answer,
        "strategy": tree.strategy,
        "chosen_by": tree.select,
        "scored_by": tree.scorer,
        "ended_by": tree.ended_by,
        "finished": tree.n_finished,
        "proposals": tree.n_proposals,
        "log_flow": None if chosen is None else _finite(chosen.log_flow),
        "answer_tokens": 0 if chosen is None else len(chosen.token_ids),
        "cost": asdict(tree.cost),
    }


def _finite(value: float | None) -> float | None:
    """`value`, or None for what JSON has no word for."""
    return value if value is not None and math.isfinite(value) else None


def answer(ask: Ask, model: str, tree: ReasoningTree) -> dict[str, Any]:
    """A whole reply."""
    found = said(tree, ask.kind)
    body: dict[str, Any] = {"text": found.answer}
    if ask.kind == "chat":
        body = {"message": {"role": "assistant", "content": found.answer, **_thought(found.thinking)}}
    choice = {"index": 0, **body, "logprobs": None, "finish_reason": finish_reason(tree, found.stopped)}
    return {
        **_head(ask, model, "chat.completion" if ask.kind == "chat" else "text_completion"),
        "choices": [choice],
        "usage": usage(tree),
        "arts": about(tree),
    }


def _thought(text: str) -> dict[str, str]:
    """vLLM's field for a model's thinking, which clients know."""
    return {"reasoning_content": text} if text else {}


def chunk(
    ask: Ask, model: str, text: str | None, finish: str | None = None, *, thinking: bool = False
) -> dict[str, Any]:
    """A part of a streamed reply; `text` None opens it."""
    if ask.kind == "chat":
        delta = {"role": "assistant", "content": ""} if text is None else {"content": text} if text else {}
        if text and thinking:
            delta = _thought(text)
        body: dict[str, Any] = {"delta": delta}
    else:
        body = {"text": text or ""}
    choice = {"index": 0, **body, "logprobs": None, "finish_reason": finish}
    return {
        **_head(ask, model, "chat.completion.chunk" if ask.kind == "chat" else "text_completion"),
        "choices": [choice],
    }


def closing(ask: Ask, model: str, tree: ReasoningTree) -> dict[str, Any]:
    """The last part, if `stream_options.include_usage` asks for it."""
    kind = "chat.completion.chunk" if ask.kind == "chat" else "text_completion"
    return {**_head(ask, model, kind), "choices": [], "usage": usage(tree)}


def _head(ask: Ask, model: str, kind: str) -> dict[str, Any]:
    prefix = "chatcmpl" if ask.kind == "chat" else "cmpl"
    return {"id": f"{prefix}-{ask.id}", "object": kind, "created": ask.created, "model": model}


def problem(
    message: str, kind: str = "invalid_request_error", param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """An error, as OpenAI's clients read it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
