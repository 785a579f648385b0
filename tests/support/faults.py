"""Commands as processes that a test disturbs at a chosen moment: killed, stopped, with a full or a closed disk."""

import contextlib
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[2]
MEBIBYTE = 1 << 20


def start(argv, log, at_file=0, number=signal.SIGKILL):
    """Start a command in a child process (forked: no time for imports), in a session of its own.

    Args:
        argv: of `ctxaware`, or of a recipe, whose file's name comes first.
        log: file for what it prints.
        at_file: the process sends itself a signal just before its so-manieth file is put in its place; 0 for never.
        number: of the signal.

    Returns:
        The process id, which is the session's as well.
    """
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.setsid()
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if at_file:
            _signal_at(at_file, number)
        sys.argv = [str(word) for word in argv]
        if sys.argv[0].endswith(".py"):
            runpy.run_path(str(ROOT / "recipes" / sys.argv[0]), run_name="__main__")
        else:
            from ctxaware.commands.app import main

            sys.argv.insert(0, "ctxaware")
            main()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _signal_at(n, number):
    """Every file of ours is flushed to the disk before it is renamed or counts; a folder is renamed."""
    left, fsync, rename = n, os.fsync, Path.rename

    def count():
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), number)

    def counted_fsync(handle):
        count()
        fsync(handle)

    def counted_rename(self, target):
        count()
        return rename(self, target)

    os.fsync, Path.rename = counted_fsync, counted_rename


def ended(child):
    """Exit code of a process that has ended, or is waited for; the signal's number, negative, where one ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run(argv, log, at_file=0, number=signal.SIGKILL):
    """Start a command and wait for it; its exit code."""
    return ended(start(argv, log, at_file, number))


def wait_until_stopped(child):
    """Wait until the process has stopped itself (SIGSTOP)."""
    _, status = os.waitpid(child, os.WUNTRACED)
    assert os.WIFSTOPPED(status), "it ended before it could be stopped"


def processes_of(session):
    """Processes of a session that are not yet gone, after at most two seconds."""
    for _ in range(20):
        alive = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with contextlib.suppress(OSError):
                    fields = (folder / "stat").read_text().rpartition(")")[2].split()
                    if int(fields[3]) == session and fields[0] != "Z":
                        alive.append(int(folder.name))
        if not alive:
            return []
        time.sleep(0.1)
    return alive


def unfinished(folder):
    """What was begun and not put in its place, anywhere below a folder."""
    return [str(path.relative_to(folder)) for path in folder.rglob("*.unfinished")]


def can_mount(folder):
    """Whether a file system can be mounted here."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with mounted(folder, MEBIBYTE):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextlib.contextmanager
def mounted(folder, size):
    """A file system in memory of so many bytes; the yielded function mounts it again with other options."""
    folder.mkdir(parents=True, exist_ok=True)

    def mount(options):
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True, capture_output=True)

    mount(f"size={size}")
    try:
        yield lambda options: mount(f"remount,{options}")
    finally:
        subprocess.run(["umount", "-l", folder], check=True, capture_output=True)


def size_of(path):
    """Bytes of a file, or of all files below a folder, as a file system in memory counts them: whole pages."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(-(-p.stat().st_size // 4096) * 4096 for p in files)
