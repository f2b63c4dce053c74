"""The Jinja environment that chat templates of the Hugging Face hub are written for, with texts traced to their writers.

What it offers is what transformers offers (its `utils/chat_template_utils.py`, version 5): the extensions, filters, globals
and refusals of templates; its own text is not used. A template renders to the same characters in both.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace

from arts_plugin.chat.traced import Traced, TracedMarkup, joined, made_of, own, shown, written

_ROLE = re.compile(r"[A-Za-z0-9_-]{1,40}")


class RefusedError(jinja2.TemplateError):
    """The template itself refuses the messages, by `raise_exception`."""


@functools.lru_cache(maxsize=16)
def compiled(template: str) -> jinja2.Template:
    """`template`, ready to be rendered.

    Raises:
        jinja2.TemplateError: it is no template.
    """
    return _Environment().from_string(template)


def rendered(template: str, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any], most: int) -> Traced:
    """`messages` in `template`.

    Args:
        variables: further ones, which are trusted like the template: special tokens, switches.
        most: characters, at most.

    Raises:
        jinja2.TemplateError: the template is wrong, or refuses the messages.
        OverflowError: the chat is longer than `most`.
    """
    given = {"tools": None, "documents": None, **variables}
    texts: list[str] = []
    length = 0
    for text in compiled(template).generate(messages=[_message(m) for m in messages], **written(given)):
        texts.append(text)
        length += len(text)
        if length > most:
            raise OverflowError
    return joined(texts)


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as a template sees it. A role that could pass for nothing else is trusted, since templates make control
    tokens of roles: `'<|' + role + '|>'`."""
    seen = {key: _theirs(value) for key, value in message.items() if value is not None}
    role = message.get("role")
    return {**seen, "role": written(role)} if isinstance(role, str) and _ROLE.fullmatch(role) else seen


def _theirs(value: Any) -> Any:
    if isinstance(value, str):
        return Traced(value)
    if isinstance(value, list):
        return [_theirs(item) for item in value]
    return {key: _theirs(item) for key, item in value.items()} if isinstance(value, dict) else value


class _Generator(CodeGenerator):
    """Python code of a template, in which constants and joined texts are traced."""

    def visit_Const(self, node: jinja2.nodes.Const, frame: Frame) -> None:  # noqa: N802 - jinja2's name
        if isinstance(node.value, (str, list, tuple, dict)):
            self.write(f"environment.written({node.value!r})")
        else:
            super().visit_Const(node, frame)

    def _output_const_repr(self, group: Any) -> str:
        return f"environment.written({super()._output_const_repr(group)})"

    def _output_child_pre(self, node: jinja2.nodes.Expr, frame: Frame, finalize: Any) -> None:
        if frame.eval_ctx.volatile or frame.eval_ctx.autoescape:
            super()._output_child_pre(node, frame, finalize)
        else:
            self.write("environment.shown(")

    def visit_Concat(self, node: jinja2.nodes.Concat, frame: Frame) -> None:  # noqa: N802 - jinja2's name
        if frame.eval_ctx.volatile or frame.eval_ctx.autoescape:
            super().visit_Concat(node, frame)
            return
        self.write("environment.concat((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _Generator
    concat = staticmethod(joined)
    written = staticmethod(written)
    shown = staticmethod(shown)

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.filters.update({name: _followed(filter_) for name, filter_ in self.filters.items()})
        self.filters.update(
            tojson=_followed(_to_json), join=_followed(_join(self.filters["join"])), safe=TracedMarkup.of
        )
        self.globals.update(raise_exception=_refuse, strftime_now=_now, dict=_Dict(), namespace=_Namespace)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None or type(value.__self__) is not Traced:
            return wrapped
        return functools.update_wrapper(_Formatter(self, value.__self__, value.__name__), value)


class _Generation(Extension):
    """`{% generation %}`, which marks what an assistant has said for training; it is rendered as it stands."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's

    def parse(self, parser: Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

    def _said(self, caller: Callable[[], str]) -> str:
        return caller()


class _Formatter(SandboxedFormatter):
    """`text.format` and `text.format_map`, called like them."""

    def __init__(self, environment: _Environment, text: Traced, name: str) -> None:
        super().__init__(environment)
        self._text, self._of_mapping = text, name == "format_map"

    def __call__(self, *args: Any, **kwargs: Any) -> Traced:
        if self._of_mapping:
            if kwargs or len(args) != 1:
                raise TypeError("format_map() takes one mapping")
            kwargs, args = args[0], ()
        whole = self.vformat(self._text, args, kwargs)
        if not all(own(self._text)):
            return Traced(whole)
        parts: list[Any] = []
        count = 0
        for literal, name, spec, conversion in self.parse(self._text):
            parts.append(written(literal))
            if name is None:
                continue
            if "{" in (spec or ""):
                return Traced(whole)
            if not name or name[0] in ".[":
                name, count = f"{count}{name}", count + 1
            value = self.convert_field(self.get_field(name, args, kwargs)[0], conversion)
            made = self.format_field(value, spec or "")
            if isinstance(value, str) and not spec:
                made = value
            elif not (spec or "").endswith("c"):  # which makes a character of a number that somebody wrote
                made = made_of(made, value)
            parts.append(made)
        return joined(parts)


class _Dict:
    """What templates know as `dict`, with nothing of the type behind it."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """What templates know as `namespace`, without names that Python keeps to itself."""

    def __init__(self, /, *args: Any, **kwargs: Any) -> None:
        Namespace.__init__(self, *args, **kwargs)
        for name in dict(*args, **kwargs):
            _check_name(name)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        Namespace.__setitem__(self, name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace takes no attribute {name!r}: rename it")


def _followed(filter_: Callable[..., Any]) -> Callable[..., Any]:
    """A filter of which what it makes of the template's own texts is the template's own."""

    skipped = int(hasattr(filter_, "jinja_pass_arg"))

    @functools.wraps(filter_)
    def follow(*args: Any, **kwargs: Any) -> Any:
        made = filter_(*args, **kwargs)
        if type(made) not in (str, Traced):
            return made
        whole = made_of(made, *args[skipped:], *kwargs.values())
        return whole if type(made) is str or all(own(whole)) else made

    return follow


def _join(plain: Callable[..., Any]) -> Callable[..., Any]:
    """The filter `join`: `plain` joins by an empty text of its own."""

    @functools.wraps(plain)
    def join(eval_ctx: Any, value: Any, d: str = Traced(""), attribute: str | int | None = None) -> Any:
        return plain(eval_ctx, map(shown, value) if attribute is None else value, d, attribute)

    return join


def _refuse(message: str) -> None:
    raise RefusedError(message)


def _now(format: str) -> str:
    return datetime.datetime.now().strftime(format)


def _to_json(
    x: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def spans(text: Traced) -> list[tuple[int, int]]:
    """Where the template wrote: (first, behind the last) of every run of its characters."""
    return [match.span() for match in re.finditer(b"\1+", own(text))]
