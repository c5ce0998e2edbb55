"""Finds the image files of class folders: in this process, and many of them in several.

Nearly all of the time goes into one system call a file, and threads do not help: what Python does
around the call holds the interpreter's lock. This file is therefore also the script that the other
processes run. It imports nothing but the standard library, so that they start within 20 ms.
"""

from __future__ import annotations

import marshal
import os
import subprocess
import sys
from array import array
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from itertools import pairwise

# torchvision's ImageFolder takes the same.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information")
FILES_ALONE = 20_000  # after so many, 0.1 s, starting processes is worth while
_WALKED, _FAILED = b".", b"!"  # what another process says of each folder, before its answer
MAX_PROCESSES = 8  # more than a disk or a file server answers at once

Watch = Callable[[str], AbstractContextManager[object]]


class Listing:
    """Image files, class folder after class folder, sorted within each.

    Columns and not a tuple a file: a million tuples cost more than what they hold.

    Attributes:
        names: Names of the files, each beginning with its class folder's.
        sizes: Bytes.
        times: Nanoseconds of the last change.
        counts: Number of files of each class folder.
        hidden: Names of the hidden folders and image files in them, which are passed over.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.hidden: list[str] = []
        self.sizes, self.times, self.counts = array("q"), array("q"), array("q")

    def add(self, folder: str, tree: _Tree) -> None:
        """Walks one class folder; raises OSError where that cannot be done."""
        files = sorted(_walk(folder, os.path.basename(folder) + os.sep, tree, self.hidden))
        self.names += [name for name, _, _ in files]
        self.sizes.extend([size for _, size, _ in files])
        self.times.extend([time for _, _, time in files])
        self.counts.append(len(files))

    def packed(self) -> bytes:
        """The columns, for another process of the same interpreter."""
        numbers = [column.tobytes() for column in (self.sizes, self.times, self.counts)]
        # It keeps names that are not Unicode.
        return marshal.dumps((self.names, self.hidden, *numbers))

    def extend(self, packed: bytes) -> None:
        """Appends what another process has packed."""
        names, hidden, sizes, times, counts = marshal.loads(packed)
        self.names += names
        self.hidden += hidden
        self.sizes.frombytes(sizes)
        self.times.frombytes(times)
        self.counts.frombytes(counts)


def list_files(
    folders: Sequence[str],
    *,
    classes: bool = True,
    watch: Watch = nullcontext,
) -> Listing:
    """The image files at any depth below the class folders.

    Args:
        folders: The class folders.
        classes: Whether the folders beside them are other classes, which no link in a class adds to
            it.
        watch: Around the wait for each folder, as `disk.doing`.

    Raises:
        OSError: A folder cannot be read.
        RuntimeError: Another process died while it read folders.
    """
    listing, tree = Listing(), _Tree(classes)
    for folder in folders:
        if len(listing.names) >= FILES_ALONE:
            break
        with watch(f"listing {folder}"):
            listing.add(folder, tree)
    ahead = folders[len(listing.counts) :]
    n_processes = min(len(ahead), len(os.sched_getaffinity(0)), MAX_PROCESSES)
    if n_processes > 1:
        _add_apart(listing, ahead, n_processes, watch)
    else:
        for folder in ahead:
            with watch(f"listing {folder}"):
                listing.add(folder, tree)
    return listing


def is_system(name: str) -> bool:
    """Whether a folder or file of this name is hidden or an operating system's, and no image."""
    return name.startswith(".") or name in SYSTEM_FOLDERS


def leads_up(folder: str) -> bool:
    """Whether a folder in another is a link to that, or to one that it lies in."""
    return os.path.islink(folder) and _place(os.stat(folder)) in _Tree().above(folder)


def _walk(folder: str, prefix: str, tree: _Tree, hidden: list[str]) -> list[tuple[str, int, int]]:
    """Every folder under its own name, and once by links if it has none here.

    A link to a folder that the class lies in, or to another class, is not followed. What is hidden
    is named in `hidden`: beside images macOS leaves ._NAME.jpg, which are none.
    """
    files: list[tuple[str, int, int]] = []
    root, seen = os.path.dirname(folder), {_place(os.stat(folder)), *tree.above(folder)}
    pending, linked = [(folder, prefix)], list[tuple[str, str, tuple[int, int]]]()
    by_link = False
    while pending or linked:
        if not pending:
            linked.sort(reverse=True)
            prefix, folder, place = linked.pop()
            if place not in seen and place not in tree.folders_in(root):
                seen.add(place)
                pending.append((folder, prefix))
                by_link = True
            continue
        folder, prefix = pending.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    is_folder, stat = entry.is_dir(), entry.stat()
                except OSError:
                    # A dangling or circular link: keeps its place in the order, and is left out.
                    is_folder, stat = False, entry.stat(follow_symlinks=False)
                is_image = not is_folder and entry.name.lower().endswith(EXTENSIONS)
                if (is_folder or is_image) and is_system(entry.name):
                    hidden.append(prefix + entry.name)
                elif is_folder:
                    place, below = _place(stat), prefix + entry.name + os.sep
                    if entry.is_symlink():
                        linked.append((below, entry.path, place))
                    elif not by_link or place not in seen:
                        seen.add(place)
                        pending.append((entry.path, below))
                elif is_image:
                    files.append((prefix + entry.name, stat.st_size, stat.st_mtime_ns))
    return files


