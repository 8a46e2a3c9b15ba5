"""What a long command has found so far, in a file beside its output, from which the same command continues."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import OutputError
from ..files import check_writable, jsonable, read_text
from .terminal import print_note

SUFFIX = ".partial"
"""Is added to the output's name."""


class Kept(MutableMapping[str, Any]):
    """Findings by what they are of, JSON-able; each is on disk as soon as it is set.

    Findings for other settings in the same file are not seen. Used as a context, it removes the file at the end, unless
    there was an error or an interruption.

    Args:
        output: what the command writes in the end; None to keep nothing.
        asked: settings that the findings depend on: model, options …

    Raises:
        OutputError: the file cannot be written, or is not ours.
    """

    def __init__(self, output: Path | None, *asked: Any) -> None:
        self.path = None if output is None else output.with_name(output.name + SUFFIX)
        self._asked = hashlib.sha256(json.dumps(jsonable(asked), sort_keys=True).encode()).hexdigest()[:16]
        self._found: dict[str, Any] = {}
        if self.path is None:
            return
        check_writable(self.path)
        if self.path.exists():
            self._read(self.path)

    def _read(self, path: Path) -> None:
        lines = [line for line in read_text(path, OutputError).splitlines() if line]
        records = []
        for line in lines:
            with suppress(ValueError, RecursionError, TypeError, KeyError):  # the last one may be cut short
                record = json.loads(line)
                records.append((record["asked"], record["of"], record["found"]))
        if lines and not records:
            raise OutputError(f"{path} is not an unfinished result of SpineSegAI.", "Move it, or choose another name.")
        self._found = {of: found for asked, of, found in records if asked == self._asked}

    def __setitem__(self, of: str, found: Any) -> None:
        self._found[of] = found
        if self.path is None:
            return
        line = json.dumps({"asked": self._asked, "of": of, "found": found}, ensure_ascii=False)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"\n{line}\n")  # a line before it may be cut short
            file.flush()
            os.fsync(file.fileno())

    def __getitem__(self, of: str) -> Any:
        return self._found[of]

    def __delitem__(self, of: str) -> None:
        del self._found[of]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """All went well: the output has it all, and the file is removed. Else it stays."""
        if self.path is None:
            return
        if kind is None:
            self.path.unlink(missing_ok=True)
        elif kind is KeyboardInterrupt and self._found:
            print_note(f"{len(self)} are done and kept in {self.path.name}. Run the same command again to continue.")
