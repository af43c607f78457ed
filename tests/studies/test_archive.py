"""Test that a study archive is imported completely and unchanged, or refused in one line before anything is written."""

from __future__ import annotations

import json
import math
import re
import shutil
import stat
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedrift.core.errors import UserError
from fedrift.core.records import Record
from fedrift.studies import StudyManifest, archive, export_study, find_study, import_study
from tests.report.stored_study import make_study

STUDY = "studies/made/study.json"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> StudyManifest:
    found = make_study(tmp_path_factory.mktemp("archive"), rounds=2, seeds=1, algorithms=("FedAvg",), severities=(1.0,), hypotheses=[])
    run = found.get_run(found.read()["runs"][0])
    run.log_event(1, "client", "it was slow", 2)
    run.log_timing(0, train=0.5)
    run.write_json("findings", {"findings": [{"detector": "drift", "grade": "suspected"}]})
    run.write_json("clustering", [{"round": 1, "group": [0, 1]}])
    found.record_failure(found.read()["runs"][1].run, "it stopped")
    return found


@pytest.fixture(scope="module")
def sound(manifest, tmp_path_factory) -> bytes:
    return export_study(manifest, tmp_path_factory.mktemp("packed") / "made.zip").read_bytes()


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def members(content: bytes, at: Path) -> dict[str, bytes]:
    at.write_bytes(content)
    with zipfile.ZipFile(at) as file:
        return {name: file.read(name) for name in file.namelist()}


def write_zip(path: Path, files: dict[str, bytes], more=(), compression=zipfile.ZIP_DEFLATED) -> Path:
    """Write an archive of files and of arbitrary, possibly invalid, members."""
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in files.items():
            file.writestr(name, content)
        for member, content in more:
            file.writestr(member, content)
    return path


def refusal(path: Path, root: Path) -> str:
    """Return the message with which an archive is refused, and check that nothing is written."""
    before = contents(root) if root.exists() else {}
    with pytest.raises(UserError) as caught:
        import_study(path, root)
    assert (contents(root) if root.exists() else {}) == before and not list(root.parent.glob("outside*"))
    assert not list(root.glob(".import-*")) and "\n" not in str(caught.value)
    return str(caught.value)


def test_an_imported_study_is_complete_and_a_second_import_changes_nothing(manifest, sound, tmp_path):
    (tmp_path / "made.zip").write_bytes(sound)
    there = import_study(tmp_path / "made.zip", tmp_path / "runs")
    before = contents(tmp_path / "runs")
    assert before == members(sound, tmp_path / "made.zip")
    assert there.read()["runs"] == manifest.read()["runs"] and find_study(tmp_path / "runs", "made") == there
    assert there.get_failure(manifest.read()["runs"][1].run) == "it stopped"
    import_study(tmp_path / "made.zip", tmp_path / "runs")
    assert contents(tmp_path / "runs") == before


def test_a_compact_archive_has_values_of_single_precision_and_is_otherwise_the_same(tmp_path):
    values = [0.1, -2 / 3, math.nan, math.inf, 1e300, 1e-300, 0.0, 5.0, 2.0**24 + 1, 123456789.0, 123456789.25]
    found = make_study(tmp_path / "there", rounds=1, seeds=1, algorithms=("FedAvg",), severities=(1.0,), hypotheses=[])
    run = found.get_run(found.read()["runs"][0].run)
    run.append_records([Record(1, f"own.{number}", "", -1, value) for number, value in enumerate(values)])
    plain = members(export_study(found, tmp_path / "made.zip").read_bytes(), tmp_path / "made.zip")
    compact = members(export_study(found, tmp_path / "compact.zip", is_compact=True).read_bytes(), tmp_path / "compact.zip")
    changed = {name for name in plain if plain[name] != compact[name]}
    assert plain.keys() == compact.keys() and {name.split("/")[1] for name in changed} == {"records.parquet", "finished.json"}
    there = import_study(tmp_path / "compact.zip", tmp_path / "runs")  # which checks the checksums of the rounded records
    read = there.get_run(run.id).records()
    assert [record[:4] for record in read] == [record[:4] for record in run.records()]
    kept = [0.0, 5.0, 2.0**24 + 1, 123456789.0, math.inf, 1e300, 1e-300]  # whole numbers, and what single precision cannot hold
    own = [record.value for record in read if record.metric.startswith("own.")]
    assert own == pytest.approx(values, rel=1e-7, abs=0, nan_ok=True)
    assert set(kept) <= set(own) and own[0] == float(np.float32(0.1)) != 0.1 and own[-1] == float(np.float32(123456789.25))
    again = export_study(there, tmp_path / "again.zip", is_compact=True).read_bytes()
    assert members(again, tmp_path / "again.zip") == compact  # rounding twice changes nothing


