"""Whatever ends a run, and whatever is done to its folder: what was measured is readable, or the reason is named."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from knee.errors import RecordError
from knee.lab import runs
from knee.lab.records import RequestRow
from knee.lab.runs import RunFolder, find_run, folder_name, list_runs, read_run
from tests.lab.samples import record, request_row, run_spec, step_row

ROOT = Path(__file__).parents[2]


def finished(out: Path, name: str = "a", created_at: str = "2025-01-31T12:34:56+00:00") -> Path:
    made = record(name=name, created_at=created_at)
    with RunFolder.create(out, run_spec(made)) as run:
        run.finish(made)
    return run.path


# --- a run from its beginning to its end -------------------------------------------------------------------------


def test_a_finished_run_reads_back_as_it_was_written(tmp_path: Path) -> None:
    made = record("sweep")
    with RunFolder.create(tmp_path / "new" / "runs", run_spec(made)) as run:
        run.add_request(request_row(0))
        run.add_requests([request_row(1), request_row(2)])
        run.add_step(step_row(0))
        run.add_steps([step_row(1)])
        run.finish(made)
    found = read_run(run.path)
    assert found.record == made
    assert found.requests == [request_row(number) for number in range(3)]
    assert found.steps == [step_row(0), step_row(1)]
    assert found.problems == []


def test_a_run_is_on_disk_as_running_from_the_start(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, run_spec(record(done=False))) as run:
        assert json.loads((run.path / "record.json").read_text())["status"] == "running"
        assert read_run(run.path).record.status == "running"
        run.finish(record())
    assert read_run(run.path).record.status == "done"


@pytest.mark.parametrize(("lang", "other"), [("en", "zh"), ("zh", "en")])
def test_record_md_is_in_the_language_asked_and_the_other_is_beside_it(
    tmp_path: Path, lang: runs.Lang, other: str
) -> None:
    with RunFolder.create(tmp_path, run_spec(record()), lang) as run:
        run.finish(record())
    titles = {"en": "Experiment name", "zh": "实验名称"}
    assert titles[lang] in (run.path / "record.md").read_text()
    assert titles[other] in (run.path / f"record.{other}.md").read_text()


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt, "interrupted"), (ValueError, "failed"), (None, "failed")]
)
def test_a_run_left_before_its_end_keeps_what_it_measured(
    tmp_path: Path, error: type[BaseException] | None, status: str
) -> None:
    def leave() -> None:
        with RunFolder.create(tmp_path, run_spec(record(done=False))) as run:
            run.add_request(request_row())
            if error:
                raise error

    if error:
        with pytest.raises(error):
            leave()
    else:
        leave()
    found = read_run(find_run(tmp_path, "latest"))
    assert (found.record.status, found.requests) == (status, [request_row()])
    assert (found.path / "record.md").exists()


def test_an_error_after_the_end_does_not_undo_it(tmp_path: Path) -> None:
    def end_late(run: RunFolder) -> None:
        with run:
            run.finish(record())
            raise ValueError("late")

    run = RunFolder.create(tmp_path, run_spec(record()))
    with pytest.raises(ValueError, match="late"):
        end_late(run)
    assert read_run(run.path).record.status == "done"


def test_a_number_that_is_not_finite_is_refused_and_the_old_record_stays(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, run_spec(record(done=False))) as run:
        wrong = record()
        bad = wrong.model_copy(update={"options": {"rate": float("nan")}})
        with pytest.raises(RecordError, match=r"options\.rate.*finite"):
            run.finish(bad)
        assert read_run(run.path).record.status == "running"


def test_the_sigterm_handler_from_before_comes_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    finished(tmp_path)
    assert signal.getsignal(signal.SIGTERM) is before


# --- processes that end ------------------------------------------------------------------------------------------

WRITER = """
import signal
import sys
from pathlib import Path
from knee.lab.runs import RunFolder
from tests.lab.samples import record, request_row, run_spec
signal.signal(signal.SIGINT, signal.default_int_handler)  # ours may be ignored
with RunFolder.create(Path(sys.argv[1]), run_spec(record(done=False))) as run:
    number = 0
    while True:
        run.add_requests([request_row(number), request_row(number + 1)])
        number += 2
        print(number, flush=True)
