"""Which rows of a table a condition selects, computed by Arrow; `expressions` has the language."""

from collections.abc import Callable, Mapping
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc

from clipkit import UserError
from clipkit.dataset.shards.expressions import Call, Column, Combined, Compared, Literal, Node, OneOf, columns_of, complain, parse

__all__ = ["Condition", "hosts"]

_COMPARE: Mapping[str, Callable[[Any, Any], Any]] = {
    "==": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
_HOST = r"^(?i:https?)://(?:[^/?#@]*@)?(?P<host>\[[0-9A-Fa-f:.]*\]|[^/?#:]+)"


class Condition:
    """A condition over the columns that a schema has. Compiled once, before any long work."""

    def __init__(self, text: str, schema: pa.Schema) -> None:
        """Raises UserError with the position where it cannot be read, names no column, or compares what does not go together."""
        self.text = text
        self._schema = schema
        self._tree = parse(text)
        self.columns = sorted(columns_of(self._tree))
        if self._kind(self._tree) != "truth":
            complain(text, self._tree.at, "it is a value, no condition: compare it with something")

    @classmethod
    def of(cls, text: str | None, schema: pa.Schema) -> Self | None:
        """The condition where there is one."""
        return None if text is None else cls(text, schema)

    def select(self, table: pa.Table) -> pa.ChunkedArray:
        """True for the rows that meet the condition, false or null for the others.

        Raises UserError where Arrow cannot compare the types of the table's columns, or their values with the condition's.
        """
        try:
            value = self._value(self._tree, table)
        except pa.ArrowException as error:
            raise UserError(
                f"`--where {self.text}` cannot be computed ({str(error).splitlines()[0]}): compare columns of like types"
            ) from None
        if isinstance(value, pa.Scalar):
            return pa.chunked_array([pa.repeat(value, len(table))], pa.bool_())
        return value

    def _kind(self, node: Node) -> str:
        """number, text, truth or list; complains where a part does not fit."""
        match node:
            case Column():
                return self._kind_of_column(node)
            case Literal(value=value):
                return "truth" if isinstance(value, bool) else "text" if isinstance(value, str) else "number"
            case Call(function=function, column=column):
                wanted = ("text", "list") if function == "length" else ("text",)
                self._check(column.at, f"`{function}` takes a column of {' or '.join(wanted)}s", holds=self._kind(column) in wanted)
                return "number" if function == "length" else "text"
            case Combined(parts=parts):
                for part in parts:
                    self._check(part.at, f"`{node.sign}` joins conditions, and this is a value", holds=self._kind(part) == "truth")
            case OneOf(left=left, values=values):
                kind = self._kind(left)
                for literal in values:
                    self._check_alike(kind, self._kind(literal), literal.at)
            case Compared():
                self._check_comparison(node)
        return "truth"

    def _kind_of_column(self, column: Column) -> str:
        if column.name not in self._schema.names:
            complain(self.text, column.at, f"there is no column `{column.name}`: there are {', '.join(self._schema.names)}")
        kind = self._schema.field(column.name).type
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            return "number"
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return "text"
        if pa.types.is_boolean(kind):
            return "truth"
        if pa.types.is_list(kind) and pa.types.is_integer(kind.value_type):
            return "list"
        complain(self.text, column.at, f"column `{column.name}` holds {kind}: numbers, texts, true and false can be compared")

    def _check_comparison(self, node: Compared) -> None:
        left, right = self._kind(node.left), None if node.right is None else self._kind(node.right)
        if node.sign in ("like", "ilike"):
            self._check(node.at, f"`{node.sign}` compares a text with a text in quotes", holds=(left, right) == ("text", "text"))
        elif node.sign == "contains":
            wanted = {("text", "text"), ("list", "number")}
            self._check(node.at, "`contains` looks for a text in a text, or for a number in a list", holds=(left, right) in wanted)
            is_whole = left == "text" or (isinstance(node.right, Literal) and isinstance(node.right.value, int))
            self._check(node.at, "a list holds whole numbers", holds=is_whole)
        elif node.right is not None:
            self._check(node.at, "a list is not compared: write `queries contains 12` or `length(queries) > 1`", holds=left != "list")
            self._check_alike(left, right, node.at)

    def _check_alike(self, left: str, right: str | None, at: int) -> None:
        self._check(at, f"a {left} is compared with a {right}", holds=left == right)

    def _check(self, at: int, problem: str, *, holds: bool) -> None:
        if not holds:
            complain(self.text, at, problem)

    def _value(self, node: Node, table: pa.Table) -> Any:
        match node:
            case Column(name=name):
                return table[name]
            case Literal(value=value):
                return pa.scalar(value)
            case Call(function="length", column=column):
                values = table[column.name]
                return pc.list_value_length(values) if pa.types.is_list(values.type) else pc.utf8_length(values)
            case Call(column=column):
                return hosts(table[column.name])
            case Combined(sign="not", parts=(part,)):
                return pc.invert(self._value(part, table))
            case Combined(sign=sign, parts=parts):
                join = pc.and_kleene if sign == "and" else pc.or_kleene
                value = self._value(parts[0], table)
                for part in parts[1:]:
                    value = join(value, self._value(part, table))
                return value
            case OneOf(left=left, values=values):
                return self._is_one_of(self._value(left, table), values)
            case Compared():
                return self._compared(node, table)

    def _is_one_of(self, value: Any, literals: tuple[Literal, ...]) -> Any:
        found = [pc.equal(value, pa.scalar(literal.value)) for literal in literals]
        together = found[0]
        for other in found[1:]:
            together = pc.or_kleene(together, other)
        return together

    def _compared(self, node: Compared, table: pa.Table) -> Any:
        left = self._value(node.left, table)
        if node.right is None:
            return pc.is_null(left)
        if node.sign in _COMPARE:
            return _COMPARE[node.sign](left, self._value(node.right, table))
        assert isinstance(node.right, Literal)
        if node.sign in ("like", "ilike"):
            return pc.match_like(left, node.right.value, ignore_case=node.sign == "ilike")
        if isinstance(node.right.value, str):
            return pc.match_substring(left, node.right.value)
        return _holds(left, node.right.value)


def hosts(urls: pa.ChunkedArray) -> pa.ChunkedArray:
    """The host of each http(s) URL in lower case, without user and port; null where there is none."""
    found = pc.extract_regex(urls, pattern=_HOST)
    return pc.utf8_lower(pc.struct_field(found, "host"))


def _holds(lists: Any, number: Any) -> pa.ChunkedArray:
    """Which lists of integers hold a number; null for a null list."""
    lists = lists.combine_chunks() if isinstance(lists, pa.ChunkedArray) else lists
    rows = pc.list_parent_indices(lists).filter(pc.equal(pc.list_flatten(lists), pa.scalar(number)))
    holds = pc.is_in(pa.array(range(len(lists)), rows.type), value_set=pc.unique(rows))
    return pa.chunked_array([pc.if_else(pc.is_null(lists), pa.scalar(None, pa.bool_()), holds)])
