"""Every argument of ARTS, once: name, type, default, meaning.

The same names serve model_args, YAML, the command line, `arts_`-prefixed gen_kwargs and Python keywords. Values
arrive as whatever the host made of them and are coerced here and only here (see `arts_plugin.coercion`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_type_hints

from arts_plugin.backend import Grammar
from arts_plugin.coercion import biases, check_name, check_range, check_text, convert, inlined, unescape
from arts_plugin.errors import SettingsError, did_you_mean
from arts_plugin.foreign import ours
from arts_plugin.steps import Delimiter

Chat = Literal["auto", "template", "plain"]
Draw = Literal["multinomial", "systematic"]
VerifierAggregate = Literal["min", "last", "product", "mean"]
Attention = Literal["sdpa", "eager"]
Quantize = Literal["4bit", "8bit"]
AUTO_SLOTS = 0
"""`slots=auto`: the backend says how many there are, once its model is loaded."""


_LLAMA, _HF, _SERVER, _IN_PROCESS = ("llama_cpp",), ("hf",), ("server",), ("llama_cpp", "hf")


def _setting(
    default: Any,
    doc: str,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    backends: tuple[str, ...] = (),
    proposer: bool = False,
) -> Any:
    """A field.

    Args:
        backends: whose option it is; none where it means something to all of them.
        proposer: whether a verifier that runs on one of them leaves it alone.
    """
    return field(
        default=default,
        metadata={
            "doc": doc, "low": low, "above": above, "high": high, "backends": frozenset(backends), "proposer": proposer
        },
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Settings:
    """The resolved settings of a search. Build it with `Settings.of`, which coerces and checks."""

    backend: str = _setting("llama_cpp", "Which backend runs the proposer; `arts plugins` lists them.")
    model: str | None = _setting(
        None,
        "Proposer: a GGUF file, `repo_id:file` on a hub, with backend=hf also a model folder or `owner/name` on a hub; "
        "with backend=server the name that the server gives it (default: its only one); nothing is the embedded "
        "SmolLM2-135M-Instruct.",
    )
    chat: Chat = _setting(
        "auto",
        "`template` wraps a question in the model's chat template, `plain` does not, `auto` leaves it to lm-eval's "
        "--apply_chat_template for tasks and uses the template, if there is one, elsewhere.",
    )
    parse_special: bool = _setting(
        False,
        "Whether special tokens written out in a plain prompt (`<|im_end|>`) become control tokens, as with lm-eval's `hf`; "
        "otherwise they are text. What is inside a chat's messages is always text.",
    )
    enable_thinking: bool | None = _setting(
        None, "For chat templates that know the word (Qwen3): whether the model thinks before it answers."
    )
    think_end_token: str | None = _setting(
        None,
        "What ends a model's thinking: a text, `</think>` for example, or the id of a control token. Steps are found inside "
        "as well, and stop strings after it alone; lm-eval, the vote and the clients of `arts serve` get what comes after it.",
    )
    strategy: str = _setting(
        "arts",
        "Decoding strategy: arts, adaptive, beam, dvts, mcts, smc, best_of_n, self_consistency, greedy, or a plugin's.",
    )
    select: str | None = _setting(
        None,
        "How the answer is chosen among finished trajectories: flow, weighted_vote, majority, logprob, random. "
        "Default: flow with a verifier, majority without one.",
    )
    extract: str = _setting(
        "auto",
        "How an answer is found in a trajectory for voting: auto (last \\boxed{}, `#### x`, `the answer is x`, last "
        "number), a plugin's name, or regex:PATTERN (last match, first group).",
    )
    verifier: str = _setting(
        "auto",
        "What scores states: a trained verifier (its folder, built-in name, or `owner/name` on a hub), a registered "
        "scorer, `none`, or `auto` (the shipped verifier that was trained on this model, if there is one).",
    )
    verifier_model: str | None = _setting(
        None,
        "Model of a scorer that has one of its own, in place of the one that it names: folder, GGUF file, hub id; with "
        "verifier=reward the name that the server gives it (default: its only one).",
    )
    verifier_aggregate: VerifierAggregate | None = _setting(
        None,
        "Reward models, published process reward models among them: a trace's score is the min, last, product or mean of "
        "its steps'.",
    )
    budget_trajectories: int | None = _setting(8, "Finished trajectories per question, at most.", low=1, high=100_000)
    budget_tokens: int | None = _setting(None, "Generated and refilled proposer tokens per question, at most.", low=1)
    budget_seconds: float | None = _setting(None, "Seconds per question from its admission, at most.", above=0)
    budget_nodes: int | None = _setting(None, "Proposed steps per question, at most; merged ones count.", low=1)
    width: int = _setting(
        2,
        "K, the one-step proposals made for each state that is drawn; with strategy=sdf the number of main traces.",
        low=1,
        high=100_000,
    )
    slots: int = _setting(
        16, "Branches decoded at once, over all questions; `auto` is as many as there is KV memory for.", low=1
    )
    fork_probability: float = _setting(
        0.5, "With strategy=sdf, the probability that a main trace gets a second continuation.", low=0
    )
    beta: float = _setting(
        1.0, "Open states are drawn in proportion to F(s)^beta; with strategy=smc particles are.", low=0
    )
    draw: Draw = _setting(
        "multinomial", "How open states are drawn, in proportion to F^beta: multinomial or systematic."
    )
    confidence: float = _setting(
        1.0,
        "With strategy=self_consistency, stop when the leading answer is likelier than the runner-up with this posterior "
        "probability; 1 stops only when the vote can no longer change.",
        above=0.5,
        high=1,
    )
    temperature: float = _setting(0.6, "Sampling temperature; 0 is greedy and makes one trajectory.", low=0)
    top_p: float = _setting(0.95, "Nucleus sampling; 1 is off.", above=0)
    top_k: int = _setting(50, "Sample among the k likeliest tokens; 0 is off.", low=0)
    min_p: float = _setting(0.0, "Drop tokens below this share of the likeliest one's probability; 0 is off.", low=0)
    repetition_penalty: float = _setting(
        1.0,
        "Divides the positive logits of tokens in the prompt and the trace, and multiplies negative ones; 1 is off.",
        low=0.01,
        high=100,
    )
    frequency_penalty: float = _setting(
        0.0,
        "Taken off a token's logit for each time that it is in the trace. In process.",
        low=-100,
        high=100,
        backends=_IN_PROCESS,
        proposer=True,
    )
    presence_penalty: float = _setting(
        0.0,
        "Taken off a token's logit if it is in the trace. In process.",
        low=-100,
        high=100,
        backends=_IN_PROCESS,
        proposer=True,
    )
    logit_bias: str | None = _setting(
        None, "Added to the logits of tokens: `id:bias` pairs, separated by `;` (-100 forbids one, practically)."
    )
    grammar: str | None = _setting(
        None,
        "A GBNF grammar (llama.cpp's) that every trace follows: a file, or the grammar itself. In process; needs the "
        "extra `grammar`.",
        backends=_IN_PROCESS,
        proposer=True,
    )
    json_schema: str | None = _setting(
        None, "The same for JSON by a JSON schema: a file, or the schema itself.", backends=_IN_PROCESS, proposer=True
    )
    seed: int = _setting(0, "Seed of every random choice.")
    delimiter: str = _setting("\n", "What ends a step: a string, or regex:PATTERN.")
    max_step_tokens: int = _setting(256, "Tokens per step, at most; a step cut here is still a state.", low=1)
    max_gen_toks: int = _setting(512, "Tokens per trajectory, at most.", low=1)
    n_ctx: int = _setting(8192, "KV cells for all branches together (and the longest prompt plus trajectory).", low=16)
    n_threads: int | None = _setting(
        None, "Threads; default: half the logical CPUs, at least two where there are two.", low=1, backends=_IN_PROCESS
    )
    lora: str | None = _setting(
        None,
        "LoRA adapter on the proposer: a GGUF file for llama_cpp, a PEFT folder for hf; a server is asked by `model`.",
        backends=_IN_PROCESS,
        proposer=True,
    )
    cache_type_k: str = _setting(
        "f16",
        "llama.cpp: type of the KV cache's keys: f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0 or iq4_nl.",
        backends=_LLAMA,
    )
    cache_type_v: str = _setting(
        "f16", "llama.cpp: type of its values; a quantised one needs flash attention.", backends=_LLAMA
    )
    n_gpu_layers: int = _setting(
        0, "Layers to offload in a GPU build of llama.cpp; -1 is all.", low=-1, backends=_LLAMA
    )
    main_gpu: int = _setting(0, "llama.cpp: the GPU that is used when the model is not split.", low=0, backends=_LLAMA)
    split_mode: int | None = _setting(None, "llama.cpp: 0 one GPU, 1 by layer, 2 by row.", low=0, backends=_LLAMA)
    tensor_split: str | None = _setting(
        None, "llama.cpp: share of the model for each GPU, separated by `;`.", backends=_LLAMA
    )
    n_ubatch: int = _setting(512, "Tokens in one forward pass, at most.", low=1, backends=_IN_PROCESS)
    flash_attn: bool | None = _setting(
        None, "llama.cpp: flash attention on or off; default: llama.cpp decides.", backends=_LLAMA
    )
    dtype: str = _setting(
        "auto",
        "hf: bfloat16, float16 or float32; auto is bfloat16 where the device computes in it, else float32.",
        backends=_HF,
    )
    device: str | None = _setting(
        None,
        "hf: cuda, cuda:1, cpu, or auto to spread the model over all devices; default: cuda if there is one.",
        backends=_HF,
    )
    quantize: Quantize | None = _setting(
        None,
        "hf: 4bit or 8bit, weights rounded by bitsandbytes while they are loaded. Quantised checkpoints need no word.",
        backends=_HF,
    )
    attn_implementation: Attention = _setting(
        "sdpa",
        "hf: sdpa lets torch choose its kernels, those of flash attention among them; eager is plain matrix products.",
        backends=_HF,
    )
    cuda_graphs: bool = _setting(
        False,
        "hf: on a GPU, record decoding steps as CUDA graphs and replay them. Off until it has been seen on one.",
        backends=_HF,
        proposer=True,
    )
    revision: str | None = _setting(None, "hf: branch, tag or commit of a model on a hub.", backends=_HF, proposer=True)
    trust_remote_code: bool = _setting(
        False, "hf: run code that comes with the model. Only for models you trust.", backends=_HF
    )
    base_url: str | None = _setting(
        None,
        "server: address of an OpenAI-compatible engine, http://127.0.0.1:8000/v1 for example; replicas of one model are "
        "separated by `;`. A key comes from the environment, as ARTS_API_KEY.",
        backends=_SERVER,
        proposer=True,
    )
    features_url: str | None = _setting(
        None,
        "server: address of a pooling server of the same model (vLLM --runner pooling), whose hidden states a verifier reads.",
        backends=_SERVER,
        proposer=True,
    )
    reward_url: str | None = _setting(
        None,
        "With verifier=reward, beside any backend: address of a reward model's server (vLLM --runner pooling), whose scalar "
        "scores states; replicas are separated by `;`.",
    )
    chat_template: str | None = _setting(
        None,
        "server: a Jinja file, in place of the chat template that the server applies; needed where it applies none.",
        backends=_SERVER,
        proposer=True,
    )
    timeout: float = _setting(600.0, "server: seconds for one request, at most.", above=0, backends=_SERVER)
    max_retries: int = _setting(
        5,
        "server: how often a request is tried again after a lost connection, a 5xx or an unreadable reply.",
        low=0,
        backends=_SERVER,
    )
    trace: str | None = _setting(None, "Run folder for trees; running again with the same settings resumes it.")
    features: bool = _setting(False, "Keep the hidden state of every state in the run folder (needs trace).")

    @classmethod
    def of(cls, values: Mapping[str, Any] | None = None, /, **more: Any) -> Settings:
        """Settings from raw values.

        Raises:
            SettingsError: unknown name (with close matches), wrong type, value out of range, contradiction.
        """
        return cls().with_(values, **more)

    def with_(self, values: Mapping[str, Any] | None = None, /, **more: Any) -> Settings:
        """These settings with some replaced; the same checks as `of`."""
        raw = {**(values or {}), **more}
        changes = {name: coerce(name, value) for name, value in raw.items()}
        settings = replace(self, **changes)
        settings._check()
        return settings

    def _check(self) -> None:
        if self.top_p > 1:
            raise SettingsError(f"top_p is {self.top_p}; it is a probability, at most 1")
        if self.fork_probability > 1:
            raise SettingsError(f"fork_probability is {self.fork_probability}; it is a probability, at most 1")
        if self.features and self.trace is None:
            raise SettingsError("features=true keeps hidden states in the run folder; name one with trace=")
        if self.reward_url is not None and self.verifier in {"auto", "none"}:
            raise SettingsError(f"reward_url is set, and verifier is {self.verifier!r}: it is read by verifier=reward")
        if self.min_p >= 1:
            raise SettingsError(f"min_p is {self.min_p}; it must be below 1")
        budgets = (self.budget_trajectories, self.budget_tokens, self.budget_seconds, self.budget_nodes)
        if all(budget is None for budget in budgets):
            raise SettingsError("no budget is set, so a search would never end; set budget_trajectories=8, for example")
        Delimiter(self.delimiter)
        biases(self.logit_bias)
        if self.grammar and self.json_schema:
            raise SettingsError("grammar and json_schema are both set; a trace follows one of them")
        if (grammar := grammar_of(self)) is not None:
            from arts_plugin.engine.guide_process import check_grammar

            check_grammar(grammar)

    def shaping(self) -> dict[str, Any]:
        """The settings that decide what a search finds, without those that say where and how fast it runs."""
        return {name: value for name, value in asdict(self).items() if name not in _RUNTIME}

    def identity(self) -> dict[str, Any]:
        """The same for the key of a job: what came with a later version stays out at its default, so that runs of earlier
        ones are resumed."""
        shaping = self.shaping()
        return {n: value for n, value in shaping.items() if n not in _LATER or value != _FIELDS[n].default}


_TEXTS = frozenset({"delimiter", "think_end_token", "extract", "logit_bias", "base_url", "features_url", "reward_url"})
"""Settings that are text; other strings are names of files, models and the like."""
_FIELDS = {f.name: f for f in fields(Settings)}
_HINTS = get_type_hints(Settings)
BACKENDS_OF: dict[str, frozenset[str]] = {
    n: f.metadata["backends"] for n, f in _FIELDS.items() if f.metadata["backends"]
}
"""Option -> the backends that have it."""
OF_THE_PROPOSER = frozenset(name for name, one in _FIELDS.items() if one.metadata["proposer"])
"""Of these, those that a verifier with a model of its own does not read."""
_SHAPING = frozenset({"lora", "frequency_penalty", "presence_penalty", "grammar", "json_schema"})
# The model is told by its digest, not by where its file lies; how a backend runs it shapes nothing.
_RUNTIME = frozenset({"model", "trace", "features", "reward_url", *(BACKENDS_OF.keys() - _SHAPING)})
OF_THE_RUN = _RUNTIME | {
    "backend", "lora", "parse_special", "enable_thinking", "verifier", "verifier_model", "verifier_aggregate", "n_ctx",
}  # fmt: skip
"""Settings of the engine and the verifier, which all searches of a run share."""
_LATER = frozenset({
    "confidence", "parse_special", "enable_thinking", "think_end_token", "lora", "repetition_penalty", "frequency_penalty",
    "presence_penalty", "logit_bias", "grammar", "json_schema",
})  # fmt: skip


def describe() -> list[tuple[str, Any, str]]:
    """(name, default, meaning) of every setting, in order: what help texts are made of."""
    return [(f.name, f.default, f.metadata["doc"]) for f in fields(Settings)]


def grammar_of(settings: Settings) -> Grammar | None:
    """What traces must follow."""
    if settings.grammar:
        return Grammar("grammar", settings.grammar)
    return Grammar("json_schema", settings.json_schema) if settings.json_schema else None


def coerce(name: str, value: Any) -> Any:
    """`value` as the type of setting `name`.

    Raises:
        SettingsError: unknown name, or a value that cannot be read as that type or is out of range.
    """
    if name not in _FIELDS:
        raise SettingsError(f"unknown setting {name!r}{ours(name) or did_you_mean(name, _FIELDS)}")
    if name == "verifier" and value is None:
        value = "none"  # what lm-eval and YAML made of the word
    if name == "json_schema" and isinstance(value, dict):
        value = json.dumps(value)
    if name == "logit_bias" and isinstance(value, dict):
        value = ";".join(f"{token}:{bias}" for token, bias in value.items())
    if name == "slots" and str(value).strip().lower() == "auto":
        return AUTO_SLOTS
    one = _FIELDS[name]
    result = convert(name, value, _HINTS[name], one.default)
    if result is None:
        return None
    check_range(name, result, one.metadata["low"], one.metadata["above"], one.metadata["high"])
    if name in {"grammar", "json_schema"}:
        return inlined(name, result)
    if name == "delimiter":
        result = unescape(result)
    if isinstance(result, str):
        (check_text if name in _TEXTS else check_name)(name, result)
    return result
