"""The sandbox of a process that touches what strangers made: no network, no programs, only its own files.

Four layers, each of which holds when another is missing: ``no_new_privs``, resource limits, Landlock (files,
TCP, signals) and a seccomp filter (system calls). They cannot be taken off again. The filter allows by default,
since engines are free to use what the kernel has, and refuses with EPERM what a model's engine has no use for.

What it does not do: hide that a file exists, hide names of processes, or count memory that is shared.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import mlos
from mlos.errors import NotFoundError
from mlos.host import landlock

_PR_SET_NO_NEW_PRIVS = 38


@dataclass(frozen=True)
class Policy:
    """What a confined process may still do.

    Never among it: network, starting processes, and changing modes, owners or attributes of files, its own ones
    included (``shutil.copy`` does, ``shutil.copyfile`` does not).

    ``read`` and ``write`` are folders or files that exist. ``memory_bytes`` bounds the private memory
    (RLIMIT_DATA: heaps, stacks, anonymous mappings; mapped files are not in it), ``cpu_seconds`` the processor
    time of all threads together, ``file_bytes`` the size of each file written, ``open_files`` the descriptors.
    """

    read: tuple[Path, ...] = ()
    write: tuple[Path, ...] = ()
    memory_bytes: int | None = None
    cpu_seconds: int | None = None
    file_bytes: int | None = None
    open_files: int | None = None


@dataclass(frozen=True)
class Confinement:
    """Which layers hold, and of each that does not, why: ``missing`` maps its name to the reason."""

    applied: tuple[str, ...]
    missing: dict[str, str]


def confine(policy: Policy) -> Confinement:
    """Confine this process for the rest of its life.

    Call it before any thread is started: Landlock binds the calling thread and those it starts later (older
    ones are reported as missing). The Python installation, the shared libraries, and what the C library and
    engines read of ``/proc``, ``/sys``, ``/dev`` and ``/etc`` stay readable.

    Raises:
        NotFoundError: if a path of the policy does not exist.
    """
    for path in (*policy.read, *policy.write):
        if not path.exists():
            raise NotFoundError(f"the sandbox cannot open {path}: there is no such file or folder")
    applied = ["no_new_privs", "rlimits"]
    missing: dict[str, str] = {}
    _no_new_privileges()
    _limit(policy)
    try:  # first, because finding libseccomp starts a program
        load_filter, unknown = _system_call_filter()
    except ImportError as error:
        load_filter = None
        missing["seccomp"] = f"libseccomp.so.2 cannot be loaded ({error}): system calls are not restricted"
    try:
        abi = landlock.abi()
    except OSError as error:
        missing["landlock"] = f"the kernel offers none ({error.strerror}): files are not restricted"
    else:
        landlock.restrict([*_system_paths(), *policy.read], [*_existing("/dev/null"), *policy.write], abi)
        applied.append("landlock")
        missing |= {
            f"landlock.{since}": f"the kernel's Landlock ABI is {abi}: it cannot restrict {what}"
            for since, what in landlock.SINCE.items()
            if abi < since
        }
        others = len(list(Path("/proc/self/task").iterdir())) - 1
        if others:
            missing["landlock.threads"] = f"{others} threads were started before and keep their rights to files"
    if load_filter:
        try:
            load_filter()
        except OSError as error:
            missing["seccomp"] = (
                f"the kernel refused the filter ({error.strerror}): system calls are not restricted"
            )
        else:
            applied.append("seccomp")
            missing |= {
                f"seccomp.{name}": "the installed libseccomp does not know this call" for name in unknown
            }
    return Confinement(tuple(applied), missing)


def _no_new_privileges() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0))) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _limit(policy: Policy) -> None:
    for kind, value in (
        (resource.RLIMIT_CORE, 0),  # a core dump would hold the model and the requests
        (resource.RLIMIT_DATA, policy.memory_bytes),
        (resource.RLIMIT_CPU, policy.cpu_seconds),
        (resource.RLIMIT_FSIZE, policy.file_bytes),
        (resource.RLIMIT_NOFILE, policy.open_files),
    ):
        if value is not None:
            hard = resource.getrlimit(kind)[1]
            bounded = value if hard == resource.RLIM_INFINITY else min(value, hard)
            # At the soft limit of time comes SIGXCPU, which says why; at the hard one SIGKILL, a second later.
            later = 1 if kind == resource.RLIMIT_CPU and bounded != hard else 0
            resource.setrlimit(kind, (bounded, bounded + later))


def _system_paths() -> Iterator[Path]:
    """What Python and native engines read besides the model, where it exists.

    Of ``/proc`` only what is about this process or the machine: another process's ``environ`` may hold a token.
    """
    yield from _existing(
        *("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/local/lib"),
        *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d"),
        *("/etc/localtime", "/usr/share/zoneinfo", "/etc/mime.types", "/etc/os-release"),
        *("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"),
        *("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/loadavg", "/proc/uptime"),
        *("/proc/version", "/proc/filesystems", "/proc/cgroups", "/proc/sys/vm", "/proc/sys/kernel"),
        *("/sys/devices/system", "/sys/fs/cgroup", "/sys/kernel/mm"),
    )
    yield from _existing(sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix)
    yield from _existing(str(Path(mlos.__file__).parent), *filter(None, sys.path))
    yield from _existing(*filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(":")))


def _existing(*names: str) -> Iterator[Path]:
    return (path for path in map(Path, names) if path.exists())


_REFUSED = {
    "starting programs": "execve execveat fork vfork",
    "network": "socket connect bind listen accept accept4",
    "other processes": "ptrace process_vm_readv process_vm_writev process_madvise pidfd_getfd kcmp",
    "file systems": (
        "mount umount2 pivot_root chroot mount_setattr move_mount open_tree fsopen fsconfig fsmount fspick "
        "swapon swapoff quotactl name_to_handle_at open_by_handle_at fanotify_init mknod mknodat"
    ),
    # Landlock has no rights for these, so they are refused for every file.
    "owners, modes and attributes": (
        "chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat setxattr lsetxattr fsetxattr removexattr "
        "lremovexattr fremovexattr"
    ),
    "kernel": (
        "bpf perf_event_open add_key request_key keyctl io_uring_setup io_uring_enter io_uring_register "
        "userfaultfd kexec_load kexec_file_load init_module finit_module delete_module unshare setns reboot "
        "acct settimeofday clock_settime clock_adjtime adjtimex sethostname setdomainname syslog iopl "
        "ioperm vhangup"
    ),
}
_CLONE_THREAD = 0x00010000
_CLONE_NAMESPACES = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET
_SOCK_TYPE_MASK, _SOCK_DGRAM, _SOCK_RAW = 0xF, 2, 3
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C


def _system_call_filter() -> tuple[Callable[[], None], tuple[str, ...]]:
    """What loads the seccomp filter, on all threads, and the calls whose names an old libseccomp does not know.

    Raises:
        ImportError: if libseccomp is not installed.
    """
    try:  # not at the top: importing it loads libseccomp, which may be missing
        import pyseccomp as seccomp  # type: ignore[import-untyped] # it has annotations but no py.typed
    except RuntimeError as error:
        raise ImportError(str(error)) from error
    rules = seccomp.SyscallFilter(seccomp.ALLOW)
    rules.set_attr(seccomp.Attr.CTL_TSYNC, 1)
    refuse = seccomp.ERRNO(errno.EPERM)
    unknown: list[str] = []
    for names in _REFUSED.values():
        for name in names.split():
            number = seccomp.resolve_syscall(seccomp.Arch.NATIVE, name)
            if number == -1:  # other negative numbers stand for calls that only other machines have
                unknown.append(name)
            else:
                rules.add_rule(refuse, number)
    # Threads yes, processes no. The arguments of clone3 lie in memory, where a filter cannot look: ENOSYS makes
    # the C library take clone instead.
    rules.add_rule(seccomp.ERRNO(errno.ENOSYS), "clone3")
    rules.add_rule(refuse, "clone", seccomp.Arg(0, seccomp.MASKED_EQ, _CLONE_THREAD, 0))
    for bit in (1 << shift for shift in range(32) if _CLONE_NAMESPACES >> shift & 1):
        rules.add_rule(refuse, "clone", seccomp.Arg(0, seccomp.MASKED_EQ, bit, bit))
    # A pair of datagram sockets could still be addressed elsewhere; a pair of streams cannot.
    for kind in (_SOCK_DGRAM, _SOCK_RAW):
        rules.add_rule(refuse, "socketpair", seccomp.Arg(1, seccomp.MASKED_EQ, _SOCK_TYPE_MASK, kind))
    for request in (_TIOCSTI, _TIOCLINUX):  # typing into the terminal
        rules.add_rule(refuse, "ioctl", seccomp.Arg(1, seccomp.MASKED_EQ, 0xFFFFFFFF, request))
    rules.add_rule(refuse, "prlimit64", seccomp.Arg(0, seccomp.NE, 0))
    return rules.load, tuple(unknown)
