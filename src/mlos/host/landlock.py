"""Landlock: by these three system calls a process gives up rights to files, TCP and outside processes.

Numbers and structures are those of ``linux/landlock.h``; the system call numbers are the same on x86-64 and
AArch64. What each ABI added is in the kernel's ``userspace-api/landlock``.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable
from enum import IntFlag
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1
_NET_BIND_TCP, _NET_CONNECT_TCP = 1, 2
_SCOPE_ABSTRACT_UNIX_SOCKET, _SCOPE_SIGNAL = 1, 2

_libc = ctypes.CDLL(None, use_errno=True)


class Access(IntFlag):
    """``LANDLOCK_ACCESS_FS_*``."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


_READ = Access.READ_FILE | Access.READ_DIR
_WRITE = (
    _READ
    | Access.WRITE_FILE
    | Access.REMOVE_DIR
    | Access.REMOVE_FILE
    | Access.MAKE_DIR
    | Access.MAKE_REG
    | Access.MAKE_SYM
    | Access.REFER
    | Access.TRUNCATE
)
_DEVICE = Access.READ_FILE | Access.WRITE_FILE | Access.TRUNCATE | Access.IOCTL_DEV
_OF_A_FILE = Access.EXECUTE | _DEVICE
"""The rights that a rule about something other than a folder may hold; the kernel refuses the others there."""

SINCE = {
    2: "moving files between folders",
    3: "truncating files",
    4: "TCP",
    5: "device controls",
    6: "signals and abstract sockets of other processes",
}
"""What a kernel cannot restrict before each ABI (moving is always refused before ABI 2)."""


def abi() -> int:
    """The kernel's Landlock ABI, at least 1.

    Raises:
        OSError: where there is no Landlock (ENOSYS, or EPERM from a container's own filter) or it was switched
            off at boot (EOPNOTSUPP).
    """
    return _syscall(_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)


def restrict(read: Iterable[Path], write: Iterable[Path], abi: int) -> None:
    """Leave this thread, and all it starts from now on, only the given folders and files.

    ``read`` may be read; under ``write`` also be made, changed and removed; a device in ``write`` may also be
    controlled. Nothing may be executed, no TCP port bound or connected to (ABI 4), no process outside be
    signalled (ABI 6). Paths must exist. Needs ``no_new_privs``. Cannot be undone.

    Raises:
        OSError: if a path cannot be opened or the kernel refuses.
    """
    handled = ~Access(0)
    for since, right in ((2, Access.REFER), (3, Access.TRUNCATE), (5, Access.IOCTL_DEV)):
        if abi < since:
            handled &= ~right
    tcp = _NET_BIND_TCP | _NET_CONNECT_TCP if abi >= 4 else 0
    scoped = _SCOPE_ABSTRACT_UNIX_SOCKET | _SCOPE_SIGNAL if abi >= 6 else 0
    # struct landlock_ruleset_attr; an older kernel takes the longer structure as long as what it lacks is zero.
    attributes = struct.pack("=QQQ", handled, tcp, scoped)
    ruleset = _syscall(_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        for path in read:
            _allow(ruleset, path, _READ & handled, handled)
        for path in write:
            _allow(ruleset, path, _WRITE & handled, handled)
        _syscall(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path, access: Access, handled: Access) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISDIR(mode):
            access &= _OF_A_FILE
        if stat.S_ISCHR(mode) and access & Access.WRITE_FILE:
            access |= Access.IOCTL_DEV & handled
        rule = struct.pack("=Qi", access, descriptor)  # struct landlock_path_beneath_attr, which is packed
        _syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0)
    finally:
        os.close(descriptor)


def _syscall(number: int, *arguments: int | bytes | None) -> int:
    # Variadic: an integer must fill its register, which a plain Python int (a C int) does not promise.
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result: int = _libc.syscall(ctypes.c_long(number), *wide)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
