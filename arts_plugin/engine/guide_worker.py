"""The process in which llguidance compiles one grammar and follows it.

A grammar can make the library recurse until its stack ends, or compute for minutes, and none of its own limits stops
that. Here it costs this process: memory and CPU are limited, and its parent sees how it ended.

It is run as a file, with the folder that holds llguidance as its argument, and imports nothing of this package. Frames of
a 32-bit length and as many bytes come by standard input: JSON with `kind`, `text`, `ends`, `seconds` (to compile),
`bank` (see `Bank`) and `memory` (bytes); then the vocabulary's pieces, each a frame's content with a length of its own.
After that come operations of nine bytes (`OPERATION`). Replies go by standard output: whether something is wrong (a
byte), a 32-bit length, and the reason or the content.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import sys
import threading
import time
from typing import Any

LENGTH = struct.Struct("<I")
REPLY = struct.Struct("<BI")
OPERATION = struct.Struct("<cII")
"""What to do with a guide, its number, and an argument: `f`ork it as another number, `t`ake a token, tell its `m`ask,
or `d`rop it. Number 0 is the beginning of the grammar."""
_STACK = 64 << 20
_REFILL = 0.002
_MOST_ERROR = 2000


class Bank:
    """CPU seconds that may be spent: each mask adds a little, up to `most`. The process ends when it is overdrawn."""

    def __init__(self, most: float) -> None:
        self.most = self.left = most

    def begin(self, masks: int) -> None:
        """Spend from now on; `masks` are to be computed."""
        self.left = min(self.most, self.left + masks * _REFILL)
        self._began = time.process_time()
        _end_after(max(self.left, 0.001))

    def end(self) -> None:
        """Spend no more."""
        _end_after(0.0)
        self.left -= time.process_time() - self._began


def _end_after(seconds: float) -> None:
    """End this process by SIGPROF after so many seconds of CPU; 0: never."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _limit(memory: int) -> None:
    """Limit memory, leave no core file, and let the terminal's interrupt be the parent's affair."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(ImportError, ValueError, OSError):  # not on Windows, or not allowed
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


class _Tokens:
    """A vocabulary, as llguidance reads one (the attributes of its TokenizerWrapper)."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, pieces: list[bytes], ends: list[int]) -> None:
        self.eos_token_id = ends[0]
        self.special_token_ids = [token for token, piece in enumerate(pieces) if not piece]
        # Tokens that stand for no text still need a name of their own.
        self.tokens = [piece or b"<|%d|>" % token for token, piece in enumerate(pieces)]
        self._ids = {piece: token for token, piece in reversed(list(enumerate(pieces))) if piece}
        self._longest = max(map(len, self._ids))

    def __call__(self, text: str | bytes) -> list[int]:
        """Greedy, longest piece first. What a grammar leaves no choice about is spelled so, in these tokens alone."""
        data, at, found = text.encode() if isinstance(text, str) else text, 0, []
        while at < len(data):
            for length in range(min(self._longest, len(data) - at), 0, -1):
                token = self._ids.get(data[at : at + length])
                if token is not None:
                    found.append(token)
                    break
            else:
                length = 1  # a byte that the vocabulary cannot spell
            at += length
        return found


def _compiled(kind: str, text: str, tokenizer: Any) -> Any:
    """The matcher of a grammar.

    Raises:
        ValueError: it is none, or no text follows it.
    """
    import llguidance

    try:
        if kind == "json_schema":
            made = llguidance.LLMatcher.grammar_from_json_schema(json.loads(text))
        else:
            made = llguidance.grammar_from("gbnf", text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    limits = llguidance.LLParserLimits(verbose_errors=False)
    problem = llguidance.LLMatcher.validate_grammar(made, limits=limits)
    if problem and not problem.startswith("WARNING"):
        raise ValueError(problem)
    matcher = llguidance.LLMatcher(tokenizer, made, log_level=0, limits=limits)
    if matcher.is_error():
        raise ValueError(matcher.get_error())
    begin = matcher.deep_copy()
    if not any(begin.compute_bitmask()) or begin.is_error():
        raise ValueError("no text follows it")
    return matcher


def _compile(setup: dict[str, Any], tokenizer: Any) -> tuple[Any, str]:
    """(matcher, what is wrong), in a thread with a large stack that gives way to whoever computes beside it."""
    found: list[Any] = [None, "it could not be compiled"]

    def work() -> None:
        if sys.platform == "linux":  # elsewhere a thread has no priority by its number
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        try:
            found[:] = [_compiled(setup["kind"], setup["text"], tokenizer), ""]
        except Exception as error:  # whatever the library raises is said of this grammar
            found[1] = str(error) or type(error).__name__

    threading.stack_size(_STACK)
    thread = threading.Thread(target=work)
    _end_after(setup["seconds"])
    thread.start()
    thread.join()
    _end_after(0.0)
    return found[0], found[1]


def _read(size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = os.read(0, min(size - len(data), 1 << 20))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def _frame() -> bytes:
    (size,) = LENGTH.unpack(_read(LENGTH.size))
    return _read(size)


def _pieces(data: bytes) -> list[bytes]:
    found, at = [], 0
    while at < len(data):
        (size,) = LENGTH.unpack_from(data, at)
        at += LENGTH.size
        found.append(data[at : at + size])
        at += size
    return found


def _reply(wrong: bool, content: bytes) -> None:
    data = memoryview(REPLY.pack(wrong, len(content)) + content)
    while data:
        data = data[os.write(1, data) :]


def _follow(matcher: Any, bank: Bank) -> None:
    """Carry out operations until there are no more."""
    guides, rest = {0: matcher}, b""
    while True:
        data = rest + _some()
        whole = len(data) - len(data) % OPERATION.size
        operations, rest = list(OPERATION.iter_unpack(data[:whole])), data[whole:]
        bank.begin(sum(operation == b"m" for operation, _, _ in operations))
        for operation, number, argument in operations:
            if operation == b"f":
                guides[argument] = guides[number].deep_copy()
            elif operation == b"t":
                guides[number].consume_token(argument)
            elif operation == b"d":
                del guides[number]
            else:
                mask, guide = guides[number].compute_bitmask(), guides[number]
                failed = guide.is_error()
                _reply(failed, guide.get_error().encode()[:_MOST_ERROR] if failed else mask)
        bank.end()


def _some() -> bytes:
    data = os.read(0, 1 << 16)
    if not data:
        raise EOFError
    return data


def main() -> None:
    """Compile, say how that went, and follow until the parent is gone."""
    sys.path.append(sys.argv[1])
    setup = json.loads(_frame())
    pieces, ends = _pieces(_frame()), setup["ends"]
    _limit(setup["memory"])
    import llguidance

    tokens: Any = _Tokens([b"" if token in ends else piece for token, piece in enumerate(pieces)], ends)
    tokenizer = llguidance.LLTokenizer(tokens, n_vocab=len(pieces), eos_token=ends)
    matcher, problem = _compile(setup, tokenizer)
    _reply(bool(problem), problem.encode("utf-8", "replace")[:_MOST_ERROR])
    if not problem:
        _follow(matcher, Bank(setup["bank"]))


if __name__ == "__main__":
    with contextlib.suppress(EOFError, BrokenPipeError):
        main()
