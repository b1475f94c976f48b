"""Attacks on what a machine has for all: the kernel's memory, processors, the host's files; and on being judged at all."""

from attack_shapes import ANSWERS, LIBC, Attack, any_of, escape

# Calls by number, on x86-64 and on aarch64: a library may refuse what the kernel would do.
_SYSCALL = f"(lambda x86, arm, *a: {LIBC}.syscall(arm if os.uname().machine == 'aarch64' else x86, *a))"

KERNEL = [
    any_of("memory in descriptors", "os.memfd_create('x', 4) >= 0", f"{_SYSCALL}(319, 279, b'x', 0) >= 0",
         f"{_SYSCALL}(447, 447, 0) >= 0"),
    escape("shared memory of which one page stays", """
import ctypes, mmap
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = libc.munmap.argtypes = None
size, kept = 2**26, 0
for _ in range(16):
    start = libc.mmap(None, ctypes.c_size_t(size), 3, 0x21, -1, ctypes.c_size_t(0))
    if start in (None, 2**64 - 1):
        break
    ctypes.memset(start, 1, size)
    libc.munmap(ctypes.c_void_p(start + 4096), ctypes.c_size_t(size - 4096))
    kept += size
escaped = kept == 2**30
"""),
    escape("shared memory that is let go of", """
import mmap
blocks = []
for _ in range(4):
    block = mmap.mmap(-1, 2**26)
    block.write(bytes(2**26))
    block.madvise(mmap.MADV_DONTNEED)
    blocks.append(block)
escaped = True
"""),
    any_of("huge pages", f"{_SYSCALL}(9, 222, 0, 2**21, 3, 0x40022, -1, 0) > 0"),
    escape("pages held by pipes", """
import ctypes, mmap, os
libc = ctypes.CDLL(None, use_errno=True)
class Vector(ctypes.Structure):
    _fields_ = [('base', ctypes.c_void_p), ('length', ctypes.c_size_t)]
block = mmap.mmap(-1, 2**21, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
vector = Vector(ctypes.addressof(ctypes.c_char.from_buffer(block)), 1)
reading, writing = os.pipe()
number = 75 if os.uname().machine == 'aarch64' else 278
escaped = libc.syscall(number, writing, ctypes.byref(vector), 1, 0) == 1
"""),
    escape("pipes of a MiB", """
import fcntl, os
pipes = [os.pipe() for _ in range(16)]
escaped = all(fcntl.fcntl(writing, 1031, 2**20) == 2**20 for _, writing in pipes)
"""),
    escape("socket buffers of a MiB", """
import socket
pairs = [socket.socketpair() for _ in range(16)]
for pair in pairs:
    for end in pair:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**20)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**20)
escaped = True
"""),
    Attack("sockets that nobody accepts", r"""
import socket
server = socket.socket(socket.AF_UNIX)
server.bind('\0lockstitch-attack-backlog')
server.listen(4096)

def f(x):
    while True:
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(False)
        client.connect('\0lockstitch-attack-backlog')
        try:
            while True:
                client.send(bytes(2**16))
        except OSError:
            client.close()
"""),
    Attack("data that waits in connections", """
import socket
server = socket.create_server(('127.0.0.1', 0))
kept = []

def f(x):
    while True:
        client = socket.create_connection(server.getsockname())
        other, _ = server.accept()
        client.setblocking(False)
        kept.append((client, other))
        try:
            for i in range(100):
                client.send(bytes(2**20))
                if len(kept) % 2:
                    other.recv(2**18)
        except OSError:
            pass
"""),
    escape("descriptors on their way", """
import array, os, socket
pairs = [socket.socketpair() for _ in range(20)]
sent = 0
for a, b in pairs:
    for _ in range(20):
        reading, writing = os.pipe()
        a.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [reading, writing]))])
        os.close(reading)
        os.close(writing)
        sent += 2
escaped = sent == 800
"""),
    escape("a thousand descriptors", """
import os
kept = [os.open('/dev/null', os.O_RDONLY) for _ in range(1000)]
escaped = True
"""),
    escape("more descriptors by a new limit", """
import os, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (1000, 1000))
escaped = True
"""),
    Attack("descriptors of every process", """
import os, time

def f(x):
    while True:
        try:
            os.fork()
            os.pipe()
        except OSError:
            time.sleep(0.01)
"""),
    any_of("contexts of asynchronous I/O", f"{_SYSCALL}(206, 0, 60000, ctypes.byref(ctypes.c_ulong())) == 0"),
    any_of("io_uring", f"{_SYSCALL}(425, 425, 8, ctypes.create_string_buffer(256)) >= 0",
         f"{_SYSCALL}(426, 426, 0, 0, 0, 0, 0, 0) >= 0"),
    any_of("watches on files", f"{LIBC}.inotify_init() >= 0", f"{LIBC}.inotify_init1(0) >= 0",
         f"{_SYSCALL}(300, 262, 0, 0) >= 0"),
    escape("ten thousand timers", """
import ctypes
librt = ctypes.CDLL(None, use_errno=True)
made = 0
while made < 10_000 and librt.timer_create(1, None, ctypes.byref(ctypes.c_void_p())) == 0:
    made += 1
escaped = made == 10_000
"""),
    Attack("a million locks on a file", """
import fcntl
file = open('/tmp/lockstitch-attack-locks', 'wb')

def f(x):
    for i in range(2 * 10**6, 0, -2):
        fcntl.lockf(file, fcntl.LOCK_EX, 1, i)
    return ANSWERS[x]
""".replace("ANSWERS", repr(ANSWERS))),
    any_of("locks that no process owns",
         "__import__('fcntl').fcntl(open('/tmp/lockstitch-attack-lock', 'wb'), 37, bytes(32))",
         "__import__('fcntl').fcntl(open('/tmp/lockstitch-attack-lease', 'wb'), 1024, 1) == 0"),
    any_of("attributes of files", "os.setxattr('/tmp', 'user.x', bytes(2**16)) is None",
         "[os.setxattr('/tmp', f'user.{i}', bytes(2**15)) for i in range(1000)]"),
    any_of("rules of its own", f"{_SYSCALL}(444, 444, 0, 0, 1) >= 0"),
    any_of("larger queues", f"{_SYSCALL}(240, 180, b'x', 0o102, 0o600, 0) >= 0", f"{_SYSCALL}(68, 186, 0, 0o1600) >= 0",
         f"{_SYSCALL}(64, 190, 0, 250, 0o1600) >= 0"),
    escape("memory of a process without its first thread", """
import ctypes, os, threading, time
reading, writing = os.pipe()
def grow():
    time.sleep(0.05)
    block = bytearray(b'x') * (200 * 2**20)
    os.write(writing, b'x')
    time.sleep(10**6)
for _ in range(6):
    if os.fork() == 0:
        threading.Thread(target=grow).start()
        ctypes.CDLL(None).syscall(93 if os.uname().machine == 'aarch64' else 60, 0)
for _ in range(6):
    os.read(reading, 1)
time.sleep(0.3)
escaped = True
"""),
    Attack("arguments of many MiB", """
import os, sys

def f(x):
    while True:
        try:
            os.execv(sys.executable, [sys.executable, '-c', 'pass', *['x' * 2**16] * 2000])
        except OSError:
            pass
"""),
    Attack("an environment of many MiB, again and again", """
import os, sys

def f(x):
    while True:
        if os.fork() == 0:
            os.execve(sys.executable, [sys.executable, '-c', 'input()'], {str(i): 'x' * 2**16 for i in range(20)})
        os.wait()
"""),
]  # fmt: skip

