"""The system calls that a sandboxed program is refused, as the filter that bubblewrap loads before the program starts.

Namespaces decide what a program sees, and limits how much it may use. This closes what both leave open: memory that no
limit counts (memfd, System V segments, message queues, keys), namespaces and mounts of its own, other processes'
memory, and parts of the kernel that a Python program has no use for and that have had holes (io_uring, bpf, perf, ...).
Sockets are those of the own, empty network namespace; other families, such as AF_VSOCK and AF_ALG, know no namespaces.

The filter is classic BPF over `struct seccomp_data` (seccomp(2)), little-endian, for x86-64 and aarch64.
"""

import errno
import platform
import struct
from collections.abc import Iterator

# Numbers on x86-64 and on aarch64 (asm/unistd_64.h and asm-generic/unistd.h).
_REFUSED = {
    # memory that neither RLIMIT_AS nor the size of /tmp counts
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "shmat": (30, 196), "semget": (64, 190),
    "msgget": (68, 186), "mq_open": (240, 180), "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    # namespaces and mounts
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431),
    "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442), "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    # the kernel's larger surfaces
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "fanotify_init": (300, 262), "personality": (135, 92),
    "kexec_load": (246, 104), "init_module": (175, 105), "finit_module": (313, 273), "syslog": (103, 116),
}  # fmt: skip
_CLONE, _CLONE3, _SOCKET = (56, 220), (435, 435), (41, 198)
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

_NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6
_X32 = 0x40000000  # a second set of numbers for the same calls on x86-64

# BPF: load a word, compare and jump, return.
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENT = 0, 4, 16
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000


def is_known(machine: str | None = None) -> bool:
    """Whether there is a filter for this machine, or for the one that is named as `uname -m` does."""
    return (machine or platform.machine()) in _ARCHITECTURES


def program(machine: str | None = None) -> bytes:
    """The filter as an array of `struct sock_filter`, 8 bytes each.

    Raises:
        KeyError: there is none for this machine; see `is_known`.
    """
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in _instructions(machine or platform.machine()))


def _instructions(machine: str) -> Iterator[tuple[int, int, int, int]]:
    """(code, jump if true, jump if false, operand); a jump counts the instructions to leave out."""
    column, architecture = _ARCHITECTURES[machine]
    yield _LOAD, 0, 0, _ARCHITECTURE
    yield _IF_EQUAL, 1, 0, architecture
    yield _RETURN, 0, 0, _KILL
    yield _LOAD, 0, 0, _NUMBER
    if machine == "x86_64":
        yield from _unless(_IF_AT_LEAST, _X32, errno.ENOSYS)
    for numbers in _REFUSED.values():
        yield from _unless(_IF_EQUAL, numbers[column], errno.EPERM)
    # Its flags are in memory, where a filter cannot read them; libraries fall back to `clone`.
    yield from _unless(_IF_EQUAL, _CLONE3[column], errno.ENOSYS)
    yield _IF_EQUAL, 0, 4, _CLONE[column]
    yield _LOAD, 0, 0, _ARGUMENT
    yield from _unless(_IF_ANY_BIT, _NEW_NAMESPACES, errno.EPERM)
    yield _RETURN, 0, 0, _ALLOW
    yield _IF_EQUAL, 0, len(_FAMILIES) + 2, _SOCKET[column]
    yield _LOAD, 0, 0, _ARGUMENT
    for i, family in enumerate(_FAMILIES):
        yield _IF_EQUAL, len(_FAMILIES) - i, 0, family
    yield _RETURN, 0, 0, _ERROR | errno.EAFNOSUPPORT
    yield _RETURN, 0, 0, _ALLOW


def _unless(comparison: int, operand: int, error: int) -> Iterator[tuple[int, int, int, int]]:
    yield comparison, 0, 1, operand
    yield _RETURN, 0, 0, _ERROR | error
