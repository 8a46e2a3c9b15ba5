"""Sizes, distances and odds that `consistency` works with, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ConsistencySettings:
    """Thresholds in mm, mm² and mm³; costs in natural-log units. All are our choice, from adult lumbar anatomy.

    A size threshold is an area in the sagittal plane times the smaller of the slab's thickness and a depth, so that
    a stack of three slices, or a single one, is judged by what it can show.

    Attributes:
        min_bone_area: of a vertebra, mm². A lumbar body is about 27 × 34 mm there; a body cut by the edge shows a part.
        min_bone_depth: left to right, mm. A body is about 45 mm wide.
        min_disc_area: mm². A healthy disc is about 9 × 34 mm, a collapsed one 4 × 30 mm.
        min_disc_depth: left to right, mm.
        min_canal_area: mm²; the canal is 15 mm wide and as long as the image.
        min_posterior_area: mm²; a spinous process is about 10 × 25 mm where a slice meets it, a lamina 5 × 8 mm.
        posterior_reach: mm from the axis; a spinous process ends 80 mm behind it, a transverse one 55 mm aside.
        posterior_below: how far below its body's middle a vertebra's posterior elements lie, as a share of the pitch.
        min_other_volume: mm³ of structures that are not part of the spine, e.g. 4 mm of a 4 mm vessel.
        fragment_share: a fragment of this share of the smallest allowed size may still join its instance.
        near_axis: voxels within this distance of the spine's axis give an instance's height, mm; half a body's depth
            is 17 mm.
        off_axis: centroids farther than this from the axis are not part of the column, mm (a listhesis is < 20 mm).
        off_axis_whole: the same where masks hold whole vertebrae: fragments of transverse processes lie 40 mm off.
        usual_height: of a vertebral body, mm, where the image does not show it.
        usual_pitch: from one centroid to the next, mm, at L3/L4, where the image does not show it.
        pitch_per_height: pitch over body height, where only the height can be measured.
        split_height: an instance is examined for touching neighbors from this many usual heights on.
        merge_height: two stacked fragments are one body if they are together no taller than this many usual heights.
        rank_scale: scale of the Laplace distribution of an instance's median rank. Regressed ranks are off by
            0.2 to 0.4 between instances of one image.
        rank_scale_slope: added per rank: the farther from the sacrum, the less certain the count.
        rank_cap: a single wild rank counts no more than this.
        rank_beside_classes: weight of the ranks where classes are given, too: the same network's opinion once more, and
            where the top of a spine is cut off the more wrong of the two.
        class_floor: probability that a network gives a wrong class with certainty.
        hidden_probability: evidence for a level that the network has no class for.
        independent: how many independent opinions all instances together are worth: a network that counts wrongly is
            wrong by the same step everywhere, so eight agreeing instances are not eight witnesses. The sacrum is
            recognized by its looks and counts for itself.
        disc_weight: opinion of a disc, relative to a vertebra's.
        spacing_scale: scale of |log(distance / expected distance)|; the pitch varies by some 15 % beyond its trend.
            Twice that counts twice, more than that by its square: no spine has a vertebra of double height.
        spacing_cap: most that one distance costs.
        skip_cost: of a level without an instance between two found ones.
        end_cost: of a level that a reader sees at an end of the view and that has no instance: a vertebra wholly in
            view is hardly ever missed, while a count without the sacrum is often wrong. Half of it for the sacrum,
            which is missed more often, and counted from.
        at_edge: what ends within this distance of the image's edge is cut by it, mm.
        least_gap: of the expected distance between two vertebrae, for a reader's range to put others between them.
        fragment_cost: of a fragment as the end of what a reader sees: as much as of a sacrum that was missed.
        beyond_cost: of a level beyond what a reader sees, cut by the image's edge: readers count what they see.
        room_for_a_level: share of the pitch that must lie between what was found and the image's edge for a level that
            a reader sees and that nothing was found of.
        max_skip: most levels missing in one place.
        drop_cost: of omitting a whole vertebra-sized instance; networks invent none in the middle of a column.
        drop_cost_small: of omitting one below `small_share` of the median volume.
        drop_cost_below_sacrum: of omitting what lies below S1 (S2 looks like a vertebra).
        below_sacrum_fit: log odds up to which evidence for another level is compatible with lying below S1.
        small_share: see above.
        start_cost: per level that the lowest instance lies above the last lumbar one, if the image continues below it.
        log_l6, log_t13: log prior of a sixth lumbar (about 5 % of people), a thirteenth thoracic vertebra (about 2 %).
        unseen_variant: added to these where the evidence is ranks, which count from the sacrum and say nothing of
            names: then only a hint brings L6 or T13.
        sacrum_hit: share of S1 instances that the sacrum channel marks; low, since some networks see it as a vertebra.
        sacrum_false: share of other vertebrae that it marks.
        close_call: margins below this many nats (9 : 1) are reported.
        miscount: probability that all levels are one too high or too low where no sacrum was seen. So it was in 14 of
            80 cropped views of validation cases, most of them thought certain (`level_doubts.py`); so a fifth.
        short_disc: length, front to back, of a disc L5/S1 relative to that of L4/L5, below which it may be the sacrum's
            own first disc. The 33 that readers drew had 0.77 or more; of the default model's in 41 uncut images one had
            less (a collapsed disc); the one of a sacrum that was named L5/S1 where the top was cut off had 0.56.
        sacral_disc: probability that all levels are one too high where it is so short.
        doubted: weight of the network's opinion where an anchor or a locked structure proved its count wrong.
        anchor_reach: an anchor that hits nothing is moved to an instance within this distance, mm.
        reach: how far `nearest_level_maps` looks, mm.
    """

    min_bone_area: float = 90.0
    min_bone_depth: float = 15.0
    min_disc_area: float = 40.0
    min_disc_depth: float = 10.0
    min_canal_area: float = 60.0
    min_posterior_area: float = 25.0
    posterior_reach: float = 110.0
    posterior_below: float = 0.35
    min_other_volume: float = 50.0
    fragment_share: float = 0.12
    near_axis: float = 20.0
    off_axis: float = 30.0
    off_axis_whole: float = 50.0
    usual_height: float = 27.0
    usual_pitch: float = 35.0
    pitch_per_height: float = 1.33
    split_height: float = 1.5
    merge_height: float = 1.25
    rank_scale: float = 0.35
    rank_scale_slope: float = 0.04
    rank_cap: float = 2.5
    rank_beside_classes: float = 0.1
    class_floor: float = 0.02
    hidden_probability: float = 0.1
    independent: float = 2.0
    disc_weight: float = 0.5
    spacing_scale: float = 0.18
    spacing_cap: float = 25.0
    skip_cost: float = 1.5
    end_cost: float = 12.0
    beyond_cost: float = 3.0
    at_edge: float = 3.0
    least_gap: float = 0.7
    fragment_cost: float = 6.0
    room_for_a_level: float = 0.5
    max_skip: int = 3
    drop_cost: float = 10.0
    drop_cost_small: float = 2.0
    drop_cost_below_sacrum: float = 2.0
    below_sacrum_fit: float = 0.5
    small_share: float = 0.3
    start_cost: float = 0.3
    log_l6: float = -3.0
    log_t13: float = -3.9
    unseen_variant: float = -4.0
    sacrum_hit: float = 0.5
    sacrum_false: float = 0.005
    close_call: float = 2.2
    miscount: float = 0.2
    short_disc: float = 0.6
    sacral_disc: float = 0.2
    doubted: float = 0.2
    anchor_reach: float = 15.0
    reach: float = 6.0
