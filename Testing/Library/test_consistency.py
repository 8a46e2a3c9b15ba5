"""Consistency: from opinions per voxel to one possible sequence of levels, on small synthetic spines."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from SpineSegAILib.anatomy import (
    BASIC_KINDS,
    CANAL_ID,
    KINDS,
    STRUCTURES,
    VERTEBRA_ID,
    Kind,
    disc_below,
    level_chain,
    posterior_of,
    ranks,
    scheme,
    sorted_ids,
    structure,
)
from SpineSegAILib.consistency import (
    ConsistencySettings,
    LevelResult,
    nearest_level_maps,
    relative_size,
    resolve_levels,
)
from SpineSegAILib.consistency.sequence import Item, name_levels, states_of
from SpineSegAILib.correction import LabeledStructures, choose_naming, set_level
from SpineSegAILib.errors import HintError
from SpineSegAILib.evidence import Evidence
from SpineSegAILib.phantoms.spine import PhantomSpec, make_phantom
from SpineSegAILib.results.alternatives import relabel_step

ELEVEN = ("T11", "T12", "L1", "L2", "L3", "L4", "L5", "S1")
SPACING = (4.0, 1.5, 1.5)


def ids(*names: str) -> set[int]:
    return {structure(n).id for n in names}


@dataclass
class Spine:
    """A lordotic column of boxes: label volume with structure ids, and the index of each vertebra's center."""

    labels: np.ndarray
    centres: dict[int, tuple[float, float, float]]
    present: frozenset[int]
    spacing: tuple[float, float, float] = SPACING

    def evidence(
        self,
        name: str = "lumbar-mr",
        *,
        noise: float = 0.0,
        shift: float = 0.0,
        per_instance: float = 0.0,
        seed: int = 0,
        sacrum_kind: bool = True,
    ) -> Evidence:
        """Kinds and ranks as a network would give them; the noise is a standard deviation in ranks."""
        rng = np.random.default_rng(seed)
        kinds = np.full((scheme(name).head_kinds, *self.labels.shape), 0.02, np.float32)
        rank = np.zeros(self.labels.shape, np.float32)
        expected = ranks(self.present)
        where = np.zeros(self.labels.shape, int)
        for sid in np.unique(self.labels):
            inside = self.labels == sid
            if not sid:
                continue
            kind = STRUCTURES[int(sid)].kind
            kind = Kind.VERTEBRA if kind is Kind.SACRUM and not sacrum_kind else kind
            where[inside] = KINDS.index(kind.value)
            if int(sid) in expected:
                rank[inside] = expected[int(sid)] + rng.normal(0, per_instance)
        where[where >= len(kinds)] = 0
        np.put_along_axis(kinds, where[None], 0.9, axis=0)
        rank += shift + rng.normal(0, noise, rank.shape) if noise else shift
        return Evidence(self.spacing, scheme(name), kinds=kinds, rank=rank)

    def classes(self, name: str = "lumbar-mr", *, labels: np.ndarray | None = None, certainty: float = 0.9) -> Evidence:
        """Class probabilities, of these labels or of others that the network mistakes them for."""
        s = scheme(name)
        labels = self.labels if labels is None else labels
        rest = (1 - certainty) / (s.channels - 1)
        classes = np.full((s.channels, *labels.shape), rest, np.float32)
        channel = np.zeros(int(labels.max()) + 1, int)
        for sid, c in s.channel_of.items():
            if sid < len(channel):
                channel[sid] = c
        np.put_along_axis(classes, channel[labels][None], certainty, axis=0)
        return Evidence(self.spacing, s, classes=classes)

    def swapped(self, change: dict[str, str]) -> np.ndarray:
        """Labels with some structures called by another name."""
        out = self.labels.copy()
        for a, b in change.items():
            out[self.labels == structure(a).id] = structure(b).id
        return out


def make_spine(
    names: tuple[str, ...] = ELEVEN,
    *,
    slices: int = 11,
    spacing: tuple[float, float, float] = SPACING,
    missing: tuple[str, ...] = (),
    fused: tuple[str, ...] = (),
    discs: bool = True,
    posterior: bool = False,
    scoliosis: float = 0.0,
    crop: tuple[int, int] = (0, 0),
) -> Spine:
    """Bodies of 27 × 34 × 42 mm and discs of 9 mm (a little smaller upwards) along a curve, and a canal behind them.

    Args:
        missing: levels to leave out; fused: vertebrae whose disc is replaced by their own bone.
        posterior: spinous processes that hang down beside the disc and the upper half of the next body.
        crop: rows cut away above and below.
    """
    length = 37.0 * len(names)
    height, width = int((length + 30) / spacing[1]), int(150 / spacing[2])
    z, y, x = (np.arange(n) * step for n, step in zip((slices, height, width), spacing, strict=True))
    z = z - z.mean()
    fine = np.arange(0, length + 60, 0.5)
    ap = 60 - 16 * np.sin(np.pi * np.clip(fine / length, 0, 1.15))
    lr = scoliosis * np.sin(2 * np.pi * fine / length)
    slope_ap = np.gradient(ap, fine)
    arc = np.concatenate([[0], np.cumsum(np.hypot(np.diff(fine), np.diff(ap)))])
    yy, xx = np.meshgrid(y, x, indexing="ij")
    foot = yy.copy()
    for _ in range(4):
        slope = np.interp(foot, fine, slope_ap)
        foot = foot + ((yy - foot) + (xx - np.interp(foot, fine, ap)) * slope) / (1 + slope**2)
    along = np.interp(foot, fine, arc)
    across = np.sign(xx - np.interp(foot, fine, ap)) * np.hypot(yy - foot, xx - np.interp(foot, fine, ap))
    side = np.abs(z[:, None, None] - np.interp(foot, fine, lr)[None])
    labels = np.zeros((slices, height, width), np.int16)
    present = frozenset(ids(*names))
    centres: dict[int, tuple[float, float, float]] = {}
    at = 15.0
    for i, name in enumerate(names):
        size = 27.0 - 0.7 * max(0, len(names) - 3 - i)
        gap = 9.0 - 0.4 * max(0, len(names) - 3 - i)
        sid = structure(name).id
        if name not in missing:
            body = (along >= at) & (along < at + size) & (np.abs(across) < 17)
            labels[body[None] & (side < 21)] = sid
            middle = float(np.interp(at + size / 2, arc, fine))
            centres[sid] = (
                (slices - 1) / 2 + float(np.interp(middle, fine, lr)) / spacing[0],
                middle / spacing[1],
                float(np.interp(middle, fine, ap)) / spacing[2],
            )
        process = posterior_of(sid)
        if posterior and process is not None:
            hanging = (along >= at + 14) & (along < at + size + 15) & (across > 39) & (across < 62)
            labels[hanging[None] & (side < 9)] = process.id
        disc = disc_below(sid)
        if disc is not None and i + 1 < len(names):
            between = (along >= at + size) & (along < at + size + gap) & (np.abs(across) < 16)
            if name in fused:
                labels[(between & (np.abs(across) < 8))[None] & (side < 21)] = sid
            elif discs and name not in missing and names[i + 1] not in missing:
                between &= (along >= at + size + 1.5) & (along < at + size + gap - 1.5)
                labels[between[None] & (side < 19)] = disc.id
        at += size + gap
    labels[((across > 22) & (across < 36) & (along > 5) & (along < at))[None] & (side < 9)] = CANAL_ID
    top, bottom = crop
    labels = labels[:, top : height - bottom]
    centres = {sid: (c[0], c[1] - top, c[2]) for sid, c in centres.items() if 0 <= c[1] - top < labels.shape[1]}
    return Spine(labels, centres, present, spacing)


