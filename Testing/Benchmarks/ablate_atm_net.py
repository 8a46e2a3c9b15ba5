"""ATM-Net's parts and its prompts, row by row.

    python Testing/Benchmarks/ablate_atm_net.py DATA OUTPUT --bank BANK.safetensors [--rows NAME …] [--report FILE]

Killed, it goes on where it was. A transformer learns nothing in the few steps of a row. So in every fold the two
networks that read no text, `swin-unetr` and the one with the other decoder, first learn for `--base-steps`; the rows go
on from the one that has their decoder. `swin-unetr` is the network without both parts; `hasf`, `ccae` and `both` add
them; `hasf-none`, `hasf-1` and `hasf-2` are the decoder with no text, the general sentence and the list, `hasf` is the
one with option 3; `both-table` replaces the language model by a vector per word, learnt with the rest.

The rows `both-SOURCE` score the weights of `both` with prompts from elsewhere, on the views as they are and,
`-bottom-off`, without the lowest third, where the sacrum is gone. `oracle` is told the reference: what the paper's
numbers may contain, not a result on new images.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from ablation import Comparison, Row, Screening, run_and_report, screening_head, write_folds
from train_default import write_manifest

from SpineSegAILib.anatomy import STRUCTURES, Kind, structure
from SpineSegAILib.evaluation.on_grid import ValidationCase
from SpineSegAILib.hints import Hints
from SpineSegAILib.methods.catalog import make_config

TRAINED = {
    "swin-unetr": {"use_hasf": False, "use_ccae": False},
    "hasf-none": {"use_ccae": False, "prompt_option": "none"},
    "hasf": {"use_ccae": False},
    "both": {},
    "hasf-1": {"use_ccae": False, "prompt_option": "1"},
    "ccae": {"use_hasf": False},
    "hasf-2": {"use_ccae": False, "prompt_option": "2"},
    "both-table": {"text_encoder": "learned_table", "text_width": 32},
}
"""Name → what differs from the preset; in the order of their weight, for a machine that may not finish them."""
BASES = {True: "hasf-none", False: "swin-unetr"}
"""Whether the decoder is HASF → whose training the rows with that decoder go on from."""
LEAK = {"prompt_source": "oracle", "allow_label_leak": "true"}
SOURCES = {
    "generic": {"prompt_source": "generic"},
    "self": {"prompt_source": "self"},
    "range": {"prompt_source": "range"},
    "oracle": LEAK,
}
COMPARISONS = (
    *(Comparison(name, "swin-unetr") for name in ("hasf", "ccae", "both")),
    *(Comparison("hasf", name) for name in ("hasf-none", "hasf-1", "hasf-2")),
    Comparison("both", "both-table"),
    *(Comparison(f"both-{s}", "both-generic") for s in ("self", "range", "oracle")),
    *(Comparison(f"both-{s}-bottom-off", "both-generic-bottom-off") for s in ("self", "range", "oracle")),
)
AUGMENTATION = {
    "zoom": (0.85, 1.2), "rotation_deg": 8.0, "elastic_probability": 0.0, "crop_bottom": 0.45,
    "tissue_probability": 0.0, "contrast_probability": 0.0, "invert_probability": 0.0,
    "blur_probability": 0.0, "low_resolution_probability": 0.0,
}  # fmt: skip
"""Milder than a real training's, for the few steps; parts of the view are still cut off."""
STEPS, BASE_STEPS = 200, 1200
DECIDING = ("raw_dice", "dice", "levels_right")


def bottom_off(case: ValidationCase) -> ValidationCase:
    """Without the lowest third of the view."""
    rows = case.volume.array.shape[1]
    return _cut(case, slice(0, rows - rows // 3))


def top_off(case: ValidationCase) -> ValidationCase:
    """Without the uppermost third of the view."""
    return _cut(case, slice(case.volume.array.shape[1] // 3, None))


def _cut(case: ValidationCase, kept: slice) -> ValidationCase:
    volume = replace(case.volume, array=np.ascontiguousarray(case.volume.array[:, kept]))
    return replace(case, volume=volume, label=np.ascontiguousarray(case.label[:, kept]))


def visible(case: ValidationCase) -> Hints:
    """The range that a reader who sees the case would give: the uppermost and the lowest level wholly in view.

    Every case of these sources shows the sacrum, which few have labelled; so where all labelled levels are in view down
    to L5, the range ends at S1.
    """
    levels = set()
    for sid in case.annotated:
        s, rows = STRUCTURES[sid], np.flatnonzero((case.label == sid).any((0, 2)))
        if not len(rows):
            continue
        if s.kind is Kind.DISC:
            levels.add(sid - 100)  # the vertebra above it
        elif s.kind is Kind.VERTEBRA and rows[0] > 0 and rows[-1] < case.label.shape[1] - 1:
            levels.add(sid)
    last = max(levels)
    if last == structure("L5").id:
        last = structure("S1").id
    return Hints(visible=(min(levels), last))


def rows(bank: Path, base_steps: int = BASE_STEPS) -> list[Row]:
    """The trained rows, then those which score `both` otherwise."""
    resources, data = {"text_bank": str(bank)}, {"augmentation": AUGMENTATION}
    configs = {name: make_config("atm-net", "small", **changes) for name, changes in TRAINED.items()}
    bases = {
        hasf: Row(f"{name}-base", configs[name].model_dump(mode="json"), data=data, optimization={"steps": base_steps})
        for hasf, name in BASES.items()
    }
    trained = {
        name: Row(
            name, config.model_dump(mode="json"), resources=resources, data=data, after=bases[config.use_hasf]
        )
        for name, config in configs.items()
    }  # fmt: skip
    made = list(trained.values())
    for view in (None, bottom_off):
        for source, options in SOURCES.items():
            name = f"both-{source}" + ("-bottom-off" if view else "")
            told = visible if source == "range" else None
            made.append(replace(trained["both"], name=name, options=options, trained_as="both", view=view, hints=told))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description="ATM-Net's ablations.")
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--bank", type=Path, required=True, help="embedded prompts, of “spinesegai text-bank”")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--base-steps", type=int, default=BASE_STEPS, help="of what the rows go on from")
    parser.add_argument("--batch", type=int, default=Screening.batch)
    parser.add_argument("--rows", nargs="*", help="only these")
    parser.add_argument("--report", type=Path, help="also write the tables as this file with .md and .json")
    arguments = parser.parse_args()
    screening = Screening(steps=arguments.steps, batch=arguments.batch, patch=(128, 64), learning_rate=1e-3)
    manifest = write_manifest(arguments.data, arguments.output / "data")
    folds = write_folds(manifest, arguments.output / "data", sources=("chu", "myo", "usp"))
    every = rows(arguments.bank, arguments.base_steps)
    wanted = [r for r in every if not arguments.rows or r.name in arguments.rows]
    base = f" --base-steps {arguments.base_steps}"
    head = screening_head(f"ablate_atm_net.py DATA OUTPUT --bank {arguments.bank}{base}", arguments.steps)
    head += (
        f"The start: {arguments.base_steps} steps of the network without text, with the row's decoder, in its fold.\n\n"
    )
    run_and_report(wanted, COMPARISONS, DECIDING, folds, arguments.output, screening, arguments.report, head=head)


if __name__ == "__main__":
    main()
