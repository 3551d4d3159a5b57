"""Where chat templates run: Jinja's sandbox with a bound on what one rendering may make, do and take.

Jinja's own sandbox keeps a template from Python's internals, not from `'x' * 10**10`. Here every operation that makes a
value is charged for it: before, where the result may be larger than what it is made from (`*`, `**`, `%`, `join`,
`replace`, widths), and after, otherwise. Loops and calls are steps, and at each step the time is looked at. What is
allowed grows with the messages, so no honest template comes near.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from itertools import chain, permutations
from string import Formatter
from typing import Any

from jinja2 import Template, nodes
from jinja2.ext import Extension
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

CHARACTERS, CHARACTERS_PER_SIZE = 1_000_000, 32
STEPS, STEPS_PER_SIZE = 100_000, 10
SECONDS, SECONDS_PER_SIZE = 1.0, 2e-6
BITS = 10_000
"""The largest whole number, in bits."""

# HTML's filters and test data: some take time that grows with the square of the text, and no prompt needs them.
_LEFT_OUT = ("pprint", "striptags", "urlize", "wordwrap", "xmlattr")
# Methods: a table may have a long text for every character, and some codecs take such time too.
_REFUSED = {"translate", "encode", "decode", "striptags"}
# Searches from the end and sets of characters: their time is that of both lengths multiplied.
_SEARCHES = {"rfind", "rindex", "rsplit", "rpartition", "strip", "lstrip", "rstrip", "trim"}
# Filters that pick and order items and do not print them, so that only the items' number counts.
_CHOOSING = {"map", "max", "min", "reject", "rejectattr", "select", "selectattr", "sum"}
_PICKING = _CHOOSING | {"attr", "batch", "count", "d", "default", "dictsort", "first", "groupby", "items", "last"}
_PICKING |= {"length", "list", "random", "reverse", "slice", "sort", "unique"}
# Where a whole number is a value, not a width.
_NUMBERS = _CHOOSING | {"d", "default", "float", "fromkeys", "get", "int"}
_CONTAINERS: Any = (list, tuple, dict, type({}.keys()), type({}.values()), type({}.items()))
_VALUES = (str, bytes, int, float, *_CONTAINERS)
_PERCENT = re.compile(r"%(\([^)]*)?\)?[-+ #0]*([\d*]*\.?[\d*]*)[hlL]?.?", re.DOTALL)
_OVERHEAD = 100  # the size of a container besides its items


class TemplateLimit(Exception):
    """A template does more than it may; the message says what."""


class Budget:
    """What one rendering has left.

    Args:
        given: the values that the template starts from; the more there are, the more it may do.
    """

    def __init__(self, given: Any) -> None:
        self._sizes: dict[int, tuple[Any, int]] = {}  # by id; the values are kept so that no id is used again
        self._most = sys.maxsize
        size = self.measure(given)
        self._most = self._characters = CHARACTERS + CHARACTERS_PER_SIZE * size
        self._steps = self._most_steps = STEPS + STEPS_PER_SIZE * size
        self._seconds = SECONDS + SECONDS_PER_SIZE * size
        self._started = time.thread_time()
        self._deadline = time.monotonic() + self._seconds

    @contextmanager
    def spent_here(self) -> Iterator[Budget]:
        """Whatever templates do in this block, they do on this budget."""
        token = _BUDGET.set(self)
        try:
            yield self
        finally:
            _BUDGET.reset(token)

    def step(self) -> None:
        self._steps -= 1
        if self._steps < 0:
            raise TemplateLimit(f"takes more than {self._most_steps:,} steps")
        if time.monotonic() > self._deadline:
            # On a busy machine the clock runs on while the template waits: its own time is what counts.
            left = self._seconds - (time.thread_time() - self._started)
            if left < 0:
                raise TemplateLimit(f"takes more than {self._seconds:.1f} s")
            self._deadline = time.monotonic() + left

    def spend(self, characters: int) -> None:
        self._characters -= characters
        if self._characters < 0:
            raise TemplateLimit(f"makes more than {self._most:,} characters")

    def admit(self, value: Any) -> Any:
        """Charge for a value that was just made; what comes piece by piece is charged as it comes."""
        if isinstance(value, str | bytes):
            self.spend(len(value))
        elif isinstance(value, _CONTAINERS):
            self.spend(len(value))
            self.measure(value)
        elif isinstance(value, int):
            if value.bit_length() > BITS:
                raise TemplateLimit(f"makes a number of more than {BITS:,} bits")
        elif isinstance(value, Iterator):
            return self.count(value)
        return value

    def count(self, items: Iterable[Any]) -> Iterator[Any]:
        """The items, each a step."""
        for item in items:
            self.step()
            yield item

    def measure(self, value: Any) -> int:
        """About the length of a value when printed, with all that it holds; cheap for what was measured before."""
        if isinstance(value, str):
            return len(value) + 2
        if isinstance(value, int):
            return 8 + value.bit_length() // 3
        if not isinstance(value, _CONTAINERS):
            return _OVERHEAD if not isinstance(value, bytes) else 4 * len(value) + 3
        if (known := self._sizes.get(id(value))) is not None:
            return known[1]
        items = chain(value, value.values()) if isinstance(value, dict) else value
        size = _OVERHEAD + sum(map(self.measure, items))
        if size > self._most:
            raise TemplateLimit(f"makes a value of more than {self._most:,} characters")
        self._sizes[id(value)] = (value, size)
        return size


_BUDGET: ContextVar[Budget] = ContextVar("template budget")


class Sandbox(ImmutableSandboxedEnvironment):
    """An environment whose templates spend a `Budget`; compile within one, and render with `render_bounded`.

    Args:
        filters, functions: what templates may use besides Jinja's own.
        extensions: Jinja extensions.
    """

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(
        self,
        filters: Mapping[str, Callable[..., Any]],
        functions: Mapping[str, Callable[..., Any]],
        extensions: Sequence[type[Extension]],
    ) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions, finalize=_charge_output)
        known = {**self.filters, **filters}
        self.filters = {name: _guard_filter(name, known[name]) for name in known if name not in _LEFT_OUT}
        self.filters |= {_LOOP: _count_loop, _MADE: _charge_made}
        self.globals |= {**functions, "namespace": _Namespace}
        del self.globals["lipsum"]

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(_Guards().visit(source), *args, **kwargs)

    def concat(self, pieces: Iterable[str]) -> str:
        """What a macro, a block or a `set` block wrote, as one string."""
        written = list(pieces)
        _BUDGET.get().spend(sum(map(len, written)))
        return "".join(written)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = _BUDGET.get()
        budget.step()
        budget.spend(_estimate_binary(budget, operator, left, right))
        return budget.admit(super().call_binop(context, operator, left, right))

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        budget = _BUDGET.get()
        budget.step()
        method = getattr(obj, "__wrapped__", obj)  # Jinja wraps str.format
        owner = getattr(method, "__self__", None)
        if isinstance(owner, _VALUES):
            args = tuple(list(arg) if isinstance(arg, Iterator) else arg for arg in args)
            budget.spend(_estimate_method(budget, method.__name__, owner, [*args, *kwargs.values()]))
        elif isinstance(obj, LoopContext):
            args = tuple(map(budget.count, args[:1])) + args[1:]
        elif not isinstance(obj, Macro):
            budget.spend(sum(map(budget.measure, [*args, *kwargs.values()])))
        return budget.admit(super().call(context, obj, *args, **kwargs))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr not in _REFUSED and super().is_safe_attribute(obj, attr, value)


def render_bounded(template: Template, names: Mapping[str, Any], pieces: list[str] | None = None) -> str:
    """The text of a template of a `Sandbox`, whose pieces are added to a list as they are written, if one is given.

    Raises TemplateLimit, and whatever the template raises.
    """
    pieces = [] if pieces is None else pieces
    with Budget(dict(names)).spent_here() as budget:
        for piece in template.generate(names):
            budget.step()
            budget.spend(len(piece))
            pieces.append(piece)
        return "".join(pieces)


_LOOP, _MADE = "the items of a loop", "a value made"  # names that no template can write


class _Guards(NodeTransformer):
    """Puts a filter of ours around what a loop goes through and around what is made without a call."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = _wrap(node.iter, _LOOP)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return _wrap(nodes.List(node.nodes, lineno=node.lineno, environment=node.environment), "join")

    def visit_List(self, node: nodes.List) -> nodes.Filter:
        self.generic_visit(node)
        return _wrap(node, _MADE)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Filter:
        self.generic_visit(node)
        return _wrap(node, _MADE)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _wrap(node, _MADE) if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _wrap(node, _MADE) if isinstance(node.arg, nodes.Slice) else node


