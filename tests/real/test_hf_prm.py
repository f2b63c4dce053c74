"""Published process reward models, on tiny random models of the same layouts, against one plain forward pass."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from arts_plugin.errors import ModelError
from arts_plugin.plugins import plugins
from arts_plugin.settings import Settings
from arts_plugin.tree import ReasoningTree
from arts_plugin.verifier import StateView
from tests.models import smollm2

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from arts_hf.layouts import LAYOUTS, LinearHead, TokenPair  # noqa: E402
from arts_hf.loading import converted  # noqa: E402
from arts_hf.prm import PrmVerifier, load  # noqa: E402
from arts_hf.vocabulary import HfVocabulary  # noqa: E402

QUESTION = "Tom has 3 boxes with 4 pens each. He gives 5 away. <|im_end|> How many are left?"
KINDS = {
    "qwen_math_prm": "Qwen2Config",
    "skywork_prm": "Qwen2Config",
    "rlhflow_prm": "LlamaConfig",
    "math_shepherd": "MistralConfig",
}
SPECIAL = [
    "<extra_0>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<s>",
]  # fmt: skip
BY_NAME = {layout.name: layout for layout in LAYOUTS}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """SmolLM2's, with the special tokens of all layouts."""
    made = transformers.AutoTokenizer.from_pretrained(converted(Path(smollm2()), torch.float32))
    made.add_special_tokens({"additional_special_tokens": SPECIAL})
    return made


