"""ARTS inside `generate`: `model.generate(**inputs, custom_generate=arts_generate, arts_tokenizer=tokenizer)`."""

from __future__ import annotations

import codecs
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers.generation import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.utils import GenerateDecoderOnlyOutput, GenerationMixin

from arts_hf.backend import HfBackend
from arts_plugin.api import Arts
from arts_plugin.backend import Prompt
from arts_plugin.ends import opener
from arts_plugin.engine.runtime import Vocabulary
from arts_plugin.errors import SettingsError
from arts_plugin.prompts import answer_of
from arts_plugin.settings import Settings
from arts_plugin.tree import ReasoningTree, Trajectory

_SAMPLING = ("temperature", "top_p", "top_k", "min_p")
_OWN_PROCESSORS = (
    *(TemperatureLogitsWarper, TopPLogitsWarper, TopKLogitsWarper, MinPLogitsWarper),
    RepetitionPenaltyLogitsProcessor,
)
_OWN_CRITERIA = (MaxLengthCriteria, EosTokenCriteria)
_NOT_KEPT = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
_OTHER_METHODS = (
    *("penalty_alpha", "dola_layers", "force_words_ids", "constraints", "token_healing"),
    *("prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp"),
)
_GENERATE = inspect.unwrap(GenerationMixin.generate).__code__


@dataclass
class ArtsGenerateOutput(GenerateDecoderOnlyOutput):
    """What `generate(..., return_dict_in_generate=True)` returns: `sequences` as ever, and the `trees` searched, one
    for each row of the input."""

    trees: list[ReasoningTree] | None = None


def arts_generate(
    model: Any,
    input_ids: torch.Tensor,
    logits_processor: Sequence[Any] | None = None,
    stopping_criteria: Sequence[Any] | None = None,
    generation_config: Any = None,
    *,
    arts_tokenizer: Any = None,
    arts_stop: Sequence[str] = (),
    arts_questions: Sequence[str] | None = None,
    arts: Mapping[str, Any] | None = None,
    **model_kwargs: Any,
) -> torch.Tensor | ArtsGenerateOutput:
    """A decoding method for `model.generate`: searches a tree of steps for each row and returns what it chose.

    Args:
        arts_tokenizer: the model's tokeniser (`tokenizer=` is not handed on by transformers); default: loaded from
            where the model came from.
        arts_stop: texts that end a trajectory (transformers keeps `stop_strings` and the tokeniser that they need from
            custom methods).
        arts_questions: the bare question in each row, for scorers that put it into a prompt of their own.
        arts: settings (see `arts_plugin.settings.Settings`): strategy, verifier, budget_trajectories, width...

    A `streamer` gets the tokens of the returned sequences once the search is over, since only then is it known which
    trajectory is chosen; its end comes in any case.

    From the generation config come max_new_tokens (or max_length), eos_token_id, num_return_sequences,
    repetition_penalty and, with do_sample=True, temperature, top_p, top_k and min_p; without it the search samples at
    its own defaults, since a greedy model has nothing to search among. `strategy="greedy"` is greedy.

    Returns:
        token ids [batch * num_return_sequences, longest], prompts included, padded on the right: for each row the
        chosen trajectory, then others in the order in which they finished, the last repeated if there are too few.

    Raises:
        SettingsError: a setting or a generation option that a search cannot honour.
        ModelError: the model cannot be decoded as a tree.
    """
    asked = _arguments_of_generate()
    streamer = asked.get("streamer")
    try:
        _refuse(generation_config, logits_processor or (), stopping_criteria or (), {**model_kwargs, **asked})
        found = _found(
            model, input_ids, generation_config, arts_tokenizer, arts_stop, arts_questions, arts, model_kwargs
        )
        if streamer is not None:
            for tokens in found.sequences[:, input_ids.shape[1] :].T:
                streamer.put(tokens.cpu())
    finally:
        if streamer is not None:
            streamer.end()  # whoever reads from it waits for that
    return found if generation_config.return_dict_in_generate else found.sequences


