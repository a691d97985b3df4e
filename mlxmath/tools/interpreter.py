"""Walks the tree of `mlxmath.tools.tree`: a small Python with SymPy, without a way out of it.

A value is a number, a text, a list, tuple, set or dictionary of values, or one of SymPy's. Functions are no values:
they are called by their names (`mlxmath.tools.names`). SymPy evaluates a text that it is given as Python, so it is
given none but the names of symbols. Only a process that `mlxmath.tools.confine` has confined runs this.
"""

import ast
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mlxmath.tools.functions import BY_NAME, attribute, call, call_method, known, of_module
from mlxmath.tools.tree import Refused
from mlxmath.tools.values import OPERATIONS, Gate, Module, Named

_MOST_CALLS = 24
"""Functions inside each other."""
MOST_OUTPUT, _MOST_OF_AN_ERROR = 2000, 200
"""Characters."""


class _Leaving(Exception):  # noqa: N818
    """`break`, `continue` or `return`."""

    def __init__(self, kind: type[ast.stmt], value: Any = None) -> None:
        super().__init__()
        self.kind, self.value = kind, value


class _Enough(Exception):  # noqa: N818
    """The output is full."""


class Interpreter:
    """Runs programs one after the other; names stay from one to the next.

    Args:
        found: of `mlxmath.tools.functions.modules`.
    """

    def __init__(self, found: Mapping[str, Module]) -> None:
        self._gate, self._modules, self._known = Gate(), found, known(found)
        self._globals: dict[str, Any] = {}
        self._scopes: list[dict[str, Any]] = [self._globals]
        self._pieces: list[str] = []
        self._num_written = 0

    def run(self, tree: ast.Module) -> str:
        """What a program prints, or else the value of its last expression; the line of an error at its end."""
        self._pieces, self._num_written = [], 0
        self._gate.start()
        value = None
        try:
            for statement in tree.body:
                value = self._statement(statement)
            if not self._pieces and value is not None:
                self._write(self._gate.text(value))
        except _Enough:
            return "".join(self._pieces)
        except _Leaving:
            self._pieces.append("SyntaxError: outside of a function or loop")
        except MemoryError:
            raise
        except Refused as refused:
            self._pieces.append(str(refused)[:_MOST_OF_AN_ERROR])
        except Exception as error:  # whatever SymPy may raise
            said = str(error).splitlines()
            self._pieces.append(f"{type(error).__name__}: {said[0] if said else ''}"[:_MOST_OF_AN_ERROR])
        finally:
            del self._scopes[1:]
        return "".join(self._pieces)

    def _write(self, text: str) -> None:
        room = MOST_OUTPUT - self._num_written
        self._pieces.append(text[:room])
        self._num_written += len(text)
        if len(text) > room:
            self._pieces.append("…")
            raise _Enough

    def _body(self, statements: Iterable[ast.stmt]) -> None:
        for statement in statements:
            self._statement(statement)

    def _statement(self, node: ast.stmt) -> Any:
        self._gate.step()
        if isinstance(node, ast.Expr):
            return self._value(node.value)
        if isinstance(node, ast.Assign):
            is_name = all(isinstance(target, ast.Name) for target in node.targets)
            value = self._found(node.value) if is_name else self._value(node.value)  # f = Function("f")
            for target in node.targets:
                self._assign(target, value)
        elif isinstance(node, ast.AugAssign):
            before, more = self._value(node.target), self._value(node.value)
            self._assign(node.target, self._gate.changed(type(node.op), before, more))
        elif isinstance(node, ast.If):
            self._body(node.body if self._value(node.test) else node.orelse)
        elif isinstance(node, ast.For):
            for item in self._gate.items(self._value(node.iter)):
                self._assign(node.target, item)
                if self._left_loop(node.body):
                    return None
            self._body(node.orelse)
        elif isinstance(node, ast.While):
            while self._value(node.test):
                if self._left_loop(node.body):
                    return None
            self._body(node.orelse)
        elif isinstance(node, ast.Break | ast.Continue):
            raise _Leaving(type(node))
        elif isinstance(node, ast.Return):
            raise _Leaving(ast.Return, self._value(node.value) if node.value else None)
        elif isinstance(node, ast.FunctionDef):
            self._scopes[-1][node.name] = node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            self._import(node)
        return None

    def _left_loop(self, body: Iterable[ast.stmt]) -> bool:
        try:
            self._body(body)
        except _Leaving as leaving:
            if leaving.kind is ast.Return:
                raise
            return leaving.kind is ast.Break
        return False

    def _assign(self, target: ast.expr, value: Any) -> None:
        if isinstance(target, ast.Name):
            self._scopes[-1][target.id] = value
        elif isinstance(target, ast.Tuple | ast.List):
            values = list(self._gate.items(value))
            if len(values) != len(target.elts):
                raise ValueError(f"expected {len(target.elts)} values to unpack, found {len(values)}")
            for one, item in zip(target.elts, values, strict=True):
                self._assign(one, item)
        elif isinstance(target, ast.Subscript) and isinstance(holder := self._value(target.value), list | dict):
            holder[self._value(target.slice)] = value
        else:
            raise Refused("only names and items are assigned to")

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        wanted = ["." * node.level + (node.module or "")] if isinstance(node, ast.ImportFrom) else [
            alias.name for alias in node.names
        ]  # fmt: skip
        for name in wanted:
            if name not in self._modules:
                there = ", ".join(self._modules)
                raise Refused(f"ModuleNotFoundError: no module named {name[:40]!r}; there are {there}")
        for alias in node.names:
            if isinstance(node, ast.Import):
                self._scopes[-1][alias.asname or alias.name] = self._modules[alias.name]
            elif alias.name == "*":
                self._scopes[-1].update(self._modules[wanted[0]].names)
            else:
                self._scopes[-1][alias.asname or alias.name] = of_module(self._modules[wanted[0]], alias.name)

    def _value(self, node: ast.expr) -> Any:
        """The value of an expression; never a function."""
        found = self._found(node)
        if isinstance(found, Named | Module | ast.FunctionDef):
            raise Refused(f"TypeError: {ast.unparse(node)[:40]} is called, not used as a value")
        return found

    def _found(self, node: ast.expr) -> Any:
        self._gate.step()
        match node:
            case ast.Constant():
                return node.value
            case ast.Name():
                return self._named(node.id)
            case ast.BinOp():
                return self._gate.operated(type(node.op), self._value(node.left), self._value(node.right))
            case ast.UnaryOp():
                return OPERATIONS[type(node.op)](self._gate.no_text(self._value(node.operand)))
            case ast.BoolOp():
                value: Any = None
                for part in node.values:
                    value = self._value(part)
                    if bool(value) != isinstance(node.op, ast.And):
                        break
                return value
            case ast.Compare():
                left = self._value(node.left)
                for kind, right in zip(node.ops, map(self._value, node.comparators), strict=True):
                    result = self._compared(type(kind), left, right)
                    if len(node.ops) == 1 or not result:
                        return result
                    left = right
                return True
            case ast.IfExp():
                return self._value(node.body if self._value(node.test) else node.orelse)
            case ast.Call():
                return self._called(node)
            case ast.Attribute():
                return attribute(self._gate, self._found(node.value), node.attr)
            case ast.Subscript():
                return self._value(node.value)[self._index(node.slice)]
            case ast.List():
                return [self._value(each) for each in node.elts]
            case ast.Tuple():
                return tuple(self._value(each) for each in node.elts)
            case ast.Set():
                return {self._value(each) for each in node.elts}
            case ast.Dict():
                if None in node.keys:
                    raise Refused("** is not allowed")
                return {self._value(k): self._value(v) for k, v in zip(node.keys, node.values, strict=True) if k}
            case ast.ListComp() | ast.GeneratorExp() | ast.SetComp():
                outer = self._scopes[-1]
                self._scopes[-1] = dict(outer)  # its variables are its own
                try:
                    made = list(self._comprehended(node.elt, node.generators))
                finally:
                    self._scopes[-1] = outer
                return set(made) if isinstance(node, ast.SetComp) else made
            case ast.JoinedStr():
                return self._gate.bounded("".join(map(self._formatted, node.values)))
        raise Refused(f"{type(node).__name__} is not allowed here")

    def _named(self, name: str) -> Any:
        for scope in (self._scopes[-1], self._globals, self._known):
            if name in scope:
                return scope[name]
        raise NameError(f"name {name!r} is not defined")

    def _index(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Slice):
            parts = [self._value(part) if part else None for part in (node.lower, node.upper, node.step)]
            return slice(*(int(part) if part is not None else None for part in parts))
        if isinstance(node, ast.Tuple):
            return tuple(self._index(part) for part in node.elts)
        value = self._value(node)
        return int(value) if isinstance(value, self._gate.sympy.Integer) else value

    def _comprehended(self, element: ast.expr, generators: list[ast.comprehension]) -> Iterator[Any]:
        if not generators:
            yield self._value(element)
            return
        first, *rest = generators
        for item in self._gate.items(self._value(first.iter)):
            self._assign(first.target, item)
            if all(self._value(test) for test in first.ifs):
                yield from self._comprehended(element, rest)

    def _formatted(self, node: ast.expr) -> str:
        if not isinstance(node, ast.FormattedValue):
            return str(self._value(node))
        value = self._value(node.value)
        if not isinstance(node.format_spec, ast.JoinedStr):
            return self._gate.text(value)
        spec = "".join(str(self._value(part)) for part in node.format_spec.values)
        return format(float(value) if spec[-1:] in ("f", "e", "g", "%") else value, spec)

    def _compared(self, kind: type[ast.cmpop], left: Any, right: Any) -> Any:
        if kind in (ast.In, ast.NotIn):
            if isinstance(left, str) and isinstance(right, self._gate.values):
                raise Refused("TypeError: a text is in no such value")
            return (left in right) == (kind is ast.In)
        if isinstance(left, str) != isinstance(right, str):
            return kind in (ast.NotEq, ast.IsNot)
        return OPERATIONS[kind](left, right)

    def _called(self, node: ast.Call) -> Any:
        if isinstance(node.func, ast.Name) and node.func.id == "print" and "print" not in self._scopes[-1]:
            return self._print(node)
        holder = self._found(node.func.value) if isinstance(node.func, ast.Attribute) else None
        arguments = [self._argument(each) for each in node.args]
        keywords = {str(each.arg): self._argument(each.value) for each in node.keywords}
        if isinstance(node.func, ast.Attribute) and not isinstance(holder, Named | Module):
            return call_method(self._gate, holder, node.func.attr, arguments, keywords)
        function = self._found(node.func)
        if isinstance(function, ast.FunctionDef):
            return self._own(function, arguments, keywords)
        if not isinstance(function, Named):
            raise TypeError(f"{ast.unparse(node.func)[:40]} is not callable")
        return call(self._gate, function, arguments, keywords)

    def _argument(self, node: ast.expr) -> Any:
        """A value, or one of the classes that `symbols` may be given."""
        found = self._found(node)
        return found if isinstance(found, Named) and found.name in BY_NAME else self._value(node)

    def _own(self, function: ast.FunctionDef, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        names = [each.arg for each in function.args.args]
        if len(self._scopes) > _MOST_CALLS:
            raise Refused("RecursionError: too many calls inside each other")
        if keywords or len(names) != len(arguments):
            raise TypeError(f"{function.name}() takes {len(names)} arguments, found {len(arguments)}")
        self._scopes.append(dict(zip(names, arguments, strict=True)))
        try:
            self._body(function.body)
        except _Leaving as leaving:
            if leaving.kind is not ast.Return:
                raise
            return leaving.value
        finally:
            self._scopes.pop()
        return None

    def _print(self, node: ast.Call) -> None:
        values = [self._gate.text(self._value(each)) for each in node.args]
        given = {str(each.arg): str(self._value(each.value)) for each in node.keywords if each.arg in ("sep", "end")}
        self._write(given.get("sep", " ").join(values) + given.get("end", "\n"))
