"""How published process reward models are read: what stands around a question and a step, and where the judgement is.

Declarations only; `arts_hf.prm` does what they say. Another model of one of these kinds needs no code: a plugin
registers a `Layout` of its own with `arts_hf.prm.load`.
"""

from __future__ import annotations

from dataclasses import dataclass

from arts_plugin.backbone_verifier import PathAggregate


@dataclass(frozen=True, slots=True)
class LinearHead:
    """Linear layers (ReLU between them) stored beside the weights of a model without output embeddings.

    Attributes:
        layers: names of their tensors, without `.weight` and `.bias`; a layer without a bias tensor has none.
        classes: 2, whose softmax gives the probability of the second; or 1, whose sigmoid is it.
    """

    layers: tuple[str, ...]
    classes: int


@dataclass(frozen=True, slots=True)
class TokenPair:
    """The language-model head's logits of two tokens: the probability of `good` against `bad`."""

    good: str
    bad: str


@dataclass(frozen=True, slots=True)
class Layout:
    """One kind of process reward model.

    Attributes:
        name: of the scorer.
        model: the published model, used unless `verifier_model` names another.
        prompt: text before the first step; `{question}` is the question, `{bos}` the tokeniser's BOS, if it has one.
        step: a step; `{step}` is its text without white space around it. Judged at its last token, or at its tag's.
        tag: what stands behind each step as tokens of its own, not merged with the step's last.
        between: what follows a step before the next one.
        before: what stands before the first step.
        readout: how a hidden state becomes a probability.
        aggregate: how a trace's score comes from its steps' log-probabilities, by default.
        source: where the layout is described.
    """

    name: str
    model: str
    prompt: str
    step: str
    between: str
    readout: LinearHead | TokenPair
    aggregate: PathAggregate
    source: str
    before: str = ""
    tag: str = ""


_LLAMA_USER = "<|start_header_id|>user<|end_header_id|>\n\n"
_LLAMA_ASSISTANT = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"

LAYOUTS = (
    Layout(
        name="qwen_math_prm",
        model="Qwen/Qwen2.5-Math-PRM-7B",
        prompt=(
            "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{{}}.<|im_end|>\n"
            "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        ),
        step="{step}<extra_0>",
        between="",
        readout=LinearHead(("score.0", "score.2"), classes=2),
        aggregate="product",
        source="model card of Qwen2.5-Math-PRM-7B; Zhang et al. 2025, arXiv 2501.07301",
    ),
    Layout(
        name="skywork_prm",
        model="Skywork/Skywork-o1-Open-PRM-Qwen-2.5-1.5B",
        prompt="{bos}{question}\n",
        step="{step}",
        tag="\n",
        between="",
        readout=LinearHead(("v_head.summary",), classes=1),
        aggregate="mean",
        source="model card of Skywork-o1-Open-PRM; prepare_input of its inference code, which appends the line break's token",
    ),
    Layout(
        name="rlhflow_prm",
        model="RLHFlow/Llama3.1-8B-PRM-Deepseek-Data",
        prompt=f"<|begin_of_text|>{_LLAMA_USER}{{question}}",
        before=" ",
        step=f"{{step}}{_LLAMA_ASSISTANT}",
        between=f"+<|eot_id|>{_LLAMA_USER}",
        readout=TokenPair("+", "-"),
        aggregate="mean",
        source="RLHFlow/RLHF-Reward-Modeling, math-rm: a step a turn, judged where the assistant would say + or -",
    ),
    Layout(
        name="math_shepherd",
        model="peiyi9979/math-shepherd-mistral-7b-prm",
        prompt="<s>{question}",
        before=" ",
        step="{step} \u043a\u0438",
        between="\n",
        readout=TokenPair("+", "-"),
        aggregate="min",
        source="model card of math-shepherd-mistral-7b-prm; Wang et al. 2023, arXiv 2312.08935",
    ),
)
