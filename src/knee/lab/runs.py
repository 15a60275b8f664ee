"""A run on disk: one folder with `spec.json`, `requests.jsonl`, `steps.jsonl`, and `record.json` made from these.

Written so that it can be cut off at any moment: `record.json` is replaced atomically, the JSONL files grow by whole
lines, and a file lock, which the system drops with its process, tells a run that goes on from one that was killed.
Knows files and locks; what the numbers mean is not its business.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import signal
import tempfile
import threading
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ValidationError

from knee.errors import RecordError
from knee.lab.markdown import to_markdown
from knee.lab.messages import LANGUAGES, Lang
from knee.lab.records import SCHEMA_VERSION, Record, RequestRow, Status, StepRow
from knee.lab.spec import RunSpec

RECORD = "record.json"
SPEC = "spec.json"
REQUESTS = "requests.jsonl"
STEPS = "steps.jsonl"
LOCK = ".lock"
LATEST = "latest"

_FOLDER = re.compile(r"\d{8}-\d{6}-")
_STAMP_LENGTH = len("20250131-120000-")
_NAME_BYTES = 160  # most file systems allow 255 bytes, stamp and suffix included

Row = TypeVar("Row", bound=BaseModel)


# --- writing -----------------------------------------------------------------------------------------------------


class RunFolder:
    """A run that is being written; one process at a time holds it.

    Use as a context manager: leaving it by Ctrl-C or SIGTERM marks the run "interrupted", by any other exception, or
    without `finish`, "failed". What was added before stays readable in every case.
    """

    def __init__(self, path: Path, spec: RunSpec, lang: Lang, lock: _Lock) -> None:
        self.path = path
        self.spec = spec
        self.record = spec.draft
        self._lang = lang
        self._lock = lock
        self._requests = _Lines(path / REQUESTS)
        self._steps = _Lines(path / STEPS)
        self._sigterm: Any = None

    @classmethod
    def create(cls, out: Path, spec: RunSpec, lang: Lang = "en") -> RunFolder:
        """Make `<out>/<YYYYMMDD-HHMMSS>-<name>/` and write `spec.json`, and `record.json` with status "running".

        `lang` is the language of `record.md`. Raises `RecordError` where `out` cannot be written.
        """
        begun = _with_status(spec, "running")
        with _writing(out):
            path = _new_folder(out, begun)
            return cls(path, begun, lang, _Lock(path))

    @classmethod
    def resume(cls, path: Path, lang: Lang = "en") -> tuple[RunFolder, Run]:
        """Take up a run that was cut off; also gives what it measured until then.

        Raises `RecordError` if another process is still writing it, and says which, or if it is done.
        """
        with _writing(path):
            lock = _Lock(path)
        with contextlib.ExitStack() as on_error:
            on_error.callback(lock.release)
            measured = read_run(path)
            if measured.record.status == "done" and not lacks_trials(measured):
                raise RecordError(f"{path} is done, there is nothing to resume: start a new run without --resume")
            if measured.spec is None:
                raise RecordError(f"{path} has no spec.json, an earlier knee wrote it: it cannot be resumed")
            with _writing(path):
                run = cls(path, measured.spec, lang, lock)
            on_error.pop_all()
        run.save_spec(_with_status(measured.spec, "running"))
        run.save(measured.record.model_copy(update={"status": "running"}))
        return run, measured

    def add_request(self, row: RequestRow) -> None:
        """Append one line to `requests.jsonl`."""
        self._requests.append([row])

    def add_requests(self, rows: Sequence[RequestRow]) -> None:
        """Append lines to `requests.jsonl`, all of them or none."""
        self._requests.append(rows)

    def add_step(self, row: StepRow) -> None:
        """Append one line to `steps.jsonl`."""
        self._steps.append([row])

    def add_steps(self, rows: Sequence[StepRow]) -> None:
        """Append lines to `steps.jsonl`, all of them or none."""
        self._steps.append(rows)

    def replace_rows(self, requests: Sequence[RequestRow], steps: Sequence[StepRow]) -> None:
        """Make these the only lines. However it is cut off, each file is the old one or the new one."""
        self._requests.replace(requests)
        self._steps.replace(steps)

    def save(self, record: Record) -> None:
        """Replace `record.json`. Raises `RecordError` for a value that a record may not hold, such as NaN."""
        _save(Record, record, self.path / RECORD)
        self.record = record

    def save_spec(self, spec: RunSpec) -> None:
        """Replace `spec.json`. Raises `RecordError` as `save` does."""
        _save(RunSpec, spec, self.path / SPEC)
        self.spec = spec

    def finish(self, record: Record) -> None:
        """The run is done: write the final `record.json`, and the record as Markdown in both languages.

        `record.md` is in the run's language, the other one is beside it (`record.zh.md` or `record.en.md`).
        """
        self._end(record, "done")

    def close(self) -> None:
        """Let go of the folder without a change of its status."""
        self._requests.close()
        self._steps.close()
        self._lock.release()

    def __enter__(self) -> Self:
        # Only the main thread can set handlers; elsewhere SIGTERM acts like kill -9, which readers understand too.
        if threading.current_thread() is threading.main_thread():
            self._sigterm = signal.signal(signal.SIGTERM, _interrupt)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.record.status == "running":
                # Where the disk is full the record stays "running" without a writer, which reads as interrupted;
                # the error that brought us here is the one to report.
                with contextlib.suppress(RecordError):
                    stopped = isinstance(error, KeyboardInterrupt)
                    self._end(self.record, "interrupted" if stopped else "failed")
        finally:
            self.close()
            if self._sigterm is not None:
                signal.signal(signal.SIGTERM, self._sigterm)

    @contextlib.contextmanager
    def released_on_error(self) -> Iterator[None]:
        """Let go of the folder, as it was, if the body fails."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _end(self, record: Record, status: Status) -> None:
        record = record.model_copy(update={"status": status})
        self.save_spec(_with_status(self.spec, status))
        self.save(record)
        for lang in LANGUAGES:
            name = "record.md" if lang == self._lang else f"record.{lang}.md"
            _replace(self.path / name, to_markdown(record, lang))


