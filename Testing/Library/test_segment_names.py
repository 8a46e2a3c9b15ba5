"""English names of segments, and what is not understood."""

import pytest

from SpineSegAILib.anatomy import SCHEMES, STRUCTURES, Extent, display_name
from SpineSegAILib.anatomy.terminology import terminology_entry
from SpineSegAILib.errors import DatasetError
from SpineSegAILib.results.segment_names import parse_table, parse_target, place, read_table, structure_of_name


@pytest.mark.parametrize(
    ("names", "structure"),
    [
        (["L4", "l4", "L4 vertebra", "vertebra L4", "Vertebra_L4", "vertebrae_L4", "L4 vertebral body", "VB L4",
          "lumbar vertebra 4", "4th lumbar vertebra", "fourth lumbar vertebra", "L4 (body)", "Lumbar 4", "L 4", "L-4",
          "LWK4", "LWK 4", "lwk_4", "Lendenwirbel 4", "4. Lendenwirbelkörper", "Wirbel L4", "Wirbelkoerper L4",
          "vertèbre L4", "Corps vertébral L4", "vértebra L4", "vertebra lumbar 4", "corpo vertebrale L4",
          "L4 corrected", "L4 vertebra (edited)", "LWK4 korrigiert", "L4 vertebra (body) (experimental)"], "L4"),
        (["T12", "TH12", "Th 12", "D12", "thoracic vertebra 12", "T12 vertebra", "BWK12", "BWK 12"], "T12"),
        (["C3", "HWK3", "Halswirbel 3"], "C3"),
        (["S1", "sacrum", "Sacrum S1", "Sakrum", "Kreuzbein", "Os sacrum", "SWK1"], "S1"),
        (["Bandscheibe L4/5", "LWK 4/5", "disque L4-L5", "disco L4/L5", "Zwischenwirbelscheibe L4/L5"], "L4/L5"),
        (["BWK 12/LWK 1"], "T12/L1"),
        (["Spinalkanal", "Wirbelkanal", "canal rachidien", "canal vertébral", "canale vertebrale"], "canal"),
        (["Rückenmark", "moelle épinière", "médula espinal", "midollo spinale"], "cord"),
        (["pulmonary artery, right"], "pulmonary artery, right"),
        (["L4/5", "L4-5", "L4_5", "L4/L5", "L4-L5", "L4 - L5", "L4–L5", "L4L5", "L4-L5 disc", "disc L4/L5", "Disk L4-5",
          "disc between L4 and L5", "IVD_L4-L5", "intervertebral disc L4/L5", "L5/L4"], "L4/L5"),
        (["L5/S1", "L5-S1", "L5/S", "disc L5S1", "L5/L6"], "L5/S1"),
        (["L6/S1", "disc L6-S1"], "L6/S1"),
        (["T12/L1", "Th12-L1 disc", "T12/T13"], "T12/L1"),
        (["C7/T1"], "C7/T1"),
        (["canal", "spinal canal", "Spinal_Canal", "vertebral canal"], "canal"),
        (["cord", "spinal cord", "myelon"], "cord"),
        (["vertebra", "Vertebrae", "vertebral body"], "vertebra"),
        (["disc", "intervertebral discs"], "disc"),
    ],
)  # fmt: skip
def test_names_that_are_understood(names, structure):
    for name in names:
        found = structure_of_name(name)
        assert found and STRUCTURES[found[0]].name == structure, name


@pytest.mark.parametrize(
    "name",
    ["", "L4 tumour", "L4/L6", "disc L4", "L4_1", "Segment_1", "left psoas", "L7", "T14", "C1/C2", "liver", "L4 L5 S1",
     "L4 and L5", "L4 et L5", "L4 old", "L4 alt", "L4 copy", "L4 (2)", "1", "20",
     "L4 pedicle", "bone metastasis", "spine", "lumbar spine", "canal stenosis", "cage L4/L5", "S2", "45"],
)  # fmt: skip
def test_names_that_are_not(name):
    assert structure_of_name(name) is None