"""


@pytest.fixture
def start_writer(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    started = []

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WRITER, str(tmp_path)]
        writer = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        while writer.stdout.readline().strip() != "20":  # it is in the middle of its work
            assert writer.poll() is None, writer.communicate()[1]
        started.append(writer)
        return writer

    yield start
    for writer in started:
        writer.kill()
        writer.communicate()


def end(writer: subprocess.Popen[str], with_signal: signal.Signals) -> None:
    writer.send_signal(with_signal)
    writer.communicate(timeout=20)


def test_a_killed_run_reads_as_interrupted_with_all_its_whole_lines(
    tmp_path: Path, start_writer: Callable[[], subprocess.Popen[str]]
) -> None:
    writer = start_writer()
    path = find_run(tmp_path, "latest")
    assert read_run(path).record.status == "running"
    end(writer, signal.SIGKILL)
    found = read_run(path)
    assert found.record.status == "interrupted"
    assert "cut off" in found.problems[0]
    assert len(found.requests) >= 20
    assert [row.request for row in found.requests] == list(range(len(found.requests)))
    assert list_runs(tmp_path)[0].record == found.record


@pytest.mark.parametrize("with_signal", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_marks_itself_interrupted(
    tmp_path: Path, start_writer: Callable[[], subprocess.Popen[str]], with_signal: signal.Signals
) -> None:
    end(start_writer(), with_signal)
    folder = find_run(tmp_path, "latest")
    assert json.loads((folder / "record.json").read_text())["status"] == "interrupted"
    assert read_run(folder).problems == []


def test_a_second_writer_is_told_who_holds_the_folder(
    tmp_path: Path, start_writer: Callable[[], subprocess.Popen[str]]
) -> None:
    writer = start_writer()
    path = find_run(tmp_path, "latest")
    with pytest.raises(RecordError, match=rf"pid {writer.pid}\b"):
        RunFolder.resume(path)
    end(writer, signal.SIGKILL)
    run, measured = RunFolder.resume(path)
    with run:
        run.add_request(request_row(len(measured.requests)))
        run.finish(record())
    found = read_run(path)
    assert found.record.status == "done"
    assert [row.request for row in found.requests] == list(range(len(measured.requests) + 1))


def test_two_commands_of_one_second_make_a_folder_each(tmp_path: Path) -> None:
    made = record(done=False)
    with RunFolder.create(tmp_path, run_spec(made)) as first, RunFolder.create(tmp_path, run_spec(made)) as second:
        assert second.path.name == f"{first.path.name}-2"
        second.finish(record())
        first.finish(record())
    assert finished(tmp_path, made.name).name == f"{first.path.name}-3"


def test_a_resumed_run_goes_on_after_its_last_whole_line(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, run_spec(record(done=False))) as run:
        run.add_request(request_row(0))
    with (run.path / "requests.jsonl").open("ab") as file:
        file.write(b'{"cell": 0, "rep')
    resumed, measured = RunFolder.resume(run.path)
    assert [row.request for row in measured.requests] == [0]
    assert len(measured.problems) == 1
    with resumed:
        resumed.add_request(request_row(1))
        resumed.finish(record())
    found = read_run(run.path)
    assert [row.request for row in found.requests] == [0, 1]
    assert found.problems == []


def test_a_run_that_is_done_or_damaged_is_not_resumed_and_not_held(tmp_path: Path) -> None:
    path = finished(tmp_path)
    for _ in range(2):
        with pytest.raises(RecordError, match="nothing to resume"):
            RunFolder.resume(path)
    (path / "record.json").write_text("{")
    for _ in range(2):
        with pytest.raises(RecordError, match="JSON"):
            RunFolder.resume(path)


# --- disks that fail ---------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_whole_lines_and_an_error_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(write: Callable[[bytes], int], text: bytes) -> None:
        write(text[: len(text) // 2])
        raise OSError(28, "No space left on device")

    def no_room(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    def measure(run: RunFolder) -> None:
        with run:
            run.add_request(request_row(0))
            monkeypatch.setattr(runs, "_write_all", fill)
            with pytest.raises(RecordError, match=r"requests\.jsonl.*No space left"):
                run.add_request(request_row(1))
            monkeypatch.undo()
            run.add_request(request_row(2))
            monkeypatch.setattr(os, "fsync", no_room)
            run.finish(record())

    run = RunFolder.create(tmp_path, run_spec(record()))
    with pytest.raises(RecordError, match="No space left on device"):
        measure(run)
    monkeypatch.undo()
    found = read_run(run.path)
    assert [row.request for row in found.requests] == [0, 2]
    assert found.record.status == "interrupted"  # the disk was too full to say "failed"
    assert not list(run.path.glob("*.new"))


def test_an_out_that_cannot_be_written_is_refused_with_the_fix(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="--out"):
        RunFolder.create(tmp_path / "file" / "runs", run_spec(record()))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_out_is_refused_with_the_fix(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RecordError, match="--out"):
        RunFolder.create(tmp_path, run_spec(record()))


# --- names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("baseline", "baseline"),
        ("../../etc/passwd", "etc-passwd"),
        ("<script>alert(1)</script>", "script-alert-1-script"),
        ("", "sweep"),
        ("..", "sweep"),
        ("批大小 实验", "批大小-实验"),
        ("v1.5_b", "v1.5_b"),
        ("x" * 300, "x" * 160),
    ],
)
def test_any_name_makes_a_safe_folder(name: str, expected: str) -> None:
    assert folder_name(record("sweep", name=name)) == f"20250131-123456-{expected}"


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(max_size=400))
def test_a_folder_lies_in_out_whatever_the_experiment_is_called(tmp_path: Path, name: str) -> None:
    path = finished(tmp_path, name)
    assert path.parent == tmp_path
    assert len(path.name.encode()) < 255
    assert read_run(path).record.name == record(name=name).name


# --- reading -----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_file_cut_at_any_byte_is_readable_up_to_its_last_whole_line(tmp_path: Path, data: st.DataObject) -> None:
    with RunFolder.create(tmp_path, run_spec(record("sweep"))) as run:
        run.add_requests([request_row(number) for number in range(4)])
        run.finish(record("sweep"))
    file = run.path / "requests.jsonl"
    text = file.read_bytes()
    cut = text[: data.draw(st.integers(0, len(text)))]
    file.write_bytes(cut)
    found = read_run(run.path)
    assert [row.request for row in found.requests] == list(range(cut.count(b"\n")))
    assert bool(found.problems) == bool(cut and not cut.endswith(b"\n"))


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(junk=st.binary(max_size=40), data=st.data())
def test_a_damaged_record_is_read_or_refused_but_nothing_else(tmp_path: Path, junk: bytes, data: st.DataObject) -> None:
    path = tmp_path / "run"
    path.mkdir(exist_ok=True)
    text = record("sweep").model_dump_json().encode()
    start = data.draw(st.integers(0, len(text)))
    (path / "record.json").write_bytes(text[:start] + junk + text[start + data.draw(st.integers(0, 40)) :])
    try:
        assert read_run(path).record.kind == "sweep"
    except RecordError as refused:
        error = str(refused)
    else:
        error = "record.json"
    assert "record.json" in error
    assert "\n" not in error


def test_a_bad_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = finished(tmp_path)
    good = request_row().model_dump_json()
    (path / "requests.jsonl").write_text(f"{good}\n{good.replace('0.001', '1e400')}\n{good}\n")
    with pytest.raises(RecordError, match=r"requests\.jsonl, line 2: sent_at: .*finite"):
        read_run(path)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"schema_version": 1', '"schema_version": 2', "schema version 2.*upgrade knee"),
        ('"schema_version": 1', '"schema_version": 0', "schema_version is 0"),
        ('"prefill_ms": 92.0', '"prefill_ms": 1e400', r"metrics\.baseline\.prefill_ms: .*finite"),
        ('"prefill_ms": 92.0', '"prefill_ms": NaN', r"metrics\.baseline\.prefill_ms: .*finite"),
        ('"prefill_ms": 92.0', '"prefill_ms": "92"', r"metrics\.baseline\.prefill_ms: "),
        ('"prefill_ms": 92.0', '"prefill_mz": 92.0', r"metrics\.baseline\.prefill_ms: .*required"),
        ('"options": {}', '"options": {"rate": [1e400]}', r"options\.rate: .*finite"),
        ('"created_at": "2025-01-31T12:34:56+00:00"', '"created_at": "yesterday"', "created_at: "),
        ('"created_at": "2025-01-31T12:34:56+00:00"', '"created_at": "2025-01-31T12:34:56"', "created_at: .*UTC"),
        ('"kind": "baseline"', '"kind": "sweep"', "a sweep record holds metrics of a baseline"),
        ('"cores": 2', '"cores": 0', r"hardware\.cores: "),
        ("{", "[" * 5000, "JSON"),
    ],
)
def test_a_record_of_another_schema_or_with_a_wrong_field_is_refused_by_name(
    tmp_path: Path, old: str, new: str, reason: str
) -> None:
    file = finished(tmp_path) / "record.json"
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(RecordError, match=reason):
        read_run(file.parent)
    assert list_runs(tmp_path)[0].problem is not None


def test_fields_of_a_later_knee_are_passed_over(tmp_path: Path) -> None:
    file = finished(tmp_path) / "record.json"
    file.write_text(file.read_text().replace('"kind"', '"added_later": [1], "kind"', 1))
    assert read_run(file.parent).record == record(name="a")


def test_missing_lines_are_a_problem_and_a_record_that_nothing_is_left_of_an_error(tmp_path: Path) -> None:
    path = finished(tmp_path)
    (path / "steps.jsonl").unlink()
    assert read_run(path).problems == ["steps.jsonl is missing"]
    (path / "record.json").unlink()
    (path / "spec.json").unlink()
    with pytest.raises(RecordError, match=r"cannot read .*record\.json"):
        read_run(path)


def test_a_run_without_its_record_is_read_from_its_spec(tmp_path: Path) -> None:
    path = finished(tmp_path)
    (path / "record.json").unlink()
    found = read_run(path)
    assert found.problems == ["record.json is missing: it can be made again from the rest"]
    assert found.spec == run_spec(record(name="a")).model_copy(update={"status": "done"})
    assert (found.record.name, found.record.status, found.record.metrics) == ("a", "done", None)
    assert find_run(tmp_path, "latest") == find_run(tmp_path, str(path)) == path


@pytest.mark.parametrize("file", ["record.json", "spec.json"])
def test_a_run_of_a_later_knee_is_refused_whichever_file_says_so(tmp_path: Path, file: str) -> None:
    path = finished(tmp_path)
    text = (path / file).read_text()
    (path / file).write_text(re.sub(r'"schema_version": ?1', '"schema_version": 2', text))
    with pytest.raises(RecordError, match=rf"{file} has schema version 2.*upgrade knee"):
        read_run(path)


def test_a_run_of_an_earlier_knee_has_no_spec_and_is_read_but_not_resumed(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, run_spec(record(done=False))) as run:
        pass
    (run.path / "spec.json").unlink()
    assert read_run(run.path).spec is None
    for _ in range(2):  # and it is let go of
        with pytest.raises(RecordError, match=r"no spec\.json, an earlier knee wrote it"):
            RunFolder.resume(run.path)


def test_the_spec_tells_how_the_run_goes_and_went(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, run_spec(record(done=False))) as run:
        assert statuses(run.path) == ["running", "running"]
    assert statuses(run.path) == ["failed", "failed"]
    with RunFolder.resume(run.path)[0] as again:
        assert statuses(run.path) == ["running", "running"]
        again.save_spec(again.spec.model_copy(update={"repeats": 7}))
        again.finish(record())
    assert statuses(run.path) == ["done", "done"]
    found = read_run(run.path).spec
    assert found is not None
    assert found.repeats == 7


def statuses(path: Path) -> list[str]:
    return [json.loads((path / name).read_text())["status"] for name in ("spec.json", "record.json")]


def test_the_spec_of_a_killed_run_reads_as_interrupted(
    tmp_path: Path, start_writer: Callable[[], subprocess.Popen[str]]
) -> None:
    end(start_writer(), signal.SIGKILL)
    path = find_run(tmp_path, "latest")
    assert statuses(path) == ["running", "running"]
    found = read_run(path).spec
    assert found is not None
    assert found.status == "interrupted"


def test_a_folder_that_could_not_be_taken_up_after_all_is_let_go_of(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, run_spec(record(done=False))) as run:
        pass
    taken, _ = RunFolder.resume(run.path)
    with pytest.raises(ValueError, match="otherwise"), taken.released_on_error():
        raise ValueError("otherwise")
    assert read_run(run.path).record.status == "interrupted"
    RunFolder.resume(run.path)[0].close()


def test_rows_are_strict_about_types() -> None:
    assert RequestRow.model_validate_json(request_row().model_dump_json(), strict=True) == request_row()


# --- lists -------------------------------------------------------------------------------------------------------


def test_runs_are_listed_newest_first_with_the_unreadable_ones(tmp_path: Path) -> None:
    old = finished(tmp_path, "old", "2024-01-01T00:00:00+00:00")
    new = [finished(tmp_path, "new", "2025-01-01T00:00:00+00:00") for _ in range(11)]
    (old / "record.json").write_text("{")
    (tmp_path / "figures").mkdir()
    (tmp_path / "notes.txt").write_text("")
    entries = list_runs(tmp_path)
    assert [entry.path for entry in entries] == [*reversed(new), old]
    assert entries[-1].record is None
    assert "Invalid JSON" in (entries[-1].problem or "")


def test_no_folder_is_no_runs(tmp_path: Path) -> None:
    assert list_runs(tmp_path / "nowhere") == []
    with pytest.raises(RecordError, match="knee baseline"):
        find_run(tmp_path / "nowhere", "latest")


def test_a_run_is_found_by_path_folder_prefix_name_or_latest(tmp_path: Path) -> None:
    first = finished(tmp_path, "batch size", "2024-01-01T00:00:00+00:00")
    second = finished(tmp_path, "kv", "2025-01-01T00:00:00+00:00")
    for ref in (
        str(first),
        str(first / "record.json"),
        str(first / "spec.json"),
        first.name,
        "batch size",
        "20240101",
        "batch",
    ):
        assert find_run(tmp_path, ref) == first
    for ref in ("latest", "kv", "2025"):
        assert find_run(tmp_path, ref) == second


def test_a_name_of_several_runs_is_the_newest_and_says_so(tmp_path: Path) -> None:
    paths = [finished(tmp_path, "kv", f"202{year}-01-01T00:00:00+00:00") for year in range(2)]
    said: list[str] = []
    assert find_run(tmp_path, "kv", said.append) == paths[1]
    assert said == [f"2 runs are called 'kv'; this is the newest, {paths[1].name}"]


def test_latest_is_the_newest_run_that_can_be_read_whatever_its_folder_is_called(tmp_path: Path) -> None:
    new = finished(tmp_path, "new", "2024-06-01T00:00:00+00:00").rename(tmp_path / "20200101-000000-renamed")
    finished(tmp_path, "old", "2024-01-01T00:00:00+00:00")
    damaged = finished(tmp_path, "kv", "2025-01-01T00:00:00+00:00")
    (damaged / "record.json").write_text("{")
    assert find_run(tmp_path, "latest") == new
    assert list_runs(tmp_path)[-1].path == damaged


@pytest.mark.parametrize(("code", "frees"), [(errno.ENOSPC, True), (errno.EACCES, False), (errno.ENOTDIR, False)])
def test_only_a_full_disk_is_told_to_be_freed(code: int, frees: bool) -> None:
    with pytest.raises(RecordError, match="choose another folder") as refused, runs._writing(Path("out")):
        raise OSError(code, os.strerror(code))
    assert ("free some space" in str(refused.value)) == frees


def test_a_beginning_of_several_runs_lists_them(tmp_path: Path) -> None:
    paths = [finished(tmp_path, "kv", f"202{year}-01-01T00:00:00+00:00") for year in range(2)]
    with pytest.raises(RecordError, match=rf"2 runs.*{paths[1].name}, {paths[0].name}"):
        find_run(tmp_path, "202")
    with pytest.raises(RecordError, match=r"no run 'nothing'.*knee list"):
        find_run(tmp_path, "nothing")
    with pytest.raises(RecordError, match="no run ''"):
        find_run(tmp_path, "")
