"""Conditions on pairs, as `--where` takes them: a small language, parsed by hand, of which nothing is run as code.

    width >= 256 and not (text like '%logo%' or source is null)
    score >= 0.28 and queries contains 12

    condition   and, or, not, ( )
    comparison  = == != <> < <= > >=  of columns, numbers and texts
    membership  column in (1, 2), column not in ('a', 'b')
    null        column is null, column is not null
    texts       column like 'a%b_' (case counts), ilike (it does not), contains 'part'
    lists       queries contains 12
    functions   length(column): characters of a text, members of a list;  host(column): the host of a URL

Keywords are the same in any case. A text stands in single or double quotes, doubled where it contains them; a column with other
characters than letters, digits and `_` in backquotes. A comparison with null is unknown, as in SQL, and what is unknown is not selected.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

from clipkit import UserError

__all__ = ["Call", "Column", "Combined", "Compared", "Literal", "Node", "OneOf", "columns_of", "complain", "parse"]

MAX_CHARACTERS = 10_000
MAX_DEPTH = 50
"""Parentheses, `not`s and functions inside each other."""

_TOKEN = re.compile(
    r"""(?P<space>\s+)
    |(?P<number>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)
    |(?P<text>'(?:[^']|'')*'|"(?:[^"]|"")*")
    |(?P<column>[A-Za-z_][A-Za-z0-9_]*|`[^`]+`)
    |(?P<sign><=|>=|<>|!=|==|=|<|>|\(|\)|,)""",
    re.VERBOSE,
)
_KEYWORDS = frozenset(["and", "or", "not", "in", "is", "null", "like", "ilike", "contains", "true", "false"])
_SIGNS = {"=": "==", "<>": "!="}
FUNCTIONS = ("length", "host")


class _Token(NamedTuple):
    kind: str  # number, text, column, sign, keyword, end
    value: Any
    at: int


@dataclass(frozen=True)
class Column:
    """A column by its name."""

    name: str
    at: int


@dataclass(frozen=True)
class Literal:
    """A number, a text, true or false."""

    value: int | float | str | bool
    at: int


@dataclass(frozen=True)
class Call:
    """A function of a column."""

    function: str
    column: Column
    at: int


@dataclass(frozen=True)
class Compared:
    """`left sign right`. The signs are those of comparison, and "like", "ilike", "contains", "is null"."""

    sign: str
    left: "Node"
    right: "Node | None"
    at: int


@dataclass(frozen=True)
class OneOf:
    """Whether a column's value is one of several."""

    left: "Node"
    values: tuple[Literal, ...]
    at: int


@dataclass(frozen=True)
class Combined:
    """ "and", "or" and "not" of conditions."""

    sign: str
    parts: tuple["Node", ...]
    at: int


Node = Column | Literal | Call | Compared | OneOf | Combined


def parse(text: str) -> Node:
    """The condition as a tree. Raises UserError that names the position (from 1) of what cannot be understood."""
    if not text.strip():
        complain(text, 0, "there is nothing: give a condition, for example `width >= 256`")
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"`--where` has {len(text):,} characters: at most {MAX_CHARACTERS:,} are read, put long lists of keys into a file")
    return _Parser(text).whole()


def columns_of(node: Node) -> set[str]:
    """The columns that a condition names."""
    return {part.name for part in _walk(node) if isinstance(part, Column)}


def _walk(node: Node | None) -> Iterator[Node]:
    if node is None:
        return
    yield node
    match node:
        case Call(column=column):
            yield column
        case Compared(left=left, right=right):
            yield from _walk(left)
            yield from _walk(right)
        case OneOf(left=left):
            yield from _walk(left)
        case Combined(parts=parts):
            for part in parts:
                yield from _walk(part)


def complain(text: str, at: int, problem: str) -> NoReturn:
    """Raise what is wrong with a condition, and where."""
    raise UserError(f"`--where {text[:200]}`: at position {at + 1}: {problem}")


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = list(self._tokens())
        self.place = 0
        self.depth = 0

    def whole(self) -> Node:
        """The tree of the whole text. Raises UserError with the position of a mistake."""
        node = self._any_of()
        if self._next.kind != "end":
            self._wrong("`and`, `or` or the end")
        return node

    def _tokens(self) -> Iterator[_Token]:
        at = 0
        while at < len(self.text):
            match = _TOKEN.match(self.text, at)
            if match is None:
                what = "a text that is not closed" if self.text[at] in "'\"`" else f"`{self.text[at]}` means nothing here"
                complain(self.text, at, what)
            if match.lastgroup != "space":
                yield self._token(str(match.lastgroup), match.group(), at)
            at = match.end()
        yield _Token("end", None, len(self.text))

    def _token(self, kind: str, found: str, at: int) -> _Token:
        if kind == "number":
            return _Token(kind, self._number(found, at), at)
        if kind == "text":
            return _Token(kind, found[1:-1].replace(found[0] * 2, found[0]), at)
        if kind == "column" and found.lower() in _KEYWORDS:
            return _Token("keyword", found.lower(), at)
        if kind == "column":
            return _Token(kind, found.strip("`"), at)
        return _Token(kind, _SIGNS.get(found, found), at)

    def _number(self, found: str, at: int) -> int | float:
        number = float(found) if set(found) & set(".eE") else int(found)
        if isinstance(number, int) and not -(2**63) <= number < 2**63:
            complain(self.text, at, "a whole number has at most 64 bits")
        return number

    # What the grammar says, from the loosest to the tightest.

    def _any_of(self) -> Node:
        return self._chain("or", lambda: self._chain("and", self._negated))

    def _chain(self, word: str, inner: Callable[[], Node]) -> Node:
        at = self._next.at
        parts = [inner()]
        while self._take("keyword", word):
            parts.append(inner())
        return parts[0] if len(parts) == 1 else Combined(word, tuple(parts), at)

    def _negated(self) -> Node:
        at = self._next.at
        if self._take("keyword", "not"):
            return self._inside(lambda: Combined("not", (self._negated(),), at))
        return self._comparison()

    def _comparison(self) -> Node:
        left = self._operand()
        token = self._next
        if token.kind == "sign" and token.value in ("==", "!=", "<", "<=", ">", ">="):
            self.place += 1
            return Compared(token.value, left, self._operand(), token.at)
        if self._take("keyword", "is"):
            is_negated = self._take("keyword", "not")
            self._expect("keyword", "null", "`null`")
            return _negated_if(Compared("is null", left, None, token.at), is_negated=is_negated)
        return self._matched(left, token)

    def _matched(self, left: Node, token: _Token) -> Node:
        """`in`, `like`, `ilike`, `contains`, with or without `not`; or the operand alone."""
        is_negated = self._take("keyword", "not")
        word = self._next
        if word.kind == "keyword" and word.value in ("like", "ilike", "contains"):
            self.place += 1
            return _negated_if(Compared(word.value, left, self._literal(), word.at), is_negated=is_negated)
        if self._take("keyword", "in"):
            return _negated_if(OneOf(left, self._list(), word.at), is_negated=is_negated)
        if is_negated:
            self._wrong("`in`, `like`, `ilike` or `contains`")
        return left

    def _operand(self) -> Node:
        token = self._next
        if self._take("sign", "("):
            node = self._inside(self._any_of)
            self._expect("sign", ")", "`)`")
            return node
        if token.kind != "column":
            return self._literal()
        self.place += 1
        if token.value in FUNCTIONS and self._take("sign", "("):
            name = self._next
            if name.kind != "column":
                self._wrong("a column")
            self.place += 1
            self._expect("sign", ")", "`)`")
            return Call(token.value, Column(name.value, name.at), token.at)
        return Column(token.value, token.at)

    def _list(self) -> tuple[Literal, ...]:
        self._expect("sign", "(", "`(`")
        values = [self._literal()]
        while self._take("sign", ","):
            values.append(self._literal())
        self._expect("sign", ")", "`,` or `)`")
        return tuple(values)

    def _literal(self) -> Literal:
        token = self._next
        if token.kind in ("number", "text"):
            self.place += 1
            return Literal(token.value, token.at)
        if token.kind == "keyword" and token.value in ("true", "false"):
            self.place += 1
            return Literal(token.value == "true", token.at)
        self._wrong("a column, a number or a text in quotes")

    @property
    def _next(self) -> _Token:
        return self.tokens[self.place]

    def _take(self, kind: str, value: str) -> bool:
        is_there = (self._next.kind, self._next.value) == (kind, value)
        self.place += is_there
        return is_there

    def _expect(self, kind: str, value: str, what: str) -> None:
        if not self._take(kind, value):
            self._wrong(what)

    def _inside(self, inner: Callable[[], Node]) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            complain(self.text, self._next.at, f"more than {MAX_DEPTH} conditions inside each other")
        node = inner()
        self.depth -= 1
        return node

    def _wrong(self, wanted: str) -> NoReturn:
        token = self._next
        found = "the end" if token.kind == "end" else f"`{token.value}`"
        complain(self.text, token.at, f"{found} stands where {wanted} should")


def _negated_if(node: Node, *, is_negated: bool) -> Node:
    return Combined("not", (node,), node.at) if is_negated else node
