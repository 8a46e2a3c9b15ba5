"""Files are written whole or not at all, and read or refused in words."""

import csv
import os
from pathlib import Path

import pytest

from SpineSegAILib.errors import ConfigError, DatasetError, OutputError
from SpineSegAILib.files import (
    atomic_write,
    check_suffix,
    check_writable,
    read_json,
    read_table,
    stem_and_suffix,
    write_csv_rows,
)


def names(folder) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_all_files_appear_at_the_end(tmp_path):
    (tmp_path / "a.txt").write_text("before")
    with atomic_write(tmp_path / "a.txt", tmp_path / "b.txt") as (a, b):
        a.write_text("new")
        b.write_text("other")
        a.with_name("a.side").write_text("companion")
        assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "before" and not (tmp_path / "b.txt").exists()
    assert names(tmp_path) == {"a.txt", "b.txt", "a.side"}
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "new"


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_things_as_they_were(tmp_path, failure):
    (tmp_path / "a.txt").write_text("before")
    with pytest.raises(failure), atomic_write(tmp_path / "a.txt", tmp_path / "b.txt") as (a, _):
        a.write_text("half")
        raise failure
    assert names(tmp_path) == {"a.txt"} and (tmp_path / "a.txt").read_text(encoding="utf-8") == "before"


def test_a_full_disk_is_named(tmp_path):
    with pytest.raises(OutputError, match="No space left"), atomic_write(tmp_path / "a.txt"):
        raise OSError(28, "No space left on device")
    assert names(tmp_path) == set()


def test_what_cannot_be_written_is_refused_early(tmp_path, monkeypatch):
    with pytest.raises(OutputError, match="is a folder"):
        check_writable(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file is not a folder"):
        check_writable(tmp_path / "file/below/a.txt")
    with pytest.raises(OutputError, match="file is not a folder"), atomic_write(tmp_path / "file/a.txt"):
        pytest.fail("the block must not run")
    (tmp_path / "file").unlink()
    check_writable(tmp_path / "a.txt")
    monkeypatch.setattr("SpineSegAILib.files.os.access", lambda path, mode: False)
    with pytest.raises(OutputError, match="cannot be written to"):
        check_writable(tmp_path / "a.txt")
    assert names(tmp_path) == set()


def test_missing_folders_are_made_unless_the_work_fails(tmp_path):
    failure = RuntimeError("no")
    with pytest.raises(RuntimeError), atomic_write(tmp_path / "a/b/c.txt"):
        raise failure
    assert names(tmp_path) == set()
    with atomic_write(tmp_path / "a/b/c.txt", tmp_path / "a/d.txt") as places:
        for place in places:
            place.write_text("whole")
    assert (tmp_path / "a/b/c.txt").read_text(encoding="utf-8") == "whole"
    assert (tmp_path / "a/d.txt").read_text(encoding="utf-8") == "whole"


def test_stems_and_suffixes():
    assert stem_and_suffix("a/b.c.nii.gz") == ("b.c", ".nii.gz")
    assert stem_and_suffix("Case.SEG.NRRD") == ("Case", ".seg.nrrd")
    assert stem_and_suffix("x.nrrd") == ("x", ".nrrd")
    assert stem_and_suffix("x") == ("x", "")


@pytest.mark.parametrize("name", ["a.nrrd", "a.seg.nrrd", ".csv", "csv", "a.csv.gz", ""])
def test_other_file_types_are_named(name):
    check_suffix("folder/A.CSV", [".csv"])
    with pytest.raises(OutputError, match=r"Unsupported file extension: .*Use \.nii\.gz or \.csv"):
        check_suffix(name, [".nii.gz", ".csv"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b"\xff{}", "not text in UTF-8"),
        (None, "does not exist"),
    ],
)
def test_a_json_file_that_cannot_be_read_is_a_message_of_the_callers_kind(tmp_path, content, words):
    path = tmp_path / "table.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DatasetError, match=words):
        read_json(path, DatasetError)
    with pytest.raises(DatasetError, match="is a folder"):
        read_json(tmp_path, DatasetError)


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}', encoding="utf-8-sig")
    (tmp_path / "a.toml").write_text("a = 1", encoding="utf-8-sig")
    assert read_table(tmp_path / "a.json", ConfigError) == read_table(tmp_path / "a.toml", ConfigError) == {"a": 1}
    (tmp_path / "b.json").write_text("[1]")
    with pytest.raises(ConfigError, match="does not hold a table"):
        read_table(tmp_path / "b.json", ConfigError)
    (tmp_path / "b.toml").write_text("a =")
    with pytest.raises(ConfigError, match="not valid TOML"):
        read_table(tmp_path / "b.toml", ConfigError)


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"), ("+1+1", "'+1+1"), ("-2+3", "'-2+3"), ("@SUM(A1)", "'@SUM(A1)"),
        (" =1", "' =1"), ("\t=1", "'\t=1"), ("＝1", "'＝1"), ("-", "'-"),
        ("-3.25", "-3.25"), ("+7", "+7"), (-3.25, "-3.25"),
        (None, ""), ("L4/L5", "L4/L5"), ("a=b", "a=b"), ("", ""), (0, "0"), (True, "True"),
    ],
)  # fmt: skip
def test_no_cell_of_a_table_is_a_formula(tmp_path, cell, written):
    write_csv_rows(tmp_path / "t.csv", [["image", "n"], [cell, 1]])
    with (tmp_path / "t.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [["image", "n"], [written, "1"]]


def test_every_table_is_written_by_one_function():
    root = Path(__file__).parents[2]
    for path in (*(root / "SpineSegAILib").rglob("*.py"), *(root / "SpineSegAI").rglob("*.py")):
        if path.name != "files.py":
            assert "csv.writer" not in (text := path.read_text(encoding="utf-8")) and "DictWriter" not in text, path


@pytest.mark.parametrize("name", [b"\xff.nii.gz", b"\xff/a.nii.gz"])
def test_names_that_are_no_text_are_refused_before_anything_is_written(tmp_path, name):
    target = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    try:
        target.parent.mkdir(exist_ok=True)
    except OSError:  # a file system that has no such names
        return
    with pytest.raises(OutputError, match="is not UTF-8"), atomic_write(target):
        raise AssertionError("the block must not run")
    assert not list(target.parent.glob("*.nii.gz*"))


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path):
    target = tmp_path / f"{'n' * 248}.nii.gz"
    with atomic_write(target) as (part,):
        part.write_text("x")
    assert names(tmp_path) == {target.name}