def test_every_name_that_we_give_is_understood():
    for scheme in SCHEMES.values():
        for s in scheme.structures:
            if s.kind.value not in ("artery", "vein"):
                name = display_name(s.id, scheme.ids, scheme.extent)
                assert structure_of_name(name)[0] == s.id, name
                assert structure_of_name(f"{name} (unvalidated)")[0] == s.id, name


def test_extent_is_read_from_the_name():
    assert structure_of_name("L4 vertebra (body)")[1] is Extent.BODY
    assert structure_of_name("whole vertebra L4")[1] is Extent.WHOLE
    assert structure_of_name("L4")[1] is None
    assert structure_of_name("disc L4/L5")[1] is None


def test_the_readers_word_goes_before_name_tag_and_terminology():
    entry = terminology_entry(22, extent=Extent.BODY)
    tags = {"SpineSegAI.StructureId": "21", "SpineSegAI.Scheme": "lumbar-mr", "TerminologyEntry": entry}
    table = parse_table([("l5  VERTEBRA", "S1")])
    assert place("L5 vertebra", tags, table).target == "S1"
    renamed = place("L5 vertebra", tags, {})
    assert (renamed.target, renamed.how, renamed.extent) == ("L5", "name", Extent.BODY)
    assert renamed.note == "“L5 vertebra” was made as L2 and renamed by hand: it is taken as L5."
    by_tag = place("the good one", tags, {})
    assert (by_tag.target, by_tag.how, by_tag.note) == ("L2", "tag", "")
    assert place("vertebra", tags, {}).target == "L2"
    by_code = place("the good one", {"TerminologyEntry": entry}, {})
    assert (by_code.target, by_code.how, by_code.extent) == ("L3", "terminology", Extent.BODY)
    assert place("L5 vertebra", {"TerminologyEntry": entry}, {}).target == "L5"
    assert place("L5 vertebra", {}, {}).target == "L5"
    tissue = (
        "Segmentation category and type - 3D Slicer General Anatomy list~SCT^85756007^Tissue~SCT^85756007^Tissue~^^"
    )
    assert place("Segment_3", {"TerminologyEntry": tissue}, {}).target == ""


def test_a_disc_is_the_same_under_both_names_that_l6_gives_it():
    tags = {"SpineSegAI.StructureId": "124"}
    for name in ("L5/S1 disc", "L5/L6 disc"):
        assert (place(name, tags, {}).target, place(name, tags, {}).note) == ("L5/S1", "")


def test_a_name_with_a_level_says_more_than_a_code_without():
    generic = "x~SCT^123037004^Anatomical Structure~SCT^51282000^Vertebra~^^~y~^^~^^"
    assert place("vertebra L4", {"TerminologyEntry": generic}, {}).target == "L4"
    assert place("something", {"TerminologyEntry": generic}, {}).target == "vertebra"


def test_structures_of_the_readers_own():
    assert place("My Tumour", {}, {}, ["my tumour"]).target == "custom:my tumour"
    assert parse_target(" custom: my  tumour ") == "custom:my tumour"
    assert parse_target("l4") == "L4" and parse_target("disc L4-5") == "L4/L5" and parse_target("IGNORE") == "ignore"
    assert parse_target("custom:L4") == "L4"
    for wrong in ("custom:", "custom:a+b", "custom:7", "L9", ""):
        with pytest.raises(DatasetError):
            parse_target(wrong)


def test_tables(tmp_path):
    with pytest.raises(DatasetError, match="“A” is mapped twice"):
        parse_table([("a", "L4"), ("A ", "L5")])
    path = tmp_path / "names.json"
    path.write_text('{"my tumour": "custom:tumour"}', encoding="utf-8")
    assert parse_table(read_table(path)) == {"my tumour": "custom:tumour"}
    path.write_text('["L4"]', encoding="utf-8")
    with pytest.raises(DatasetError, match="is not a table of names"):
        read_table(path)
