//! Programs that take all there is, or never end.

use crate::{Attack, prints_the_answer};

/// Each prints what is no answer if it gets to its end.
const HOGS: [(&str, &str, &[&str]); 22] = [
    (
        "bombs with forks",
        "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass",
        &["over the limit"],
    ),
    (
        "bombs with threads",
        "import threading, time\nn = 0\ntry:\n  while n < 1000: threading.Thread(target=time.sleep, args=(0.5,), daemon=True).start(); n += 1\nexcept RuntimeError: print('contained' if n < 40 else n)",
        &["prints contained"],
    ),
    (
        "hogs memory",
        "a = []\ntry:\n  while True: a.append(bytearray(1 << 24))\nexcept MemoryError: print('contained' if len(a) < 17 else 'much')",
        &["prints contained", "memory over the limit"],
    ),
    (
        "hogs memory with many processes",
        "import os, time\nfor _ in range(12):\n  if os.fork() == 0:\n    a = bytearray(b'x') * (100 << 20); time.sleep(9)\ntime.sleep(9)",
        &["memory over the limit"],
    ),
    (
        "hogs memory that belongs to no process",
        "import errno, mmap, os\ndef get(name, file, flags):\n  try:\n    m = mmap.mmap(os.open(file, os.O_RDWR) if file else -1, 2 << 20, flags=flags)\n    m.write(bytes(2 << 20)); m.madvise(mmap.MADV_DONTNEED); print(name)\n  except OSError as e:\n    if e.errno not in (errno.ENOSYS, errno.ENOENT): print(name, e)\nget('shared', '', mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)\nget('validated', '', 3 | mmap.MAP_ANONYMOUS)\nget('huge', '', mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000)\nget('zero', '/dev/zero', mmap.MAP_SHARED)\nget('shm', '/dev/shm', mmap.MAP_SHARED)\nprint('contained')",
        &["prints contained"],
    ),
    (
        "hogs memory through mapped files",
        "import mmap, os\nfor n in range(4):\n  f = os.open(f'f{n}', os.O_RDWR | os.O_CREAT); os.truncate(f, 16 << 20)\n  m = mmap.mmap(f, 16 << 20)\n  for i in range(16): m.write(bytes(1 << 20)); m.madvise(mmap.MADV_DONTNEED)\n  print(n)",
        &["signal 7"],
    ),
    (
        "fills the disk",
        "n = 0\ntry:\n  while True: open(f'f{n}', 'wb').write(bytes(1 << 20)); n += 1\nexcept OSError: print('contained' if n < 40 else n)",
        &["prints contained"],
    ),
    (
        "writes one large file",
        "n = 0\nf = open('f', 'wb', 0)\ntry:\n  while True: n += f.write(bytes(1 << 20))\nexcept OSError: print('contained' if n <= 16 << 20 else n)",
        &["prints contained"],
    ),
    (
        "makes a sparse file",
        "import os\ntry: os.truncate(os.open('f', 66), 1 << 40); print('made')\nexcept OSError: print('contained')",
        &["prints contained"],
    ),
    (
        "makes files without end",
        "n = 0\ntry:\n  while True: open(f'f{n}', 'w').close(); n += 1\nexcept OSError: print('contained' if n < 5000 else n)",
        &["prints contained"],
    ),
    (
        "makes folders without end",
        "import os\nn = 0\ntry:\n  while True: os.mkdir('d'); os.chdir('d'); n += 1\nexcept OSError: print('contained' if n < 5000 else n)",
        &["prints contained"],
    ),
    (
        "opens files without end",
        "a = []\ntry:\n  while True: a.append(open('main.py'))\nexcept OSError: print('contained' if len(a) < 64 else len(a))",
        &["prints contained"],
    ),
    (
        "floods its output",
        "import sys\nwhile True: sys.stdout.write('x' * 65536)",
        &["output over the limit"],
    ),
    (
        "floods its errors",
        "import sys\nwhile True: sys.stderr.write('x' * 65536)",
        &["output over the limit"],
    ),
    ("computes for ever", "while True: pass", &["processor time over the limit"]),
    (
        "computes on after the signal",
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
        &["over the limit"],
    ),
    (
        "closes everything and sleeps",
        "import os, time\nfor fd in range(64):\n  try: os.close(fd)\n  except OSError: pass\ntime.sleep(1000)",
        &["time over the limit"],
    ),
    (
        "stops itself",
        "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
        &["time over the limit"],
    ),
    (
        "waits in the kernel for its child",
        "import ctypes, os, time\nCLONE_VFORK, SIGCHLD, O = 0x4000, 17, ctypes.c_long(0)\nclone = 56 if os.uname().machine == 'x86_64' else 220\nif ctypes.CDLL(None).syscall(ctypes.c_long(clone), ctypes.c_long(CLONE_VFORK | SIGCHLD), O, O, O, O) == 0:\n  time.sleep(12); os._exit(0)\nprint('late')",
        &["time over the limit"],
    ),
    (
        "leaves a daemon",
        "import os, time\nif os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0:\n    for fd in range(3): os.close(fd)\n    while True: time.sleep(1)\n  os._exit(0)\nprint('contained')",
        &["prints contained"],
    ),
    (
        "overflows its stack",
        "import sys\nsys.setrecursionlimit(10 ** 9)\nf = lambda n: [f(n + 1)]\ng = f\nclass A:\n  def __repr__(self): return repr(self)\nrepr(A())",
        &["signal", "exit code", "over the limit"],
    ),
    (
        "starts with arguments without end",
        "import os\ntry: os.execv('/usr/bin/env', ['x' * 100000] * 1000)\nexcept OSError: print('contained')",
        &["prints contained"],
    ),
];

pub fn attacks() -> Vec<Attack> {
    let attack = |(name, code, reasons): &(&'static str, &str, &'static [&'static str])| Attack {
        name,
        completion: format!("```python\n{code}\n```"),
        tests: prints_the_answer(),
        prompt: "",
        reasons,
    };
    HOGS.iter().map(attack).collect()
}
