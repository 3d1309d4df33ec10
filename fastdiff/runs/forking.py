"""Runs forked from a process that has imported what they need: a fifth of a second instead of the imports' seconds.

python -m fastdiff.runs.forking SOCKET PARENT

The server imports torch and diffusers and computes nothing, so it has one thread, and a fork of it is a whole process:
OpenMP and the allocators begin anew in each child. A server that does have threads (of a library that began some while it
was imported) forks nothing: a child would lack them, and might wait for their locks forever. Linux only.

multiprocessing's forkserver can't stand in for it (Python 3.11 to 3.13): it goes on, with all that it has imported, for as long as
its interpreter does, and nothing public ends it after a sweep. A preload that raises ImportError is passed over in silence there,
too, and any other error ends the server without a word of its own.

A request is one message: JSON, and with it the child's pipes, its log, and a line on which first the child tells its process
id and then the server how it ended.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import gc
import importlib
import itertools
import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

from fastdiff.measuring.child import PARENT, end_at_once, quiet_and_safe
from fastdiff.planning.plan import Plan
from fastdiff.runs.process import Countdown, Worker, environment_of, readable, start

PIPELINES = ("StableDiffusionXLPipeline",)
"""Of diffusers: what the embedded model is loaded as."""

MODULES = (
    *("fastdiff.measuring.worker", "fastdiff.planning.build", "fastdiff.choices.compose"),
    *("torch", "diffusers", "transformers"),
)
"""What a run imports whatever it is. torchmetrics is left to the children: it is imported once the peaks of memory are read,
and would be in them."""

_SERVER = (sys.executable, "-m", "fastdiff.runs.forking")

_PATIENCE_S = 120.0
"""Imports from a slow disk take long; a server that has said nothing by then has hung."""

_MESSAGE_BYTES = 1 << 17
_READ_LATE = re.compile(r"FASTDIFF_|TORCHINDUCTOR_CACHE_DIR$|TRITON_CACHE_DIR$|HYDRA_")
"""Variables that are read when they are needed. Any other may have been read by an import, which is over in a fork."""


def can_fork(plan: Plan) -> bool:
    """Whether a run may begin as a fork: on Linux, and on the CPU alone, for CUDA doesn't survive a fork."""
    return plan.device == "cpu" and hasattr(os, "pidfd_open")


