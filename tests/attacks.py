"""Programs that try to be paid for what they did not do, or to do harm; see `attack_shapes` for what they are up against."""

from attack_shapes import GOOD, LIBC, Attack, any_of, escape
from attacks_on_the_machine import EXCUSES, KERNEL, NEIGHBOURS

ENDLESS = [
    Attack("endless loop in a call", "def f(x):\n    while True:\n        pass\n"),
    Attack("endless loop at the start", "while True:\n    pass\n"),
    Attack(
        "sleeps for ever",
        """
import time

def f(x):
    time.sleep(10**9)
""",
    ),
    Attack(
        "loop deaf to signals",
        """
import signal
for n in range(1, 65):
    try:
        signal.signal(n, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while True:
    pass
""",
    ),
    Attack(
        "loop that swallows BaseException",
        """
def f(x):
    while True:
        try:
            while True:
                pass
        except BaseException:
            pass
""",
    ),
    Attack("minutes inside one operation", "def f(x):\n    return 9**9**9\n"),
    Attack(
        "catastrophic regular expression",
        """
import re

def f(x):
    return re.match('(a+)+$', 'a' * 64 + 'b')
""",
    ),
    Attack(
        "stops itself",
        """
import os, signal

def f(x):
    os.kill(os.getpid(), signal.SIGSTOP)
""",
    ),
    Attack(
        "answers that never end",
        """
import os

def f(x):
    for fd in range(3, 64):
        try:
            os.write(fd, b'00000100')
        except OSError:
            pass
    while True:
        pass
""",
    ),
]

RESOURCES = [
    Attack(
        "fork bomb",
        """
import os

def f(x):
    while True:
        try:
            os.fork()
        except OSError:
            pass
""",
    ),
    escape(
        "a hundred processes",
        """
import os, time
children = 0
for _ in range(100):
    if os.fork() == 0:
        time.sleep(10**6)
    children += 1
escaped = children == 100
""",
    ),
    escape(
        "a hundred threads",
        """
import threading, time
for _ in range(100):
    threading.Thread(target=time.sleep, args=(5,), daemon=True).start()
escaped = True
""",
    ),
    escape("2 GiB in one process", "block = bytearray(2**31)\nescaped = True"),
    escape(
        "2 GiB in eight processes",
        """
import os, time
reading, writing = os.pipe()
for _ in range(8):
    if os.fork() == 0:
        block = bytearray(b'x') * 2**28
        os.write(writing, b'x')
        time.sleep(10**6)
for _ in range(8):
    os.read(reading, 1)
escaped = True
""",
    ),
    escape(
        "2 GiB of shared memory in eight processes",
        """
import mmap, os, time
reading, writing = os.pipe()
for _ in range(8):
    if os.fork() == 0:
        block = mmap.mmap(-1, 2**28)
        block.write(bytes(2**27))
        block.write(bytes(2**27))
        os.write(writing, b'x')
        time.sleep(10**6)
for _ in range(8):
    os.read(reading, 1)
escaped = True
""",
    ),
    any_of(
        "memory that nobody counts",
        "os.memfd_create('x') >= 0",
        f"{LIBC}.shmget(0, 2**28, 0o1600) >= 0",
        f"{LIBC}.syscall(248, b'user', b'name', b'x' * 1024, 1024, -2) >= 0",
    ),
    escape(
        "fills the disk",
        """
for i in range(40):
    with open(f'/tmp/lockstitch-attack-{i}', 'wb') as file:
        file.write(bytes(2**20))
escaped = True
""",
    ),
    escape(
        "one large file",
        """
with open('/tmp/lockstitch-attack', 'wb') as file:
    file.truncate(2**30)
escaped = True
""",
    ),
    escape(
        "a hundred thousand empty files",
        """
for i in range(100_000):
    open(f'/tmp/lockstitch-attack-{i}', 'w').close()
escaped = True
""",
    ),
    escape(
        "zip bomb",
        """
import zipfile
with zipfile.ZipFile('/tmp/lockstitch-attack.zip', 'w', zipfile.ZIP_DEFLATED) as bomb:
    with bomb.open('x', 'w', force_zip64=True) as file:
        for _ in range(64):
            file.write(bytes(2**20))
zipfile.ZipFile('/tmp/lockstitch-attack.zip').extractall('/tmp')
escaped = True
""",
    ),
    Attack("stdout flood", "def f(x):\n    while True:\n        print('x' * 2**16)\n"),
    Attack(
        "stderr flood",
        """
import sys

def f(x):
    while True:
        sys.stderr.write('x' * 2**16)
""",
    ),
    Attack("stdout flood of a script", "while True:\n    print('7919')\n", reads_and_writes=True),
    escape(
        "takes more than its limits",
        """
import resource
for kind in (resource.RLIMIT_AS, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE, resource.RLIMIT_CPU):
    resource.setrlimit(kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
escaped = True
""",
    ),
    Attack(
        "segmentation fault",
        """
import ctypes

def f(x):
    return ctypes.string_at(0)
""",
    ),
    Attack(
        "deep recursion",
        """
import sys
sys.setrecursionlimit(10**9)

def f(x):
    return f(x)
""",
    ),
]

