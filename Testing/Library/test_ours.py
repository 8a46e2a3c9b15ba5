"""What may be replaced without being asked: results of SpineSegAI, and nothing of a person's."""

import json

import pytest

from SpineSegAILib.results.measurement import SHORT_COLUMNS
from SpineSegAILib.results.measurement.export import write_measurements
from SpineSegAILib.results.ours import is_ours

ROWS = [dict.fromkeys(SHORT_COLUMNS) | {"structure": "L4", "volume_ml": 31.0}]


@pytest.mark.parametrize("name", ["table.csv", "table.CSV", "table.json"])
def test_our_tables_are_ours(name, tmp_path):
    path = write_measurements(ROWS, tmp_path / name)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("[") == name.endswith(".json") and "L4" in text
    assert is_ours(path)


def test_a_spreadsheet_is_ours_until_someone_saves_it(tmp_path):
    from openpyxl import load_workbook

    path = write_measurements([{**ROWS[0], "notes": "a\x00b"}], tmp_path / "table.xlsx")
    assert is_ours(path)
    book = load_workbook(path)
    book.properties.lastModifiedBy = "Anna"
    book.save(path)
    assert not is_ours(path)
    path.write_bytes(b"PK")
    assert not is_ours(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("people.csv", "id,name,notes\n1,Anna,mine\n"),
        ("people.json", json.dumps({"name": "Anna", "notes": "mine"})),
        ("list.json", json.dumps([{"id": 1, "name": "Anna"}])),
        ("empty.json", "[]"),
    ],
)
def test_a_persons_table_with_names_like_ours_is_not(name, text, tmp_path):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    assert not is_ours(path)
