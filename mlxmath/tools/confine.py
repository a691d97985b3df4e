"""Takes from this process all that computing does not need: files, network, other processes. There is no way back.

On Linux a seccomp filter lets a few system calls through and fails all others (Linux's Documentation/userspace-api,
seccomp_filter; the same after all imports in Chromium's renderers); on macOS it is `sandbox_init` with the profile
pure-computation, which is what sandbox-exec calls. Either is tried out before anything of others runs.
"""

import contextlib
import ctypes
import errno
import os
import platform
import socket
import sys
from collections.abc import Callable

_NO_NEW_PRIVILEGES = 38
_FILTER_MODE, _ALL_THREADS = 1, 1
_ALLOW, _FAIL, _KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _PROTECTION = 0, 4, 16 + 2 * 8
"""Where `struct seccomp_data` holds the call's number, its architecture, and the low half of the third argument."""
_EXECUTABLE = 4
_CALLS = {
    "x86_64": (
        0xC000003E, 317, (9, 10),
        # read write close fstat lseek munmap brk rt_sigaction rt_sigprocmask rt_sigreturn sched_yield mremap madvise
        # getitimer setitimer getpid exit gettimeofday getrusage sigaltstack gettid futex sched_getaffinity
        # restart_syscall clock_gettime clock_getres exit_group set_robust_list getrandom rseq
        (0, 1, 3, 5, 8, 11, 12, 13, 14, 15, 24, 25, 28, 36, 38, 39, 60, 96, 98, 131, 186, 202, 204, 219, 228, 229, 231,
         273, 318, 334),
    ),
    "aarch64": (
        0xC00000B7, 277, (222, 226),
        (63, 64, 57, 80, 62, 215, 214, 134, 135, 139, 124, 216, 233, 102, 103, 172, 93, 169, 165, 132, 178, 98, 123,
         128, 113, 114, 94, 99, 278, 293),
    ),
}  # fmt: skip
"""By machine: the architecture's number in the audit system, that of `seccomp`, those of mmap and mprotect (which may
make no memory executable), and those of the calls that are let through, on both machines in the same order."""


class NotConfined(Exception):  # noqa: N818
    """This system offers no way, or its way does not hold."""


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_ushort), ("yes", ctypes.c_ubyte), ("no", ctypes.c_ubyte), ("value", ctypes.c_uint))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("first", ctypes.POINTER(_Instruction)))


def confine() -> None:
    """Confine this process; what it is to import or open must have been before.

    Raises:
        NotConfined: that cannot be, or what should fail afterwards does not.
    """
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        for name, most in (("NOFILE", 0), ("NPROC", 0), ("FSIZE", 0), ("CORE", 0)):
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
    os.environ.clear()  # keys stand there
    if sys.platform == "linux":
        _filter_calls()
    elif sys.platform == "darwin":
        _compute_purely()
    else:
        raise NotConfined(f"there is no way to confine a process on {sys.platform}")
    _try_out()


def _filter_calls() -> None:
    """Let no system call through but those of `_CALLS`."""
    machine = platform.machine()
    if machine not in _CALLS or sys.maxsize < 1 << 32:
        raise NotConfined(f"system calls are not known on {machine}")
    architecture, seccomp, mapping, allowed = _CALLS[machine]
    steps = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER)]
    for number in allowed:
        steps += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    steps += [(_EQUAL, 1, 0, mapping[0]), (_EQUAL, 0, 3, mapping[1]), (_LOAD, 0, 0, _PROTECTION)]
    steps += [(_ANY_BIT, 1, 0, _EXECUTABLE), (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _FAIL)]
    program = (_Instruction * len(steps))(*(_Instruction(*step) for step in steps))
    libc = ctypes.CDLL(None, use_errno=True)
    long = ctypes.c_ulong
    is_done = libc.prctl(_NO_NEW_PRIVILEGES, long(1), long(0), long(0), long(0)) == 0 and (
        libc.syscall(
            ctypes.c_long(seccomp), ctypes.c_uint(_FILTER_MODE), ctypes.c_uint(_ALL_THREADS),
            ctypes.byref(_Program(len(steps), program)),
        ) == 0
    )  # fmt: skip
    if not is_done:
        raise NotConfined(f"seccomp: {os.strerror(ctypes.get_errno())}")


def _compute_purely() -> None:
    """macOS's profile kSBXProfilePureComputation: no service of the system."""
    library, said = ctypes.CDLL("/usr/lib/libSystem.B.dylib"), ctypes.c_char_p()
    library.sandbox_init.argtypes = [ctypes.c_char_p, ctypes.c_uint64, ctypes.POINTER(ctypes.c_char_p)]
    if library.sandbox_init(b"pure-computation", 1, ctypes.byref(said)):
        raise NotConfined(f"sandbox_init: {(said.value or b'').decode(errors='replace')[:200]}")


def _try_out() -> None:
    """See that what should fail does.

    Raises:
        NotConfined: something does not.
    """

    def fork() -> None:
        if not os.fork():
            os._exit(0)

    tried: dict[str, Callable[[], object]] = {
        "open a file": lambda: os.open(os.sep, os.O_RDONLY),
        "list a folder": lambda: os.listdir(os.sep),  # noqa: PTH208 (it is the system call that is tried)
        "open a socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
        "start a process": fork,
    }
    for what, attempt in tried.items():
        with contextlib.suppress(OSError):
            attempt()
            raise NotConfined(f"it can still {what}")
