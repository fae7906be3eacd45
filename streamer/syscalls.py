"""The system calls that are left to a decode worker: a seccomp filter, compiled and loaded by libseccomp.

An allow-list: memory, the socket that the worker has already, its own clock, limits and signals. Everything
else fails with EPERM: sockets, files (resource limits forbid only what needs a new descriptor, not `unlink`
or `chmod`), programs, processes and threads, signals to others, ptrace, io_uring, and whatever the kernel
will have next year. Memory cannot become executable. EPERM, not death: FFmpeg asks for character sets, for
instance, and does without.

`pyseccomp` has the interface of libseccomp's own Python bindings, which no registry has; libseccomp comes
with the distribution, and is there wherever apt or systemd is.
"""

from __future__ import annotations

import errno
import mmap
import os

ALLOWED = (
    *("read", "write", "writev", "pread64", "recvfrom", "sendto", "close", "lseek"),
    *("brk", "munmap", "mremap", "madvise", "futex", "sched_yield", "sched_getaffinity", "getrandom"),
    *("clock_gettime", "clock_getres", "clock_nanosleep", "nanosleep", "gettimeofday", "getrusage"),
    *("getpid", "gettid", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack"),
    *("restart_syscall", "exit", "exit_group"),
)
"""Whatever their arguments: what CPython, glibc and FFmpeg call to compute, to answer and to die."""


class FilterUnavailableError(Exception):
    """No filter can be had here; the text says why."""


def restrict() -> None:
    """Put this process under the filter for the rest of its life. Raises FilterUnavailableError."""
    try:
        import pyseccomp as seccomp
    except (ImportError, OSError, RuntimeError) as error:  # RuntimeError: it found no libseccomp
        raise FilterUnavailableError(f"{error}; install libseccomp2 and pyseccomp") from error
    try:
        rules = seccomp.SyscallFilter(seccomp.ERRNO(errno.EPERM))
        for name in ALLOWED:
            rules.add_rule(seccomp.ALLOW, name)
        not_executable = seccomp.Arg(2, seccomp.MASKED_EQ, mmap.PROT_EXEC, 0)
        for name in ("mmap", "mprotect"):
            rules.add_rule(seccomp.ALLOW, name, not_executable)
        rules.add_rule(seccomp.ALLOW, "prlimit64", seccomp.Arg(0, seccomp.EQ, 0))  # its own limits
        rules.add_rule(seccomp.ALLOW, "tgkill", seccomp.Arg(0, seccomp.EQ, os.getpid()))  # abort()
        rules.load()
    except OSError as error:  # no seccomp in this kernel, or forbidden in this container
        raise FilterUnavailableError(f"libseccomp: {error}") from error