def _arguments_of_generate() -> dict[str, Any]:
    """Arguments of the `generate` on whose behalf this runs that transformers hands on to no callable, whatever its
    signature: they are read where they are."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not _GENERATE:
        frame = frame.f_back
    return {} if frame is None else {name: frame.f_locals.get(name) for name in ("streamer", "assistant_model")}


def _found(
    model: Any,
    input_ids: torch.Tensor,
    config: Any,
    arts_tokenizer: Any,
    arts_stop: Sequence[str],
    arts_questions: Sequence[str] | None,
    arts: Mapping[str, Any] | None,
    model_kwargs: Mapping[str, Any],
) -> ArtsGenerateOutput:
    copies = config.num_return_sequences or 1
    rows = input_ids[::copies]  # generate has repeated each of them
    mask = model_kwargs.get("attention_mask")
    mask = torch.ones_like(rows) if mask is None else mask[::copies]
    prompts = [row[kept.bool()].tolist() for row, kept in zip(rows, mask, strict=True)]
    settings = _settings(config, arts or {}, max(map(len, prompts)), input_ids.shape[1], len(prompts))
    tokenizer = arts_tokenizer if arts_tokenizer is not None else _tokenizer_of(model)
    before = model.config._attn_implementation
    training = [module for module in model.modules() if module.training]
    try:
        backend: Any = HfBackend.of(
            model.eval(), tokenizer, settings, features=settings.verifier != "none", generation_config=config
        )
        try:
            found = [_prompt(tokenizer, ids) for ids in prompts]
            if arts_questions is not None:
                found = [replace(p, user=user) for p, user in zip(found, arts_questions, strict=True)]
            with Arts(settings, engine=backend) as searcher:
                trees = _search(searcher, found, arts_stop)
        finally:
            backend.close()
    finally:
        model.set_attn_implementation(before)
        for module in training:
            module.training = True
    sequences = _sequences(trees, input_ids, copies, config, backend.vocabulary)
    return ArtsGenerateOutput(sequences=sequences, trees=trees)


def _settings(config: Any, arts: Mapping[str, Any], longest: int, padded: int, n_prompts: int) -> Settings:
    sampling = {name: getattr(config, name) for name in _SAMPLING if getattr(config, name, None) is not None}
    penalty = {"repetition_penalty": config.repetition_penalty} if config.repetition_penalty else {}
    given = {**penalty, **(sampling if config.do_sample else {}), **arts}
    if "max_gen_toks" not in given:
        # generate turned max_new_tokens into a length that counts the padded prompt.
        new = config.max_new_tokens or (config.max_length or 0) - padded
        if new < 1:
            raise SettingsError(
                f"max_length is {config.max_length} and the prompt has {padded} tokens; set max_new_tokens"
            )
        given["max_gen_toks"] = new
    settings = Settings.of({**given, "backend": "hf"})
    if "n_ctx" in given:
        return settings
    # Room for every branch that may be alive: the KV pool grows only as far as it is used.
    alive = settings.slots * 2 + n_prompts * (settings.budget_trajectories or settings.slots)
    return settings.with_(n_ctx=max(settings.n_ctx, n_prompts * longest + alive * settings.max_gen_toks))


def _refuse(config: Any, processors: Sequence[Any], criteria: Sequence[Any], arguments: Mapping[str, Any]) -> None:
    """
    Raises:
        SettingsError: something is asked for that a search does not do.
    """
    for name in ("num_beams", "num_beam_groups"):
        if (getattr(config, name, None) or 1) > 1:
            raise SettingsError(
                f"{name} is {getattr(config, name)}; a tree search has no beams, set arts={{'width': ...}}"
            )
    for name in _NOT_KEPT:
        if getattr(config, name, None):
            raise SettingsError(
                f"{name} is set, and a tree search keeps none of them; leave it out (return_dict_in_generate=True returns the "
                "trees, with the log-probability of each step)"
            )
    for name in _OTHER_METHODS:
        if getattr(config, name, None):
            raise SettingsError(f"{name} is set, which a tree search does not apply; leave it out")
    if arguments.get("assistant_model") is not None:
        raise SettingsError("assistant_model is given, and a tree search drafts nothing; leave it out")
    for name, value in arguments.items():
        if torch.is_tensor(value) and value.is_floating_point():
            raise SettingsError(
                f"{name} is given; a tree search reads input_ids alone, no images, sounds or embeddings"
            )
    odd = [type(p).__name__ for p in processors if not isinstance(p, _OWN_PROCESSORS)]
    odd += [type(c).__name__ for c in criteria if not isinstance(c, _OWN_CRITERIA)]
    if odd:
        raise SettingsError(
            f"a tree search does not apply {', '.join(odd)}; leave out what asks for it (arts_stop= names stop strings)"
        )


def _tokenizer_of(model: Any) -> Any:
    from transformers import AutoTokenizer

    name = model.config._name_or_path
    try:
        return AutoTokenizer.from_pretrained(name)
    except Exception as error:
        raise SettingsError(f"no tokeniser found for {name!r}: pass arts_tokenizer=tokenizer to generate") from error


def _prompt(tokenizer: Any, ids: Sequence[int]) -> Prompt:
    """A row's prompt. Its text is without BOS, which whoever reads it puts there himself."""
    read = ids[1:] if tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id] else ids
    return Prompt(tokenizer.decode(read), tuple(ids))