def names_at(result, spine: Spine) -> dict[str, str]:
    """True name → name that the result gives the vertebra's center."""
    given = {}
    for sid, centre in spine.centres.items():
        value = int(result.labels[tuple(round(c) for c in centre)])
        given[STRUCTURES[sid].name] = STRUCTURES[value].name if value else "-"
    return given


def assert_all_right(result, spine: Spine, but: tuple[str, ...] = ()) -> None:
    given = names_at(result, spine)
    assert {k: v for k, v in given.items() if k != v and k not in but} == {}


def assert_possible(result, *, ordered: bool = True) -> None:
    """Levels are in anatomical order along the rows, none twice, and everything agrees with everything else."""
    for kinds in (("vertebra", "sacrum"), ("disc",)):
        found = [i for i in result.instances if i.kind in kinds and i.structure_id]
        found.sort(key=lambda i: i.centroid_mm[1])
        levels = [i.structure_id for i in found]
        assert len(levels) == len(set(levels))
        assert not ordered or levels == sorted_ids(levels)
    named = {i.structure_id for i in result.instances} - {0}
    assert named == set(np.unique(result.labels).tolist()) - {0}
    assert named == set(result.confidence)
    assert all(0 <= c <= 1 for c in result.confidence.values())
    assert result.margin >= 0


@pytest.fixture(scope="module")
def spine() -> Spine:
    return make_spine()


# --- kinds and ranks -------------------------------------------------------------------------------------------------


def test_perfect_evidence_is_returned_as_it_is(spine):
    result = resolve_levels(spine.evidence())
    assert_all_right(result, spine)
    assert_possible(result)
    assert np.mean(result.labels == spine.labels) > 0.999
    assert result.sequence == "T11 T12 L1 L2 L3 L4 L5 S1"
    assert result.warnings == []
    assert result.margin > 4 and min(result.confidence[i] for i in ids(*ELEVEN)) > 0.97


@pytest.mark.parametrize("seed", range(5))
def test_noisy_ranks(spine, seed):
    result = resolve_levels(spine.evidence(noise=0.4, per_instance=0.3, seed=seed))
    assert_all_right(result, spine)


@pytest.mark.parametrize("size", (0.75, 1.4))
def test_a_small_and_a_large_person_are_named_as_surely(spine, size):
    usual = resolve_levels(spine.evidence())
    other = resolve_levels(replace(spine.evidence(), spacing=tuple(size * mm for mm in SPACING)))
    assert_all_right(other, spine)
    assert other.margin == pytest.approx(usual.margin, abs=0.1)


def test_ranks_shifted_by_less_than_a_half(spine):
    straight, shifted = resolve_levels(spine.evidence()), resolve_levels(spine.evidence(shift=0.3))
    assert_all_right(shifted, spine)
    assert shifted.margin < straight.margin


def test_ranks_between_two_levels_are_reported(spine):
    result = resolve_levels(spine.evidence(shift=0.5, sacrum_kind=False))
    assert_possible(result)
    assert any("uncertain" in w for w in result.warnings)
    assert result.alternatives and 0.1 < result.alternatives[0].probability < 0.6


def test_sacrum_that_is_taken_for_a_vertebra(spine):
    result = resolve_levels(spine.evidence(sacrum_kind=False, noise=0.3))
    assert_all_right(result, spine)


@pytest.mark.parametrize("half", ["upper", "left"])
def test_sacrum_that_is_half_vertebra(spine, half):
    evidence = spine.evidence()
    where = spine.labels == structure("S1").id
    centre = spine.centres[structure("S1").id]
    cut = np.zeros_like(where)
    if half == "upper":
        cut[:, : round(centre[1])] = True
    else:
        cut[: round(centre[0])] = True
    chosen = where & cut
    evidence.kinds[4][chosen], evidence.kinds[1][chosen] = 0.02, 0.9
    result = resolve_levels(evidence)
    assert_all_right(result, spine)
    assert sum(i.kind == "sacrum" for i in result.instances) == 1


def test_sacrum_that_touches_l5():
    spine = make_spine(fused=("L5",))
    assert_all_right(resolve_levels(spine.evidence()), spine)


def test_sacrum_that_is_missed_but_in_view(spine):
    evidence = spine.evidence()
    lost = (spine.labels == structure("S1").id) | (spine.labels == structure("L5/S1").id)
    evidence.kinds[:, lost] = np.array([0.9, 0.025, 0.025, 0.025, 0.025])[:, None]
    result = resolve_levels(evidence)
    assert_all_right(result, spine, but=("S1",))
    assert not any("sacrum" in w for w in result.warnings)


def test_what_lies_below_s1_is_left_out():
    spine = make_spine((*ELEVEN, "L6"))  # the last body stands for S2
    s2 = spine.labels == structure("L6").id
    spine.labels[s2] = structure("S1").id
    spine.centres.pop(structure("L6").id)
    spine.present = frozenset(ids(*ELEVEN))
    evidence = spine.evidence(sacrum_kind=False)
    evidence.rank[s2] = -1.3
    result = resolve_levels(evidence)
    assert_all_right(result, spine)
    assert not result.labels[s2].any()


