"""``spinesegai refine``: a segmentation corrected by clicks."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..anatomy import short_name
from ..files import SEGMENTATION_SUFFIXES, atomic_write, write_json
from ..hints import Anchor
from . import arguments
from .arguments import STDOUT
from .terminal import print_json, print_note, print_written

if TYPE_CHECKING:
    from ..results import Segmentation

HELP = "Correct a segmentation by clicks: where a structure should be, and where not."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command; clicks are one list, which keeps their order."""
    parser.add_argument("input", metavar="SEGMENTATION", help=".seg.nrrd, or a label image of structure ids")
    parser.add_argument("image", metavar="IMAGE", help="image that was segmented: file, or folder with a DICOM series")
    parser.add_argument(
        "-o",
        "--output",
        type=arguments.output_file(*SEGMENTATION_SUFFIXES),
        required=True,
        metavar="FILE",
        help="write the corrected segmentation: .seg.nrrd, .nii.gz, .nii, .nrrd, .mha",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace files that exist; else only unchanged results of SpineSegAI"
    )

    def click(flag: str, add: bool, help: str) -> None:
        parse: Callable[[str], tuple[bool, Anchor]] = lambda text: (add, arguments.anchor(text))  # noqa: E731
        parser.add_argument(
            flag, action="append", dest="clicks", default=[], type=parse, metavar="L3@x,y,z", help=f"{help}; repeatable"
        )

    click("--add", True, "this point (LPS, mm) belongs to the structure; its edge follows")
    click("--remove", False, "this point (LPS, mm) does not belong to it")
    parser.add_argument(
        "--lock", type=arguments.structure_ids, default=(), metavar="A,…", help="structures that may not change"
    )
    parser.add_argument(
        "-m",
        "--model",
        "--checkpoint",
        dest="checkpoint",
        metavar="NAME|FILE",
        help="model that follows the clicks (a checkpoint of click-refine, sam or medsam); default: click-refine",
    )
    arguments.add_label_values(parser, "SEGMENTATION")
    arguments.add_json_file(parser)
    arguments.add_quiet(parser)


def run(args: argparse.Namespace) -> None:
    """Reads, corrects and writes; nothing is written if a click cannot be followed.

    Raises:
        ImageError: a file cannot be read.
        CorrectionError: see `correction.click_correction`.
        CheckpointError: the checkpoint is not there, or takes no clicks.
    """
    import SimpleITK as sitk

    from ..correction import Click, refine
    from ..errors import CorrectionError
    from ..imaging import read_image
    from ..results import read_segmentation

    named = {"--output": args.output, "--json": None if args.json == STDOUT else args.json}
    outputs = {flag: path for flag, path in named.items() if path is not None}
    inputs = {"SEGMENTATION": args.input, "IMAGE": args.image}
    arguments.check_result_files(outputs, inputs, overwrite=args.overwrite)
    clicks = [Click(at.structure_id, at.point, add) for add, at in args.clicks]
    if not clicks:
        raise CorrectionError("There are no clicks.", "Give some: --add L3@x,y,z, --remove L3@x,y,z.")
    before = read_segmentation(args.input, values=args.label_values)
    result = refine(read_image(args.image), before, clicks, locked=args.lock, checkpoint=args.checkpoint)
    if not sitk.GetArrayViewFromImage(result.labels).any():
        raise CorrectionError("Nothing would remain.", "Remove less.")
    with atomic_write(*outputs.values()) as places:
        place = dict(zip(outputs, places, strict=True))
        written = [args.output.with_name(path.name) for path in result.write(place["--output"])]
        summary = {"input": args.input, **result.to_document(), "written": [str(path) for path in written]}
        if "--json" in place:
            write_json(place["--json"], summary)
    for note in result.notes:
        print_note(note)
    if args.json == STDOUT:
        print_json(summary)
    elif not args.quiet:
        present = {*before.present, *result.present}
        for sid in sorted({c.structure_id for c in clicks}):
            print(f"{short_name(sid, present)}: {_change(before, result, sid)}")
        print_written(summary["written"])


def _change(before: Segmentation, after: Segmentation, sid: int) -> str:
    """How a structure's volume has changed, in words; in voxels where there is none to tell: no scale, or one slice."""
    import SimpleITK as sitk

    old, new = (int((sitk.GetArrayViewFromImage(s.labels) == sid).sum()) for s in (before, after))
    if not after.tells_volumes:
        return f"{old} → {new} voxels"
    ml = math.prod(after.labels.GetSpacing()) / 1000.0
    return f"{old * ml:.2f} → {new * ml:.2f} mL"