def _search(searcher: Arts, prompts: Sequence[Prompt], stops: Sequence[str]) -> list[ReasoningTree]:
    trees: dict[int, ReasoningTree] = {}
    jobs = (searcher.job(prompt, stops=tuple(stops), meta={"row": row}) for row, prompt in enumerate(prompts))
    for event in searcher.events(jobs):
        if event.kind == "finished":
            trees[event.job.meta["row"]] = event.tree
    return [trees[row] for row in range(len(prompts))]


def _sequences(
    trees: Sequence[ReasoningTree], input_ids: torch.Tensor, copies: int, config: Any, vocabulary: Vocabulary
) -> torch.Tensor:
    pad = config.pad_token_id if config.pad_token_id is not None else (config.eos_token_id or 0)
    pad = pad[0] if isinstance(pad, (list, tuple)) else int(pad)
    found = [ids for tree in trees for ids in _trajectories(tree, copies, vocabulary)]
    longest = max(map(len, found), default=0)
    tail = torch.full((len(found), longest), pad, dtype=input_ids.dtype)
    for row, ids in zip(tail, found, strict=True):
        row[: len(ids)] = torch.tensor(ids, dtype=input_ids.dtype)
    return torch.cat([input_ids, tail.to(input_ids.device)], dim=1)


def _trajectories(tree: ReasoningTree, count: int, vocabulary: Vocabulary) -> list[list[int]]:
    """Token ids of the chosen trajectory and then of the others, the last one repeated where there are too few; each with
    the token that ended it, as `generate` has it."""
    if tree.error or tree.chosen is None:
        raise SettingsError(f"a row could not be searched: {tree.error or 'it has no trajectory'}")
    others = [t for t in tree.trajectories() for _ in range(t.count)]
    chosen = tree.trajectory(tree.chosen)
    rest = [t for t in others if t.leaf != tree.chosen]
    rest += [chosen] * (sum(1 for t in others if t.leaf == tree.chosen) - 1)
    ordered = [chosen, *rest][:count]
    ordered += [ordered[-1]] * (count - len(ordered))
    return [_tokens(tree, trajectory, vocabulary) for trajectory in ordered]


def _tokens(tree: ReasoningTree, trajectory: Trajectory, vocabulary: Vocabulary) -> list[int]:
    """A trajectory's tokens. One whose thinking never ended is cut before its first stop string, as elsewhere."""
    think_end, stops = tree.meta.get("think_end"), tree.meta.get("stops", ())
    end, text = tree.nodes[trajectory.leaf].end_token, trajectory.text
    if think_end and think_end not in text:
        answer = answer_of(text, think_end, stops)
        if answer != text.lstrip():
            spelled = vocabulary.controls(" ".join([think_end, opener(think_end), *stops]))
            pieces = [
                spelled[token].encode() if token in spelled else vocabulary.piece(token)
                for token in trajectory.token_ids
            ]
            kept = _within(pieces, len(text) - len(text.lstrip()) + len(answer))
            return list(trajectory.token_ids[:kept])
    return [*trajectory.token_ids, *([] if end is None else [end])]


def _within(pieces: Sequence[bytes], length: int) -> int:
    """How many of the pieces of a text lie wholly within its first `length` characters."""
    decoder, seen = codecs.getincrementaldecoder("utf-8")("replace"), 0
    for place, piece in enumerate(pieces):
        seen += len(decoder.decode(piece))
        if seen > length:
            return place
    return len(pieces)
