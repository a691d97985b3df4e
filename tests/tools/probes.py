# ruff: noqa: E501, SIM905
"""A table of a thousand attempts to leave the sandbox, none of which does harm: they try to make a file in a temporary
folder, to reach a closed port of this machine, to start a process, to take memory, to go on without end."""

from collections.abc import Iterator
from typing import NamedTuple

from mlxmath.tools.names import SYMPY

DUNDERS = """
    class bases base mro subclasses globals builtins dict code closure func self module init new init_subclass doc
    getattribute getattr setattr delattr reduce reduce_ex import loader spec call class_getitem annotations qualname
    wrapped defaults kwdefaults weakref slots path file cached
""".split()
VALUES = ["()", "''", "x", "[]", "{}", "1", "1.5", "x**2", "Matrix([1])", "Symbol('z')", "Eq(x, 1)"]
NAMED = ["sympy", "math", "S", "sin", "f"]
MODULES = """
    os sys io subprocess socket shutil pathlib ctypes importlib builtins pickle marshal threading multiprocessing signal
    inspect types gc code codeop runpy tempfile http urllib ssl asyncio select resource fcntl pty mmap numpy mlx
    requests tokenize ast dis site platform os.path sympy.parsing sympy.utilities.lambdify math.os __main__ _posixsubprocess
""".split()
HIDDEN = [
    "eval exec compile open input __import__ globals locals vars dir getattr setattr delattr type object help memoryview "
    "breakpoint exit quit super property classmethod staticmethod id iter next callable hash repr ascii chr ord bytes"
]
PLAIN_NAMES = HIDDEN[0].split()


class Probe(NamedTuple):
    kind: str
    program: str


def full_width(name: str) -> str:
    """The same name to Python, in other characters."""
    return "".join(chr(ord(c) + 0xFEE0) if c.isalpha() else c for c in name)


def script(name: str) -> str:
    return "".join(chr(0x1D4D0 - ord("A") + ord(c)) if c.isupper() else chr(0x1D4EA - ord("a") + ord(c)) if c.islower() else c
                   for c in name)  # fmt: skip


