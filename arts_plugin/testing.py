"""The contract that every backend must keep, as tests: subclass `BackendContract` and give it a `backend` fixture.

    class TestMyBackend(BackendContract):
        @pytest.fixture(scope="class")
        def backend(self):
            made = MyBackend(...)
            yield made
            made.close()

Each fast path is compared with its slow twin on the same model. Floating-point sums depend on the shape of a batch,
so log-probabilities agree within `tolerance` and tokens must be equal unless the model itself was undecided: where
two greedy paths part, their candidates' log-probabilities must lie within `tie` of each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from arts_plugin.backend import Backend, FloatArray, Generation, Prompt, Sampling, StepResult
from arts_plugin.errors import PromptTooLongError

QUESTION = "Tom has 3 boxes with 4 pens each. He gives 5 pens away. How many pens are left? Explain in a few lines."
GREEDY = Generation(Sampling(temperature=0.0), max_gen_toks=96, max_step_tokens=48)
SAMPLED = Generation(Sampling(temperature=0.8, seed=7), max_gen_toks=96, max_step_tokens=48)


def question(backend: Backend) -> Prompt:
    """A question in the model's chat template, or in a form that a base model continues."""
    if backend.info.chat_template:
        return backend.encode_chat([{"role": "user", "content": QUESTION}])
    return backend.encode(f"Question: {QUESTION}\nAnswer:")


@dataclass(slots=True)
class Trace:
    """The steps of one branch."""

    steps: list[StepResult] = field(default_factory=list)

    @property
    def tokens(self) -> tuple[int, ...]:
        """Tokens of all steps; what a stop string took back is cut."""
        tokens = tuple(token for step in self.steps for token in step.token_ids)
        return tokens[: len(tokens) - self.steps[-1].cut_tokens]

    @property
    def text(self) -> str:
        """Text of all steps; what a stop string took back is cut."""
        text = "".join(step.text for step in self.steps)
        return text[: len(text) - self.steps[-1].cut_chars]

    @property
    def logprob(self) -> float:
        """Summed log-probability, nats."""
        return sum(step.logprob for step in self.steps)


def run(
    backend: Backend,
    prompt: Prompt,
    generation: Generation,
    branches: Sequence[int] = (0,),
    problem: int = 1,
    max_steps: int = 100,
) -> list[Trace]:
    """Chains from the prompt, all submitted together; each at most `max_steps` long."""
    root = backend.open(prompt, generation, problem)
    states = [backend.fork(root, index) for index in branches]
    backend.drop(root)
    traces = {id(state): Trace() for state in states}
    for state in states:
        backend.submit(state, generation.max_step_tokens)
    while backend.n_active:
        for result in backend.poll():
            trace = traces[id(result.state)]
            trace.steps.append(result)
            if result.terminal or len(trace.steps) == max_steps:
                backend.drop(result.state)
            else:
                backend.submit(result.state, generation.max_step_tokens)
    return list(traces.values())


def cosine(left: FloatArray, right: FloatArray) -> float:
    """Cosine of two hidden states."""
    return float(left @ right / (np.linalg.norm(left) * np.linalg.norm(right)))