NEIGHBOURS = [
    Attack("spinning children, each in a session of its own", """
import os

def f(x):
    try:
        while True:
            if os.fork() == 0:
                os.setsid()
                while True:
                    pass
    except OSError:  # as many as it may have
        pass
    while True:
        pass
"""),
    Attack("spinning children that nobody waits for", """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)

def f(x):
    while True:
        try:
            if os.fork() == 0:
                end = time.monotonic() + 0.03
                while time.monotonic() < end:
                    pass
                os._exit(0)
        except OSError:
            pass
"""),
    Attack("threads that spin outside of the interpreter", """
import hashlib, threading

def spin():
    while True:
        hashlib.sha256(bytes(2**24))

def f(x):
    for _ in range(12):
        threading.Thread(target=spin).start()
    spin()
"""),
    Attack("threads left at the end of a script", """
import threading, time
n = {2: 7919, 3: 7927}[int(input())]
threading.Thread(target=time.sleep, args=(10**6,)).start()
print(n)
""", reads_and_writes=True),
    Attack("children that hold the output of a script", """
import os, time
n = {2: 7919, 3: 7927}[int(input())]
print(n, flush=True)
if os.fork():
    os._exit(0)
os.setsid()
time.sleep(600)
""", reads_and_writes=True),
    any_of("times of what is the host's",
         "os.utime('/dev/null') is None and os.stat('/dev/null').st_mtime > __import__('time').time() - 60",
         "os.utime(os.__file__) is None and os.stat(os.__file__).st_mtime > __import__('time').time() - 60"),
    any_of("modes of what is the host's", "os.chmod('/dev/null', 0o600) is None",
         "os.chown('/dev/null', os.getuid(), -1) is None",
         "os.rename('/dev/null', '/tmp/lockstitch-attack-null') is None", "os.unlink('/dev/null') is None",
         "os.chmod(os.__file__, 0o666) is None", "os.truncate(os.__file__, 0) is None"),
    any_of("the kernel's own files", "os.listdir('/proc/self')", "open('/proc/self/maps').read()",
         "os.readlink('/proc/self/exe')",
         "open('/proc/sys/kernel/core_pattern').read()", "os.listdir('/sys')", "open('/dev/mem')", "open('/dev/kmsg')",
         "os.listdir('/sys/fs/cgroup')"),
    any_of("a view of the mounts", f"{_SYSCALL}(457, 457, ctypes.create_string_buffer(b'\\x18' + bytes(63)), "
         "ctypes.create_string_buffer(4096), 4096, 0) >= 0",
         f"{_SYSCALL}(458, 458, ctypes.create_string_buffer(b'\\x18\\0\\0\\0\\0\\0\\0\\0' + b'\\xff' * 8 + bytes(48)), "
         "ctypes.create_string_buffer(4096), 64, 0) >= 0"),
    any_of("sockets of the host by name", "[socket.socket(socket.AF_UNIX).connect(path) is None for path in "
         "('/run/docker.sock', '/var/run/docker.sock', '/run/dbus/system_bus_socket', '/tmp/.X11-unix/X0')]",
         "socket.socket(socket.AF_UNIX).connect(chr(0) + '/tmp/.X11-unix/X0') is None"),
    any_of("signals by descriptor", "signal.pidfd_send_signal(os.pidfd_open(HOST_PID), 0) is None",
         "os.pidfd_open(os.getppid()) and os.getppid() == 0"),
    any_of("input of a terminal", "__import__('fcntl').ioctl(0, 0x5412, b'x') == 0", "os.open('/dev/tty', os.O_RDWR) >= 0",
         "os.openpty()"),
    any_of("a raised priority", "os.nice(-5) < 0", "os.setpriority(os.PRIO_PROCESS, 0, -10) is None",
         "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(5)) is None"),
]  # fmt: skip

