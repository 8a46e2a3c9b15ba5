"""The code blocks of the documentation's pages."""

import re
import shlex

import generate
from generate import ROOT

BLOCK = re.compile(r"(<!-- not run: [^>]+ -->\n)?```(\w*)\n(.*?)```", re.S)
"""A comment before a block says why it does not run in the tests."""


def page_name(path):
    """For the tests' names."""
    return path.relative_to(ROOT).as_posix()


def blocks(path, *languages):
    """(whether it runs, text) of a page's code blocks; generated ones aside."""
    text = generate.MARKED.sub("", path.read_text(encoding="utf-8"))
    return [(not skipped, code) for skipped, language, code in BLOCK.findall(text) if language in languages]


def commands(code):
    """Words of each `spinesegai` command, `torchrun` before it or not; without those of a script's variables."""
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if "$WHAT" in words:
            continue
        if words[:1] == ["spinesegai"]:
            yield words[1:]
        elif "SpineSegAILib" in words:
            yield words[words.index("SpineSegAILib") + 1 :]