class BackendContract:
    """Tests that take a `backend` fixture with at least four slots. Override the tolerances where a model needs it."""

    tolerance = 0.15
    """Nats by which the log-probability of one token may differ between batch shapes."""
    tie = 0.75
    """Nats within which two candidates count as a near-tie that the order of a sum may decide. A quantised model rounds
    its activations to eight bits, which makes a tenth of a nat of 1e-7; 0.37 was seen to flip on SmolLM2-135M Q4_1."""
    similarity = 0.999
    """Cosine above which two hidden states are the same."""

    def assert_same(self, backend: Backend, prompt: Prompt, left: Trace, right: Trace) -> None:
        """Equal tokens, log-probabilities and hidden states, up to a near-tie."""
        shared = next(
            (i for i, (a, b) in enumerate(zip(left.tokens, right.tokens, strict=False)) if a != b),
            min(len(left.tokens), len(right.tokens)),
        )
        if shared < max(len(left.tokens), len(right.tokens)):
            assert shared < min(len(left.tokens), len(right.tokens)), (
                f"one trace ended after {shared} tokens and the other went on: {left.text!r} / {right.text!r}"
            )
            context = [*prompt.token_ids, *left.tokens[:shared]]
            pair = backend.loglikelihood([(context, [left.tokens[shared]]), (context, [right.tokens[shared]])])
            assert abs(pair[0][0] - pair[1][0]) < self.tie, (
                f"the traces part after {shared} tokens, where the candidates' log-probabilities are {pair}"
            )
        for a, b in zip(left.steps, right.steps, strict=False):
            if a.token_ids != b.token_ids:
                return
            assert abs(a.logprob - b.logprob) <= self.tolerance * max(1, len(a.token_ids))
            if a.feature is not None and b.feature is not None:
                assert (found := cosine(a.feature, b.feature)) >= self.similarity, f"hidden states agree to {found:.6f}"

    def test_seeds_reproduce(self, backend: Backend) -> None:
        """The same seed, problem and path give the same steps; another seed, problem or index gives others."""
        prompt = question(backend)
        first = run(backend, prompt, SAMPLED, range(4))
        again = run(backend, prompt, SAMPLED, range(4))
        assert [t.tokens for t in first] == [t.tokens for t in again]
        assert len({t.tokens for t in first}) > 1
        other = replace(SAMPLED, sampling=replace(SAMPLED.sampling, seed=8))
        assert [t.tokens for t in run(backend, prompt, other, range(4))] != [t.tokens for t in first]
        assert [t.tokens for t in run(backend, prompt, SAMPLED, range(4), problem=2)] != [t.tokens for t in first]

    def test_features_derived_are_those_of_the_search(self, backend: Backend) -> None:
        """`tree_features` of recorded traces gives the hidden states that the search saw, forks and all."""
        prompt = question(backend)
        traces = run(backend, prompt, SAMPLED, range(2))
        if traces[0].steps[0].feature is None:
            return
        tokens = [list(prompt.token_ids)]
        parents: list[int | None] = [None]
        cut = [0]
        seen: list[FloatArray] = []
        for trace in traces:
            at = 0
            for step in trace.steps:
                tokens.append(list(step.token_ids))
                parents.append(at)
                cut.append(step.cut_tokens)
                seen.append(np.asarray(step.feature))
                at = len(tokens) - 1
        derived = backend.tree_features(tokens, parents, cut)
        assert derived.shape == (len(tokens), backend.info.n_embd)
        worst = min(cosine(a, b) for a, b in zip(seen, derived[1:], strict=True))
        assert worst >= self.similarity, f"hidden states agree to {worst:.6f}"

    def test_batch_equals_singles(self, backend: Backend) -> None:
        """A branch among others finds what it finds alone; the others are sampled, so that they differ from it."""
        prompt = question(backend)
        (alone,) = run(backend, prompt, GREEDY)
        root, noise = backend.open(prompt, GREEDY, 1), backend.open(prompt, SAMPLED, 1)
        states = [backend.fork(root, 0), *(backend.fork(noise, i) for i in range(3))]
        backend.drop(root)
        backend.drop(noise)
        traces = {id(state): Trace() for state in states}
        for state in states:
            backend.submit(state, 48)
        while backend.n_active:
            for result in backend.poll():
                traces[id(result.state)].steps.append(result)
                if result.terminal:
                    backend.drop(result.state)
                else:
                    backend.submit(result.state, 48)
        self.assert_same(backend, prompt, alone, traces[id(states[0])])

    def test_fork_equals_refill(self, backend: Backend) -> None:
        """Continuing a fork is the same as computing its prompt and steps anew."""
        prompt = question(backend)
        root = backend.open(prompt, GREEDY, 1)
        state = backend.fork(root, 0)
        backend.submit(state, 8)
        (first,) = _wait(backend)
        assert not first.terminal, f"the model ended in its first step: {first.text!r}"
        forks = [backend.fork(state, i) for i in range(2)]
        backend.drop(state)
        backend.drop(root)
        for state in forks:
            backend.submit(state, 48)
        left, right = _wait(backend, 2)
        assert left.token_ids[:1] == right.token_ids[:1]  # forks of one state draw from one set of logits
        fresh = Prompt(prompt.text + first.text, (*prompt.token_ids, *first.token_ids))
        (refilled,) = run(backend, fresh, GREEDY, max_steps=1)
        for fork in (left, right):
            self.assert_same(backend, fresh, Trace([fork]), refilled)
        for state in forks:
            backend.drop(state)

    def test_stop_strings_cut(self, backend: Backend) -> None:
        """A stop string ends the trace wherever it falls: within tokens, across tokens, across steps."""
        prompt = question(backend)
        (whole,) = run(backend, prompt, GREEDY)
        text = whole.text
        assert len(text) > 20, f"the model wrote too little to test with: {text!r}"
        places, parted = range(3, len(text) - 6, max(1, len(text) // 12)), 0
        for at in places:
            stop = text[at : at + 5]
            (cut,) = run(backend, prompt, replace(GREEDY, stops=("\0never\0", stop)))
            assert stop not in cut.text
            if cut.text != text[: text.find(stop)]:
                self.assert_same(backend, prompt, whole, cut)  # another text only after a near-tie
                parted += 1
                continue
            assert cut.steps[-1].stop == "stop"
            assert cut.steps[-1].terminal
            assert cut.tokens == whole.tokens[: len(cut.tokens)]
            assert len(cut.tokens) < len(whole.tokens)
        assert parted <= len(places) // 2

    def test_steps_end_at_the_delimiter(self, backend: Backend) -> None:
        """Every step but the last holds the delimiter, after something that is not blank, and only in its last token."""
        (trace,) = run(backend, question(backend), replace(GREEDY, delimiter=" "))
        assert len(trace.steps) > 3
        for step in trace.steps[:-1]:
            assert " " in step.text.lstrip()
        text = "".join(step.text for step in trace.steps)
        (whole,) = run(backend, question(backend), replace(GREEDY, delimiter="\0never\0", max_step_tokens=96))
        self.assert_same(backend, question(backend), trace, Trace(whole.steps))
        assert text == "".join(step.text for step in whole.steps) or trace.tokens != whole.tokens

    def test_length_limits(self, backend: Backend) -> None:
        """A step of max_tokens is a state; a trace of max_gen_toks is over."""
        generation = replace(GREEDY, delimiter="\0never\0", max_gen_toks=10)
        root = backend.open(question(backend), generation, 1)
        state = backend.fork(root, 0)
        backend.drop(root)
        backend.submit(state, 4)
        (first,) = _wait(backend)
        assert (first.stop, first.terminal, len(first.token_ids)) == ("length", False, 4)
        backend.submit(state, 100)
        (second,) = _wait(backend)
        assert (second.stop, second.terminal, len(second.token_ids)) == ("length", True, 6)
        backend.drop(state)

    def test_logprobs_agree(self, backend: Backend) -> None:
        """The summed log-probability of a sampled trace is what `loglikelihood` says of it."""
        prompt = question(backend)
        for trace in run(backend, prompt, SAMPLED, range(2)):
            ((total, _),) = backend.loglikelihood([(prompt.token_ids, trace.tokens)])
            assert abs(total - trace.logprob) <= self.tolerance * len(trace.tokens)

    def test_greedy_is_greedy(self, backend: Backend) -> None:
        """`loglikelihood` recognises the first tokens of greedy decoding, and that others are none."""
        prompt = question(backend)
        (trace,) = run(backend, prompt, GREEDY)
        head = trace.tokens[:3]
        other = (*head[:2], (head[2] + 1) % (backend.info.n_vocab or head[2] + 2))
        scores = backend.loglikelihood([(prompt.token_ids, head), (prompt.token_ids, other)])
        assert [greedy for _, greedy in scores] == [True, False]

    def test_cancel_and_drop(self, backend: Backend) -> None:
        """Cancelled branches are gone, their cost is known, and the others go on."""
        root = backend.open(question(backend), SAMPLED, 1)
        states = [backend.fork(root, i) for i in range(3)]
        backend.drop(root)
        for state in states:
            backend.submit(state, 48)
        for _ in range(3):
            backend.poll()
        decoded, refilled = backend.cancel(states[1])
        assert decoded >= 1
        assert refilled == 0
        assert backend.n_active == 2
        results = _wait(backend, 2)
        assert {id(r.state) for r in results} == {id(states[0]), id(states[2])}
        for result in results:
            backend.drop(result.state)
        assert backend.n_active == 0

    def test_prompt_too_long(self, backend: Backend) -> None:
        """Refused with the numbers, before anything is computed."""
        n_ctx = backend.info.n_ctx
        prompt = Prompt("long", tuple(backend.encode("a").token_ids[-1:]) * (n_ctx + 1))
        try:
            backend.open(prompt, GREEDY, 1)
        except PromptTooLongError as error:
            assert str(n_ctx + 1) in str(error) and str(n_ctx) in str(error)
        else:
            raise AssertionError("a prompt longer than the context was accepted")


def _wait(backend: Backend, count: int = 1) -> list[StepResult]:
    results: list[StepResult] = []
    while len(results) < count:
        results += backend.poll()
    return results