@pytest.fixture(scope="module")
def folders(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model folder for each layout."""
    made = {}
    for name, kind in KINDS.items():
        torch.manual_seed(len(name))
        config = getattr(transformers, kind)(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, max_position_embeddings=512, initializer_range=0.3,
        )  # fmt: skip
        folder = made[name] = tmp_path_factory.mktemp(name)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        readout = BY_NAME[name].readout
        if isinstance(readout, LinearHead):
            widths = [32] * len(readout.layers) + [readout.classes]
            tensors = {}
            for layer, (width, height) in zip(readout.layers, pairwise(widths), strict=True):
                tensors[f"{layer}.weight"] = 0.2 * torch.randn(height, width)
                tensors[f"{layer}.bias"] = torch.randn(height)
            save_file(tensors, folder / "head.safetensors")
    return made


def tree() -> ReasoningTree:
    made = ReasoningTree(prompt="unused", strategy="sdf", meta={"question": QUESTION})
    first = made.add(0, text="He has 3 x 4 = 12 pens.\n")
    second = made.add(first.id, text="Then 12 - 5 = 7.\n")
    made.add(second.id, text="The answer is 7.", terminal=True)
    made.add(second.id, text="So + or -, <extra_0> it is 8", terminal=True)
    made.add(first.id, text=" \n")
    other = made.add(0, text="It is 2.\n")
    made.add(other.id, text="The answer is 2.", terminal=True)
    return made


def texts(found: ReasoningTree, node: int) -> list[str]:
    return [step.text.strip() for step in found.path(node)[1:] if step.text.strip()]


def by_hand(name: str, folder: Path, tokenizer: Any, steps: list[str]) -> list[float]:
    """Probabilities of the steps of one trace, as the models' cards compute them."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    special = lambda text: tokenizer(text, add_special_tokens=False).input_ids  # noqa: E731
    plain = lambda text: tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids  # noqa: E731
    ids: list[int] = []
    ends = []
    if name == "qwen_math_prm":
        ids += special(
            "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
            "<|im_start|>user\n"
        )
        ids += plain(QUESTION) + special("<|im_end|>\n<|im_start|>assistant\n")
        for step in steps:
            ids += plain(step) + special("<extra_0>")
            ends.append(len(ids) - 1)
    elif name == "skywork_prm":
        ids += [tokenizer.bos_token_id, *plain(QUESTION + "\n")]
        for step in steps:
            ids += [*plain(step), plain("\n")[-1]]  # as the reference appends it: never merged with a full stop
            ends.append(len(ids) - 1)
    elif name == "rlhflow_prm":
        head = "<|start_header_id|>{}<|end_header_id|>"
        ids += special("<|begin_of_text|>" + head.format("user"))
        for number, step in enumerate(steps):
            if number:
                ids += special("+<|eot_id|>" + head.format("user"))
            ids += plain("\n\n" + ("" if number else f"{QUESTION} ") + step)
            ids += special("<|eot_id|>" + head.format("assistant")) + plain("\n\n")
            ends.append(len(ids) - 1)
    else:
        read = f"{QUESTION} "
        for number, step in enumerate(steps):
            read += ("\n" if number else "") + f"{step} ки"
            ids = special("<s>") + plain(read)
            ends.append(len(ids) - 1)
    with torch.no_grad():
        out = model(torch.tensor([ids]), output_hidden_states=True)
        hidden, logits = out.hidden_states[-1][0, ends], out.logits[0, ends]
    readout = BY_NAME[name].readout
    if isinstance(readout, TokenPair):
        pair = [plain(text)[-1] for text in ("+", "-")]
        return torch.softmax(logits[:, pair], 1)[:, 0].tolist()
    tensors = load_file(folder / "head.safetensors")
    for number, layer in enumerate(readout.layers):
        hidden = torch.relu(hidden) if number else hidden
        hidden = hidden @ tensors[f"{layer}.weight"].T + tensors[f"{layer}.bias"]
    return (torch.sigmoid(hidden[:, 0]) if readout.classes == 1 else torch.softmax(hidden, 1)[:, 1]).tolist()


@pytest.mark.parametrize("aggregate", [None, "min", "last", "product", "mean"])
@pytest.mark.parametrize("name", KINDS)
def test_scores_are_those_of_the_card(
    name: str, aggregate: str | None, folders: dict[str, Path], tokenizer: Any
) -> None:
    """By the registered scorer, over a tree with shared beginnings and a blank step, for each way to aggregate."""
    settings = Settings.of(
        verifier_model=str(folders[name]), verifier_aggregate=aggregate, dtype="float32", device="cpu"
    )
    made = plugins().make("verifier", name, settings)
    found = tree()
    scores = made.score_recorded(found)
    way = aggregate or BY_NAME[name].aggregate
    combine: Any = {"min": min, "last": lambda p: p[-1], "product": np.prod, "mean": np.mean}[way]
    for node in found.nodes[1:]:
        steps = texts(found, node.id)
        if node.text.strip():
            assert np.exp(scores[node.id]) == pytest.approx(
                combine(by_hand(name, folders[name], tokenizer, steps)), rel=2e-3
            )
    blank = next(node for node in found.nodes if node.text == " \n")
    if way in {"min", "last"}:
        assert scores[blank.id] == scores[blank.parent]
    assert len({round(float(s), 6) for s in scores}) > 2
    assert not made.is_flow
    assert made.body.kv.used == 0


@pytest.fixture(scope="module")
def sentencepiece() -> Any:
    """A vocabulary as SentencePiece makes them: a space before every text, spaces as U+2581, bytes for what is rare."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = [
        "Step",
        "Tom",
        "has",
        "pens",
        "boxes",
        "each",
        "gives",
        "away",
        "answer",
        "is",
        "The",
        "He",
        "so",
        "ки",
        "1",
        "2",
        "3",
        "4",
        "5",
        "7",
        "12",
        ":",
        ".",
        "=",
        "-",
        "x",
    ]
    made.train_from_iterator(
        words * 9, trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False)
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


def test_steps_continue_the_string_of_training(sentencepiece: Any) -> None:
    """Read step by step, a trace has the tokens of the whole string, which has no space before its later parts."""
    config = transformers.MistralConfig(vocab_size=len(sentencepiece))
    vocabulary = HfVocabulary(sentencepiece, config, None, "sentencepiece")
    body = type("Body", (), {"vocabulary": vocabulary})()
    made = PrmVerifier(body, BY_NAME["math_shepherd"])  # type: ignore[arg-type]
    steps = ["Step 1: He has 3 x 4 = 12 pens.", "Step 2: 12 - 5 = 7.", "The answer is 7"]
    view = lambda text: StateView("", "", (), text, (), 0.0, None, False, None, QUESTION)  # noqa: E731
    got = [*made.read_prompt(view(""))]
    for number, step in enumerate(steps):
        got += made.read_step(view(f"{step}\n"), number == 0)
    want = sentencepiece(f"{QUESTION} " + "\n".join(f"{step} ки" for step in steps), add_special_tokens=False).input_ids
    assert got == [sentencepiece.bos_token_id, *want]
    assert vocabulary.tokenize(steps[1]) != vocabulary.continuation(steps[1])


def test_a_choice_by_itself_begins_with_no_space(sentencepiece: Any) -> None:
    """lm-eval's: one that a token of the whole text swallows is encoded as what follows a text."""
    from arts_plugin.lm_eval.likelihood import LikelihoodLM

    vocabulary = HfVocabulary(sentencepiece, transformers.MistralConfig(vocab_size=len(sentencepiece)), None, "any")

    class Encoder(LikelihoodLM):
        eot_token_id = 0

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **others: Any) -> list[int]:
            return vocabulary.tokenize(string)

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            raise NotImplementedError

    assert Encoder()._encode_alone("away") == vocabulary.continuation("away") != vocabulary.tokenize("away")


def test_they_are_registered() -> None:
    assert set(KINDS) <= set(plugins().registrations("verifier"))


def test_models_that_do_not_fit(folders: dict[str, Path]) -> None:
    """A head that is not there, one of another size, and a vocabulary without the layout's tokens."""
    fit = lambda folder, layout: load(layout, Settings.of(verifier_model=str(folder), device="cpu"))  # noqa: E731
    qwen, skywork = BY_NAME["qwen_math_prm"], BY_NAME["skywork_prm"]
    with pytest.raises(ModelError, match=r"has no tensor score.0.weight"):
        fit(folders["skywork_prm"], qwen)
    with pytest.raises(ModelError, match="has 1 outputs, and its layout 2"):
        fit(folders["skywork_prm"], replace(skywork, readout=LinearHead(("v_head.summary",), 2)))
    with pytest.raises(ModelError, match=r"vocabulary has no <extra_9>"):
        fit(folders["qwen_math_prm"], replace(qwen, step="{step}<extra_9>"))