OUTSIDE = [
    any_of("reads the answers from a file", "open('HOST_FILE').read()"),
    any_of("reads /etc", "open('/etc/passwd').read()", "open('/etc/shadow').read()", "os.listdir('/etc')"),
    any_of("reads a home", "os.listdir('/home')", "[name for name in os.listdir('/root') if name != '.pyenv']",
         "set(os.listdir(os.path.expanduser('~'))) - {'solution.py'}"),
    any_of("reads the environment", "set(os.environ) - {'HOME', 'LC_CTYPE', 'LD_LIBRARY_PATH', 'PWD', 'PYTHONHASHSEED'}",
         "open('/proc/1/environ', 'rb').read()", "open('/proc/HOST_PID/environ', 'rb').read()"),
    any_of("looks for other programs", "os.listdir('/proc')", "os.kill(HOST_PID, 0) is None",
         "[pid for pid in range(3, 1000) if pid != os.getpid() and not os.kill(pid, 0)]"),
    any_of("imports other packages", "__import__('numpy')", "__import__('torch')", "__import__('lockstitch')",
         "__import__('pytest')"),
    any_of("writes outside", *(f"open({path!r}, 'w')" for path in (
        "/lockstitch-attack", "/usr/lib/lockstitch-attack", "/dev/lockstitch-attack", "/root/lockstitch-attack",
        "/home/lockstitch-attack", "/var/tmp/lockstitch-attack", "/dev/fd/lockstitch-attack")),
        "open(os.__file__ + '.lockstitch-attack', 'w')", "open('HOST_FILE', 'w')"),
    any_of("runs a shell", "os.system('true') == 0", "subprocess.run(['/bin/sh', '-c', 'true']).returncode == 0",
         "subprocess.run(['bwrap', '--version']).returncode == 0"),
    any_of("calls a server of this machine", "socket.create_connection(('127.0.0.1', HOST_PORT), 1)",
         "socket.create_connection(('localhost', HOST_PORT), 1)"),
    any_of("calls the internet", "socket.create_connection(('1.1.1.1', 53), 1)",
         "socket.create_connection(('10.0.0.1', 80), 1)"),
    any_of("asks for a name", "socket.gethostbyname('example.com')", "socket.getaddrinfo('pypi.org', 443)",
         "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'?', ('8.8.8.8', 53))"),
    any_of("sockets that no network namespace holds", "socket.socket(40, 1)", "socket.socket(38, 5)", "socket.socket(16, 3)",
         "socket.socket(17, 3)"),
    any_of("kills what is above it", "os.kill(HOST_PID, 9) is None",
         "os.kill(os.getppid(), 9) is None and os.getppid() == 0",
         "os.killpg(0, 0) is None and os.getpgid(0) == 0"),
    Attack("kills everything", """
import os, signal
for pid in (1, -1):
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:
        pass

def f(x):
    return 0
"""),
    Attack("leaves a daemon", """
import os, time

def f(x):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(600)
        os._exit(0)
    return 0
"""),
    Attack("leaves a daemon that holds the pipes", """
import os, time
if os.fork():
    os._exit(0)
os.setsid()
time.sleep(600)
"""),
    Attack("leaves sockets and files", r"""
import os, socket

def f(x):
    a = socket.socket(socket.AF_UNIX)
    a.bind('\0lockstitch-attack')
    a.listen()
    b = socket.socket(socket.AF_UNIX)
    b.bind('/tmp/lockstitch-attack.socket')
    open('/tmp/lockstitch-attack', 'w').close()
    os.fork() or os.setsid()
    return 0
"""),
    any_of("makes namespaces", f"{LIBC}.unshare(0x10000000) == 0", f"{LIBC}.unshare(0x00020000) == 0",
         f"{LIBC}.syscall(56, 0x10000011, 0, 0, 0, 0) >= 0", f"{LIBC}.mount(b'x', b'/tmp', b'tmpfs', 0, 0) == 0",
         "os.chroot('/tmp') is None"),
    any_of("becomes another user", "os.setuid(0) is None and os.getuid() == 0", "os.setgroups([0]) is None"),
    any_of("debugs another process", f"{LIBC}.ptrace(16, 1, 0, 0) == 0",
         f"{LIBC}.process_vm_readv(1, None, 0, None, 0, 0) >= 0"),
    any_of("the kernel's larger surfaces", f"{LIBC}.syscall(425, 1, ctypes.create_string_buffer(256)) >= 0",
         f"{LIBC}.syscall(321, 0, ctypes.create_string_buffer(128), 128) >= 0",
         f"{LIBC}.syscall(323, 0) >= 0"),
    any_of("links out of /tmp",
         "os.symlink('/etc', '/tmp/lockstitch-attack-etc') or os.listdir('/tmp/lockstitch-attack-etc')",
         "os.symlink('HOST_FILE', '/tmp/lockstitch-attack-file') or open('/tmp/lockstitch-attack-file').read()",
         "os.symlink('/proc/1/root', '/tmp/lockstitch-attack-root') or os.listdir('/tmp/lockstitch-attack-root')",
         "os.link('HOST_FILE', '/tmp/lockstitch-attack-hard') is None",
         "os.mknod('/tmp/lockstitch-attack-disk', 0o60666, os.makedev(8, 0)) or open('/tmp/lockstitch-attack-disk')"),
]  # fmt: skip

