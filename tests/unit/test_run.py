"""A run folder: what is kept, what is cut off, what is refused."""

import gzip
import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from arts_plugin import features
from arts_plugin.backend import Prompt
from arts_plugin.errors import ArtsError, RunFolderError
from arts_plugin.run import RunFolder, RunInfo, read_trees, versions
from arts_plugin.search.job import Job
from arts_plugin.settings import Settings
from arts_plugin.tree import ReasoningTree

MODEL = {"name": "m", "digest": "sha256:00"}


def a_tree(text: str) -> ReasoningTree:
    tree = ReasoningTree(prompt=text)
    tree.chosen = tree.add(0, text=f"{text}\u2028\n", terminal=True, stop="eos", logprob=float("-inf")).id
    return tree


def key_of(name: str) -> str:
    return f"{ord(name):016x}"


def opened(path: Path, settings: Settings | None = None, **model: Any) -> RunFolder:
    return RunFolder(path, settings or Settings(), {**MODEL, **model})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run of three trees."""
    path = tmp_path / "deep" / "run"
    folder = opened(path)
    for name in "abc":
        folder.put(key_of(name), a_tree(name))
    folder.close()
    return path


def test_trees_come_back(run: Path) -> None:
    before = (run / "trees.jsonl").read_bytes()
    folder = opened(run)
    assert len(folder) == 3
    for name in "bca":
        tree = folder.get(key_of(name))
        assert tree is not None and tree.prompt == name and tree.meta["key"] == key_of(name)
        assert tree.nodes[1].logprob == float("-inf")
    assert folder.get(key_of("d")) is None
    folder.put(key_of("d"), a_tree("d"))
    assert folder.get(key_of("a")) is not None and folder.get(key_of("d")) is not None
    folder.close()
    assert (run / "trees.jsonl").read_bytes().startswith(before)
    assert [tree.prompt for tree in read_trees(run)] == list("abcd")


def test_written_when_put_returns(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    folder.put(key_of("a"), a_tree("a"))
    assert [tree.prompt for tree in read_trees(tmp_path)] == ["a"]
    folder.close()


def test_record_of_the_run(run: Path) -> None:
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert Settings.of(record["settings"]) == Settings()
    assert record["model"] == MODEL
    assert record["versions"] == versions() and "python" in record["versions"]
    assert not list(run.glob("*.tmp"))


@pytest.mark.parametrize("tail", [b"{", b'{"version":1,"prompt":"half', b"x" * 200_000])
def test_half_a_line_is_cut_off(run: Path, tail: bytes) -> None:
    file = run / "trees.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + tail)
    assert [tree.prompt for tree in read_trees(run)] == list("abc")
    folder = opened(run)
    assert len(folder) == 3
    folder.close()
    assert file.read_bytes() == whole


def test_nothing_but_half_a_line(tmp_path: Path) -> None:
    opened(tmp_path).close()
    (tmp_path / "trees.jsonl").write_bytes(b'{"half"')
    folder = opened(tmp_path)
    assert len(folder) == 0
    folder.close()
    assert (tmp_path / "trees.jsonl").read_bytes() == b""


@pytest.mark.parametrize("line", [b"nonsense\n", b"\n", b"[1]\n", b'{"meta":{}}\n', b"\xff\xfe\n"])
def test_damage_in_the_middle_is_refused_with_its_line(run: Path, line: bytes) -> None:
    file = run / "trees.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([lines[0], line, *lines[2:]]))
    before = file.read_bytes()
    with pytest.raises(RunFolderError, match="line 2"):
        opened(run)
    with pytest.raises(ArtsError, match="line 2"):
        list(read_trees(run))
    assert file.read_bytes() == before
    file.write_bytes(b"".join(lines))
    opened(run).close()  # the lock went with the failure


KEYS = [
    *(
        "../../outside",
        "/tmp/outside",
        "..",
        "",
        "a",
        "0" * 15,
        "0" * 17,
        "A" * 16,
        "0" * 15 + "/",
        "0" * 15 + "\n",
        "\u0660" * 16,
    ),
    *("0" * 15 + "\0", 1234567890123456, ["0" * 16], {"a": 1}, True, 1.5),
]


@pytest.mark.parametrize("key", KEYS)
def test_a_key_leads_nowhere_but_into_the_run(run: Path, key: Any) -> None:
    """A key becomes the name of a file: it is 16 hexadecimal digits, wherever a tree is read and wherever a path is made."""
    file = run / "trees.jsonl"
    record = json.loads(file.read_bytes().splitlines()[0])
    record["meta"]["key"] = key
    line = json.dumps(record).encode()
    with pytest.raises(ArtsError, match="is not 16 hexadecimal digits"):
        ReasoningTree.from_json(line)
    with pytest.raises(ArtsError, match="is not 16 hexadecimal digits"):
        features.file_of(run, key)
    file.write_bytes(file.read_bytes() + line + b"\n")
    with pytest.raises(ArtsError, match=r"line 4.*is not 16 hexadecimal digits.*Delete that line"):
        list(read_trees(run))
    with pytest.raises(RunFolderError, match=r"line 4.*is not 16 hexadecimal digits.*Delete that line"):
        opened(run)


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    program = """
        import sys
        from arts_plugin.errors import RunFolderError
        from arts_plugin.run import RunFolder
        from arts_plugin.settings import Settings
        try:
            RunFolder(sys.argv[1], Settings(), {"digest": "sha256:00"})
        except RunFolderError as error:
            print(error)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    folder = opened(tmp_path)
    folder.put(key_of("a"), a_tree("a"))
    refused = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "another process" in refused.stdout and str(tmp_path) in refused.stdout
    folder.close()
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == ""


