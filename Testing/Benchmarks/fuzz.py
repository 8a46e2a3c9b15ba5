"""Thousands of inputs gone wrong: ``python Testing/Benchmarks/fuzz.py --inputs 2400``.

Images, segmentations, checkpoints, scenes, manifests, tables, flags and lines for the worker (`fuzzing.SUBJECTS`), each
changed by the random numbers of its own seed. They are tried in a process of their own, which is watched: whatever is
neither taken nor refused in words is listed, with the command that tries it again. It ends with 1 if there is any.

What counts: tracebacks, processes that die, more than 60 s for one input, more than 4 GB of memory, files left behind.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import queue
import resource
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "Testing/Library")]

SHARES = {
    "image": 6,
    "segmentation": 4,
    "checkpoint": 3,
    "scene": 4,
    "manifest": 3,
    "table": 3,
    "flags": 3,
    "worker": 2,
}
"""How many of 28 inputs are of a kind."""
HANGS_S = 60.0
MEMORY_MB = 4096


def main() -> int:
    """Tries them and shows what went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--inputs", type=int, default=2400, help="of all kinds together")
    parser.add_argument("--only", choices=SHARES, help="one kind")
    parser.add_argument("--seed", type=int, default=0, help="of the first input; others count up")
    parser.add_argument("--json", metavar="FILE", help="write what was found, too")
    parser.add_argument("--child", metavar="FOLDER", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        serve(Path(args.child))
        return 0
    kinds = [args.only] if args.only else list(SHARES)
    whole = sum(SHARES[kind] for kind in kinds)
    rows = []
    for kind in kinds:
        count = -(-args.inputs * SHARES[kind] // whole)
        row = run(kind, range(args.seed, args.seed + count))
        rows.append(row)
        counts = f"{row['inputs']:5} inputs: {row['taken']:5} taken, {row['refused']:5} refused"
        print(f"{kind:13} {counts}, {len(row['faults']):3} faults; {row['seconds']:.0f} s, {row['memory_mb']:.0f} MB")
        for fault in row["faults"]:
            again = f"python Testing/Benchmarks/fuzz.py --only {kind} --seed {fault['seed']} --inputs 1"
            print(f"  {fault['what'].strip()}\n  {again}")
        sys.stdout.flush()
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return int(any(row["faults"] for row in rows))


def run(kind: str, seeds: range) -> dict[str, Any]:
    """Tries the inputs of these seeds, with as many processes one after the other as it takes."""
    row: dict[str, Any] = {"kind": kind, "inputs": len(seeds), "taken": 0, "refused": 0, "memory_mb": 0.0, "faults": []}
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        child = Child(Path(folder))
        for seed in seeds:
            answer = child.ask(kind, seed)
            row["memory_mb"] = max(row["memory_mb"], answer.get("memory_mb", 0.0))
            if "fault" in answer:
                row["faults"].append({"seed": seed, "what": answer["fault"]})
            else:
                row["taken" if answer["taken"] else "refused"] += 1
            if answer.get("dead") or answer.get("memory_mb", 0.0) > MEMORY_MB:
                child.end()
                child = Child(Path(folder))
        child.end()
    row["seconds"] = time.perf_counter() - started
    return row


class Child:
    """The process that inputs are tried in."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--child", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self._answers.get()  # it has made its samples

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def ask(self, kind: str, seed: int) -> dict[str, Any]:
        assert self._process.stdin
        self._process.stdin.write(f"{kind} {seed}\n")
        self._process.stdin.flush()
        try:
            answer = self._answers.get(timeout=HANGS_S)
        except queue.Empty:
            return {"dead": True, "fault": f"no answer within {HANGS_S:.0f} s"}
        if not answer:
            return {"dead": True, "fault": f"the process ended with {self._process.wait()}"}
        return json.loads(answer)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def serve(folder: Path) -> None:
    """The child: answers each line with a line."""
    from fuzzing import make_samples

    answers = sys.stdout
    samples = make_samples(Path(tempfile.mkdtemp(dir=folder)))
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        kind, seed = line.split()
        with contextlib.redirect_stdout(io.StringIO()):
            answer = _tried(kind, int(seed), samples, folder)
        print(json.dumps(answer), file=answers, flush=True)


def _tried(kind: str, seed: int, samples: Any, parent: Path) -> dict[str, Any]:
    from fuzzing import attempt, place_for_input

    answer: dict[str, Any] = {}
    with place_for_input(parent) as folder:
        try:
            answer["taken"] = attempt(kind, Random(f"{kind} {seed}"), samples, folder)
        except Exception as error:
            answer["fault"] = "".join([f"{type(error).__name__}: {error}\n", *_last_lines(error)])
    answer["memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if answer["memory_mb"] > MEMORY_MB and "fault" not in answer:
        answer["fault"] = f"{answer['memory_mb']:.0f} MB of memory"
    return answer


def _last_lines(error: BaseException) -> Iterator[str]:
    for frame in traceback.extract_tb(error.__traceback__)[-4:]:
        yield f"    {Path(frame.filename).name}:{frame.lineno} {frame.name}\n"


if __name__ == "__main__":
    sys.exit(main())
