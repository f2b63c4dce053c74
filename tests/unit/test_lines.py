"""JSON lines: what is read of odd files, and what is left of a file when the disk is full."""

from __future__ import annotations

import errno
import json
import resource
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from arts_plugin.errors import ArtsError, NotWrittenError
from arts_plugin.lines import LinesFile, loads, read_lines, read_object, whole_lines
from arts_plugin.training.rows import read_rows
from arts_plugin.writing import write_whole

DEEP = "[" * 100_000 + "]" * 100_000


def row(number: int, question: str) -> dict[str, Any]:
    return {"id": str(number), "question": question, "answer": "1"}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r"])
def test_lines_end_at_line_feeds_alone(tmp_path: Path, end: str, start: str, mark: str) -> None:
    """Whatever editor wrote it. Marks that JSON lets stand as they are come inside of strings; others as escapes."""
    file = tmp_path / "rows.jsonl"
    rows = [row(0, "first"), row(1, f"one{mark}two"), row(2, "last")]
    made = [json.dumps(one, ensure_ascii=ord(mark) < 32) for one in rows]
    file.write_bytes((start + end.join(made)).encode())
    assert [found.question for found in read_rows([file])] == [one["question"] for one in rows]
    assert [number for number, _ in read_lines(file)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (DEEP.encode(), "nested"),
        (b'{"a":' * 500 + b"1" + b"}" * 500, "nested"),
        (b"\xff" * 100_000, "byte 0 is 0xff"),
        (b"9" * 5000, "digits"),
        (b"{" + b"x" * 100_000, "Expecting"),
        (b"", "Expecting"),
    ],
)
def test_what_is_no_json_is_said_shortly(tmp_path: Path, text: bytes, said: str) -> None:
    """By its text and by its representation, for an error may be shown as either."""
    with pytest.raises(ValueError, match=said) as error:
        loads(text)
    assert len(repr(error.value)) < 300
    file = tmp_path / "x.json"
    file.write_bytes(text)
    with pytest.raises(ValueError, match=said):
        read_object(file)


def test_a_list_is_no_object(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("\ufeff[1]", encoding="utf-8")
    with pytest.raises(ValueError, match="it holds list"):
        read_object(tmp_path / "x.json")


def test_a_half_line_is_named_and_left_out(tmp_path: Path) -> None:
    file, said = tmp_path / "x.jsonl", list[tuple[int, str]]()
    file.write_bytes(b'1\n2\n{"half')
    assert [line for _, line in whole_lines(file, lambda n, why: said.append((n, why)))] == [b"1\n", b"2\n"]
    assert [(number, "not complete" in why) for number, why in said] == [(3, True)]


@pytest.mark.parametrize("place", ["folder", "missing", "utf-16"])
def test_what_cannot_be_read_at_all(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "utf-16").write_text('{"a": 1}\n', encoding="utf-16")
    with pytest.raises(ArtsError, match="UTF-16" if place == "utf-16" else "cannot be read"):
        list(read_lines(tmp_path / place))


class FullDisk:
    """A raw file on a disk that takes `room` more bytes, then some more after `freed`."""

    def __init__(self, file: Any, room: int, stuck: bool = False) -> None:
        self.file, self.room, self.stuck = file, room, stuck

    def write(self, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken: int = self.file.write(bytes(data[: self.room]))
        self.room -= taken
        return taken

    def truncate(self, size: int) -> int:
        if self.stuck:
            raise OSError(errno.EIO, "Input/output error")
        found: int = self.file.truncate(size)
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@pytest.mark.parametrize("room", [0, 1, 5, 12])
@pytest.mark.parametrize("stuck", [False, True])
def test_a_line_that_does_not_fit_is_taken_back(tmp_path: Path, room: int, stuck: bool) -> None:
    """Also where it can be taken back only later: the next line begins where it should."""
    made = LinesFile(tmp_path / "x.jsonl")
    made.append('"the first"')
    full = FullDisk(made._file, room, stuck)
    made._file = full  # type: ignore[assignment]
    with pytest.raises(NotWrittenError, match=r"x\.jsonl cannot be written \(No space left.*make room"):
        made.append('"this is too long"')
    full.room, full.stuck = 1000, False
    place, length = made.append('"next"')
    made.close()
    content = (tmp_path / "x.jsonl").read_bytes()
    assert content == b'"the first"\n"next"\n'
    assert content[place : place + length] == b'"next"\n'


def test_a_real_limit(tmp_path: Path) -> None:
    """The system's limit for a file's size, which fails amid a line as a full disk does."""
    program = """
        import resource, sys
        from pathlib import Path
        from arts_plugin.errors import NotWrittenError
        from arts_plugin.lines import LinesFile
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        made = LinesFile(Path(sys.argv[1]))
        made.append('"' + "a" * 500 + '"')
        try:
            made.append('"' + "b" * 900 + '"')
        except NotWrittenError as error:
            print(error)
        made.append('"' + "c" * 50 + '"')
        made.close()
    """
    file = tmp_path / "x.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(file)], capture_output=True, text=True, check=True
    )
    assert "File too large" in done.stdout and "ulimit -f" in done.stdout
    assert [json.loads(line)[0] for _, line in read_lines(file)] == ["a", "c"]


def test_a_file_is_written_whole_or_stays(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "page.html"
    write_whole(file, "before \ud800")
    assert file.read_text() == "before ?"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(NotWrittenError, match=r"page\.html cannot be written"):
            write_whole(file, "x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert file.read_text() == "before ?"
    assert [child.name for child in file.parent.iterdir()] == ["page.html"]


def test_a_folder_in_the_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "page.html").mkdir()
    with pytest.raises(NotWrittenError, match="a folder lies in its place"):
        write_whole(tmp_path / "page.html", "x")
    with pytest.raises(NotWrittenError, match="a folder lies in its place"):
        LinesFile(tmp_path / "page.html")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotWrittenError, match="a file lies in its folder's place"):
        write_whole(tmp_path / "file" / "page.html", "x")