def test_an_existing_study_with_the_same_name_is_never_replaced(sound, tmp_path):
    (tmp_path / "made.zip").write_bytes(sound)
    here = make_study(tmp_path / "runs", rounds=2, seeds=2, algorithms=("FedAvg",), severities=(1.0,), hypotheses=[])
    said = here.read()
    assert "already exists and contains another study 'made'" in refusal(tmp_path / "made.zip", tmp_path / "runs")
    assert here.read() == said and len(said["runs"]) == 4


def test_an_existing_run_stays_unchanged_and_an_empty_one_is_filled(manifest, sound, tmp_path):
    (tmp_path / "made.zip").write_bytes(sound)
    first, second = (entry.run for entry in manifest.read()["runs"])
    shutil.copytree(manifest.root / first, tmp_path / "runs" / first)
    (tmp_path / "runs" / first / "finished.json").write_text('{"loss": 1.0}')
    (tmp_path / "runs" / second).mkdir()
    there = import_study(tmp_path / "made.zip", tmp_path / "runs")
    assert there.get_run(first).summary() == {"loss": 1.0} and there.get_run(second).config == manifest.get_run(second).config


@pytest.mark.parametrize("case", ["unfinished", "other records", "damaged", "same"])
def test_a_finished_run_is_never_hidden_by_a_local_one_with_other_results(manifest, sound, tmp_path, case):
    path, first = tmp_path / "made.zip", manifest.read()["runs"][0].run
    path.write_bytes(sound)
    local = import_study(path, tmp_path / "runs").get_run(first)
    if case == "unfinished":
        (local.folder / "finished.json").unlink()
    elif case == "other records":
        shutil.copy(manifest.get_run(manifest.read()["runs"][1]).folder / "records.jsonl", local.folder)
        (local.folder / "records.parquet").unlink()
        local.write_json("finished", {"loss": 1.0})
    elif case == "damaged":
        (local.folder / "experiment.json").write_text("{")
    if case == "same":
        import_study(path, tmp_path / "runs")
        return
    told = refusal(path, tmp_path / "runs")
    assert {"unfinished": "is unfinished", "other records": "has other records", "damaged": "not JSON"}[case] in told
    assert f"fedrift delete {first}" in told


def test_an_archive_without_some_runs_says_so(sound, tmp_path, monkeypatch, capsys):
    from fedrift.cli.inspect import import_study as import_command

    files = members(sound, tmp_path / "s.zip")
    left_out = next(name for name in files if name.endswith("/finished.json"))[:12]
    import_command(write_zip(tmp_path / "x.zip", {name: data for name, data in files.items() if left_out not in name}), tmp_path / "runs")
    assert "2 runs, of which 1 are not in the archive" in capsys.readouterr().out


def test_records_of_another_run_are_refused(manifest, sound, tmp_path):
    files = members(sound, tmp_path / "made.zip")
    first, second = (entry.run for entry in manifest.read()["runs"])
    files[f"{first}/records.parquet"] = files[f"{second}/records.parquet"]
    why = refusal(write_zip(tmp_path / "swapped.zip", files), tmp_path / "runs")
    assert f"holds records of run {second}, not of run {first}" in why


def change_json(files: dict[str, bytes], name: str, change) -> dict[str, bytes]:
    """Return the files with one JSON value changed."""
    found = next(path for path in files if path.endswith(name))
    value = json.loads(files[found])
    return {**files, found: json.dumps(change(value)).encode()}


def with_name(files: dict[str, bytes], old: str, new: str) -> dict[str, bytes]:
    return {name.replace(old, new): content for name, content in files.items()}


