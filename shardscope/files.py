"""Files written whole or not at all, and files of strangers read within bounds.

Whatever a user may want to keep is written under a temporary name beside its place, flushed to the disk, renamed, and
the rename flushed too. So a name never stands for half a file, whenever the process or the machine dies.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from shardscope.config import ConfigError

MOST_TEXT = 64 * 2**20  # bytes of a JSON or TOML file; a tokenizer.json of 262,144 entries has half of it
_PARTIAL = re.compile(r"\..*\.[0-9a-f]{8}\.partial")
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FAILED = {*_NO_ROOM, errno.EROFS, errno.EIO}


class ReadError(ConfigError):
    """A file that cannot be read, or does not hold what its name says."""


class WriteError(ConfigError):
    """Something could not be written; the message says what is intact and what to do."""


# --------------------------------------------------------------------------------------------------- writing


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; the file takes the place of `path` only if the block ends well.

    Missing parent folders are made, links are followed, and a device or a pipe is written to as it is. Raises
    WriteError when the disk is full or the folder cannot be written.
    """
    path = Path(path)
    with _said(path):
        if path.exists() and not path.is_file() and not path.is_dir():
            partial = path
        else:
            path = path.resolve() if path.is_symlink() else path
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = _temporary_name(path)
    try:
        with _said(path, only=_FAILED):
            yield partial
        if partial is not path:
            with _said(path):
                _flush(partial)
                os.replace(partial, path)
                _flush(path.parent)
    finally:
        if partial is not path:
            with suppress(OSError):  # a disk that has become read-only; what went wrong first is what is said
                partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: str | Path, replace: bool = True) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its place, flushed to the disk, only if the block ends well.

    An older `folder` changes places with it in one step, or stays if `replace` is False. Raises WriteError when the
    disk is full or the parent folder cannot be written.
    """
    folder = Path(folder)
    with _said(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = _temporary_name(folder)
        partial.mkdir()
    try:
        with _said(folder, only=_FAILED):
            yield partial
        with _said(folder):
            for path in partial.rglob("*"):
                _flush(path)
            _flush(partial)
            try:
                partial.rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise
                if replace:
                    _exchange(partial, folder)
            _flush(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text(path: str | Path, text: str) -> Path:
    """Write a UTF-8 text file whole. Raises WriteError."""
    return write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, data: bytes) -> Path:
    """Write a file whole. Raises WriteError."""
    with whole_file(path) as partial:
        partial.write_bytes(data)
    return Path(path)


def write_json(path: str | Path, values: Any, indent: int | None = 2) -> Path:
    """Write a JSON file whole. Raises WriteError."""
    return write_text(path, json.dumps(values, indent=indent) + "\n")


@contextmanager
def appending(path: Path) -> Iterator[None]:
    """For a file that grows by lines, and so is not written whole: a failed write is a WriteError here too."""
    with _said(path):
        yield


def existing_part(path: Path) -> Path:
    """The path itself if it is there, else the nearest of its parents that is."""
    return next(part for part in (path, *path.absolute().parents) if os.path.lexists(part))


def check_writable_folder(path: Path, flag: str) -> None:
    """Ask whether `flag` names a folder, new or old, that can be written into, before the work whose result goes there.

    Raises WriteError.
    """
    there = existing_part(path)
    if not there.is_dir():
        raise WriteError(f"{flag} {path}: {there} is not a folder; name a folder, new or old")
    if not os.access(there, os.W_OK):
        raise WriteError(f"{flag} {path}: nothing can be written into {there}; name another folder")


def check_writable_file(path: Path | None, flag: str) -> None:
    """The same of a file (None: none was asked for), which may also be a device or a pipe."""
    if path is None:
        return
    if path.is_dir():
        raise WriteError(f"{flag} {path}: is a folder; name a file in it")
    if path.exists() and not path.is_file():
        return
    there = next(part for part in path.absolute().parents if os.path.lexists(part))
    if not there.is_dir():
        raise WriteError(f"{flag} {path}: {there} is not a folder; name another file")
    if not os.access(there, os.W_OK):
        raise WriteError(f"{flag} {path}: nothing can be written into {there}; name a file in another folder")


def remove_partial(folder: Path) -> None:
    """Remove what writers that were killed left in `folder`. Only for a folder in which nobody else writes."""
    for path in folder.glob(".*.partial") if folder.is_dir() else ():
        if is_partial(path.name):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):
                    path.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Delete a folder; it loses its name first, so that a kill halfway leaves nothing that looks whole.

    Raises WriteError where that is not possible.
    """
    doomed = _temporary_name(folder)
    with _said(folder):
        folder.rename(doomed)
        shutil.rmtree(doomed)


def is_partial(name: str) -> bool:
    """Whether a file's name is the temporary one of something that was being written."""
    return _PARTIAL.fullmatch(name) is not None


