"""The papers' figures: what is entered, against the papers' texts where they are; and their counterparts here."""

import re

import pytest
from tiny_data import SHARED_DATA

from SpineSegAILib.comparison.papers import NOT_OFFERED, PAPERS, PaperTable, deviation, figure

PAPERS_FOLDER = SHARED_DATA.parent / "papers"
NUMBER = r"-?\d+(?:\.\d+)?"


def text_of(number: str) -> str:
    """A paper's text; the test is skipped where the papers are absent."""
    found = sorted(PAPERS_FOLDER.glob(f"{number}_*.txt"))
    if not found:
        pytest.skip(f"the papers' texts are not here ({PAPERS_FOLDER})")
    return found[0].read_text(encoding="utf-8")


def rows_of(text: str, count: int) -> dict[str, list[list[float]]]:
    """Name → the numbers of each line that is a name and so many numbers."""
    text = re.sub(r"\S*\\mathbf\{([\d.]+)\}bold_[\d.]+", r"\1", text)  # what was bold is there three times
    found: dict[str, list[list[float]]] = {}
    for line in text.splitlines():
        match = re.fullmatch(rf"(.*?)\s+((?:{NUMBER}v?(?:\s+|$)){{{count}}})", line.strip())
        if match and (match[1].startswith("Option") or not re.search(rf"(^|\s){NUMBER}$", match[1])):
            name = re.sub(r"\s*(\[\d+\]|\(Ours\))", "", match[1])
            found.setdefault(name, []).append([float(n) for n in re.findall(NUMBER, match[2])])
    return found


def entered(table: PaperTable, name: str) -> list[float]:
    return [value for value in table.rows[name] if value is not None]


def test_atm_net_s_tables():
    text = text_of("000")
    both = rows_of(text, 8)
    ticks = both.pop("\\checkmark")
    expected = {name: rows[0] for name, rows in both.items() if not name.startswith(("Option", "\\", "w/o"))}
    expected |= {"CCAE only": ticks[0], "HASF only": ticks[1]}
    expected |= {f"HASF, option {n}": both[f"Option {n}"][0] for n in (1, 2)}
    assert both["Option 3"][0] == ticks[1] and both["\\checkmark \\checkmark"][0] == expected["ATM-Net"]
    for part, name in enumerate(("mrspineseg", "spider")):
        table = PAPERS[f"atm-net/{name}"]
        assert {row: entered(table, row) for row in table.rows} == {
            row: values[4 * part : 4 * part + 4] for row, values in expected.items()
        }
    table, structures = PAPERS["atm-net/mrspineseg-structures"], rows_of(text, 20)
    assert {row: entered(table, row) for row in table.rows} == {row: values[0] for row, values in structures.items()}
    (header,) = re.findall(r"Method (S L5 .*) Avg\.", text)
    named = [{"S1": "S", "L5/S1": "L5/S"}.get(title, title) for title in table.columns]
    assert [*header.split(), "Avg."] == named


def test_scar_net_s_tables():
    text = text_of("001")
    rows, table = rows_of(text, 11), PAPERS["scar-net/lumbar"]
    names = {"Baseline": "Baseline (DGMSNet)", "Baseline+MCCA": "MCCA", "Baseline+AT": "AT"}
    assert rows.pop("Baseline+MCCA +AT") == rows["SCAR-Net"]
    expected = {names.get(row, row): values[0] for row, values in rows.items()}
    assert {row: list(table.rows[row][:11]) for row in table.rows} == expected
    assert {row: table.rows[row][11] for row in table.rows if table.rows[row][11]} == {"SCAR-Net": 95.5}
    assert "mean Precision of 95.50%" in text
    for header in re.findall(r"Methods\t(L1\t.*)", text):
        assert header.split("\t") == list(table.columns)[:11]


def test_verdiff_net_s_tables():
    text = text_of("003")
    found = {}
    for line in text.splitlines():
        name, *cells = (cell.strip() for cell in line.split("|"))
        pairs = [re.fullmatch(rf"({NUMBER}) ± ({NUMBER})", cell) for cell in cells if cell]
        if len(pairs) == 8 and all(pairs):
            found[re.sub(r" \[\d+\]|\(ours\)", "", name)] = [(float(p[1]), float(p[2])) for p in pairs]
    assert len(found) == 8
    ablation = [
        tuple(100 * float(n) for n in re.findall(r"\b0\.\d{4}\b", line)) for line in text.splitlines() if "|" in line
    ]
    ddpm, msfm, nsa, both = (row for row in ablation if len(row) == 2)
    for place, name in enumerate(("ct-verse", "ct-pri", "x-ray", "mr")):
        table = PAPERS[f"verdiff-net/{name}"]
        for row, pairs in found.items():
            means, spreads = zip(*pairs[2 * place : 2 * place + 2], strict=True)
            assert table.rows[row] == means and table.deviations[row] == spreads
        more = {"DDPM": ddpm, "MSFM only": msfm, "NSA only": nsa} if name == "mr" else {}
        assert set(table.rows) == {*found, *more} and set(table.deviations) == set(found)
        for row, values in more.items():
            assert table.rows[row] == pytest.approx(values)
    assert PAPERS["verdiff-net/mr"].rows["Verdiff-Net"] == pytest.approx(both)
    assert "94.37 ± 4.75%" in text and "88.74 ± 21.6%" in text  # the note says so


def test_la_caf_s_figure():
    assert PAPERS["la-caf/pulmonary"].rows == {"LA-CAF": (76.22,)} and "76.22" in text_of("002")


def test_a_table_has_a_figure_or_a_gap_in_every_column():
    for table in PAPERS.values():
        for row in (*table.rows.values(), *table.deviations.values()):
            assert len(row) == len(table.columns)
        assert set(table.deviations) <= set(table.rows)
    assert set(NOT_OFFERED) <= {name for table in PAPERS.values() for name in table.rows}


def test_deviations_are_those_of_the_cases_own_means():
    def case(*dice: float | None) -> dict:
        names = zip(("L4", "L5"), dice, strict=True)
        return {"structures": [{"name": n, "group": "vertebrae", "dice": d, "hd95_mm": d} for n, d in names]}

    summary = {"cases": [case(0.8, 0.6), case(0.9, 0.9), case(None, None)], "overall": {"dice": 0.8}}
    assert deviation(summary, "overall.dice") == deviation(summary, "macro.dice") == pytest.approx(100 * 0.2 / 2**0.5)
    assert deviation(summary, "structure:L4.dice") == pytest.approx(100 * 0.1 / 2**0.5)
    assert deviation(summary, "group:vertebrae.hd95_mm") == pytest.approx(0.2 / 2**0.5)
    assert deviation({"cases": summary["cases"][:1]}, "overall.dice") is None
    assert figure(summary, "overall.dice") == 80