def test_twice_in_one_process(tmp_path: Path) -> None:
    folder = opened(tmp_path)
    with pytest.raises(RunFolderError, match="another process"):
        opened(tmp_path)
    folder.close()


def test_other_weights(run: Path) -> None:
    with pytest.raises(RunFolderError, match=r"the model was 'm' and is 'n' \(sha256:00 / sha256:11\)"):
        opened(run, name="n", digest="sha256:11")
    opened(run, name="the same weights in another file").close()


def test_other_settings_are_named(run: Path) -> None:
    with pytest.raises(RunFolderError) as caught:
        opened(run, Settings(width=5, seed=1))
    message = str(caught.value)
    assert "width was 2 and is 5" in message and "seed was 0 and is 1" in message
    assert "beta" not in message
    assert len(list(read_trees(run))) == 3


def test_where_and_how_fast_may_differ(run: Path) -> None:
    settings = replace(Settings(), model="elsewhere.gguf", n_threads=3, n_gpu_layers=-1, n_ubatch=64, trace="x")
    folder = opened(run, settings)
    assert len(folder) == 3
    folder.close()


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "{",
            "[]",
            "{}",
            '{"settings": {}, "model": null}',
            '{"settings": 3, "model": {}}',
            "null",
            "\xff",
            "[" * 10**5,
        ),
        *('{"settings": {}, "model": {"digest": "d"}, "verifier": 3}', '{"settings": [], "model": {"digest": "d"}}'),
    ],
)
def test_damaged_record(run: Path, text: str) -> None:
    (run / "run.json").write_text(text, encoding="utf-8")
    with pytest.raises(
        RunFolderError, match=r"run\.json cannot be read.*Put back what was there, or use another trace="
    ):
        opened(run)
    with pytest.raises(ArtsError, match=r"run\.json cannot be read"):
        RunInfo.read(run)


def test_a_run_without_a_verifier(run: Path) -> None:
    """Also where that is said by null, as older tools and people write it."""
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "verifier": None}))
    folder = opened(run)
    assert len(folder) == 3
    folder.close()


def test_trees_of_unknown_settings(run: Path) -> None:
    (run / "run.json").unlink()
    with pytest.raises(RunFolderError, match=r"trees\.jsonl without a run\.json"):
        opened(run)
    assert len(list(read_trees(run))) == 3


def test_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(ArtsError, match=r"no trees\.jsonl"):
        list(read_trees(tmp_path / "nowhere"))
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(RunFolderError, match=str(os.fspath(file))):
        opened(file)


def test_runs_of_earlier_versions_are_found_again() -> None:
    """A recorded tree's key is that of its prompt and settings today: a new setting at its default changes no key."""
    pool = Path(__file__).parents[2] / "examples" / "bench" / "pools" / "svamp-samples"
    recorded = json.loads((pool / "run.json").read_text())["settings"]
    assert "confidence" not in recorded
    with gzip.open(pool / "trees.jsonl.gz", "rt") as file:
        tree = ReasoningTree.from_json(next(file))
    settings = replace(Settings().with_({k: v for k, v in recorded.items() if v is not None}), select=tree.select)
    prompt = Prompt(tree.prompt, tuple(tree.nodes[0].token_ids))
    assert Job(prompt, settings).key() == tree.meta["key"]
    assert Job(prompt, replace(settings, confidence=0.9)).key() != tree.meta["key"]
