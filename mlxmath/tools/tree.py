"""What a model writes as Python, parsed and looked at before anything runs: a few kinds of nodes, of bounded sizes."""

import ast
import re

from mlxmath.tools.names import ATTRIBUTES, KEYWORDS

MOST_CHARACTERS = 4000
_MOST_NODES, _MOST_DEPTH, _MOST_ARGUMENTS = 2000, 80, 40
_MOST_DIGITS, _MOST_TEXT, _MOST_NAME = 100, 400, 40
_MOST_NESTED = 100
"""Brackets in the text, and signs in a row: what Python's parser takes without running deep."""
_NODES = (
    ast.Module, ast.Expr, ast.Assign, ast.AugAssign, ast.For, ast.While, ast.If, ast.Break, ast.Continue, ast.Pass,
    ast.FunctionDef, ast.arguments, ast.arg, ast.Return, ast.Import, ast.ImportFrom, ast.alias, ast.Name, ast.Load,
    ast.Store, ast.Constant, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Call, ast.keyword,
    ast.Attribute, ast.Subscript, ast.Slice, ast.List, ast.Tuple, ast.Dict, ast.Set, ast.ListComp, ast.GeneratorExp,
    ast.SetComp, ast.comprehension, ast.JoinedStr, ast.FormattedValue, ast.Add, ast.Sub, ast.Mult, ast.Div,
    ast.FloorDiv, ast.Mod, ast.Pow, ast.MatMult, ast.UAdd, ast.USub, ast.Not, ast.And, ast.Or, ast.Eq, ast.NotEq,
    ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.In, ast.NotIn, ast.Is, ast.IsNot,
)  # fmt: skip
_NAME = re.compile(r"[A-Za-z](?:_?[A-Za-z0-9])*_?|_")
_FORMAT = re.compile(r",?(?:\.\d{1,2})?[dfeg%]?")
_DEEP = re.compile(rf"[-+~(\[{{]{{{_MOST_NESTED}}}|(?:\bnot\s+){{{_MOST_NESTED}}}")


class Refused(Exception):  # noqa: N818
    """A text that is not run; what is said of it is what Python would say, or why not."""


def parsed(text: str) -> ast.Module:
    """The statements of a text, all of kinds and sizes that may run.

    Raises:
        Refused: it is no Python, or more of it than is allowed.
    """
    if len(text) > MOST_CHARACTERS:
        raise Refused(f"a program has at most {MOST_CHARACTERS:,} characters")
    if _DEEP.search(re.sub(r"\s", "", text)) or max(map(text.count, "([{")) > 10 * _MOST_NESTED:
        raise Refused("too deeply nested")
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise Refused(f"SyntaxError: {error.msg}") from None
    except (ValueError, MemoryError, RecursionError):
        raise Refused("SyntaxError: invalid syntax") from None
    waiting: list[tuple[ast.AST, int]] = [(tree, 0)]
    num_nodes = 0
    while waiting:
        node, depth = waiting.pop()
        num_nodes += 1
        if num_nodes > _MOST_NODES or depth > _MOST_DEPTH:
            raise Refused("too long or too deeply nested")
        _check(node)
        waiting += [(child, depth + 1) for child in ast.iter_child_nodes(node)]
    return tree


def _check(node: ast.AST) -> None:
    """Refuse a node that is not among `_NODES`, or names or holds what it may not."""
    if type(node) not in _NODES:
        raise Refused(f"{type(node).__name__} is not allowed")
    if isinstance(node, ast.Name):
        _check_name(node.id)
    elif isinstance(node, ast.arg):
        _check_name(node.arg)
    elif isinstance(node, ast.alias):
        _check_name(node.asname or "a")
    elif isinstance(node, ast.Attribute) and node.attr not in ATTRIBUTES and not isinstance(node.value, ast.Name):
        raise Refused(f"the attribute {node.attr[:_MOST_NAME]!r} is not allowed")
    elif isinstance(node, ast.Attribute):
        _check_name(node.attr)
    elif isinstance(node, ast.keyword):
        if node.arg not in KEYWORDS:
            raise Refused(f"the argument {str(node.arg)[:_MOST_NAME]!r} is not allowed")
    elif isinstance(node, ast.Call):
        if not isinstance(node.func, ast.Name | ast.Attribute) or len(node.args) > _MOST_ARGUMENTS:
            raise Refused("only functions are called, by their names")
    elif isinstance(node, ast.FunctionDef):
        _check_name(node.name)
        if node.decorator_list:
            raise Refused("decorators are not allowed")
    elif isinstance(node, ast.arguments):
        if node.vararg or node.kwarg or node.kwonlyargs or node.posonlyargs or node.defaults:
            raise Refused("a function has plain parameters alone")
    elif isinstance(node, ast.comprehension) and node.is_async:
        raise Refused("async is not allowed")
    elif isinstance(node, ast.FormattedValue):
        _check_format(node)
    elif isinstance(node, ast.Constant):
        _check_constant(node.value)


def _check_name(name: str) -> None:
    if len(name) > _MOST_NAME or not _NAME.fullmatch(name):
        raise Refused(f"the name {name[:_MOST_NAME]!r} is not allowed")


def _check_format(node: ast.FormattedValue) -> None:
    """Refuse all formats but a few: a width can be as large as the memory."""
    parts = node.format_spec.values if isinstance(node.format_spec, ast.JoinedStr) else []
    spec = "".join(str(part.value) if isinstance(part, ast.Constant) else "?" for part in parts)
    if node.conversion != -1 or not _FORMAT.fullmatch(spec):
        raise Refused("this format is not allowed")


def _check_constant(value: object) -> None:
    if isinstance(value, str):
        is_fine = len(value) <= _MOST_TEXT and all(c.isprintable() or c in "\n\t" for c in value)
    elif isinstance(value, int):
        is_fine = abs(value) < 10**_MOST_DIGITS
    else:
        is_fine = value is None or isinstance(value, float)
    if not is_fine:
        raise Refused(f"a constant of this size or kind is not allowed ({type(value).__name__})")