def _wrap(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno, environment=node.environment)


def _count_loop(items: Any) -> Iterator[Any]:
    return _BUDGET.get().count(items)


def _charge_made(value: Any) -> Any:
    return _BUDGET.get().admit(value)


def _charge_output(value: Any) -> Any:
    """A list or an object that is written out as it is; strings are charged where they are put together."""
    if isinstance(value, _CONTAINERS):
        budget = _BUDGET.get()
        budget.spend(budget.measure(value))
    return value


class _Namespace(Namespace):
    """Prints as its name: one namespace may hold another many times over."""

    def __repr__(self) -> str:
        return "<Namespace>"


def _guard_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    first = int(hasattr(function, "jinja_pass_arg"))  # such a filter is given the context before the value
    operation = "%" if name == "format" else name

    @wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        budget = _BUDGET.get()
        budget.step()
        if name == "join" and isinstance(args[first], Iterator):
            args = (*args[:first], list(args[first]), *args[first + 1 :])
        budget.spend(_estimate(budget, operation, args[first], [*args[first + 1 :], *kwargs.values()]))
        return budget.admit(function(*args, **kwargs))

    return guarded


def _estimate_binary(budget: Budget, operator: str, left: Any, right: Any) -> int:
    if operator == "*":
        sizes = [(len(a), b) for a, b in permutations((left, right)) if hasattr(a, "__len__") and isinstance(b, int)]
        return sum(size * max(0, times) for size, times in sizes)
    if operator == "**" and isinstance(left, int) and isinstance(right, int):
        if left.bit_length() * right > BITS:
            raise TemplateLimit(f"makes a number of more than {BITS:,} bits")
    elif operator == "%" and isinstance(left, str):
        return _estimate(budget, "%", left, [right])
    return 0