def test_s1_and_s2_in_one_piece():
    spine = make_spine((*ELEVEN[2:], "L6"), fused=("S1",))  # the last body stands for S2
    first = spine.labels == structure("L6").id
    spine.centres.pop(structure("L6").id)
    spine.labels[first] = structure("S1").id
    spine.present = frozenset(ids(*ELEVEN))
    result = resolve_levels(spine.evidence(sacrum_kind=False))
    assert_all_right(result, spine)
    assert np.mean(result.labels[first] == 0) > 0.85


def test_level_missing_in_the_middle():
    spine = make_spine(missing=("L2",))
    result = resolve_levels(spine.evidence(noise=0.3, per_instance=0.2))
    assert_all_right(result, spine)
    assert result.sequence == "T11 T12 L1 (L2) L3 L4 L5 S1"
    assert "A level seems to be missing between L1 and L3: L2." in result.warnings


def test_top_cut_away():
    spine = make_spine(crop=(60, 0))
    result = resolve_levels(spine.evidence(noise=0.3))
    assert_all_right(result, spine)
    assert not any("sacrum" in w for w in result.warnings)


def test_sacrum_cut_away_is_a_guess_and_says_so():
    spine = make_spine(crop=(0, 62))
    result = resolve_levels(spine.evidence(noise=0.3))
    assert_all_right(result, spine)
    assert "No sacrum was recognized: level labels are uncertain." in result.warnings
    # However well the network's opinions agree: they are one opinion.
    assert 0.75 < result.level_confidence < 0.85
    assert any(w.startswith("T11 to L5 or ") for w in result.warnings)
    shifts = {a.names: a.probability for a in result.alternatives}
    assert shifts["T12 L1 L2 L3 L4 L5 S1"] == pytest.approx(shifts["T10 T11 T12 L1 L2 L3 L4"], abs=0.03)
    assert sum(shifts.values()) + result.level_confidence < 1.01
    hinted = resolve_levels(spine.evidence(), anchors=[(structure("L3").id, spine.centres[structure("L3").id])])
    assert not any("sacrum" in w for w in hinted.warnings) and hinted.level_confidence > 0.95


def test_touching_vertebrae_are_split():
    spine = make_spine(fused=("L2",))
    result = resolve_levels(spine.evidence(noise=0.2))
    assert_all_right(result, spine)
    boundary = spine.labels == structure("L2").id
    assert np.mean(result.labels[boundary] == structure("L2").id) > 0.85


def test_three_touching_vertebrae_without_ranks():
    spine = make_spine(fused=("L1", "L2"))
    evidence = spine.evidence()
    evidence.rank = None
    assert_all_right(resolve_levels(evidence), spine)


def test_whole_column_in_one_piece():
    spine = make_spine(fused=ELEVEN[:-1])
    assert_all_right(resolve_levels(spine.evidence(noise=0.2)), spine)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_broken_body_is_one_instance(spine, axis):
    evidence = spine.evidence(noise=0.2)
    l3 = structure("L3").id
    at = round(spine.centres[l3][axis])
    band = np.zeros_like(spine.labels, bool)
    band[tuple(slice(at, at + 1 + (axis > 0)) if a == axis else slice(None) for a in range(3))] = True
    band &= spine.labels == l3
    evidence.kinds[:, band] = np.array([0.9, 0.025, 0.025, 0.025, 0.025])[:, None]
    result = resolve_levels(evidence)
    assert sum(i.structure_id == l3 for i in result.instances) == 1
    assert_all_right(result, spine, but=("L3",))
    assert np.mean(result.labels[(spine.labels == l3) & ~band] == l3) > 0.99


def test_islands_and_false_positives_are_left_out(spine):
    evidence = spine.evidence()
    speck, blob = (slice(3, 4), slice(30, 33), slice(80, 83)), (slice(2, 8), slice(100, 112), slice(2, 12))
    for where in (speck, blob):
        evidence.kinds[(slice(None), *where)] = np.array([0.05, 0.9, 0.02, 0.02, 0.01])[:, None, None, None]
    result = resolve_levels(evidence)
    assert_all_right(result, spine)
    assert not result.labels[speck][spine.labels[speck] == 0].any()
    assert not result.labels[blob].any()


def test_scoliosis():
    spine = make_spine(slices=15, scoliosis=12)
    assert_all_right(resolve_levels(spine.evidence(noise=0.3)), spine)


@pytest.mark.parametrize("slices", [1, 3])
def test_thin_stacks(slices):
    spine = make_spine(slices=slices)
    result = resolve_levels(spine.evidence(noise=0.3))
    assert_all_right(result, spine)
    assert_possible(result)


def test_one_vertebra_only():
    spine = make_spine(("L3",))
    result = resolve_levels(spine.evidence())
    assert_all_right(result, spine)


def test_nothing_at_all(spine):
    for evidence in (spine.evidence(), spine.classes(), spine.classes("vertebra")):
        empty = evidence.kinds if evidence.kinds is not None else evidence.classes
        empty[:], empty[0] = 0.01, 0.9
        result = resolve_levels(evidence)
        assert not result.labels.any() and result.labels.shape == spine.labels.shape
        assert result.confidence == {} and not result.instances
        assert all(not m.any() for m in nearest_level_maps(result).values())


def test_discs_only(spine):
    evidence = spine.evidence()
    bone = evidence.kinds[1] + evidence.kinds[4] > 0.5
    evidence.kinds[:, bone] = np.array([0.9, 0.025, 0.025, 0.025, 0.025])[:, None]
    result = resolve_levels(evidence)
    discs = {disc_below(i).id for i in ids(*ELEVEN[:-1])}
    assert {i.structure_id for i in result.instances if i.kind == "disc"} == discs
    for sid in discs:
        assert np.mean(result.labels[spine.labels == sid] == sid) > 0.99


def test_disc_below_l5_is_named_without_the_sacrum(spine):
    evidence = spine.evidence()
    lost = spine.labels == structure("S1").id
    evidence.kinds[:, lost] = np.array([0.9, 0.025, 0.025, 0.025, 0.025])[:, None]
    result = resolve_levels(evidence)
    where = spine.labels == structure("L5/S1").id
    assert (result.labels[where] == structure("L5/S1").id).all()