def _with_status(spec: RunSpec, status: Status) -> RunSpec:
    return spec.model_copy(update={"status": status})


class _Lines:
    """A JSONL file that only ever ends in a whole line, as far as the process lives to see to it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab", buffering=0)
        self._file.truncate(_whole(path.read_bytes()))

    def append(self, rows: Sequence[BaseModel]) -> None:
        text = _text(rows).encode()
        end = os.fstat(self._file.fileno()).st_size
        written = False
        try:
            with _writing(self._path):
                _write_all(self._file.write, text)
            written = True
        finally:
            if not written:  # full disk or Ctrl-C: the next line must not be glued to half of this one
                self._file.truncate(end)

    def replace(self, rows: Sequence[BaseModel]) -> None:
        self._file.close()
        _replace(self._path, _text(rows))
        self._file = self._path.open("ab", buffering=0)

    def close(self) -> None:
        self._file.close()


def _text(rows: Sequence[BaseModel]) -> str:
    return "".join(f"{row.model_dump_json()}\n" for row in rows)


class _Lock:
    """Says that this process writes the folder. The system drops it when the process ends, however it ends.

    The file stays, with the process id of the last writer: to delete it would let two processes lock two files.
    """

    def __init__(self, folder: Path) -> None:
        self._fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 32, 0).decode().strip() or "unknown"
            os.close(self._fd)
            raise RecordError(
                f"{folder} is being written by another process (pid {holder}): wait for it, or stop it first"
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        os.close(self._fd)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _write_all(write: Callable[[bytes], int], text: bytes) -> None:
    while text:
        text = text[write(text) :]


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        space = "free some space or " if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise RecordError(
            f"cannot write {error.filename or path}: {reason}; {space}choose another folder with --out"
        ) from error


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.new")  # one name is enough: the lock leaves one writer
    with _writing(path), contextlib.ExitStack() as cleanup:
        cleanup.callback(temporary.unlink, missing_ok=True)
        with temporary.open("wb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def folder_name(record: Record) -> str:
    """`<YYYYMMDD-HHMMSS>-<name>`, in UTC, safe for any file system whatever the experiment is called."""
    name = re.sub(r"[^\w.-]+|\.\.+", "-", unicodedata.normalize("NFC", record.name))
    short = name.encode()[:_NAME_BYTES].decode(errors="ignore")
    return f"{_stamp(record)}{short.strip('-.') or record.kind}"


def _stamp(record: Record) -> str:
    return datetime.fromisoformat(record.created_at).strftime("%Y%m%d-%H%M%S-")


def _new_folder(out: Path, spec: RunSpec) -> Path:
    """A folder that appears with its first files in it, so that a kill cannot leave one without."""
    out.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=".new-", dir=out))
    staged.chmod(0o755)
    try:
        _save(RunSpec, spec, staged / SPEC)
        _save(Record, spec.draft, staged / RECORD)
    except RecordError:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    name = folder_name(spec.draft)
    path, number = out / name, 1
    while True:
        try:
            staged.rename(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            number += 1
            path = out / f"{name}-{number}"
        else:
            return path


def _save(shape: type[Row], value: Row, file: Path) -> None:
    """Raises `RecordError` for a value that a record may not hold, such as NaN."""
    text = value.model_dump_json(indent=None if shape is RunSpec else 2) + "\n"
    _parse(shape, text, str(file))
    _replace(file, text)


# --- reading -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Run:
    """A run as read from disk. `problems` says, one line each, what was missing or torn."""

    path: Path
    record: Record
    requests: list[RequestRow] = field(default_factory=list)
    steps: list[StepRow] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    spec: RunSpec | None = None  # of a run that an earlier knee wrote there is none


@dataclass(frozen=True, slots=True)
class RunEntry:
    """A run in a list: its record, or the reason why it cannot be read."""

    path: Path
    record: Record | None
    problem: str | None


def read_run(path: Path) -> Run:
    """Read and check a run folder.

    A last line that was cut off is skipped and named in `problems`; a run whose writer was killed reads as
    "interrupted". Raises `RecordError` for a newer schema, and names the field or the line of anything invalid.
    """
    record, problems = _read_record(path)
    requests = _read_lines(path / REQUESTS, RequestRow, problems)
    steps = _read_lines(path / STEPS, StepRow, problems)
    return Run(path, record, requests, steps, problems, _read_spec(path))


def lacks_trials(run: Run) -> bool:
    """Whether a sweep has fewer trials that count than it planned: some were void, or failed."""
    if run.spec is None:
        return False
    whole = {(trial.cell, trial.repeat) for trial in run.spec.trials if not trial.void}
    return len(whole) < len(run.spec.cells) * run.spec.repeats


def list_runs(out: Path) -> list[RunEntry]:
    """All runs in `out`, newest first; runs that cannot be read come last, with the reason."""
    if not out.is_dir():
        return []
    folders = [path for path in out.iterdir() if _is_run(path)]
    entries = [_entry(path) for path in folders]
    return sorted(entries, key=_age, reverse=True)


def find_run(out: Path, ref: str, tell: Callable[[str], None] = lambda _: None) -> Path:
    """The folder of a run: `ref` is a path, a folder's name or its beginning, an experiment's name, or "latest".

    Of runs with one name it is the newest, and `tell` gets a line that says so. Raises `RecordError` if there is no
    such run, or if a beginning is that of more than one.
    """
    direct = Path(ref)
    if direct.name in (RECORD, SPEC):
        direct = direct.parent
    if ref and any((direct / name).is_file() for name in (RECORD, SPEC)):
        return direct
    entries = list_runs(out)
    if not entries:
        raise RecordError(f"no runs in {out}: make one (knee baseline), or say with --out where they are")
    if ref == LATEST:
        return entries[0].path
    named = [entry.path for entry in entries if entry.record is not None and entry.record.name == ref]
    if len(named) > 1 and all(entry.path.name != ref for entry in entries):
        tell(f"{len(named)} runs are called {ref!r}; this is the newest, {named[0].name}")
        return named[0]
    return _only_match(out, ref, entries)


def _only_match(out: Path, ref: str, entries: Sequence[RunEntry]) -> Path:
    tests: tuple[Callable[[RunEntry], bool], ...] = (
        lambda entry: entry.path.name == ref,
        lambda entry: entry.record is not None and entry.record.name == ref,
        lambda entry: bool(ref) and entry.path.name.startswith(ref),
        lambda entry: bool(ref) and entry.path.name[_STAMP_LENGTH:].startswith(ref),
    )
    for matches in tests:
        found = [entry.path for entry in entries if matches(entry)]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(path.name for path in found[:5]) + (", …" if len(found) > 5 else "")
            raise RecordError(f"{len(found)} runs begin with {ref!r}: choose one of {names}")
    raise RecordError(f"no run {ref!r} in {out}: see them with knee list, or say with --out where they are")


def _is_run(path: Path) -> bool:
    if path.name.startswith("."):  # one that is being made
        return False
    return path.is_dir() and (
        any((path / name).is_file() for name in (RECORD, SPEC)) or _FOLDER.match(path.name) is not None
    )


def _entry(path: Path) -> RunEntry:
    try:
        record, _ = _read_record(path)
    except RecordError as error:
        return RunEntry(path, None, str(error))
    return RunEntry(path, record, None)


def _age(entry: RunEntry) -> tuple[bool, str, int, str]:
    """Larger for a newer run, and for any that can be read."""
    # Folders of one second differ in their number only, and "-10" is younger than "-9".
    stem, _, number = entry.path.name.rpartition("-")
    stamp = entry.path.name[:_STAMP_LENGTH] if entry.record is None else _stamp(entry.record)
    return (entry.record is not None, stamp, *((int(number), stem) if number.isdecimal() else (0, "")))


def _read_spec(path: Path) -> RunSpec | None:
    """With the status that the run turned out to have."""
    file = path / SPEC
    if not file.is_file():
        return None
    text = _read(file)
    _check_version(text, file)
    spec = _parse(RunSpec, text, str(file))
    left_running = spec.status == "running" and not _is_held(path)
    return _with_status(spec, "interrupted") if left_running else spec


def _read_record(path: Path) -> tuple[Record, list[str]]:
    file = path / RECORD
    if not file.is_file() and (spec := _read_spec(path)) is not None:
        return spec.draft.model_copy(update={"status": spec.status}), [
            f"{RECORD} is missing: it can be made again from the rest"
        ]
    text = _read(file)
    _check_version(text, file)
    record = _parse(Record, text, str(file))
    if record.status == "running" and not _is_held(path):
        record = record.model_copy(update={"status": "interrupted"})
        return record, ["the run was cut off: its process is gone, what it had measured is here"]
    return record, []


def _check_version(text: bytes, file: Path) -> None:
    version = _parse(_Version, text, str(file)).schema_version
    if version > SCHEMA_VERSION:
        raise RecordError(
            f"{file} has schema version {version} and this knee reads up to {SCHEMA_VERSION}: upgrade knee"
        )
    if version < 1:
        raise RecordError(f"{file}: schema_version is {version}, which no knee has written")


class _Version(BaseModel):
    schema_version: int


def _is_held(path: Path) -> bool:
    try:
        fd = os.open(path / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise RecordError(f"cannot read {file}: {error.strerror}") from error


def _read_lines(file: Path, row: type[Row], problems: list[str]) -> list[Row]:
    if not file.exists():
        problems.append(f"{file.name} is missing")
        return []
    text = _read(file)
    whole = _whole(text)
    lines = text[:whole].split(b"\n")[:-1]
    if whole < len(text):
        problems.append(f"{file.name}: line {len(lines) + 1}, the last, was cut off and is skipped")
    return [_parse(row, line, f"{file}, line {number}") for number, line in enumerate(lines, start=1)]


def _whole(text: bytes) -> int:
    """Length of the part that consists of whole lines."""
    return text.rfind(b"\n") + 1


def _parse(shape: type[Row], text: str | bytes, where: str) -> Row:
    try:
        return shape.model_validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        raise RecordError(f"{where}: {f'{name}: ' if name else ''}{first['msg']}") from error
