"""Structures, names, codes and what Slicer gets of them."""

from __future__ import annotations

import colorsys
import json
from itertools import pairwise
from pathlib import Path

import pytest

from SpineSegAILib import anatomy
from SpineSegAILib.anatomy import SCHEMES, STRUCTURES, VALUE_MAPS, Extent, Kind, structure, terminology
from SpineSegAILib.errors import SchemeError

T13, L6 = 28, 25


def ids_of(*names: str) -> list[int]:
    return [structure(name).id for name in names]


# --- ids and names ----------------------------------------------------------------------------------------------------


def test_ids_follow_verse():
    assert ids_of("C1", "C7", "T1", "T12", "L1", "L5", "L6", "S1", "T13") == [1, 7, 8, 19, 20, 24, 25, 26, 28]
    assert ids_of("cord", "canal", "T9/T10", "L5/S1", "T13/L1", "L6/S1") == [60, 61, 116, 124, 128, 125]
    assert all(s.id == sid for sid, s in STRUCTURES.items())
    assert len({s.name.lower() for s in STRUCTURES.values()}) == len(STRUCTURES)


@pytest.mark.parametrize(
    ("written", "meant"),
    [("l4", "L4"), (" L4 ", "L4"), ("L4-L5", "L4/L5"), ("sacrum", "S1"), ("S", "S1"), ("L5/L6", "L5/S1"),
     ("Spinal  Canal", "canal"), ("23", "L4"), (23, "L4"), ("T12/T13", "T12/L1"), ("L5/S", "L5/S1")],
)  # fmt: skip
def test_ways_to_write_a_structure(written, meant):
    assert structure(written).name == meant


@pytest.mark.parametrize("unknown", ["²", "9" * 5000, "L7", "C1/C2", "", "lung", 27, 300])
def test_unknown_structures_are_refused(unknown):
    with pytest.raises(SchemeError) as caught:
        structure(unknown)
    assert str(unknown) in caught.value.message
    assert caught.value.remedy


def test_every_disc_lies_between_its_vertebrae():
    for s in STRUCTURES.values():
        if s.kind is Kind.DISC and s.order is not None:
            upper = anatomy.vertebra_above(s)
            assert anatomy.disc_below(upper) is s
            assert upper.order < s.order < anatomy.next_below(upper, [upper.id]).order
    assert anatomy.disc_below(structure("C1")) is None
    assert anatomy.disc_below(structure("S1")) is None


def test_chain_has_variants_only_where_the_case_does():
    names = [s.name for s in anatomy.level_chain()]
    assert names[18:] == ["T12", "L1", "L2", "L3", "L4", "L5", "S1"]
    assert [s.name for s in anatomy.level_chain([L6])][-3:] == ["L5", "L6", "S1"]
    assert [s.name for s in anatomy.level_chain([125])][-3:] == ["L5", "L6", "S1"]
    assert [s.name for s in anatomy.level_chain([T13])][18:21] == ["T12", "T13", "L1"]
    assert anatomy.next_below(structure("L5")).name == "S1"
    assert anatomy.next_below(structure("L5"), [L6]).name == "L6"
    assert anatomy.next_below(structure("S1")) is None
    assert anatomy.next_below(structure("T13")) is None


def test_ranks_count_from_the_sacrum():
    usual, with_l6, with_t13 = anatomy.ranks(), anatomy.ranks([L6]), anatomy.ranks([T13])
    assert [usual[i] for i in ids_of("S1", "L5/S1", "L5", "L4/L5", "L4", "T12")] == [-1, -0.5, 0, 0.5, 1, 5]
    assert [with_l6[i] for i in ids_of("S1", "L6/S1", "L6", "L5/S1", "L5")] == [-1, -0.5, 0, 0.5, 1]
    assert [with_t13[i] for i in ids_of("L1", "T13/L1", "T13", "T12/L1", "T12")] == [4, 4.5, 5, 5.5, 6]
    assert L6 not in usual
    assert T13 not in usual


@pytest.mark.parametrize(
    ("sid", "present", "extent", "name"),
    [
        (23, (), Extent.BODY, "L4 vertebra (body)"),
        (23, (), None, "L4 vertebra"),
        (26, (), Extent.WHOLE, "sacrum"),
        (26, (), Extent.BODY, "S1 (body)"),
        (124, (), None, "L5/S1 disc"),
        (124, (L6,), None, "L5/L6 disc"),
        (125, (L6,), None, "L6/S1 disc"),
        (119, (), None, "T12/L1 disc"),
        (119, (T13,), None, "T12/T13 disc"),
        (128, (), None, "T13/L1 disc"),
        (61, (), None, "spinal canal"),
        (203, (), None, "pulmonary vein, right"),
        (90, (), Extent.BODY, "vertebra (body)"),
        (91, (), Extent.BODY, "disc"),
    ],
)
def test_names_that_readers_see(sid, present, extent, name):
    assert anatomy.display_name(sid, present, extent) == name