def test_every_disc_has_its_name(spine):
    result = resolve_levels(spine.evidence(noise=0.3))
    discs = spine.labels > 100
    assert (result.labels[discs] == spine.labels[discs]).all()


def test_the_canal_of_a_strongly_bent_column_is_kept(spine):
    """Its middle lies far from the straight line through it."""
    evidence = spine.evidence()
    rows = spine.labels.shape[1]
    bend = np.round(-45 * np.sin(np.pi * np.arange(rows) / rows)).astype(int)  # voxels
    labels = spine.labels.copy()
    for row, by in enumerate(bend):
        labels[:, row] = np.roll(labels[:, row], by, -1)
        evidence.kinds[:, :, row] = np.roll(evidence.kinds[:, :, row], by, -1)
        evidence.rank[:, row] = np.roll(evidence.rank[:, row], by, -1)
    result = resolve_levels(evidence)
    canal = labels == CANAL_ID
    assert (result.labels[canal] == CANAL_ID).mean() > 0.99


def test_canal_keeps_its_line_and_loses_islands(spine):
    evidence = spine.evidence()
    gap = np.zeros_like(spine.labels, bool)
    gap[:, 100:106] = True
    gap &= spine.labels == CANAL_ID
    evidence.kinds[:, gap] = np.array([0.9, 0.025, 0.025, 0.025, 0.025])[:, None]
    island = (slice(3, 8), slice(20, 40), slice(0, 6))
    evidence.kinds[(slice(None), *island)] = np.array([0.05, 0.02, 0.02, 0.9, 0.01])[:, None, None, None]
    result = resolve_levels(evidence)
    canal = (spine.labels == CANAL_ID) & ~gap
    assert (result.labels[canal] == CANAL_ID).all()
    assert not result.labels[island].any()


# --- classes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lumbar-mr", "mrspineseg"])
def test_perfect_classes(spine, name):
    result = resolve_levels(spine.classes(name))
    assert_all_right(result, spine)
    assert_possible(result)


def test_a_recognised_sacrum_outweighs_a_count_that_is_wrong_everywhere():
    """The top is cut off, and the network counts from there; but it knows a sacrum when it sees one."""
    spine = make_spine(("L2", "L3", "L4", "L5", "S1"))
    two_up = {"L2": "T12", "L3": "L1", "L4": "L2", "L5": "L3", "L2/L3": "T12/L1", "L3/L4": "L1/L2", "L4/L5": "L2/L3"}
    result = resolve_levels(spine.classes(labels=spine.swapped(two_up)))
    assert_all_right(result, spine)


def test_classes_with_ranks_beside_them(spine):
    evidence = spine.classes(labels=spine.swapped({n: "L3" for n in ("L1", "L2", "L4", "L5")}))
    evidence.rank = spine.evidence(noise=0.3).rank
    assert_all_right(resolve_levels(evidence), spine)


def test_scheme_without_sacrum_leaves_it_out(spine):
    for evidence in (spine.classes("spider"), spine.evidence("spider")):
        result = resolve_levels(evidence)
        assert_all_right(result, spine, but=("S1",))
        assert structure("S1").id not in result.labels


def test_what_lies_below_l5_is_left_out_in_films():
    """S1 looks like a vertebra there, nobody drew it, and the network calls it a second L5."""
    names = tuple(STRUCTURES[i].name for i in scheme("thoracolumbar-xr").ids)
    spine = make_spine((*names, "L6"), discs=False)
    s1 = spine.labels == structure("L6").id
    spine.labels[s1] = structure("L5").id
    spine.centres.pop(structure("L6").id)
    result = resolve_levels(spine.classes("thoracolumbar-xr"))
    assert_all_right(result, spine)
    assert not result.labels[s1].any()


def test_levels_above_the_scheme_are_left_out_with_a_word(spine):
    result = resolve_levels(spine.evidence("lumbar11"))
    assert_all_right(result, spine, but=("T11", "T12", "S1"))
    assert set(np.unique(result.labels)) <= {0, *scheme("lumbar11").ids}
    assert any("T11, T12" in w for w in result.warnings)


def test_one_level_called_by_another_name(spine):
    result = resolve_levels(spine.classes(labels=spine.swapped({"L3": "L2"})))
    assert_all_right(result, spine)
    assert result.confidence[structure("L3").id] > 0.9


def test_smeared_labels_become_one_name(spine):
    labels = spine.labels.copy()
    middle = labels.shape[0] // 2
    for a, b in (("L3", "L4"), ("L1", "L2"), ("T12", "L1")):
        side = spine.labels[:middle] == structure(a).id
        labels[:middle][side] = structure(b).id
    result = resolve_levels(spine.classes(labels=labels))
    assert_all_right(result, spine)
    assert_possible(result)


def test_a_sacrum_with_a_disc_of_its_own_is_doubted(spine):
    """Its first two segments, with a short disc between them, look like L5 and S1 where the top is cut off."""
    labels, disc = spine.labels.copy(), structure("L5/S1").id
    columns = np.flatnonzero((labels == disc).any(axis=(0, 1)))
    behind = columns[: round(0.45 * len(columns))]
    labels[..., behind] = np.where(labels[..., behind] == disc, 0, labels[..., behind])
    short = replace(spine, labels=labels)
    sure, doubted = (resolve_levels(s.evidence()) for s in (spine, short))
    assert not any("short" in w for w in sure.warnings) and sure.level_confidence > 0.95
    assert any("a disc within the sacrum is as short" in w for w in doubted.warnings)
    assert doubted.level_confidence < 0.85
    other = doubted.alternatives[0]
    assert other.mapping[structure("L5").id] == structure("S1").id
    assert other.mapping[structure("L4/L5").id] == structure("L5/S1").id
    assert other.mapping[disc] == 0 == other.mapping[structure("S1").id]
    assert other.step == "--delete S1,L5/S1 --set L5=S1"
    l1, l2, l3 = (structure(name).id for name in ("L1", "L2", "L3"))
    assert relabel_step({l1: l2, l2: l3, l3: 0}) == ""  # L4 would follow
    known = resolve_levels(short.evidence(), anchors=[anchor("L3", spine)])
    assert not any("short" in w for w in known.warnings)  # who names a level has looked


