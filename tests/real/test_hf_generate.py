"""`model.generate(custom_generate=arts_generate)` on a real model, as anybody's transformers program would call it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.models import model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from transformers import TextIteratorStreamer  # noqa: E402
from transformers.generation import BaseStreamer  # noqa: E402

from arts_hf.generate import ArtsGenerateOutput, arts_generate  # noqa: E402
from arts_hf.loading import load  # noqa: E402
from arts_plugin import hookimpl  # noqa: E402
from arts_plugin.errors import ModelError, PromptTooLongError, SettingsError  # noqa: E402
from arts_plugin.plugins import plugins  # noqa: E402
from arts_plugin.settings import Settings  # noqa: E402
from arts_plugin.verifier import LogprobScorer  # noqa: E402

ARTS = {"strategy": "best_of_n", "budget_trajectories": 3, "verifier": "none"}
CHATS = [
    [{"role": "user", "content": "What is 2 plus 3?"}],
    [{"role": "user", "content": "Tom has 3 boxes with 4 pens each. He gives 5 away. How many are left?"}],
]


@pytest.fixture(scope="module")
def loaded() -> Any:
    """SmolLM2 in float32 and its tokeniser."""
    return load(Settings.of(model=model("smollm2"), dtype="float32", device="cpu"))


@pytest.fixture(scope="module")
def inputs(loaded: Any) -> Any:
    """Two prompts of different length, padded on the left."""
    loaded.tokenizer.padding_side = "left"
    if loaded.tokenizer.pad_token is None:
        loaded.tokenizer.pad_token = loaded.tokenizer.eos_token
    return loaded.tokenizer.apply_chat_template(
        CHATS, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )


@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.3}], ids=str)
def test_greedy_is_what_generate_does(loaded: Any, inputs: Any, options: dict[str, Any]) -> None:
    """Token for token, for a padded batch."""
    own = loaded.model.generate(**inputs, max_new_tokens=24, do_sample=False, **options)
    ours = loaded.model.generate(
        **inputs, max_new_tokens=24, do_sample=False, custom_generate=arts_generate, **options,
        arts_tokenizer=loaded.tokenizer, arts={"strategy": "greedy", "verifier": "none"},
    )  # fmt: skip
    for left, right in zip(own, ours, strict=True):
        strip = lambda ids: [t for t in ids.tolist() if t != loaded.tokenizer.pad_token_id]  # noqa: E731
        assert strip(left) == strip(right)


def test_a_search(loaded: Any, inputs: Any) -> None:
    """Chosen trajectories first, as many rows as asked for, the trees on request, and the model left as it was."""
    before = loaded.model.config._attn_implementation
    found = loaded.model.generate(
        **inputs, max_new_tokens=24, do_sample=True, temperature=0.9, num_return_sequences=2,
        return_dict_in_generate=True, custom_generate=arts_generate, arts_tokenizer=loaded.tokenizer, arts=ARTS,
    )  # fmt: skip
    assert isinstance(found, ArtsGenerateOutput)
    assert loaded.model.config._attn_implementation == before
    width = inputs["input_ids"].shape[1]
    assert found.sequences.shape[0] == 4
    assert found.sequences.shape[1] <= width + 25
    assert torch.equal(found.sequences[:, :width], inputs["input_ids"].repeat_interleave(2, 0))
    assert found.trees is not None
    for row, tree in enumerate(found.trees):
        assert len(tree.trajectories()) == 3
        text = loaded.tokenizer.decode(found.sequences[2 * row, width:], skip_special_tokens=True)
        assert text.strip() == tree.text.strip()
        assert tree.meta["row"] == row


def test_what_ends_a_trajectory(loaded: Any, inputs: Any) -> None:
    """Stop texts of ours, and the call's own end-of-sequence token."""
    options = {
        **inputs, "max_new_tokens": 24, "do_sample": False, "return_dict_in_generate": True,
        "custom_generate": arts_generate, "arts_tokenizer": loaded.tokenizer,
        "arts": {"strategy": "greedy", "verifier": "none"},
    }  # fmt: skip
    free = [tree.text for tree in loaded.model.generate(**options).trees]
    word = free[0].split()[3]
    cut = loaded.model.generate(**options, arts_stop=[word]).trees[0]
    assert cut.text == free[0][: free[0].index(word)]
    assert cut.trajectories()[0].stop == "stop"
    token = loaded.tokenizer(f" {word}", add_special_tokens=False).input_ids[0]
    ended = loaded.model.generate(**options, eos_token_id=token).trees[0]
    assert ended.trajectories()[0].stop == "eos"
    assert free[0].startswith(ended.text) and word not in ended.text