EXCUSES = [
    Attack(
        "frames that say that the tests are broken",
        """
import os

def f(x):
    text = b'{"broken": ["CannotCross", "an argument"]}'
    for fd in range(3, 64):
        try:
            os.write(fd, b'%08x' % len(text) + text)
        except OSError:
            pass
    return 0
""",
    ),
    Attack(
        "raises CannotCross",
        """
class CannotCross(Exception):
    pass

def f(x):
    raise CannotCross('an argument of f')
""",
    ),
    Attack(
        "raises what the sandbox raises when it does not start",
        """
class StartFailed(RuntimeError):
    pass

def f(x):
    raise StartFailed('its control group')
""",
    ),
    Attack("answers with what has no form outside", "def f(x):\n    return lambda: x\n"),
    Attack(
        "kills the process around it before the first answer",
        """
import os, signal
os.kill(os.getpid(), signal.SIGKILL)
""",
    ),
    Attack(
        "fills all that a program may have before it answers",
        """
import os
kept = []
try:
    while True:
        kept.append(os.open('/dev/null', 0))
except OSError:
    pass
block = []
try:
    while True:
        block.append(bytearray(2**20))
except MemoryError:
    pass

def f(x):
    return len(block)
""",
    ),
    Attack(
        "text that does harm where it is read",
        r"""
def f(x):
    raise ValueError('\x1b[2J\x1b]0;title\x07 \ud800 [bold red]| a |\n\r\u202e' * 50)
""",
    ),
    Attack(
        "a name that does harm where it is read",
        r"""
Name = type('\x1b[31m\n\u202e', (Exception,), {})

def f(x):
    raise Name('x' * 10**6)
""",
    ),
    Attack(
        "prints what does harm where it is read",
        r"""
import sys
sys.stdout.buffer.write(b'\x1b[2J\xff\xfe\r\n\x00' * 100)
""",
        reads_and_writes=True,
    ),
    Attack(
        "watches the worker by a trace function",
        """
import sys, threading
seen = []
def trace(frame, event, argument):
    seen.append(argument)
    frame.f_trace_opcodes = True
    for value in frame.f_locals.values():
        seen.append(value)
    return trace
sys.settrace(trace)
sys.setprofile(trace)
threading.settrace(trace)

def f(x):
    frame = sys._getframe().f_back
    while frame:
        frame.f_trace = trace
        frame = frame.f_back
    for value in seen:
        if type(value) is dict and value.get(4) == 7000 + 933:
            return value[x]
    return 0
""",
    ),
    Attack(
        "audits the worker",
        """
import sys
seen = []
sys.addaudithook(lambda event, arguments: seen.append((event, arguments)))

def f(x):
    for event, arguments in seen:
        if '79' + '19' in repr(arguments):
            return 7000 + 919
    return 0
""",
    ),
]