def test_everything_called_l3_is_uncertain(spine):
    labels = np.where(np.isin(spine.labels, list(ids(*ELEVEN))), structure("L3").id, 0)
    result = resolve_levels(spine.classes(labels=labels))
    assert_possible(result)
    assert result.margin < 1 and any("uncertain" in w for w in result.warnings)


def test_six_lumbar_vertebrae_by_class():
    spine = make_spine(("T12", "L1", "L2", "L3", "L4", "L5", "L6", "S1"))
    result = resolve_levels(spine.classes())
    assert_all_right(result, spine)
    assert any("L6" in w for w in result.warnings)
    assert (result.labels[spine.labels == 125] == 125).all()


def test_ranks_alone_assume_five_lumbar_vertebrae():
    spine = make_spine(("L1", "L2", "L3", "L4", "L5", "L6", "S1"))
    assert names_at(resolve_levels(spine.evidence()), spine)["L6"] == "L5"


def test_thirteenth_thoracic_vertebra_by_class():
    spine = make_spine(("T12", "T13", "L1", "L2", "L3", "L4", "L5", "S1"))
    assert_all_right(resolve_levels(spine.classes()), spine)


def test_scheme_without_levels_only_loses_islands(spine):
    evidence = spine.classes("vertebra", labels=np.where(np.isin(spine.labels, list(ids(*ELEVEN))), VERTEBRA_ID, 0))
    evidence.classes[:, 5, 3:5, 3:5] = np.array([0.1, 0.9])[:, None, None]
    result = resolve_levels(evidence)
    assert set(np.unique(result.labels)) == {0, VERTEBRA_ID}
    assert not result.labels[5, 3:5, 3:5].any()
    assert sum(i.structure_id == VERTEBRA_ID for i in result.instances) == 8


def test_vessels_only_lose_islands():
    labels = np.zeros((20, 30, 30), np.int16)
    labels[2:12, 5:10, 5:10], labels[2:12, 15:20, 5:10], labels[18, 28, 28] = 201, 203, 202
    spine = Spine(labels, {}, frozenset(), (1.5, 1.5, 1.5))
    result = resolve_levels(spine.classes("pulmonary-av"))
    assert set(result.confidence) == {201, 203}
    assert np.array_equal(result.labels, np.where(labels == 202, 0, labels))


# --- hints -----------------------------------------------------------------------------------------------------------


def anchor(name: str, spine: Spine, at: str | None = None) -> tuple[int, tuple[float, float, float]]:
    return structure(name).id, spine.centres[structure(at or name).id]


def test_an_anchor_shifts_everything(spine):
    result = resolve_levels(spine.evidence(noise=0.2), anchors=[anchor("L4", spine, at="L5")])
    given = names_at(result, spine)
    assert [given[n] for n in ELEVEN[:-1]] == ["T10", "T11", "T12", "L1", "L2", "L3", "L4"]
    assert_possible(result)


def test_an_anchor_makes_it_l6(spine):
    result = resolve_levels(spine.evidence(), anchors=[anchor("L6", spine, at="L5")])
    given = names_at(result, spine)
    assert [given[n] for n in ELEVEN] == ["T12", "L1", "L2", "L3", "L4", "L5", "L6", "S1"]


def test_an_anchor_beside_a_vertebra_is_moved_to_it(spine):
    sid, (z, y, x) = anchor("L3", spine)
    moved = resolve_levels(spine.evidence(shift=0.6), anchors=[(sid, (z, y, x - 24 / SPACING[2]))])
    assert_all_right(moved, spine)
    with pytest.raises(HintError, match="mm away"):
        resolve_levels(spine.evidence(), anchors=[(sid, (z, y, x - 36 / SPACING[2]))])


def test_a_disc_as_anchor(spine):
    inside = np.argwhere(spine.labels == structure("L2/L3").id).mean(axis=0)
    result = resolve_levels(spine.evidence(shift=0.6), anchors=[(structure("L2/L3").id, tuple(inside))])
    assert_all_right(result, spine)


@pytest.mark.parametrize(
    "anchors, message",
    [
        ([("L3", "L1"), ("L1", "L3")], "out of order"),
        ([("L3", "L3"), ("L4", "L3")], "same place"),
        ([("L2", "T12"), ("L3", "L4")], "do not fit"),
        ([("T9", "L3"), ("L5", "L4")], "do not fit"),
        ([("C5", "L3")], "is not in the label scheme"),
        ([("canal", "L3")], "no level"),
    ],
)
def test_contradictory_anchors(spine, anchors, message):
    with pytest.raises(HintError, match=message):
        resolve_levels(spine.evidence(), anchors=[anchor(name, spine, at=at) for name, at in anchors])


def test_visible_range_settles_the_count(spine):
    evidence = spine.evidence(shift=0.7, sacrum_kind=False)
    result = resolve_levels(evidence, visible=(structure("T11").id, structure("S1").id))
    assert_all_right(result, spine)


def test_visible_range_with_l6(spine):
    result = resolve_levels(spine.evidence(), visible=(structure("T12").id, structure("L6").id))
    assert [names_at(result, spine)[n] for n in ELEVEN] == ["T12", "L1", "L2", "L3", "L4", "L5", "L6", "S1"]


def test_impossible_visible_ranges(spine):
    with pytest.raises(HintError, match="upside down"):
        resolve_levels(spine.evidence(), visible=(structure("S1").id, structure("T11").id))
    with pytest.raises(HintError, match="more than"):
        resolve_levels(spine.evidence(), visible=(structure("L3").id, structure("L5").id))
    with pytest.raises(HintError, match="no level of"):
        resolve_levels(spine.evidence(), visible=(structure("C3").id, structure("C7").id))
    with pytest.raises(HintError, match="no levels to anchor"):
        resolve_levels(spine.evidence("vertebra"), visible=(structure("T11").id, structure("S1").id))