def test_ids_sort_from_top_to_bottom():
    shuffled = [61, 26, 124, 128, 25, 24, 19, 28, 119, 125, 201]
    assert anatomy.sorted_ids(shuffled) == [19, 119, 28, 128, 24, 124, 25, 125, 26, 61, 201]


# --- colors ----------------------------------------------------------------------------------------------------------


def difference(first: int, second: int) -> float:
    """Distance on the circle of hues, 0 to 0.5."""
    a, b = (colorsys.rgb_to_hsv(*STRUCTURES[i].color)[0] for i in (first, second))
    return min(abs(a - b), 1 - abs(a - b))


@pytest.mark.parametrize("present", [(), (L6,), (T13,), (L6, T13)])
def test_neighbouring_levels_never_look_alike(present):
    chain = anatomy.level_chain(present)
    for upper, lower in pairwise(chain):
        assert difference(upper.id, lower.id) > 0.15, (upper.name, lower.name)
    discs = [d for v in chain if (d := anatomy.disc_below(v))]
    for upper, lower in pairwise(discs):
        assert difference(upper.id, lower.id) > 0.15, (upper.name, lower.name)


def test_colors_are_colors():
    for s in STRUCTURES.values():
        assert all(0 <= channel <= 255 and isinstance(channel, int) for channel in s.color_255)
        assert max(s.color) > 0.5


# --- schemes and other projects' values -------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=lambda s: s.name)
def test_schemes_are_consistent(scheme):
    assert len(set(scheme.ids)) == len(scheme.ids)
    assert scheme.channels == len(scheme.ids) + 1 == len(scheme.kinds)
    assert [scheme.channel_of[s.id] for s in scheme.structures] == list(range(1, scheme.channels))
    assert anatomy.scheme(scheme.name) is scheme


def test_channel_for_falls_back_to_the_kind():
    levels, plain = SCHEMES["lumbar-mr"], SCHEMES["vertebra"]
    assert levels.channel_for(structure("L4").id) == levels.channel_of[23]
    assert levels.channel_for(structure("C3").id) == 0
    assert plain.channel_for(structure("L4").id) == plain.channel_for(structure("S1").id) == 1
    assert plain.channel_for(structure("L4/L5").id) == 0


def test_schemes_refuse_what_they_lack():
    with pytest.raises(SchemeError, match="lumbar11"):
        SCHEMES["lumbar11"].require("T12")
    with pytest.raises(SchemeError, match="no-such"):
        anatomy.scheme("no-such")


def test_value_maps_hold_structures():
    for name, values in VALUE_MAPS.items():
        assert set(values.values()) <= set(STRUCTURES), name


@pytest.mark.parametrize(
    ("project", "value", "name"),
    [
        ("verse", 28, "T13"),
        ("spider", 1, "L5"), ("spider", 6, "T12"), ("spider", 101, "L5"), ("spider", 201, "L5/S1"),
        ("spider", 206, "T12/L1"), ("spider", 100, "canal"),
        ("mrspineseg", 1, "S1"), ("mrspineseg", 10, "T9"), ("mrspineseg", 11, "L5/S1"), ("mrspineseg", 19, "T9/T10"),
        ("totalsegmentator", 25, "S1"), ("totalsegmentator", 27, "L5"), ("totalsegmentator", 50, "C1"),
        ("totalspineseg", 50, "S1"), ("totalspineseg", 11, "C1"), ("totalspineseg", 32, "T12"),
        ("totalspineseg", 41, "L1"), ("totalspineseg", 63, "C2/C3"), ("totalspineseg", 71, "C7/T1"),
        ("totalspineseg", 72, "T1/T2"), ("totalspineseg", 82, "T11/T12"), ("totalspineseg", 95, "L4/L5"),
    ],
)  # fmt: skip
def test_values_of_other_projects(project, value, name):
    assert STRUCTURES[VALUE_MAPS[project][value]].name == name


# --- codes and Slicer's files -----------------------------------------------------------------------------------------


def test_codes_of_bodies_and_whole_vertebrae_differ():
    assert anatomy.code(23, (), Extent.WHOLE).value == "11994002"
    assert anatomy.code(23, (), Extent.BODY).value == "71996003"
    assert anatomy.code(26, (), Extent.WHOLE).meaning == "Sacrum"
    assert anatomy.code(124).value == "715056000"
    assert anatomy.code(124, [L6]).value == "360499006"  # L5/L6: no code is known, and it is not L5/S1
    assert anatomy.code(L6, (), Extent.BODY).meaning == "Vertebral body"