def probes(marker: str, port: int) -> Iterator[Probe]:
    """Of all kinds.

    Args:
        marker: a file that must not come to be.
        port: where nobody listens.
    """
    write = f"open({marker!r}, 'w').write('x')"
    evil = f"__import__('os').system('touch {marker}')"
    for value in VALUES:
        for name in DUNDERS:
            yield Probe("introspection", f"{value}.__{name}__")
    for value in NAMED:
        for name in DUNDERS[:20]:
            yield Probe("introspection", f"print({value}.__{name}__)")
    for name in SYMPY:
        yield Probe("text for SymPy", f"print({name}({evil!r}))")
    for method in (
        "subs",
        "coeff",
        "diff",
        "integrate",
        "limit",
        "xreplace",
        "evalf",
        "expand",
        "sum",
        "rewrite",
        "func",
    ):
        yield Probe("text for SymPy", f"print((x + 1).{method}({evil!r}))")
        yield Probe("text for SymPy", f"print((x + 1).{method}([({evil!r}, 1)]))")
        yield Probe("text for SymPy", f"print((x + 1).{method}({{x: {evil!r}}}))")
    for operation in ("+", "-", "*", "/", "//", "%", "**", "@", "&", "|", "^", "<<", ">>"):
        yield Probe("text for SymPy", f"print(x {operation} {evil!r})")
        yield Probe("text for SymPy", f"print({evil!r} {operation} Matrix([1, 2]))")
    for call in (
        "sympify",
        "parse_expr",
        "lambdify",
        "S",
        "N",
        "simplify",
        "preview",
        "plot",
        "init_printing",
        "srepr",
    ):
        yield Probe("text for SymPy", f"print({call}({evil!r}))")
        yield Probe("text for SymPy", f"import sympy as sp\nprint(sp.{call}({evil!r}))")
    for name in PLAIN_NAMES:
        yield Probe("functions", f"print({name}({write!r}))")
        yield Probe("functions", f"f = {name}\nprint(f({write!r}))")
        yield Probe("unicode", f"print({full_width(name)}({write!r}))")
        yield Probe("unicode", f"print({script(name)}({write!r}))")
    for module in MODULES:
        yield Probe("imports", f"import {module}")
        yield Probe("imports", f"import {module} as sympy")
        yield Probe("imports", f"from {module} import *")
        yield Probe("imports", f"__import__({module!r})")
    for text in ("from . import x", "from .. import os", "from sympy import os", "from math import __loader__",
                 "from sympy import __builtins__", "from sympy import sympify", "from sympy import lambdify",
                 "import sympy.os", "from itertools import count"):  # fmt: skip
        yield Probe("imports", text)
    for how in (write, f"io.open({marker!r}, 'w')", f"pathlib.Path({marker!r}).touch()", f"os.open({marker!r}, 66)",
                f"print('x', file=open({marker!r}, 'w'))", f"print(1, file={marker!r})", f"Matrix([1]).dump({marker!r})",
                f"preview(x, output='png', filename={marker!r})", f"plot(x).save({marker!r})",
                f"math.os.mknod({marker!r})", f"with open({marker!r}, 'w') as f:\n    f.write('x')",
                "print(open('/etc/hostname').read())", "print(open('/proc/self/environ').read())"):  # fmt: skip
        yield Probe("files", how)
        yield Probe("files", f"def f():\n    return {how.splitlines()[0].rstrip(':')}\nprint(f())")
    for how in (
        f"socket.create_connection(('127.0.0.1', {port}))",
        f"urllib.request.urlopen('http://127.0.0.1:{port}')",
        f"http.client.HTTPConnection('127.0.0.1', {port}).connect()",
        "requests.get('http://127.0.0.1')",
    ):
        yield Probe("network", how)
        yield Probe("network", f"import {how.split('.')[0]}\n{how}")
    for how in ("os.fork()", "os.system('true')", "subprocess.run(['true'])", "multiprocessing.Process().start()",
                "threading.Thread().start()", "os.kill(1, 0)", "os.execv('/bin/true', ['true'])"):  # fmt: skip
        yield Probe("processes", how)
        yield Probe("processes", f"import {how.split('.')[0]}\n{how}")
    for text in ("f'{x.__class__}'", "'{0.__class__}'.format(x)", "'{}'.format_map({})", "'%s' % x", "'%999999999d' % 1",
                 "f'{1:>999999999}'", "f'{1:0999999999}'", "f'{1:{10**9}}'", "f'{x!r}'", "f'{x!a}'", "f'{1:.999999999f}'",
                 "str.format('{0.__class__}', x)", "''.join(['a'] * 10**10)", "'a' * 10**10", "b'a' * 10", "f'{sympy}'",
                 "f'{sin}'", "print(sin)", "print(sympy)", "print(math)", "print(print)", "[sin]", "{1: sin}",
                 "f\"{open('x')}\"", "f'{(lambda: 1)()}'", "'{x.__init__.__globals__}'.format(x=x)",
                 "Template('$x')", "x.__format__('')", "f'{x:{x.__class__}}'"):  # fmt: skip
        yield Probe("formats", text)
        yield Probe("formats", f"y = {text}\nprint(y)")
    for base in ("9", "x", "10", "S(9)", "Integer(9)", "1.5", "-9", "Rational(1, 9)"):
        yield Probe("powers", f"print({base}**9**9**9)")
        yield Probe("powers", f"print({base}**(10**9)**(10**9))")
    for text in (
        "10**10**10",
        "2**(2**40)",
        "pow(9, pow(9, 9))",
        "y = 9\nfor i in range(99):\n    y = y**9",
        "y = 9\nwhile True:\n    y = y*y",
        "y = 9\nwhile True:\n    y *= y",
        "math.factorial(10**9)",
        "math.comb(10**9, 10**8)",
        "math.perm(10**9, 10**8)",
        "math.prod([10**90] * 10**4)",
        "9" * 5000,
        "int('9' + '9' * 3)**10**9",
        "math.exp(10**9)",
        "1e308 * 10",
        "10**400 / 10**399",
        "float(10**400)",
    ):
        yield Probe("powers", text)
        yield Probe("powers", f"print(str({text.splitlines()[0].split('=')[-1]}))")
    for sign in (
        "(",
        "[",
        "{",
        "-",
        "not ",
        "+",
        "~",
        "lambda: ",
        "x[",
        "f(",
        "1 if 1 else ",
        "x.",
        "x**",
        "1+",
        "-(",
        "((",
        "*",
    ):
        for count in (30, 500, 3000):
            yield Probe("nesting", sign * count + "1")
            yield Probe(
                "nesting",
                sign * count + "1" + {"(": ")", "[": "]", "{": "}", "x[": "]", "f(": ")"}.get(sign, "") * count,
            )
    yield Probe("nesting", "def f(n):\n    return f(n + 1)\nf(0)")
    yield Probe("nesting", "y = []\nfor i in range(9999):\n    y = [y]\nprint(y)")
    yield Probe("nesting", "y = []\ny.append(y)\nprint(y)\nprint(sin(y))")
    yield Probe("nesting", "y = [1]\nfor i in range(60):\n    y = [y, y]\nprint(y)")
    yield Probe("nesting", "y = [1]\nfor i in range(60):\n    y = [y, y]\nprint(Matrix(y))")
    for text in (
        "while True: pass",
        "for i in range(10**18): pass",
        "sum(range(10**12))",
        "list(range(10**12))",
        "max(range(10**12))",
        "[i for i in range(10**9)]",
        "sorted(range(10**9))",
        "set(range(10**9))",
        "while 1:\n    try_ = 1",
        "[1 for a in range(10**4) for b in range(10**4)]",
        "sleep(100)",
        "list(itertools.product(range(100), range(100), range(100)))",
        "list(itertools.permutations(range(20)))",
        "import itertools\nlist(itertools.combinations(range(60), 30))",
        "any(i > 10**15 for i in range(10**16))",
        "y = [1]\nfor i in y:\n    y.append(i)",
        "all(range(1, 10**12))",
        "def f():\n    while True:\n        f()\nf()",
        "dict(enumerate(range(10**9)))",
        "10**15 in (i for i in range(10**16))",
        "len(list(range(10**8)))",
    ):
        yield Probe("time and memory", text)
    for text in (
        "[0] * 10**9",
        "[0] * 10**4 * 10**4",
        "(0,) * 10**10",
        "10**9 * [0]",
        "zeros(10**5, 10**5)[0]",
        "y = [0] * 9999\nwhile True:\n    y = y + y",
        "y = 'a' + 'b'\nwhile True:\n    y = y + y",
        "Range(10**18)",
        "y = {}\nfor i in range(10**9):\n    y[i] = i",
        "range(10**30)",
        "list(primerange(1, 10**5))",
    ):
        yield Probe("time and memory", text)
    for text in (
        "factorial(10**9)",
        "factorint(10**99 + 10**41 + 7)",
        "integrate(exp(x**2)*sin(x)**5/(x**7 + x + 1), x)",
    ):
        yield Probe("a process that ends", text)
    for text in ("print('a\\x1b[31mb')", "print('\\x1b]0;title\\x07')", "print('\\r\\n\\x00')", "print('\\u202eabc')",
                 "while True:\n    print('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa')",
                 "print(*range(10**4))", "print(list(range(10**4)))", "print('```output')", "print(1, end='\\x1b[2J')",
                 "print(10**90, sep='', end='\\n' * 300)", "for i in range(10**5):\n    print(i)", "print(expand((x + 1)**500))",
                 "print('\\ud800')", "print('\\N{RIGHT-TO-LEFT OVERRIDE}')", "print(chr(27))"):  # fmt: skip
        yield Probe("output", text)