def test_one_end_of_the_visible_range(spine):
    for shift, visible in ((1.4, (structure("T11").id, None)), (0.7, (None, structure("S1").id))):
        evidence = spine.evidence(shift=shift, sacrum_kind=False)
        assert names_at(resolve_levels(evidence), spine)["L5"] != "L5"
        assert_all_right(resolve_levels(evidence, visible=visible), spine)
    cropped = make_spine(("T12", "L1", "L2", "L3"))
    evidence = cropped.evidence(shift=-2.0)
    assert names_at(resolve_levels(evidence), cropped)["L3"] == "L5"
    assert_all_right(resolve_levels(evidence, visible=(None, structure("L3").id)), cropped)
    with pytest.raises(HintError, match="upside down"):
        resolve_levels(evidence, visible=(structure("L3").id, structure("T12").id))
    with pytest.raises(HintError, match="named by vertebrae"):
        resolve_levels(evidence, visible=(None, None))
    with pytest.raises(HintError, match="more than L5 downwards has room for"):
        resolve_levels(make_spine(("L1", "L2", "L3", "L4", "L5", "S1")).evidence(), visible=(structure("L5").id, None))


@pytest.mark.parametrize("visible", [("T12", "S1"), (None, "S1"), ("T12", None)])
def test_a_visible_range_binds_where_the_network_counts_wrongly(visible):
    """S1 lies at the image's lower edge and looks like L5 to the network."""
    spine = make_spine(("T12", "L1", "L2", "L3", "L4", "L5", "S1"), crop=(6, 10))
    evidence = spine.evidence(shift=1.0, sacrum_kind=False)
    assert names_at(resolve_levels(evidence), spine)["S1"] == "L5"
    result = resolve_levels(evidence, visible=tuple(structure(n).id if n else None for n in visible))
    assert_all_right(result, spine)
    assert not any("T11" in text for text in (*result.warnings, *(a.names for a in result.alternatives)))


def test_a_fragment_below_the_sacrum_is_not_the_sacrum_that_a_reader_sees():
    spine = make_spine(("T12", "L1", "L2", "L3", "L4", "L5", "S1"), crop=(6, 0))
    s1 = np.argwhere(spine.labels == structure("S1").id)
    below, column = s1[:, 1].max(), int(np.median(s1[:, 2]))
    spine.labels[3:8, below + 5 : below + 11, column + 5 : column + 17] = structure("S1").id  # of S2
    spine.labels = spine.labels[:, : below + 12]
    evidence = spine.evidence(shift=0.7, sacrum_kind=False)
    evidence.rank[:, below + 3 :] = -1.0
    result = resolve_levels(evidence, visible=(None, structure("S1").id))
    assert names_at(result, spine)["S1"] == "S1"
    assert not any("?" in w for w in result.warnings)


def test_a_level_of_the_range_that_was_not_found_is_said(spine):
    whole = make_spine()
    spine = make_spine(missing=("S1",))
    spine.labels[whole.labels == structure("S1").id] = 0
    result = resolve_levels(spine.evidence(), visible=(structure("T11").id, structure("S1").id))
    assert_all_right(result, spine)
    assert "S1, the lower end of the visible range, was not recognized in the image." in result.warnings


def test_a_range_without_room_for_its_levels_is_refused():
    spine = make_spine(("L1", "L2", "L3", "L4", "L5", "S1"), crop=(8, 10))
    with pytest.raises(
        HintError, match="6 vertebrae or discs were found, T11 to S1 are 8 levels, and the image has no room"
    ):
        resolve_levels(spine.evidence(), visible=(structure("T11").id, structure("S1").id))


def test_what_a_false_vertebra_far_below_is_called_does_not_matter_to_a_range():
    spine = make_spine()
    labels = np.pad(spine.labels, ((0, 0), (0, 60), (0, 0)))
    low = spine.labels.shape[1] + 30
    labels[3:8, low : low + 15, 30:45] = structure("L4").id  # bowel, or a hip
    spine.labels = labels
    evidence = spine.evidence()
    free = resolve_levels(evidence)
    assert_all_right(free, spine)
    for visible in ((None, structure("S1").id), (structure("T11").id, structure("S1").id)):
        assert resolve_levels(evidence, visible=visible).sequence == free.sequence


# --- the other naming ------------------------------------------------------------------------------------------------


def renamed(result, alternative):
    """Labels of a result after its other naming was chosen from the mapping, and by the step for the shell."""
    labelling = LabeledStructures.of(result.labels)
    old, new = alternative.step.removeprefix("--set ").split("=")
    steps = choose_naming(labelling, alternative), set_level(labelling, structure(old).id, new)
    return [step.apply(result.labels) for step in steps]


@pytest.mark.parametrize("offset", [0.5, -0.5])
def test_the_question_carries_its_answer(offset):
    spine = make_spine(crop=(0, 62))  # without S1
    evidence = spine.evidence(shift=offset, sacrum_kind=False)
    result = resolve_levels(evidence)
    other = result.alternatives[0]
    assert other.question in result.warnings and other.names != result.sequence
    assert 0.05 < other.probability < 0.6
    by_mapping, by_step = renamed(result, other)
    assert (by_mapping == by_step).all() and (by_mapping != result.labels).any()
    names = [v for v in other.names.split() if not v.startswith("(")]
    assert names == [STRUCTURES[i].name for i in sorted_ids(np.unique(by_mapping)[1:]) if STRUCTURES[i].is_vertebral]


def test_alternatives_never_read_alike():
    settings = ConsistencySettings(drop_cost=0.5)
    states = states_of(scheme("lumbar-mr"))
    rank = np.array([level.rank for level in states], float)
    # Two pieces of one vertebra: either may be the one that is left out, which reads the same.
    items = [
        Item(arc, -np.abs(rank - r) / 0.4, 0.5, 0.5) for arc, r in ((100.0, 0.0), (68.0, 1.0), (64.0, 1.0), (30.0, 2.0))
    ]
    naming = name_levels(items, states, 35.0, variants={}, settings=settings)
    read = [[level.id for level in levels if level] for levels in (naming.levels, *(o for o, _ in naming.alternatives))]
    assert len(read) > 1
    assert all(a != b for i, a in enumerate(read) for b in read[:i])


# --- locked structures -----------------------------------------------------------------------------------------------


def locked_as(spine, **names):
    """Label array of some of a spine's structures, under names that the reader gave them."""
    result = np.zeros_like(spine.labels)
    for true, name in names.items():
        result[spine.labels == structure(true).id] = structure(name).id
    return result


def test_a_locked_structure_is_an_anchor(spine):
    locked = locked_as(spine, L3="L2")
    result = resolve_levels(spine.evidence(), locked=locked)
    assert [names_at(result, spine)[n] for n in ELEVEN] == ["T10", "T11", "T12", "L1", "L2", "L3", "L4", "L5"]


