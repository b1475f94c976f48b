"""The system calls that a sandboxed program is refused, as the filter that bubblewrap loads before the program starts.

Namespaces decide what a program sees, and limits how much it may use. This closes what both leave open:

- memory that no limit counts: segments and queues of System V, keys, memfd; anonymous memory that is shared, of which the
  kernel keeps all if a page of it stays mapped; pages that a pipe holds (vmsplice); larger pipes and socket buffers;
  contexts of asynchronous I/O, of which the machine has a fixed number; file locks that no process owns; attributes of
  files;
- namespaces and mounts of its own, and other processes' memory;
- parts of the kernel that a Python program has no use for and that have had holes (io_uring, bpf, perf, ...), and sockets of
  families that know no network namespace, such as AF_VSOCK and AF_ALG.

Two are ignored instead of refused, because honest programs call them in passing. Setting the times of a file: whoever may
write to `/dev/null` could set those of the host's. Making a session: the kernel may share processors among sessions, and
a program must not have several.

The filter is classic BPF over `struct seccomp_data` (seccomp(2)), little-endian, for x86-64 and aarch64.
"""

import errno
import platform
import struct
from collections.abc import Iterator, Sequence

# Numbers on x86-64 and on aarch64 (asm/unistd_64.h and asm-generic/unistd.h); None where there is no such call.
_REFUSED: dict[str, tuple[int, int | None]] = {
    # memory that no limit counts
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "shmat": (30, 196), "semget": (64, 190),
    "msgget": (68, 186), "mq_open": (240, 180), "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "vmsplice": (278, 75), "io_setup": (206, 0), "io_submit": (209, 2), "inotify_init": (253, None),
    "inotify_init1": (294, 26), "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463),
    "landlock_create_ruleset": (444, 444),
    # namespaces and mounts
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431),
    "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442), "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265), "statmount": (457, 457), "listmount": (458, 458),
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "process_madvise": (440, 440),
    # the kernel's larger surfaces
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "fanotify_init": (300, 262), "personality": (135, 92),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "syslog": (103, 116), "quotactl": (179, 60), "acct": (163, 89), "modify_ldt": (154, None),
}  # fmt: skip
_IGNORED: dict[str, tuple[int, int | None]] = {
    "utimensat": (280, 88),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "setsid": (112, 157),
}
_CLONE, _CLONE3, _SOCKET = (56, 220), (435, 435), (41, 198)
_MMAP, _FCNTL, _SETSOCKOPT = (9, 222), (72, 25), (54, 208)
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

_NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6
_SHARED_MEMORY = 0x21  # MAP_SHARED and MAP_ANONYMOUS
_HUGE_PAGES = 0x40000  # MAP_HUGETLB
_COMMANDS = (37, 38, 1024, 1026, 1031)  # F_OFD_SETLK, F_OFD_SETLKW, F_SETLEASE, F_NOTIFY, F_SETPIPE_SZ
_OF_SOCKETS, _OPTIONS = 1, (7, 8, 32, 33, 60)  # SOL_SOCKET; SO_SNDBUF, SO_RCVBUF, the two by force, SO_ZEROCOPY
_X32 = 0x40000000  # a second set of numbers for the same calls on x86-64

# BPF: load a word, mask it, compare and jump, return.
_LOAD, _AND, _IF_EQUAL, _IF_AT_LEAST, _IF_ANY_BIT, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, (16, 24, 32, 40)  # of these the lower halves
_Instruction = tuple[int, int, int, int]
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


def _instructions(machine: str) -> Iterator[_Instruction]:
    """(code, jump if true, jump if false, operand); a jump counts the instructions to leave out."""
    column, architecture = _ARCHITECTURES[machine]
    yield _LOAD, 0, 0, _ARCHITECTURE
    yield _IF_EQUAL, 1, 0, architecture
    yield _RETURN, 0, 0, _KILL
    yield _LOAD, 0, 0, _NUMBER
    if machine == "x86_64":
        yield from _unless(_IF_AT_LEAST, _X32, errno.ENOSYS)
    for calls, error in ((_REFUSED, errno.EPERM), (_IGNORED, 0)):
        for numbers in calls.values():
            if (number := numbers[column]) is not None:
                yield from _unless(_IF_EQUAL, number, error)
    # Its flags are in memory, where a filter cannot read them; libraries fall back to `clone`.
    yield from _unless(_IF_EQUAL, _CLONE3[column], errno.ENOSYS)
    yield from _for_call(
        _CLONE[column], [(_LOAD, 0, 0, _ARGUMENTS[0]), *_unless(_IF_ANY_BIT, _NEW_NAMESPACES, errno.EPERM)]
    )
    flags = (_LOAD, 0, 0, _ARGUMENTS[3])
    shared = [flags, (_AND, 0, 0, _SHARED_MEMORY), *_unless(_IF_EQUAL, _SHARED_MEMORY, errno.EPERM)]
    yield from _for_call(_MMAP[column], [flags, *_unless(_IF_ANY_BIT, _HUGE_PAGES, errno.EPERM), *shared])
    commands = [step for command in _COMMANDS for step in _unless(_IF_EQUAL, command, errno.EPERM)]
    yield from _for_call(_FCNTL[column], [(_LOAD, 0, 0, _ARGUMENTS[1]), *commands])
    options = [step for option in _OPTIONS for step in _unless(_IF_EQUAL, option, errno.EPERM)]
    level = [(_LOAD, 0, 0, _ARGUMENTS[1]), (_IF_EQUAL, 1, 0, _OF_SOCKETS), (_RETURN, 0, 0, _ALLOW)]
    yield from _for_call(_SETSOCKOPT[column], [*level, (_LOAD, 0, 0, _ARGUMENTS[2]), *options])
    families = [(_IF_EQUAL, len(_FAMILIES) - i, 0, family) for i, family in enumerate(_FAMILIES)]
    no_family = (_RETURN, 0, 0, _ERROR | errno.EAFNOSUPPORT)
    yield from _for_call(_SOCKET[column], [(_LOAD, 0, 0, _ARGUMENTS[0]), *families, no_family])
    yield _RETURN, 0, 0, _ALLOW


def _unless(comparison: int, operand: int, error: int) -> Iterator[_Instruction]:
    yield comparison, 0, 1, operand
    yield _RETURN, 0, 0, _ERROR | error


def _for_call(number: int, steps: Sequence[_Instruction]) -> Iterator[_Instruction]:
    """Steps for one call, which is allowed if none of them returns."""
    yield _IF_EQUAL, 0, len(steps) + 1, number
    yield from steps
    yield _RETURN, 0, 0, _ALLOW