RAW = {
    "files": """
        open(MARKER, 'w'); import os; os.open(MARKER, os.O_CREAT | os.O_WRONLY)
        import os; os.mkdir(MARKER)
        import os; os.symlink('/etc', MARKER)
        import os; os.mknod(MARKER)
        import os; os.rename('/tmp', MARKER)
        import os; os.unlink('/tmp/nothing-of-this-name')
        import os; os.chmod('/tmp/nothing-of-this-name', 0o777)
        import os; os.stat('/')
        import os; os.listdir('/')
        import os; os.chdir('/')
        import os; os.chroot('/')
        import os; os.memfd_create('x')
        import os; os.pipe()
        import os; os.dup(0)
        import shutil; shutil.copy('/etc/hostname', MARKER)
        open('/proc/self/mem', 'rb')
        open('/dev/null')
        import pathlib; pathlib.Path(MARKER).touch()
        import sqlite3
        import tempfile; tempfile.mkstemp()
        import ctypes; assert ctypes.CDLL(None).creat(MARKER.encode(), 0o600) >= 0
        import ctypes; assert ctypes.CDLL(None).syscall(2, MARKER.encode(), 65, 0o600) >= 0
        import ctypes; assert ctypes.CDLL(None).syscall(425, 8, 0) >= 0
        import ctypes; assert ctypes.CDLL(None).syscall(0x40000000 + 2, MARKER.encode(), 65, 0o600) >= 0
    """,
    "network": """
        import socket; socket.socket()
        import socket; socket.socket(socket.AF_UNIX)
        import socket; socket.create_connection(('127.0.0.1', PORT), 1)
        import socket; socket.socketpair()
        import socket; socket.getaddrinfo('localhost', PORT); socket.socket(socket.AF_INET6)
        import urllib.request; urllib.request.urlopen('http://127.0.0.1:%d' % PORT, timeout=1)
        import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW)
        import socket; socket.socket(fileno=0).sendmsg([b'x'])
    """,
    "processes": """
        import os; os.fork() or os._exit(0)
        import os; os.posix_spawn('/bin/true', ['true'], {})
        import os; os.execv('/bin/true', ['true'])
        import os; assert os.system('touch ' + MARKER) == 0
        import subprocess; subprocess.run(['touch', MARKER])
        import threading; threading.Thread(target=print).start()
        import os; os.kill(os.getppid(), 0)
        import os; os.setuid(0)
        import os; os.nice(-1)
        import ctypes; assert ctypes.CDLL(None).ptrace(16, 1, 0, 0) == 0
        import ctypes; assert ctypes.CDLL(None).syscall(56, 17, 0, 0, 0, 0) > 0
        import ctypes; assert ctypes.CDLL(None).prctl(4, 1, 0, 0, 0) == 0
        import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (99, 99))
        import mmap; mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    """,
    "secrets": """
        import os; assert os.environ
        import os; assert os.environ['PATH']
    """,
    "memory": """
        found = len(bytearray(1 << 34))
        found = [bytearray(1 << 28) for _ in range(99)]
        found = 'a' * (1 << 34)
    """,
}
"""Statements of full Python, run where nothing but the system holds them; each must raise."""