def test_stop_texts_of_a_model_that_does_not_think(loaded: Any, inputs: Any) -> None:
    """They wait for an end of thinking that never comes: the tokens are cut where the text is."""
    arts = {"strategy": "greedy", "verifier": "none"}
    options = {
        **inputs, "max_new_tokens": 24, "do_sample": False, "return_dict_in_generate": True,
        "custom_generate": arts_generate, "arts_tokenizer": loaded.tokenizer,
    }  # fmt: skip
    word = loaded.model.generate(**options, arts=arts).trees[0].text.split()[3]
    cut = loaded.model.generate(**options, arts=arts, arts_stop=[word])
    late = loaded.model.generate(**options, arts={**arts, "think_end_token": "</think>"}, arts_stop=[word])
    assert late.trees[0].text.startswith(cut.trees[0].text) and word in late.trees[0].text
    assert late.sequences[0, : cut.sequences.shape[1]].tolist() == cut.sequences[0].tolist()


@pytest.mark.parametrize("which", ["several", "another", "none"])
def test_the_calls_own_ends(loaded: Any, inputs: Any, which: str) -> None:
    """`eos_token_id` of the call is all that ends a sequence, and the one that was drawn stands at its end."""
    options = {**{name: tensor[:1] for name, tensor in inputs.items()}, "max_new_tokens": 30, "do_sample": False}
    width = inputs["input_ids"].shape[1]
    free = loaded.model.generate(**options, eos_token_id=None)[0, width:].tolist()
    assert len(free) == 30  # the model's own end does not end it
    never = next(token for token in range(100, 1000) if token not in free)
    ends = {"several": [never, free[5]], "another": [never], "none": None}[which]
    own = loaded.model.generate(**options, eos_token_id=ends, pad_token_id=0)
    ours = loaded.model.generate(
        **options, eos_token_id=ends, pad_token_id=0, custom_generate=arts_generate, arts_tokenizer=loaded.tokenizer,
        arts={"strategy": "greedy", "verifier": "none"},
    )  # fmt: skip
    assert ours.tolist() == own.tolist()
    assert (ours.shape[1] < width + 30) == (which == "several")


def test_verifiers_are_closed_and_modules_left_as_they_were(loaded: Any, inputs: Any) -> None:
    closed = []

    class Closing(LogprobScorer):
        def close(self) -> None:
            closed.append(self)

    class Plugin:
        @hookimpl
        def arts_register_verifiers(self, register: Any) -> None:
            register("closing", lambda settings: Closing())

    plugin = Plugin()
    plugins().register(plugin)
    some = loaded.model.get_input_embeddings()
    loaded.model.train()
    some.eval()
    try:
        loaded.model.generate(
            **inputs, max_new_tokens=4, custom_generate=arts_generate, arts_tokenizer=loaded.tokenizer,
            arts={**ARTS, "verifier": "closing"},
        )  # fmt: skip
        assert loaded.model.training and not some.training
    finally:
        plugins().unregister(plugin)
        loaded.model.eval()
    assert len(closed) == 1


def test_questions_for_scorers_with_a_prompt_of_their_own(loaded: Any, inputs: Any) -> None:
    """The verifier sees the bare question of each row."""
    seen = []

    class Spy(LogprobScorer):
        def score(self, states: Any) -> Any:
            seen.extend(state.question for state in states)
            return super().score(states)

    class Plugin:
        @hookimpl
        def arts_register_verifiers(self, register: Any) -> None:
            register("spy", lambda settings: Spy())

    plugin = Plugin()
    plugins().register(plugin)
    try:
        loaded.model.generate(
            **inputs, max_new_tokens=4, custom_generate=arts_generate, arts_tokenizer=loaded.tokenizer,
            arts_questions=["first?", "second?"], arts={**ARTS, "verifier": "spy"},
        )  # fmt: skip
    finally:
        plugins().unregister(plugin)
    assert set(seen) == {"first?", "second?"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 2}, "no beams"),
        ({"no_repeat_ngram_size": 2}, "NoRepeatNGramLogitsProcessor"),
        ({"max_time": 1.0}, "MaxTimeCriteria"),
        ({"output_scores": True, "return_dict_in_generate": True}, "output_scores is set"),
        ({"output_logits": True, "return_dict_in_generate": True}, "output_logits is set"),
        ({"output_attentions": True, "return_dict_in_generate": True}, "output_attentions is set"),
        ({"output_hidden_states": True, "return_dict_in_generate": True}, "output_hidden_states is set"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens is set"),
        ({"arts": {"widht": 3}}, "did you mean 'width'"),
        ({"arts": {"strategy": "arst"}}, "did you mean 'arts'"),
    ],
)
def test_what_a_search_cannot_honour(loaded: Any, inputs: Any, options: dict[str, Any], message: str) -> None:
    arguments = {"arts": ARTS, "max_new_tokens": 4, **options}
    before = loaded.model.config._attn_implementation
    with pytest.raises((SettingsError, LookupError), match=message):
        loaded.model.generate(**inputs, custom_generate=arts_generate, arts_tokenizer=loaded.tokenizer, **arguments)
    assert loaded.model.config._attn_implementation == before


