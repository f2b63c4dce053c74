"""How an answer is said in OpenAI's completion protocol: whole, in parts, and errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from arts_plugin.engine.guides import PROBLEM
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
    return f"every trajectory ended in an error: {'; '.join(_errors(tree)) or 'no reason was given'}"


def blames_grammar(tree: ReasoningTree) -> bool:
    """Whether it was for the request's own grammar that its trajectories ended in errors."""
    said = _errors(tree)
    return bool(said) and all(error.startswith(PROBLEM) for error in said)


def _errors(tree: ReasoningTree) -> list[str]:
    return list(dict.fromkeys(str(error) for error in tree.meta.get("errors", ())))


def usage(trees: Sequence[ReasoningTree]) -> dict[str, Any]:
    """Tokens: the prompts', all that the proposer generated for the searches, of which the answers are a part, and what a
    verifier with a model of its own has read, which is in no total."""
    costs = [tree.cost for tree in trees]
    prompt, completion = sum(cost.prompt_tokens for cost in costs), sum(cost.decoded_tokens for cost in costs)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "verifier_tokens": sum(cost.verifier_tokens for cost in costs),
        "prompt_tokens_details": {"cached_tokens": sum(cost.cached_tokens for cost in costs)},
    }


def about(ask: Ask, tree: ReasoningTree) -> dict[str, Any]:
    """The field `arts` of an answer: what the search found, what it cost, and the seed that finds the same again."""
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
        "seed": ask.settings.seed,
        "cost": asdict(tree.cost),
    }


def _finite(value: float | None) -> float | None:
    """`value`, or None for what JSON has no word for."""
    return value if value is not None and math.isfinite(value) else None


def answer(asks: Sequence[Ask], model: str, trees: Sequence[ReasoningTree]) -> dict[str, Any]:
    """A whole reply, to one prompt or several."""
    ask, told = asks[0], [about(ask, tree) for ask, tree in zip(asks, trees, strict=True)]
    return {
        **_head(ask, model, "chat.completion" if ask.kind == "chat" else "text_completion"),
        "choices": [_choice(ask, tree, index) for index, (ask, tree) in enumerate(zip(asks, trees, strict=True))],
        "usage": usage(trees),
        "arts": told[0] if len(told) == 1 else told,
    }


def _choice(ask: Ask, tree: ReasoningTree, index: int) -> dict[str, Any]:
    found = said(tree, ask.kind)
    body: dict[str, Any] = {"text": found.answer}
    if ask.kind == "chat":
        body = {"message": {"role": "assistant", "content": found.answer, **_thought(found.thinking)}}
    return {"index": index, **body, "logprobs": None, "finish_reason": finish_reason(tree, found.stopped)}


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
    return {**_head(ask, model, kind), "choices": [], "usage": usage([tree])}


def _head(ask: Ask, model: str, kind: str) -> dict[str, Any]:
    prefix = "chatcmpl" if ask.kind == "chat" else "cmpl"
    return {"id": f"{prefix}-{ask.id}", "object": kind, "created": ask.created, "model": model}


def problem(
    message: str, kind: str = "invalid_request_error", param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """An error, as OpenAI's clients read it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