def change_entries(said: dict, **changes) -> dict:
    """Return the content of study.json with changes of the entry that is no IID baseline."""
    return {**said, "runs": [{**entry, **changes} if entry["role"] == "run" else entry for entry in said["runs"]]}


CHANGED = {
    "study {}": ("study.json", lambda said: {}, "has no 'study'"),
    "study []": ("study.json", lambda said: [], "must contain an object"),
    "study 3": ("study.json", lambda said: 3, "must contain an object"),
    "runs {}": ("study.json", lambda said: {**said, "runs": {}}, "'runs' must be a list"),
    "run without a name": ("study.json", lambda said: {**said, "runs": [{"run": "0" * 12}]}, "not a run of a study"),
    "run elsewhere": ("study.json", lambda said: {**said, "runs": [{**said["runs"][0], "run": "../../outside"}]}, "not a run of"),
    "a run less": ("study.json", lambda said: {**said, "runs": said["runs"][:1]}, "is not part of the study made"),
    "factors": ("study.json", lambda said: {**said, "factors": [1]}, "'factors' contains '1'"),
    "designs": ("study.json", lambda said: {**said, "designs": {"main": 5}}, "'designs' contains '5'"),
    "tuning results": ("study.json", lambda said: {**said, "tuning_results": [1]}, "'tuning_results' contains '1'"),
    "role": ("study.json", lambda said: change_entries(said, role="boss"), "not a run of a study"),
    "entry seed": ("study.json", lambda said: change_entries(said, seed=77), "says seed 77 of run"),
    "entry iid": ("study.json", lambda said: change_entries(said, iid=True), "says iid true of run"),
    "own baseline": ("study.json", lambda said: change_entries(said, iid_baseline=said["runs"][0]["run"]), "says iid_baseline"),
    "absent baseline": ("study.json", lambda said: change_entries(said, iid_baseline="0" * 12), "says iid_baseline"),
    "digest": ("finished.json", lambda said: {**said, "stored": {"records.jsonl": [1, 2]}}, "are not those with which it finished"),
    "other seed": ("experiment.json", lambda said: {**said, "seed": 77}, "has the id"),
    "other id": ("experiment.json", lambda said: {**said, "id": "0" * 12}, "has the id"),
    "no id": ("experiment.json", lambda said: {key: value for key, value in said.items() if key != "id"}, "has no 'id'"),
    "experiment []": ("experiment.json", lambda said: [], "must contain an object"),
    "training []": ("experiment.json", lambda said: {**said, "training": []}, "'training' must be an object"),
    "environment 1": ("environment.json", lambda said: 1, "must contain an object"),
    "finished null": ("finished.json", lambda said: None, "must contain an object"),
    "seconds": ("finished.json", lambda said: {"seconds": ["a"]}, "'seconds'"),
    "loss": ("finished.json", lambda said: {**said, "loss": "x"}, "'loss' must be a number"),
    "another loss": ("finished.json", lambda said: {**said, "loss": 1.25}, r"finished\.json has changed since the run finished"),
    "rounds": ("finished.json", lambda said: {**said, "rounds": [1]}, "'rounds' must be a number"),
    "findings 1": ("findings.json", lambda said: [1], "must contain a list of objects"),
    "decisions": ("clustering.json", lambda said: [[1]], "is not a valid row of a round"),
}


@pytest.mark.parametrize("case", CHANGED)
def test_invalid_files_and_other_experiments_are_refused(sound, tmp_path, case):
    name, change, told = CHANGED[case]
    path = write_zip(tmp_path / "x.zip", change_json(members(sound, tmp_path / "s.zip"), name, change))
    assert re.search(told, refusal(path, tmp_path / "runs"))


def test_a_finished_run_without_records_is_refused(sound, tmp_path):
    """Archives of old versions have no checksums, so that nothing else would tell that the records are lost."""
    packed = members(sound, tmp_path / "s.zip")
    lost = next(name for name in packed if name.endswith("records.parquet"))
    finished = lost.replace("records.parquet", "finished.json")
    packed = change_json(packed, "finished.json", lambda said: {key: value for key, value in said.items() if key != "stored"})
    path = write_zip(tmp_path / "x.zip", {name: content for name, content in packed.items() if name != lost})
    assert finished in packed and "is finished, but the archive has no records of it" in refusal(path, tmp_path / "runs")