def test_codes_are_unique_or_generic():
    by_code: dict[str, set[int]] = {}
    for sid, s in STRUCTURES.items():
        for extent in Extent if s.is_vertebral else [None]:
            by_code.setdefault(anatomy.code(sid, (), extent).value, set()).add(sid)
    shared = {code for code, ids in by_code.items() if len(ids) > 1}
    assert shared == {"51282000", "3572006", "360499006", "81040000", "122972007"}


@pytest.mark.parametrize("present", [frozenset(), frozenset({L6, T13})])
def test_terminology_names_every_structure_without_doubt(present):
    entries = {}
    for sid, s in STRUCTURES.items():
        for extent in Extent if s.is_vertebral else [None]:
            entry = terminology.terminology_entry(sid, present, extent)
            assert entry.count("~") == 6
            assert terminology.structure_of_entry(entry) == (sid, extent)
            entries[entry] = sid, extent
    assert len(entries) == len(STRUCTURES) + sum(s.is_vertebral for s in STRUCTURES.values())


def test_terminology_entry_has_slicers_form():
    assert terminology.terminology_entry(203) == (
        "Segmentation category and type - SpineSegAI~SCT^123037004^Anatomical Structure~SCT^122972007^Pulmonary vein"
        "~SCT^24028007^Right~Anatomic codes - DICOM master list~^^~^^"
    )
    assert "~SCT^3572006^Vertebral body~99SPINESEGAI^L6^L6~" in terminology.terminology_entry(L6, (), Extent.BODY)


def test_terminology_of_others_is_understood():
    others = "Segmentation category and type - Total Segmentator~SCT^123037004^Anatomical Structure~SCT^{}~^^~x~^^~^^"
    assert terminology.structure_of_entry(others.format("11994002^L4 vertebra")) == (23, Extent.WHOLE)
    assert terminology.structure_of_entry(others.format("80891009^Heart")) is None
    assert terminology.structure_of_entry("nonsense") is None


def test_committed_files_are_the_generated_ones(tmp_path):
    folder = Path(__file__).parents[2] / "Resources" / "Terminology"
    for path in terminology.write_resources(tmp_path):
        committed = folder / path.name
        assert committed.read_bytes() == path.read_bytes(), "run python -m SpineSegAILib.anatomy.terminology"


def test_terminology_document_is_what_slicer_loads():
    document = json.loads(json.dumps(terminology.terminology_document()))
    (category,) = document["SegmentationCodes"]["Category"]
    types = category["Type"]
    assert len({t["CodeValue"] for t in types}) == len(types)
    for entry in (*types, *(m for t in types for m in t.get("Modifier", ()))):
        assert {"CodingSchemeDesignator", "CodeValue", "CodeMeaning"} <= set(entry)
        assert len(entry["CodeValue"]) <= 16  # as DICOM has it
        assert len(entry["recommendedDisplayRGBValue"]) == 3
    labels = [e["3dSlicerLabel"] for t in types for e in (t, *t.get("Modifier", ())) if "3dSlicerLabel" in e]
    assert {"L4 vertebra", "L4 vertebra (body)", "L5/L6 disc", "pulmonary artery, left"} <= set(labels)
    assert len(set(labels)) == len(labels)


def test_color_table_holds_every_id():
    rows = [line.split(" ") for line in terminology.color_table().splitlines() if not line.startswith("#")]
    assert all(len(row) == 6 for row in rows)
    assert {int(row[0]) for row in rows} == {0, *STRUCTURES}
    assert ["23", "L4_vertebra", *(str(c) for c in STRUCTURES[23].color_255), "255"] in rows


def test_slicer_loads_terminology_and_colors():
    slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")
    folder = Path(__file__).parents[2] / "Resources" / "Terminology"
    logic = slicer.vtkSlicerTerminologiesModuleLogic()
    context = logic.LoadTerminologyFromFile(str(folder / terminology.TERMINOLOGY_FILE))
    assert context == terminology.CONTEXT
    for sid, s in STRUCTURES.items():
        entry = slicer.vtkSlicerTerminologyEntry()
        assert logic.DeserializeTerminologyEntry(terminology.terminology_entry(sid, (), Extent.BODY), entry)
        assert logic.UpdateEntryFromLoadedTerminologies(entry, [context], [])
        modifier = entry.GetTypeModifierObject()
        colored = modifier if modifier and modifier.GetCodeValue() else entry.GetTypeObject()
        assert tuple(colored.GetRecommendedDisplayRGBValue()) == s.color_255