class Forks:
    """A server that forks runs, from its start to its end; `start` stands in for process.start.

    log: the file that gets what libraries print when they are imported.
    pipelines: classes of diffusers that runs will load.
    notice: why processes are started afresh instead, once that is known; None while they are forked.
    """

    def __init__(self, log: Path, pipelines: Collection[str] = PIPELINES) -> None:
        self.notice: str | None = None
        self._log, self._pipelines = log, pipelines
        self._ready = False
        self._asking = threading.Lock()

    def __enter__(self) -> Self:
        """Start the server; it imports while its parent goes on."""
        if not hasattr(os, "pidfd_open"):
            self.notice = "processes are not forked on this system: each imports torch anew"
            return self
        self._environment = environment_of({})
        self._line, servers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with servers, self._log.open("ab") as log:
            self._server = subprocess.Popen(
                [
                    *_SERVER,
                    *(str(servers.fileno()), str(os.getpid()), *self._pipelines),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                pass_fds=[servers.fileno()],
                start_new_session=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        """End the server, and with it whatever it forked and still goes on."""
        if not hasattr(self, "_line"):
            return
        self._line.close()
        if not self._ready:  # it still imports, and has forked nothing
            self._server.terminate()
        self._server.wait()

    @property
    def pid(self) -> int:
        """The server's process."""
        return self._server.pid

    def start(
        self,
        module: str,
        folder: Path,
        variables: Mapping[str, str],
        stdin: int = subprocess.DEVNULL,
    ) -> Worker:
        """Start a module of fastdiff's on a run folder as process.start does: forked, or afresh where it must be.

        Afresh where the server can't fork (`notice` says why), and where the run wants other environment variables than
        the server was started with.
        """
        changed = self._changed(variables)
        if changed is not None and self._can_fork():
            try:
                return self._fork(module, folder, changed, stdin)
            except (OSError, EOFError):
                self.notice = "the process that forks runs has ended: each imports torch anew"
        return start(module, folder, variables, stdin)

    def _changed(self, variables: Mapping[str, str]) -> dict[str, str | None] | None:
        """Variables that differ from the server's, None for one that is gone; None if a fork would come too late for one."""
        wanted, had = environment_of(variables), getattr(self, "_environment", {})
        names = {name for name in wanted.keys() | had.keys() if wanted.get(name) != had.get(name)}
        if not all(_READ_LATE.match(name) for name in names):
            return None
        return {name: wanted.get(name) for name in names}

    def _can_fork(self) -> bool:
        """Whether the server is there and can fork; waits until its imports are over."""
        with self._asking:
            if self._ready or self.notice:
                return self.notice is None
            self._line.settimeout(_PATIENCE_S)
            try:
                told = self._line.recv(_MESSAGE_BYTES)
            except OSError:
                told = b""
            self._line.settimeout(None)
            self._ready = True
            if not told:
                self._server.kill()
                self.notice = (
                    f"the process that forks runs did not start ({self._log}): "
                    "each imports torch anew"
                )
            elif (threads := json.loads(told)["threads"]) != 1:
                self.notice = (
                    f"runs are not forked: importing began {threads - 1} threads that a fork would "
                    "lose, so each run imports torch anew"
                )
            return self.notice is None

    def _fork(
        self, module: str, folder: Path, changed: Mapping[str, str | None], stdin: int
    ) -> Worker:
        """Raises OSError or EOFError if the server is gone."""
        asked = {
            "module": module,
            "folder": str(folder.absolute()),
            "working_directory": os.getcwd(),
            "variables": changed,
        }
        ends, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.ExitStack() as given, contextlib.ExitStack() as kept:
            given.enter_context(theirs)
            kept.enter_context(ends)
            says, hears = _pipe()
            events, tells = kept.enter_context(says), given.enter_context(hears)
            words = None
            if stdin == subprocess.PIPE:
                listens, speaks = _pipe()
                source, words = given.enter_context(listens), kept.enter_context(speaks)
            else:
                source = given.enter_context(open(os.devnull, "rb"))
            log = given.enter_context((folder / "log.txt").open("ab"))
            files = [file.fileno() for file in (source, tells, log, theirs)]
            socket.send_fds(self._line, [json.dumps(asked).encode()], files)
            given.close()  # so that the pipes end with the child
            pid = _told(ends)["pid"]
            kept.pop_all()
        return Forked(pid, ends, words, events)


class Forked:
    """A forked run as its parent sees it: what process.py asks of a subprocess.Popen."""

    def __init__(
        self, pid: int, ends: socket.socket, stdin: IO[bytes] | None, stdout: IO[bytes] | None
    ) -> None:
        self.pid, self.stdin, self.stdout = pid, stdin, stdout
        self.returncode: int | None = None
        self._ends = ends

    def poll(self) -> int | None:
        """Its exit code; None while it goes on."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(timeout=0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, negative for a signal. Raises subprocess.TimeoutExpired after so many seconds."""
        if self.returncode is None:
            left = Countdown(timeout)
            self._wait_for(self._ends.fileno(), left)
            try:
                self.returncode = _told(self._ends)["code"]
            except (OSError, EOFError):  # the server has ended, and with it the child will
                with contextlib.suppress(ProcessLookupError), _process_file(self.pid) as gone:
                    self._wait_for(gone, left)
                self.returncode = -signal.SIGTERM
            self._ends.close()
        return self.returncode

    def _wait_for(self, file: int, left: Countdown) -> None:
        if not readable(file, left()):
            raise subprocess.TimeoutExpired(f"process {self.pid}", 0)


def _pipe() -> tuple[IO[bytes], IO[bytes]]:
    """A pipe's ends, to read from and to write to."""
    reading, writing = os.pipe()
    return os.fdopen(reading, "rb"), os.fdopen(writing, "wb")


def _told(line: socket.socket) -> dict[str, Any]:
    """The next message. Raises EOFError if nobody can send one any more."""
    message = line.recv(_MESSAGE_BYTES)
    if not message:
        raise EOFError
    told: dict[str, Any] = json.loads(message)
    return told


@contextlib.contextmanager
def _process_file(pid: int) -> Iterator[int]:
    """A file that can be read from once a process has ended. Raises ProcessLookupError if it is gone already."""
    file = os.pidfd_open(pid)
    try:
        yield file
    finally:
        os.close(file)


# The server ----------------------------------------------------------------------------------------


@dataclass
class Child:
    """What a forked process is for.

    files: its standard input, output and error, and the line on which it tells its process id.
    """

    module: str
    folder: str
    working_directory: str
    variables: dict[str, str | None]
    files: list[int] = field(default_factory=list)

    def run(self, server: int, pages: list[tuple[int, int]]) -> int:
        """Become what process.start would have started, and run it to its exit code."""
        os.setsid()
        for number, file in enumerate(self.files[:3]):
            os.dup2(file, number)
            os.close(file)
        for name, value in {**self.variables, PARENT: str(server)}.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        os.chdir(self.working_directory)
        with socket.socket(fileno=self.files[3]) as line:
            line.send(json.dumps({"pid": os.getpid()}).encode())
        map_again(pages)
        sys.argv = [self.module, self.folder]
        return int(importlib.import_module(self.module).main())


class Server:
    """Forks a child for each request until its parent has no more, or is gone."""

    def __init__(self, line: socket.socket, parent: int) -> None:
        self._line = line
        self._children: dict[int, tuple[int, socket.socket]] = {}
        self._waiting = selectors.DefaultSelector()
        self._waiting.register(line, selectors.EVENT_READ)
        self._parent = os.pidfd_open(parent)
        self._waiting.register(self._parent, selectors.EVENT_READ)

    def serve(self) -> Child | None:
        """Returns twice and more: in each child what it is for, and in the server None when all is over."""
        while True:
            for key, _ in self._waiting.select():
                if key.fd == self._parent:
                    self._end()
                    return None
                if key.fd in self._children:
                    self._tell_ending(key.fd)
                    continue
                message, files, _, _ = socket.recv_fds(self._line, _MESSAGE_BYTES, 4)
                if not message:
                    self._end()
                    return None
                if self._fork(files):
                    return Child(**json.loads(message), files=files)

    def _fork(self, files: list[int]) -> bool:
        """Whether this is the child."""
        pid = os.fork()
        if pid == 0:
            self._leave()
            return True
        for file in files[:3]:
            os.close(file)
        child = os.pidfd_open(pid)
        self._children[child] = pid, socket.socket(fileno=files[3])
        self._waiting.register(child, selectors.EVENT_READ)
        return False

    def _leave(self) -> None:
        """In a child: close what is the server's."""
        self._waiting.close()
        self._line.close()
        os.close(self._parent)
        for child, (_, line) in self._children.items():
            os.close(child)
            line.close()

    def _tell_ending(self, child: int) -> None:
        pid, line = self._children.pop(child)
        self._waiting.unregister(child)
        os.close(child)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with line, contextlib.suppress(OSError):
            line.send(json.dumps({"code": code}).encode())

    def _end(self) -> None:
        for pid, _ in self._children.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        for child in list(self._children):
            self._tell_ending(child)


def import_all(pipelines: Collection[str]) -> None:
    """What a run on the CPU imports sooner or later, whatever it is; nothing here computes."""
    quiet_and_safe()
    for name in MODULES:
        importlib.import_module(name)
    import diffusers

    for name in pipelines:
        getattr(diffusers, name, None)


def count_threads() -> int:
    """Threads of this process that a fork would lose.

    OpenBLAS, which numpy and scipy bring, begins threads when it is loaded, ends them before a fork, and begins them anew
    where they are needed; so they are counted after a fork of nothing.
    """
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    found = re.search(r"^Threads:\s*(\d+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found.group(1)) if found else 0


# Memory --------------------------------------------------------------------------------------------

_FILE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ [1-9]\d* +/", re.MULTILINE)
_PRESENT = 1 << 63
_POPULATE_READ = 22


def file_pages() -> list[tuple[int, int]]:
    """Address and length in bytes of the stretches of mapped files that are resident in this process."""
    size, found = os.sysconf("SC_PAGE_SIZE"), []
    with contextlib.suppress(OSError), open("/proc/self/pagemap", "rb", buffering=0) as table:
        for mapping in _FILE.finditer(Path("/proc/self/maps").read_text()):
            begin, end = (int(address, 16) for address in mapping.groups())
            entries = array.array(
                "Q", os.pread(table.fileno(), (end - begin) // size * 8, begin // size * 8)
            )
            at = begin
            for present, pages in itertools.groupby(entries, lambda entry: entry & _PRESENT != 0):
                length = sum(1 for _ in pages) * size
                if present:
                    found.append((at, length))
                at += length
    return found


def map_again(stretches: list[tuple[int, int]]) -> None:
    """Make resident in a fork what of mapped files was in the process that it came from.

    A fork has its parent's data at once, but maps pages of files, such as the code of libraries, only as it comes to them:
    its resident memory would begin a quarter lower than that of a process which imported the same, and seem to grow by code
    that it only runs. On Linux before 5.14 that stays so.
    """
    advise = ctypes.CDLL(None).madvise
    for address, length in stretches:
        advise(ctypes.c_void_p(address), ctypes.c_size_t(length), _POPULATE_READ)


def main() -> int:
    line, parent = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    import_all(sys.argv[3:])
    line.send(json.dumps({"threads": count_threads()}).encode())
    server, pages = os.getpid(), file_pages()
    gc.freeze()  # a collection in a child would write to every object, and so copy what it shares with the server
    child = Server(line, parent).serve()
    if child is not None:
        end_at_once(child.run(server, pages))
    return 0


if __name__ == "__main__":
    sys.exit(main())