class Streamer(TextIteratorStreamer):
    """Remembers what it was given."""

    def __init__(self, tokenizer: Any, **options: Any) -> None:
        super().__init__(tokenizer, timeout=300, **options)
        self.given: list[list[int]] = []
        self.ends = 0

    def put(self, value: Any) -> None:
        self.given.append(value.flatten().tolist())
        super().put(value)

    def end(self) -> None:
        self.ends += 1
        super().end()


@pytest.mark.parametrize("way", ["callable", "folder"])
def test_a_streamer_gets_what_is_returned(loaded: Any, inputs: Any, way: str) -> None:
    """As under `generate` itself: the prompt, then a token at a time, then its end."""
    one = {name: tensor[:1, -inputs["attention_mask"][0].sum() :] for name, tensor in inputs.items()}
    greedy = {"strategy": "greedy", "verifier": "none"}
    folder = Path(__file__).parents[2] / "examples" / "custom_generate"
    ways: dict[str, dict[str, Any]] = {
        "callable": {"custom_generate": arts_generate, "arts_tokenizer": loaded.tokenizer},
        "folder": {"custom_generate": str(folder), "trust_remote_code": True, "tokenizer": loaded.tokenizer},
    }
    own, ours = (Streamer(loaded.tokenizer, skip_prompt=True) for _ in range(2))
    expected = loaded.model.generate(**one, max_new_tokens=12, do_sample=False, streamer=own)
    found = loaded.model.generate(**one, max_new_tokens=12, do_sample=False, streamer=ours, arts=greedy, **ways[way])
    assert found.tolist() == expected.tolist()
    assert (ours.given, ours.ends) == (own.given, 1)
    assert "".join(ours) == "".join(own) != ""


def test_a_streamer_of_several_sequences(loaded: Any, inputs: Any) -> None:
    """One that takes batches gets a column of tokens at a time."""
    columns: list[Any] = []

    class Columns(BaseStreamer):
        def put(self, value: Any) -> None:
            columns.append(value if value.dim() == 2 else value[:, None])

        def end(self) -> None:
            columns.append(None)

    found = loaded.model.generate(
        **inputs, max_new_tokens=8, do_sample=True, num_return_sequences=2, streamer=Columns(),
        custom_generate=arts_generate, arts_tokenizer=loaded.tokenizer, arts=ARTS,
    )  # fmt: skip
    assert columns.pop() is None
    assert torch.equal(torch.cat(columns, dim=1), found)


def test_a_streamers_reader_is_not_left_waiting(loaded: Any, inputs: Any) -> None:
    """However a search ends."""
    for options in ({"arts": {"widht": 3}}, {"output_scores": True}, {"arts": {"n_ctx": 4}}):
        streamer = Streamer(loaded.tokenizer, skip_prompt=True)
        one = {name: tensor[:1] for name, tensor in inputs.items()}
        with pytest.raises((SettingsError, ModelError, PromptTooLongError)):
            loaded.model.generate(
                **one, max_new_tokens=4, streamer=streamer, custom_generate=arts_generate,
                arts_tokenizer=loaded.tokenizer, **{"arts": ARTS, **options},
            )  # fmt: skip
        assert (list(streamer), streamer.ends) == ([""], 1)


def test_other_inputs_are_refused(loaded: Any, inputs: Any) -> None:
    """Embeddings in place of tokens, and a model that drafts."""
    options = {"max_new_tokens": 4, "custom_generate": arts_generate, "arts_tokenizer": loaded.tokenizer, "arts": ARTS}
    embedded = loaded.model.get_input_embeddings()(inputs["input_ids"])
    with pytest.raises(SettingsError, match="inputs_embeds is given"):
        loaded.model.generate(inputs_embeds=embedded, attention_mask=inputs["attention_mask"], **options)
    with pytest.raises(SettingsError, match="assistant_model is given"):
        loaded.model.generate(**inputs, assistant_model=loaded.model, **options)


def test_the_folder_for_a_hub(loaded: Any, inputs: Any) -> None:
    """`custom_generate="owner/name"` runs what the example folder holds, if its code is trusted."""
    folder = Path(__file__).parents[2] / "examples" / "custom_generate"
    options = {**inputs, "max_new_tokens": 6, "tokenizer": loaded.tokenizer, "arts": ARTS}
    with pytest.raises(ValueError, match="trust_remote_code"):
        loaded.model.generate(**options, custom_generate=str(folder), trust_remote_code=False)
    found = loaded.model.generate(**options, custom_generate=str(folder), trust_remote_code=True)
    assert found.shape[0] == 2