def locked(handle: int, unknown: bool = True) -> bool:
    """Lock an open file, which ends with the process however it ends; False where another process has it.

    `unknown` is the answer where the system or the file system has no locks.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return unknown
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return unknown
    return True


def default_mode() -> int:
    """The rights that a new file gets, which the user's umask says."""
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def _temporary_name(path: Path) -> Path:
    # Of a long name only the beginning: most file systems allow 255 bytes.
    return path.parent / f".{path.name[:40]}.{secrets.token_hex(4)}.partial"


def _exchange(partial: Path, folder: Path) -> None:
    """Let the two change names. Where the system cannot in one step, the old folder stands aside for a moment."""
    if _exchanged_in_one_step(partial, folder):
        return
    aside = _temporary_name(folder)
    folder.rename(aside)
    try:
        partial.rename(folder)
    except BaseException:
        aside.rename(folder)
        raise
    aside.rename(partial)


def _exchanged_in_one_step(one: Path, other: Path) -> bool:
    """Linux's renameat2 with RENAME_EXCHANGE; False where system or file system lack it."""
    at_working_folder, exchange = -100, 2
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return rename(at_working_folder, os.fsencode(one), at_working_folder, os.fsencode(other), exchange) == 0


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _said(path: Path, only: set[int] | None = None) -> Iterator[None]:
    """What goes wrong with writing `path`, as one sentence; with `only`, nothing but these errors of the system."""
    stood = os.path.lexists(path)
    try:
        if "\0" in str(path):
            raise ValueError("a name holds no NUL")
        yield
    except (OSError, ValueError, SafetensorError) as error:
        number = _error_number(error)
        if isinstance(error, ConfigError) or (only is not None and number not in only):
            raise
        if number in _NO_ROOM:
            reason, remedy = "no room is left on the disk", "make room and give the same command again"
        else:
            reason = f"cannot be written ({os.strerror(number) if number else error})"
            remedy = "name another place, or repair the disk and run the same command again"
        intact = "what was written there before is intact" if stood else "nothing half-written is left"
        raise WriteError(f"{path}: {reason}; {intact}; {remedy}") from None


def _error_number(error: OSError | ValueError | SafetensorError) -> int | None:
    """The system's number of an error; libraries hide it in different places."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    if found := re.search(r"\(os error (\d+)\)", str(error)):
        return int(found[1])
    # NumPy, of a write that came to an early end: "100000 requested and 1234 written".
    return errno.ENOSPC if re.fullmatch(r"\d+ requested and \d+ written", str(error)) else None


# --------------------------------------------------------------------------------------------------- reading


def regular_file(path: Path, failure: type[ConfigError] = ReadError) -> Path:
    """`path` itself. Raises `failure` where it is missing, a folder, a pipe or a device, which may never end."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise failure(f"{path}: cannot be read: {reason}") from None
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        raise failure(f"{path}: cannot be read: it is {kinds.get(stat.S_IFMT(mode), 'a device')}, not a file")
    return path


def file_inside(folder: Path, name: str, failure: type[ConfigError] = ReadError) -> Path:
    """`folder`/`name`, a regular file. Raises `failure` where it is none, or a link that leads out of the folder.

    A run's checkpoints may share files, and a snapshot of the Hugging Face hub links to the blobs beside it.
    """
    path = regular_file(folder / name, failure)
    around = folder.resolve()
    if around.parent.name in ("checkpoints", "snapshots"):
        around = around.parents[1]
    if path.is_symlink() and not path.resolve().is_relative_to(around):
        raise failure(f"{path}: is a link that leads out of {around}; put the file itself there")
    return path


def read_text(path: Path, failure: type[ConfigError] = ReadError, most: int = MOST_TEXT, errors: str = "strict") -> str:
    """A UTF-8 text file of at most `most` bytes; `errors` as for `bytes.decode`.

    Raises `failure` with the path and the reason.
    """
    try:
        with regular_file(path, failure).open("rb") as file:
            data = file.read(most + 1)
        if len(data) > most:
            raise failure(f"{path}: cannot be read: it is larger than {most / 2**20:,.0f} MiB")
        return data.decode("utf-8", errors)
    except (OSError, UnicodeDecodeError) as error:
        raise failure(f"{path}: cannot be read as UTF-8 text: {error}") from None


def read_json(path: Path, failure: type[ConfigError] = ReadError, most: int = MOST_TEXT) -> dict[str, Any]:
    """The object in a JSON file, whoever wrote it. Raises `failure` with the path and the reason."""
    values = parse_json(read_text(path, failure, most), str(path), failure)
    if not isinstance(values, dict):
        raise failure(f"{path}: holds {type(values).__name__}, not a table of values")
    return values


def parse_json(text: str, where: str, failure: type[ConfigError] = ReadError) -> Any:
    """What a JSON text says. Raises `failure` also where it nests without end or holds a number of 5,000 digits."""
    try:
        return json.loads(text)
    except RecursionError:
        raise failure(f"{where}: cannot be read as JSON: it is nested too deeply") from None
    except ValueError as error:
        reason = "a number in it is too long" if "int_max_str_digits" in str(error) else error
        raise failure(f"{where}: cannot be read as JSON: {reason}") from None