def _place(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_dev, stat.st_ino


class _Tree:
    """What lies above and beside class folders, by device and inode; each looked up once."""

    def __init__(self, classes: bool = True) -> None:
        self._classes = classes
        self._chains: dict[str, set[tuple[int, int]]] = {}
        self._folders: dict[str, set[tuple[int, int]]] = {}

    def above(self, folder: str) -> set[tuple[int, int]]:
        """Every folder that a folder lies in, by its name and by where its links lead."""
        places = self._chain(os.path.dirname(folder))
        if os.path.islink(folder):
            places = places | self._chain(os.path.dirname(os.path.realpath(folder)))
        return places

    def _chain(self, folder: str) -> set[tuple[int, int]]:
        if folder not in self._chains:
            places: set[tuple[int, int]] = set()
            # Not abspath, which would take `link/..` for the folder that the link lies in.
            for path in (os.path.join(os.getcwd(), folder), os.path.realpath(folder)):
                while True:
                    places.add(_place(os.stat(path)))
                    if path == (path := os.path.dirname(path)):
                        break
            self._chains[folder] = places
        return self._chains[folder]

    def folders_in(self, folder: str) -> set[tuple[int, int]]:
        """Every folder in a folder: the other classes, if it has classes."""
        if not self._classes:
            return set()
        if folder not in self._folders:
            with os.scandir(folder or os.curdir) as entries:
                self._folders[folder] = {_place(e.stat()) for e in entries if e.is_dir()}
        return self._folders[folder]


def _add_apart(listing: Listing, folders: Sequence[str], n_processes: int, watch: Watch) -> None:
    """Adds the folders in order; each process walks a run of them."""
    processes: list[subprocess.Popen[bytes]] = []
    ends = [len(folders) * i // n_processes for i in range(n_processes + 1)]
    shares = [list(folders[low:high]) for low, high in pairwise(ends)]
    try:
        for share in shares:
            processes.append(_start())
            _send(processes[-1], share)
        # One after the other: each holds its answer back until all of its folders are walked.
        for process, share in zip(processes, shares):
            listing.extend(_answer(process, share, watch))
    finally:
        with watch("ending processes that list images"):
            for process in processes:
                with process:  # closes the pipes and waits
                    process.kill()


def _start() -> subprocess.Popen[bytes]:
    # Without site-packages, and with the encoding of file names that this process has.
    options = ["-I", "-S", "-X", f"utf8={sys.flags.utf8_mode}"]
    try:
        return subprocess.Popen(
            [sys.executable, *options, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,  # a terminal's Ctrl-C is this process's to answer
        )
    except OSError as error:  # not to be taken for a folder that cannot be read
        raise RuntimeError(f"{sys.executable} cannot be started: {error.strerror}") from error


def _send(process: subprocess.Popen[bytes], folders: list[str]) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin as pipe:  # it has died: its answer will tell
        pipe.write(marshal.dumps(folders))


def _answer(process: subprocess.Popen[bytes], folders: Sequence[str], watch: Watch) -> bytes:
    assert process.stdout is not None
    for folder in folders:
        with watch(f"listing {folder}"):
            if process.stdout.read(1) != _WALKED:
                break  # it failed there, or died
    with watch(f"listing {folders[-1]}"):
        answer = process.stdout.read()
        status = process.wait()
    if status:
        raise RuntimeError(f"a process that listed image files ended with status {status}")
    failure, packed = marshal.loads(answer)
    if failure is not None:
        raise OSError(*failure)
    return packed


def _main() -> None:
    listing, tree, failure = Listing(), _Tree(), None
    try:
        for folder in marshal.loads(sys.stdin.buffer.read()):
            listing.add(folder, tree)
            os.write(sys.stdout.fileno(), _WALKED)
    except OSError as error:
        failure = (error.errno, error.strerror, error.filename)
        os.write(sys.stdout.fileno(), _FAILED)
    sys.stdout.buffer.write(marshal.dumps((failure, listing.packed())))


if __name__ == "__main__":
    _main()
