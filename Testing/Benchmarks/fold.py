"""A manifest without one fold of its patients, for experiments that must not see what they are scored on.

    python Testing/Benchmarks/fold.py OUTPUT/dataset.json MANIFEST… [--sources chu,myo,spider] [--every 6] [--number 2]

puts the training cases of several manifests together. Of each of the sources every sixth patient, in the order of the
manifest, becomes the split “test”; the split “validation” stays as it is.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

FILES = ("image", "label", "label_whole")


def folded(manifests: list[Path], output: Path, sources: set[str], every: int, number: int) -> dict[str, Any]:
    """The manifest, with paths relative to where it will be written."""
    result: dict[str, Any] = {"name": f"fold {number} of {every}", "modality": {"0": "MR"}, "labels": {}}
    splits: dict[str, list[dict[str, Any]]] = {"training": [], "validation": [], "test": []}
    for path in manifests:
        table = json.loads(path.read_text(encoding="utf-8"))
        result["labels"] |= table.get("labels", {})
        result.setdefault("extent", table.get("extent", "body"))
        seen: Counter[str] = Counter()
        for split in ("training", "validation"):
            for case in table.get(split, ()):
                moved = {
                    key: os.path.relpath((path.parent / value).resolve(), output.parent.resolve())
                    if key in FILES
                    else value
                    for key, value in case.items()
                }
                source = case.get("source", "")
                held = split == "training" and source in sources and seen[source] % every == number
                seen[source] += split == "training"
                splits["test" if held else split].append(moved)
    return {**result, **splits}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("manifests", type=Path, nargs="+")
    parser.add_argument("--sources", default="chu,myo,spider")
    parser.add_argument("--every", type=int, default=6)
    parser.add_argument("--number", type=int, default=2)
    args = parser.parse_args()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    table = folded(args.manifests, args.output, set(args.sources.split(",")), args.every, args.number)
    args.output.write_text(json.dumps(table, indent=1), encoding="utf-8")
    for split in ("training", "validation", "test"):
        print(f"{split}: {dict(Counter(case.get('source', '') for case in table[split]))}")


if __name__ == "__main__":
    main()