def _estimate_method(budget: Budget, name: str, owner: Any, others: list[Any]) -> int:
    if name == "join" and others:
        return _estimate(budget, name, others[0], [owner])
    return _estimate(budget, name, owner, others)


def _estimate(budget: Budget, name: str, value: Any, others: list[Any]) -> int:
    """What a filter or method reads, and at least how much longer its result may be."""
    if name in _PICKING and isinstance(value, _CONTAINERS):
        read = len(value)
    else:
        read = sum(budget.measure(item) for item in [value, *others])
    texts = [item for item in others if isinstance(item, str)]
    lines = 1 + (value.count("\n") + value.count("\t") if isinstance(value, str) else read)
    if name == "join":
        return read + (len(value) * len(texts[0]) if texts and hasattr(value, "__len__") else 0)
    if name == "replace":
        return read + max((str(value).count(a) * len(b) for a, b in permutations(texts[:2])), default=0)
    if name in ("indent", "tojson"):
        return read + lines * sum(map(_measure_width, others))
    if name in _SEARCHES:
        return read + len(str(value)) * sum(map(len, texts)) // 16  # so many comparisons cost as much as a character
    if name in ("%", "format", "format_map"):
        return read + sum(_measure_fields(name, str(value), read))
    if name in _NUMBERS:
        return read
    return read + lines * sum(item for item in others if isinstance(item, int) and item > 0)


def _measure_width(value: Any) -> int:
    """Of what stands before every line, or between all items: so many spaces, or this text."""
    if isinstance(value, list | tuple):
        return sum(map(_measure_width, value))
    return max(0, value) if isinstance(value, int) else len(value) if isinstance(value, str) else 0


def _measure_fields(operation: str, text: str, read: int) -> Iterator[int]:
    """Of a format string: each field's width, and its value, which may be all that was `read`."""
    if operation == "%":
        # A name in brackets may have brackets itself, and a width may be a value: both are out of sight here.
        fields = [spec if "(" not in name[1:] else "*" for name, spec in _PERCENT.findall(text)]
    else:
        try:
            fields = [spec or "" for _, name, spec, _ in Formatter().parse(text) if name is not None]
        except ValueError:
            return  # nor can it be formatted
    for field in fields:
        if "*" in field or "{" in field:
            raise TemplateLimit("takes a format's width from a value, which has no bound")
        widths = re.findall(r"\d+", field)
        yield read + sum(int(digits) if len(digits) < 10 else sys.maxsize for digits in widths)