def test_a_locked_disc_is_an_anchor(spine):
    result = resolve_levels(spine.evidence(), locked=locked_as(spine, **{"L3/L4": "L2/L3"}))
    assert names_at(result, spine)["L3"] == "L2" and names_at(result, spine)["S1"] == "L5"


def test_a_locked_structure_that_the_network_missed_is_an_anchor():
    whole, gap = make_spine(), make_spine(missing=("L3",))
    evidence = gap.evidence(shift=1.3, sacrum_kind=False)
    assert names_at(resolve_levels(evidence), gap)["L4"] != "L4"
    result = resolve_levels(evidence, locked=locked_as(whole, L3="L3"))
    assert_all_right(result, gap)
    assert ((result.labels == structure("L3").id) == (whole.labels == structure("L3").id)).all()


def test_what_was_fused_with_a_locked_vertebra_keeps_its_own_name():
    spine = make_spine(fused=("L3", "L4"))
    truth = make_spine()
    locked = locked_as(truth, L4="L4")
    result = resolve_levels(spine.evidence(), locked=locked)
    for name in ("L3", "L5"):
        own = truth.labels == structure(name).id
        assert (result.labels[own] == structure(name).id).mean() > 0.95, name
    assert (result.labels[locked > 0] == structure("L4").id).all()


def test_what_lies_beside_a_locked_vertebra_is_no_other_structure(spine):
    body = spine.labels == structure("L3").id
    core = ndimage.binary_erosion(body, np.ones((3, 7, 7)))
    locked = np.where(core, structure("L3").id, 0)
    result = resolve_levels(spine.evidence(), locked=locked)
    assert_all_right(result, spine)
    assert set(np.unique(result.labels[body])) <= {0, structure("L3").id}


def test_locked_structures_that_contradict(spine):
    with pytest.raises(HintError, match="contradict each other: their levels are out of order"):
        resolve_levels(spine.evidence(), locked=locked_as(spine, L2="L4", L4="L2"))
    with pytest.raises(HintError, match="contradict each other, or the anchors or the visible range"):
        resolve_levels(spine.evidence(), locked=locked_as(spine, L2="L2"), visible=(None, structure("L1").id))
    with pytest.raises(HintError, match="The anchor L4 contradicts what is locked as L3 there"):
        resolve_levels(spine.evidence(), locked=locked_as(spine, L3="L3"), anchors=[anchor("L4", spine, at="L3")])
    with pytest.raises(HintError, match="The locked L1/L2 lies below the locked L3"):
        resolve_levels(spine.evidence(), locked=locked_as(spine, **{"L3": "L3", "L3/L4": "L1/L2"}))


def test_a_locked_canal_is_all_of_the_canal(spine):
    canal = spine.labels == CANAL_ID
    locked = np.where(canal & (np.arange(canal.shape[1])[:, None] < 80), CANAL_ID, 0)
    result = resolve_levels(spine.evidence(), locked=locked)
    assert (result.labels[locked > 0] == CANAL_ID).all()
    assert_all_right(result, spine)


# --- phantoms --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_phantoms_seen_through_a_noisy_network(seed):
    rng = np.random.default_rng(seed)
    extremes = [
        {"scoliosis_deg": 30.0, "slices": 18},
        {"listhesis": {"L4": 10.0}, "wedge": {"L1": 0.5}, "degenerated": {"L4": 1.0, "L5": 1.0}},
        {"top": "L1", "lordosis_deg": 75.0, "sacral_slope_deg": 58.0, "margin_bottom_mm": 60.0},
        {"top": "T9", "slices": 5, "slice_mm": 5.0, "size": 0.8},
    ]
    phantom = make_phantom(PhantomSpec(pixel_mm=1.5, **extremes[seed]), rng)
    labels = sitk.GetArrayFromImage(phantom.labels)
    spacing = phantom.labels.GetSpacing()[::-1]
    present = frozenset(np.unique(labels).tolist())
    centres = {
        i: phantom.labels.TransformPhysicalPointToContinuousIndex(p)[::-1]
        for i, p in phantom.keypoints.items()
        if i in scheme("lumbar-mr").ids
    }
    spine = Spine(labels, centres, present, spacing)
    evidence = spine.evidence(noise=0.3, shift=float(rng.normal(0, 0.15)), per_instance=0.15, seed=seed)
    for channel in evidence.kinds:  # soft, and eaten into by patches of doubt
        ndimage.gaussian_filter(channel, (0.3, 0.8, 0.8), output=channel)
    doubt = ndimage.gaussian_filter(rng.normal(0, 1, labels.shape), (0.5, 3, 3))
    evidence.kinds[1:] *= np.where(doubt > 1.8 * doubt.std(), 0.2, 1.0)
    evidence.kinds[0] = 1 - evidence.kinds[1:].sum(axis=0)
    result = resolve_levels(evidence)
    assert_possible(result)
    for sid in present & set(scheme("lumbar-mr").ids):
        true = labels == sid
        if STRUCTURES[sid].order is not None and true.sum() * np.prod(spacing) > 1500:
            values, counts = np.unique(result.labels[true], return_counts=True)
            assert values[counts.argmax()] == sid, STRUCTURES[sid].name


# --- names on another grid -------------------------------------------------------------------------------------------


def test_relative_size(spine):
    result = resolve_levels(spine.evidence())
    size = relative_size(result)
    assert size == pytest.approx(1.0, abs=0.15)
    instances = [replace(i, centroid_mm=tuple(1.3 * mm for mm in i.centroid_mm)) for i in result.instances]
    assert relative_size(replace(result, instances=instances)) == pytest.approx(1.3 * size)
    others = [i for i in result.instances if i.kind == "vertebra"][::2]  # no two that are neighbors
    assert relative_size(replace(result, instances=others)) is None


def test_nearest_level_maps(spine):
    result = resolve_levels(spine.evidence())
    maps = nearest_level_maps(result)
    bone = np.isin(spine.labels, list(ids(*ELEVEN)))
    assert (maps["vertebra"][bone] == spine.labels[bone]).all()
    assert maps["vertebra"] is maps["sacrum"]
    discs = spine.labels > 100
    assert (maps["disc"][discs] == spine.labels[discs]).all()
    far = np.zeros_like(spine.labels)
    assert maps["vertebra"][0, 0, 0] == 0 and maps["vertebra"].shape == far.shape
    row, column = (round(c) for c in spine.centres[structure("L3").id][1:])
    front = np.flatnonzero(spine.labels[5, row, :column] == structure("L3").id)[0]
    assert maps["vertebra"][5, row, front - 3] == structure("L3").id  # 4.5 mm in front of the body
    assert maps["vertebra"][5, row, front - 5] == 0