LINES = {
    "timing list": ("timings.jsonl", b"[1, 2]\n"),
    "timing number": ("timings.jsonl", b"3\n"),
    "timing text": ("timings.jsonl", b'{"round": 1, "train": "long"}\n'),
    "event number": ("events.jsonl", b"7\n"),
    "no JSON": ("events.jsonl", b"{\n"),
    "deep": ("events.jsonl", b"[" * 100_000 + b"\n"),
    "not text": ("experiment.json", b"\xff\xfe"),
    "records": ("records.parquet", b"PAR1nothingPAR1"),
    "empty": ("records.parquet", b""),
    "long integer": ("finished.json", b"9" * 5000),
}


@pytest.mark.parametrize("case", LINES)
def test_an_unreadable_file_is_refused(sound, tmp_path, case):
    name, content = LINES[case]
    files = members(sound, tmp_path / "s.zip")
    found = next(path for path in files if path.endswith(name))
    refusal(write_zip(tmp_path / "x.zip", {**files, found: content}), tmp_path / "runs")


UNKNOWN = [
    "../outside.txt",
    "/outside.txt",
    "studies/../../outside.txt",
    "studies\\..\\outside.txt",
    "C:/outside.txt",
    "notes.txt",
    "000000000000/state.safetensors",
    "000000000000/lock",
    "000000000000/../outside.json",
    "studies/made/notes.txt",
    "studies/made/failures/x",
    "studies/other/failures/000000000000",
    "studies/.made/study.json",
    "./studies/made/study.json",
    "000000000000/updates/00000.parquet",
    "00000000000G/experiment.json",
    "made\n/experiment.json",
    "../",
    "studies//x/",
]


@pytest.mark.parametrize("name", UNKNOWN, ids=repr)
def test_an_unknown_member_is_refused_before_anything_is_written(sound, tmp_path, name):
    path = write_zip(tmp_path / "x.zip", members(sound, tmp_path / "s.zip"), [(name, b"harmless")])
    assert "is not a file of a study" in refusal(path, tmp_path / "runs")


def special(name: str, **changes) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)
    for key, value in changes.items():
        setattr(member, key, value)
    return member


def test_special_members_are_refused(sound, tmp_path, monkeypatch):
    files, root = members(sound, tmp_path / "s.zip"), tmp_path / "runs"
    study = files.pop(STUDY)
    link = special(STUDY, external_attr=(stat.S_IFLNK | 0o777) << 16)
    assert "is a link" in refusal(write_zip(tmp_path / "link.zip", files, [(link, study)]), root)
    with pytest.warns(UserWarning, match="Duplicate"):
        twice = write_zip(tmp_path / "twice.zip", {**files, STUDY: study}, [(STUDY, study)])
    assert "occurs twice" in refusal(twice, root)
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        path = write_zip(tmp_path / "m.zip", {**files, STUDY: study}, compression=method)
        assert "is compressed by method" in refusal(path, root)
    assert "no study" in refusal(write_zip(tmp_path / "none.zip", files), root)
    two = write_zip(tmp_path / "two.zip", {STUDY: study, STUDY.replace("made", "other"): study})
    assert "several studies" in refusal(two, root)
    path = write_zip(tmp_path / "large.zip", {**files, STUDY: study})
    with monkeypatch.context() as small:
        small.setattr(archive, "MAX_MEMBER_BYTES", 100)
        assert "would unpack to" in refusal(path, root)
    with monkeypatch.context() as small:
        small.setattr(archive, "MAX_TOTAL_BYTES", 1000)
        assert "would unpack to more than" in refusal(path, root)


@pytest.mark.parametrize("place, value, told", [(8, 1, "is encrypted"), (10, 99, "is compressed by method 99")])
def test_encryption_and_unknown_compression_are_refused(sound, tmp_path, place, value, told):
    content = bytearray(sound)
    first = content.index(b"PK\x01\x02")  # the start of the central directory
    content[first + place] = value
    (tmp_path / "x.zip").write_bytes(content)
    assert told in refusal(tmp_path / "x.zip", tmp_path / "runs")


