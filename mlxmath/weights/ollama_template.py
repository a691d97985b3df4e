"""Ollama's templates, in the language of Go's text/template, as chat templates of transformers (Jinja).

Only what such templates are made of is translated: texts, fields of the conversation, comparisons, `if` and `range`.
White space is settled here, so that Jinja's own rules about it have nothing to do. A template that works
on single turns (`.System`, `.Prompt`, `.Response`) is applied to each turn, as Ollama does (template/template.go).
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

_ACTION = re.compile(r"\{\{(-\s)?(.*?)(\s-)?\}\}", re.DOTALL)
_TOKEN = re.compile(
    r'\s*("(?:[^"\\\n]|\\.)*"|`[^`]*`|:=|[()|,=]|\d+|true|false|\$?(?:\.\w+)+|\$\w*(?:\.\w+)*|\.|\w+|\S)'
)  # fmt: skip
_MAX_DEPTH = 40
_MOST_CHARACTERS = 50_000
"""The longest template in use has some 9,000."""
_COMPARISONS = {"ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_ROOT = {"Messages": "messages", "System": "ns.system", "Prompt": "ns.prompt", "Response": "ns.response"}
_MESSAGE = {"Role": "m['role']", "Content": "m['content']"}
_NOTHING = "none"
"""What templates ask for besides (tools, thoughts), which conversations here do not have."""


class CannotTranslateError(ValueError):
    """A template has something that is not translated; the message says what."""


@dataclass
class _Node:
    """A text, an action, or a block with its branches.

    Attributes:
        kind: "text", "show", "set", "if" or "range".
        value: the text; or the action's words.
        branches: (condition, content) of a block; the condition of `else` is empty.
    """

    kind: str
    value: str
    branches: list[tuple[str, list["_Node"]]] = field(default_factory=list)

    def mentions(self, name: str) -> bool:
        """Whether a field is asked for in it."""
        words = [self.value] if self.kind != "text" else []
        words += [condition for condition, _ in self.branches]
        inside = any(node.mentions(name) for _, nodes in self.branches for node in nodes)
        return inside or any(re.search(rf"\.{name}\b", each) for each in words)


def to_jinja(template: str) -> str:
    """Translate a template.

    Raises:
        CannotTranslateError: it has something that is not translated.
    """
    if len(template) > _MOST_CHARACTERS:
        raise CannotTranslateError(f"more than {_MOST_CHARACTERS:,} characters")
    nodes = _parsed(iter(_pieces(template)), 0)[0]
    system = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{% set ns.system = m['content'] %}{% endif %}{% endfor %}"
    )
    start = "{% set ns = namespace(system='', prompt='', response='') %}"
    if any(node.mentions("Messages") for node in nodes):
        return start + system + _written(nodes, _ROOT)
    place = next((number for number, node in enumerate(nodes) if node.mentions("Response")), None)
    if place is None:  # Ollama lets an answer follow
        nodes, place = [*nodes, _Node("show", ".Response")], len(nodes)
    whole = _written(nodes, _ROOT)
    begun = _written(_before_response(nodes[: place + 1]), _ROOT)
    reset = "{% set ns.system = '' %}{% set ns.prompt = '' %}{% set ns.response = '' %}"
    return (
        start + "{% for m in messages %}"
        "{% if m['role'] == 'system' %}"
        "{% if ns.prompt or ns.response %}" + whole + reset + "{% endif %}{% set ns.system = m['content'] %}"
        "{% elif m['role'] == 'user' %}"
        "{% if ns.response %}" + whole + reset + "{% endif %}{% set ns.prompt = m['content'] %}"
        "{% elif m['role'] == 'assistant' %}{% set ns.response = m['content'] %}"
        "{% endif %}{% endfor %}"
        "{% if ns.response %}" + whole + "{% else %}" + begun + "{% endif %}"
    )


def _before_response(nodes: list[_Node]) -> list[_Node]:
    """What stands before the answer."""
    result: list[_Node] = []
    for node in nodes:
        if not node.mentions("Response"):
            result.append(node)
            continue
        if node.kind == "if" and len(node.branches) == 1 and not re.search(r"\.Response\b", node.branches[0][0]):
            condition, inside = node.branches[0]
            result.append(_Node("if", node.value, [(condition, _before_response(inside))]))
        break
    return result


def _pieces(template: str) -> list[tuple[str, str]]:
    """("text", …) and ("action", …) in turn; white space is cut where the actions say."""
    pieces: list[tuple[str, str]] = []
    position, cut = 0, False
    last = template.rfind("}}") + 2  # behind it an action would be sought to the end from each of its beginnings
    for found in _ACTION.finditer(template, 0, last):
        text = template[position : found.start()]
        text = text.lstrip(" \t\r\n") if cut else text
        text = text.rstrip(" \t\r\n") if found[1] else text
        pieces += [("text", text)] if text else []
        action = found[2].strip()
        if not action.startswith("/*"):
            pieces.append(("action", action))
        position, cut = found.end(), bool(found[3])
    rest = template[position:]
    if "{{" in rest:
        raise CannotTranslateError("an action that does not end")
    rest = rest.lstrip(" \t\r\n") if cut else rest
    return [*pieces, ("text", rest)] if rest else pieces


def _parsed(pieces: Iterator[tuple[str, str]], depth: int) -> tuple[list[_Node], str]:
    """Nodes until the end of a block, and the action that ended it ("": the end of the template)."""
    if depth > _MAX_DEPTH:
        raise CannotTranslateError("blocks inside each other too deep")
    nodes: list[_Node] = []
    for kind, value in pieces:
        word = value.split(None, 1)[0] if kind == "action" and value else ""
        if kind == "text":
            nodes.append(_Node("text", value))
        elif word in ("else", "end"):
            return nodes, value
        elif word in ("if", "range"):
            node = _Node(word, value, [])
            condition = value[len(word) :].strip()
            if not condition:
                raise CannotTranslateError(f"{{{{ {value} }}}} without a condition")
            while True:
                inside, end = _parsed(pieces, depth + 1)
                node.branches.append((condition, inside))
                if end == "end":
                    break
                if not end or not condition or (word == "range" and end != "else"):
                    raise CannotTranslateError(f"{{{{ {value} }}}} without an end")
                condition = end.removeprefix("else").strip().removeprefix("if").strip()
            nodes.append(node)
        elif re.match(r"\$\w+\s*:=", value):
            nodes.append(_Node("set", value))
        elif word in ("with", "template", "define", "block", "break", "continue") or re.match(r"\$\w+\s*=", value):
            raise CannotTranslateError(f"{{{{ {value[:60]} }}}}")
        else:
            nodes.append(_Node("show", value))
    return nodes, ""


def _written(nodes: Sequence[_Node], dot: dict[str, str]) -> str:
    parts = []
    for node in nodes:
        if node.kind == "text":
            parts.append(f"{{{{ {json.dumps(node.value)} }}}}")
        elif node.kind == "show":
            parts.append(f"{{{{ {_expression(node.value, dot)} or '' }}}}")
        elif node.kind == "set":
            name, _, value = node.value.partition(":=")
            parts.append(f"{{% set {_variable(name.strip())} = {_expression(value, dot)} %}}")
        elif node.kind == "if":
            for number, (condition, inside) in enumerate(node.branches):
                word = "else" if not condition else f"{'el' if number else ''}if {_expression(condition, dot)}"
                parts.append(f"{{% {word} %}}{_written(inside, dot)}")
            parts.append("{% endif %}")
        else:
            parts.append(_loop(node, dot))
    return "".join(parts)


def _loop(node: _Node, dot: dict[str, str]) -> str:
    named, _, over = node.branches[0][0].rpartition(":=")
    variables = [name.strip() for name in named.split(",")] if named else []
    items = _expression(over, dot)
    inside = _MESSAGE if items == "messages" else {}
    items = items if inside else "[]"
    known = {2: (("loop.index0", variables[0]), ("m", variables[-1])), 1: (("m", variables[0]),)} if variables else {}
    sets = "".join(
        f"{{% set {_variable(name)} = {value} %}}" for value, name in known.get(len(variables), ()) if name != "$_"
    )
    body = _written(node.branches[0][1], inside)
    other = f"{{% else %}}{_written(node.branches[1][1], dot)}" if len(node.branches) > 1 else ""
    return f"{{% for m in {items} %}}{sets}{body}{other}{{% endfor %}}"


def _variable(name: str) -> str:
    if not re.fullmatch(r"\$\w+", name):
        raise CannotTranslateError(f"the variable {name[:40]}")
    return "v_" + name[1:]


def _expression(text: str, dot: dict[str, str]) -> str:
    """An expression of Go's, whose functions stand before what they are given, as one of Jinja's."""
    words = _TOKEN.findall(text)
    result, rest = _call(words, dot, 0)
    if rest:
        raise CannotTranslateError(f"{{{{ {text[:60]} }}}}")
    return result


def _call(words: list[str], dot: dict[str, str], depth: int) -> tuple[str, list[str]]:
    """A function and its arguments, or a value; and the words after it."""
    if depth > _MAX_DEPTH or not words:
        raise CannotTranslateError("an expression that is empty or too deep")
    name, rest = words[0], words[1:]
    is_function = re.fullmatch(r"[a-z]\w*", name) is not None and name not in ("true", "false")
    if not is_function:
        return _operand(words, dot, depth)
    arguments = []
    while rest and rest[0] not in (")", "|"):
        argument, rest = _operand(rest, dot, depth)
        arguments.append(argument)
    return _applied(name, arguments), rest


def _operand(words: list[str], dot: dict[str, str], depth: int) -> tuple[str, list[str]]:
    word, rest = words[0], words[1:]
    if word == "(":
        inside, rest = _call(rest, dot, depth + 1)
        if not rest or rest[0] != ")":
            raise CannotTranslateError("a parenthesis that does not end")
        return f"({inside})", rest[1:]
    if word[0] == '"':
        try:
            return json.dumps(json.loads(word)), rest
        except ValueError:
            raise CannotTranslateError(f"the text {word[:40]}") from None
    if word[0] == "`":
        return json.dumps(word[1:-1]), rest
    if word.isdigit() or word in ("true", "false"):
        return word, rest
    start, _, path = word.partition(".")
    fields = path.split(".") if path else []
    if start in ("", "$"):
        table = _ROOT if start == "$" else dot
        return (table.get(fields[0], _NOTHING) if len(fields) == 1 else _NOTHING), rest
    if start.startswith("$"):
        return (_variable(start) if not fields else _MESSAGE.get(fields[0], _NOTHING)), rest
    raise CannotTranslateError(f"the word {word[:40]}")


def _applied(name: str, arguments: list[str]) -> str:
    count = len(arguments)
    if name in ("and", "or") and count:
        return "(" + f" {name} ".join(arguments) + ")"
    if name == "not" and count == 1:
        return f"(not {arguments[0]})"
    if name == "eq" and count > 1:
        return "(" + " or ".join(f"{arguments[0]} == {each}" for each in arguments[1:]) + ")"
    if name in _COMPARISONS and count == 2:
        return f"({arguments[0]} {_COMPARISONS[name]} {arguments[1]})"
    if name == "len" and count == 1:
        return f"(({arguments[0]} or []) | length)"
    if name == "slice" and count in (2, 3):
        return f"{arguments[0]}[{':'.join(arguments[1:])}{':' if count == 2 else ''}]"
    if name == "index" and count == 2:
        return f"{arguments[0]}[{arguments[1]}]"
    if name == "json" and count == 1:
        return f"({arguments[0]} | tojson)"
    raise CannotTranslateError(f"the function {name[:40]}")