# --- whatever comes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smooth", [0, 3])
def test_an_untrained_network(smooth):
    rng = np.random.default_rng(smooth)
    kinds = np.stack([ndimage.gaussian_filter(rng.normal(0, 1, (9, 90, 80)), smooth) for _ in KINDS])
    kinds = np.exp(kinds / kinds.std())
    rank = ndimage.gaussian_filter(rng.normal(2, 1, (9, 90, 80)), smooth)
    evidence = Evidence(SPACING, scheme("lumbar-mr"), kinds=kinds / kinds.sum(axis=0), rank=rank)
    result = resolve_levels(evidence)
    assert_possible(result, ordered=False)  # along an axis that means nothing, rows need not be in order
    assert set(nearest_level_maps(result)) <= set(KINDS)


@pytest.mark.parametrize("seed", range(12))
def test_the_result_is_always_possible(seed):
    rng = np.random.default_rng(seed)
    variants = (ELEVEN, ELEVEN[2:], ELEVEN[:-2], ("T9", "T10", *ELEVEN), ("L3", "L4", "L5", "L6", "S1"))
    names = variants[seed % len(variants)]
    missing = tuple(n for n in names if rng.random() < 0.15)
    fused = tuple(n for n in names if rng.random() < 0.2 and n not in missing)
    slices, discs = int(rng.integers(1, 9)), bool(rng.random() < 0.7)
    spine = make_spine(names, missing=missing, fused=fused, slices=slices, discs=discs)
    if seed % 2:
        evidence = spine.evidence(noise=rng.random(), per_instance=rng.random(), seed=seed)
        tensor = evidence.kinds
    else:
        chain = [v.name for v in level_chain()][12:]
        swaps = {n: str(rng.choice(chain)) for n in names if rng.random() < 0.5 and n in scheme("spider").ids}
        evidence = spine.classes(labels=spine.swapped(swaps), certainty=0.5)
        tensor = evidence.classes
    tensor *= rng.uniform(0.3, 1.0, tensor.shape).astype(np.float32) ** 2  # holes and specks
    tensor /= tensor.sum(axis=0)
    assert_possible(resolve_levels(evidence))


# --- posterior elements ----------------------------------------------------------------------------------------------

POSTERIOR = "lumbar-mr-posterior"


def posterior_right(result: LevelResult, spine: Spine) -> dict[str, float]:
    """For the posterior elements of each vertebra the share of their voxels that have the right name."""
    ids_here = [
        i for i in np.unique(spine.labels).tolist() if STRUCTURES.get(i) and STRUCTURES[i].kind is Kind.POSTERIOR
    ]
    return {STRUCTURES[i].name: float(np.mean(result.labels[spine.labels == i] == i)) for i in ids_here}


@pytest.mark.parametrize("with_ranks", [True, False])
def test_posterior_elements_are_named_after_their_vertebrae(with_ranks):
    spine = make_spine(posterior=True)
    evidence = spine.evidence(POSTERIOR, noise=0.2)
    if not with_ranks:
        evidence.rank = None
    result = resolve_levels(evidence, anchors=[(structure("L5").id, spine.centres[structure("L5").id])])
    found = posterior_right(result, spine)
    assert len(found) == 7 and min(found.values()) > 0.95, found
    level = {i.structure_id: i.confidence for i in result.instances}
    assert level[structure("L4 posterior elements").id] == level[structure("L4").id]


def test_classes_name_posterior_elements_too():
    spine = make_spine(posterior=True)
    found = posterior_right(resolve_levels(spine.classes(POSTERIOR)), spine)
    assert len(found) == 7 and min(found.values()) > 0.95, found


def test_a_process_whose_body_is_above_the_image_is_not_the_next_ones():
    spine = make_spine(posterior=True, crop=(29, 0))  # T11's body is gone, its process hangs into view
    t11 = structure("T11 posterior elements").id
    assert (spine.labels == t11).any() and not (spine.labels == structure("T11").id).any()
    result = resolve_levels(spine.evidence(POSTERIOR))
    assert posterior_right(result, spine)["T11 posterior elements"] > 0.9
    assert posterior_right(result, spine)["T12 posterior elements"] > 0.95


def test_the_crest_of_the_sacrum_is_nobodys_posterior_element():
    spine = make_spine(posterior=True)
    l5 = spine.labels == structure("L5 posterior elements").id
    evidence = spine.evidence(POSTERIOR)
    crest = np.roll(l5, round(36 / SPACING[1]), axis=1) & (spine.labels == 0)
    evidence.kinds[:, crest] = 0.02
    evidence.kinds[KINDS.index("posterior"), crest] = 0.9
    evidence.rank[crest] = -1.0
    result = resolve_levels(evidence)
    assert not result.labels[crest].any()
    assert (result.labels[l5] == structure("L5 posterior elements").id).all()


def test_locked_posterior_elements_stay_what_they_are_called():
    spine = make_spine(posterior=True)
    locked = np.where(spine.labels == structure("L3 posterior elements").id, spine.labels, 0)
    result = resolve_levels(spine.evidence(POSTERIOR), locked=locked)
    assert (result.labels[locked > 0] == structure("L3 posterior elements").id).all()
    assert_all_right(result, spine)


def test_a_head_without_posterior_elements_gives_none():
    spine = make_spine(posterior=True)
    evidence = spine.evidence()
    assert len(evidence.kinds) == BASIC_KINDS
    result = resolve_levels(evidence)
    assert not any(STRUCTURES[int(i)].kind is Kind.POSTERIOR for i in np.unique(result.labels) if i)
    assert_all_right(result, spine)


def test_posterior_elements_can_be_no_anchor():
    spine = make_spine(posterior=True)
    with pytest.raises(HintError, match="is not counted"):
        resolve_levels(spine.evidence(POSTERIOR), anchors=[(structure("L4 posterior elements").id, (5.0, 60.0, 60.0))])