def test_a_wrong_size_of_a_member_is_refused(sound, tmp_path):
    content = bytearray(sound)
    first = content.index(b"PK\x01\x02")
    content[first + 24 : first + 28] = (50).to_bytes(4, "little")  # smaller than the member
    (tmp_path / "x.zip").write_bytes(content)
    assert "cannot be read" in refusal(tmp_path / "x.zip", tmp_path / "runs")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99, 0.9999])
def test_a_truncated_archive_is_refused(sound, tmp_path, share):
    (tmp_path / "x.zip").write_bytes(sound[: int(share * len(sound))])
    assert "cannot be read" in refusal(tmp_path / "x.zip", tmp_path / "runs")


def test_a_path_that_is_not_a_file_is_refused(tmp_path):
    assert "does not exist" in refusal(tmp_path / "nothing.zip", tmp_path / "runs")
    (tmp_path / "folder.zip").mkdir()
    assert "is not a file" in refusal(tmp_path / "folder.zip", tmp_path / "runs")


def test_a_read_only_folder_is_refused(sound, tmp_path, manifest):
    (tmp_path / "made.zip").write_bytes(sound)
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(UserError, match="cannot be written"):
        import_study(tmp_path / "made.zip", tmp_path / "runs")
    with pytest.raises(UserError, match="cannot be written"):
        export_study(manifest, tmp_path / "runs" / "made.zip")
    with pytest.raises(UserError, match="is a folder"):
        export_study(manifest, tmp_path)


def test_the_archives_of_the_project_have_the_ids_of_their_experiments(tmp_path):
    there = import_study(Path(__file__).parents[2] / "studies" / "results" / "smollm2.zip", tmp_path / "runs")
    assert len(there.read()["runs"]) == 6 and all(there.get_run(entry).is_finished for entry in there.read()["runs"])


FUZZ = settings(
    derandomize=True, max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def import_or_refuse(path: Path, root: Path) -> dict[str, bytes] | None:
    """Return the written files, or None if the archive was refused in one line; nothing else may be raised."""
    shutil.rmtree(root, ignore_errors=True)
    with suppress(UserError):
        import_study(path, root)
        return contents(root)
    assert not root.exists() or not contents(root)
    return None


@FUZZ
@given(data=st.data())
def test_a_damaged_archive_is_never_imported(sound, tmp_path, data):
    content = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 3))):
        end = len(content) - 1
        place = data.draw(st.integers(0, end) | st.integers(max(0, end - 1300), end))  # half of the places are among names and sizes
        kind = data.draw(st.sampled_from(["bit", "byte", "cut", "repeat", "drop"]))
        if kind == "bit":
            content[place] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "byte":
            content[place] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del content[max(1, place) :]
        elif kind == "repeat":
            content[place:place] = content[place : place + 20]
        elif len(content) > 30:
            del content[place : place + 10]
    (tmp_path / "x.zip").write_bytes(content)
    found = import_or_refuse(tmp_path / "x.zip", tmp_path / "runs")
    whole = members(sound, tmp_path / "s.zip")
    assert found is None or all(whole.get(name) == held for name, held in found.items())


def replace_value(value, path, new):
    """Return the JSON value with another value at a path of keys."""
    if not path:
        return new
    found = dict(value) if isinstance(value, dict) else list(value)
    found[path[0]] = replace_value(value[path[0]], path[1:], new)
    return found


@FUZZ
@given(data=st.data())
def test_changed_json_in_an_archive_never_gives_a_traceback(sound, tmp_path, data):
    files = members(sound, tmp_path / "s.zip")
    name = data.draw(st.sampled_from(sorted(name for name in files if name.endswith((".json", ".jsonl")))))
    whole = json.loads(files[name])
    inside, path = whole, []
    while isinstance(inside, (dict, list)) and inside and data.draw(st.booleans()):
        path.append(data.draw(st.sampled_from(sorted(inside) if isinstance(inside, dict) else range(len(inside)))))
        inside = inside[path[-1]]
    content = json.dumps(replace_value(whole, path, data.draw(VALUES))).encode() + b"\n"
    import_or_refuse(write_zip(tmp_path / "x.zip", {**files, name: content}), tmp_path / "runs")