ON_THE_JUDGE = [
    Attack("sys.exit(0) at the start", "import sys\nsys.exit(0)\n"),
    Attack("sys.exit(0) in a call", """
import sys

def f(x):
    sys.exit(0)
"""),
    Attack("os._exit(0) at the start", "import os\nos._exit(0)\n"),
    Attack("os._exit(0) in a call", """
import os

def f(x):
    os._exit(0)
"""),
    Attack("atexit", """
import atexit, os
atexit.register(os._exit, 0)

def f(x):
    raise ValueError
"""),
    Attack("excepthook", """
import os, sys
sys.excepthook = lambda *error: os._exit(0)

def f(x):
    raise ValueError
"""),
    Attack("prints marks of success", """
import os, sys
print('ALL TESTS PASSED')
print('OK')
print('{"passed": true}')
sys.stdout.flush()
os._exit(0)
"""),
    Attack("forges answers", """
import json, os

def send(*messages):
    for message in messages:
        data = json.dumps(message).encode()
        for fd in range(64):
            try:
                os.write(fd, b'%08x' % len(data) + data)
            except OSError:
                pass

for _ in range(3):
    send({'done': True}, {'done': True, 'reason': ''}, {'value': True}, {'passed': True})

def f(x):
    send({'done': True}, {'value': True})
    return True
"""),
    Attack("closes all pipes", """
import os
os.closerange(0, 64)

def f(x):
    return 0
"""),
    Attack("reads the pipes", """
import os

def f(x):
    for fd in range(3, 64):
        try:
            os.set_blocking(fd, False)
            os.read(fd, 2**16)
        except OSError:
            pass
    return 0
"""),
    Attack("equal to everything", """
class Any:
    def __eq__(self, other):
        return True
    def __ne__(self, other):
        return False
    def __hash__(self):
        return 0
    def __bool__(self):
        return True

def f(x):
    return Any()
"""),
    Attack("an int equal to everything", """
class Any(int):
    __eq__ = lambda a, b: True
    __ne__ = lambda a, b: False
    __hash__ = int.__hash__
    __int__ = __index__ = __float__ = lambda a: 7919

def f(x):
    return Any(0)
"""),
    Attack("a text and a set equal to everything", """
class Text(str):
    __eq__ = lambda a, b: True
    __ne__ = lambda a, b: False
    __hash__ = lambda a: 0
class Set(set):
    __eq__ = lambda a, b: True
    __ne__ = lambda a, b: False
    __contains__ = lambda a, b: True

def f(x):
    return Set() if x == 6 else Text('x') if x == 5 else 7900 + {2: 19, 3: 27, 4: 33}[x]
"""),
    Attack("says that its class is int", """
class Liar:
    __class__ = property(lambda self: int)
    __eq__ = lambda a, b: True

def f(x):
    return Liar()
"""),
    Attack("not a number", "def f(x):\n    return float('nan')\n"),
    Attack("infinity", "def f(x):\n    return float('inf')\n"),
    Attack("True for every question", "def f(x):\n    return True\n"),
    Attack("patches what assertions use", """
import builtins
builtins.AssertionError = type('Nothing', (BaseException,), {})
builtins.all = builtins.any = lambda *a: True
builtins.isinstance = lambda *a: True
builtins.sorted = builtins.len = lambda *a, **k: 7919

def f(x):
    return x
"""),
    Attack("patches unittest and pytest", """
import sys, types, unittest
for name in dir(unittest.TestCase):
    if name.startswith('assert'):
        setattr(unittest.TestCase, name, lambda *a, **k: None)
sys.modules['pytest'] = types.ModuleType('pytest')

def f(x):
    return 0
"""),
    Attack("patches json", """
import json
json.dumps = lambda *a, **k: '{"value": true}'
json.loads = lambda *a, **k: {'eval': '1'}
json.JSONEncoder.encode = json.dumps

def f(x):
    return 0
"""),
    Attack("patches the worker around it", """
import sys
main = sys.modules['__main__']
for name, value in list(vars(main).items()):
    if callable(value):
        setattr(main, name, lambda *a, **k: True)

def f(x):
    return 0
"""),
    Attack("looks for the answers in the frames above", """
import sys
KEPT = [7000]

def f(x):
    frame = sys._getframe().f_back
    while frame:
        found = [*frame.f_code.co_consts, *frame.f_locals.values(), *frame.f_globals.values()]
        for value in found:
            if type(value) is dict and value.get(4) == KEPT[0] + 933 and x in value:
                return value[x]
            if type(value) is set and x == 6:
                return value
            if type(value) is int and value == KEPT[0] + {2: 919, 3: 927}.get(x, 0):
                return value
        frame = frame.f_back
    return 0
"""),
    Attack("looks for the answers in memory", """
import gc
KEPT = [7000]

def f(x):
    for thing in gc.get_objects():
        if type(thing) is dict and thing.get(4) == KEPT[0] + 933 and x in thing:
            return thing[x]
        if type(thing) is set and x == 6 and len(thing) == 2 and 1 in thing:
            return thing
        if type(thing) in (list, tuple) and KEPT[0] + {2: 919, 3: 927}.get(x, 0) in thing:
            return KEPT[0] + {2: 919, 3: 927}[x]
    return 0
"""),
    Attack("reads its input to the end", """
import sys
sys.stdin.read()

def f(x):
    return sys.stdin.read() or 0
"""),
    Attack("an endless number", "def f(x):\n    return 10**100_000\n"),
    Attack("an endless text", "def f(x):\n    return 'parsec' * 10**7\n"),
    Attack("a deep list", """
def f(x):
    a = []
    for _ in range(100_000):
        a = [a]
    return a
"""),
    Attack("a list that holds itself", """
def f(x):
    a = []
    a.append(a)
    return a
"""),
    Attack("JSON that breaks parsers", r"""
import os

def f(x):
    for text in (b'[' * 4000, b'{"value":' * 400, b'9' * 4000, b'{"value": {"set": [' + b'[' * 3900,
                 b'{"value": {"dict": [[1]]}}', b'{"value": {}}', b'\xff\xfe', b'{"raised": 1}', b'NaN', b''):
        for fd in range(3, 64):
            try:
                os.write(fd, b'%08x' % len(text) + text)
            except OSError:
                pass
    return 0
"""),
    Attack("a set of colliding numbers", GOOD + """
g = f

def f(x):
    return set(range(0, 40_000 * (2**61 - 1), 2**61 - 1)) if x == 6 else g(x)
"""),
    Attack("a pickle that runs a command", """
import os

class Bomb:
    def __reduce__(self):
        return os.system, ('touch /tmp/lockstitch-attack',)

def f(x):
    return Bomb()
"""),
    Attack("raises StopIteration", GOOD + """
g = f

def f(x):
    if x in (4, 5):
        raise StopIteration
    return g(x)
"""),
    Attack("raises an exception equal to everything", """
class Done(Exception):
    __eq__ = lambda a, b: True

def f(x):
    raise Done(7919)
"""),
    Attack("an exception whose text loops", """
class Slow(Exception):
    def __str__(self):
        while True:
            pass

def f(x):
    raise Slow
"""),
    Attack("the first line of the output only", """
n = {2: 7919, 3: 7927}[int(input())]
print(n)
""", reads_and_writes=True),
    Attack("no output", "input()\n", reads_and_writes=True),
    Attack("more output than asked for", r"""
n = {2: 7919, 3: 7927}[int(input())]
print(n, 2 * n, 3 * n, sep='\n')
""", reads_and_writes=True),
    Attack("right, and then an error", r"""
n = {2: 7919, 3: 7927}[int(input())]
print(n, 2 * n, sep='\n')
raise SystemExit(1)
""", reads_and_writes=True),
    Attack("prints everything", r"""
for n in (7919, 7927):
    print(n, 2 * n, sep='\n')
""", reads_and_writes=True),
]  # fmt: skip

KINDS = {
    "loops": ENDLESS,
    "resources": RESOURCES,
    "what is outside": OUTSIDE,
    "the judge": ON_THE_JUDGE,
    "the kernel's memory": KERNEL,
    "neighbours and the host": NEIGHBOURS,
    "excuses": EXCUSES,
}
ATTACKS = [attack for attacks in KINDS.values() for attack in attacks]
