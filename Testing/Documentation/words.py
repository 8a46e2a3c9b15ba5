"""Words that readers stumble over, and what to write instead.

The documentation, the README and the model cards must not have them (`test_words.py`). For the code's own texts:

    python Testing/Documentation/words.py           # counts per file
    python Testing/Documentation/words.py --lines   # every place
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]

NAMES = ("Dice, any level", "neighbour: ")
"""Names in files and of options: they stay, so that old files and commands keep working."""

WORDS: tuple[tuple[str, str], ...] = (
    (r"phantoms?", "synthetic image (a phantom is a physical object to a radiologist)"),
    (r"unvalidated", "experimental"),
    (r"arch(es)?(?= and | of the vertebra)", "posterior elements"),
    (r"data[- ]sets?", "dataset"),
    (r"key[- ]points?", "keypoint"),
    (r"learnt", "learned; trained on"),
    (r"anew", "again"),
    (r"(goes|went|gone|go|going) on(?! (a|the|with)\b)", "continue; resume"),
    (r"levels? right", "levels correctly identified"),
    (r"any level", "ignoring level"),
    (r"invented", "false positive"),
    (r"(?<![Tt]here )(is|are|was|were) no(?! (longer|more|less|better|fewer|worse|\w+er than)\b)", "is not a …"),
    (r"(is|are|was|were|be) refused", "is not supported; is rejected"),
    (r"(is|are|was|were|be) told", "is given"),
    (r"(left|leaves?|leaving) (it |them |one |(the|such|this) \w+ )?out", "omit"),
    (r"a guess", "uncertain"),
    (r"doubts?", "uncertainty"),
    (r"[Ww]hatever happens", "fault tolerance"),
    (r"rehears\w+", "dry run"),
    (r"(?<!taken )from nothing", "from scratch"),
    (r"figures", "results"),
    (r"lest", "so that … not"),
    (r"defect of", "bug in"),
    (r"[Ss]ay (?=--|`--)", "use"),
    (r"(Known|known): (?=\W)", "Available: "),
    (r"carr(y|ied|ies) over", "copy to"),
    (r"taken back", "undone"),
    (r"slips? forwards", "anterolisthesis (slip)"),
    # American spelling
    (r"(un)?labell(ed|ing)", "labeled, labeling"),
    (r"colou?red(?<=oured)|colours?", "color"),
    (r"cent(re|res|red)", "center"),
    (r"(milli|centi)met(re|res)", "millimeter"),
    (r"(milli)?lit(re|res)", "liter"),
    (r"grey(s)?", "gray"),
    (r"licences?", "license"),
    (r"neighbour\w*", "neighbor"),
    (r"tumours?", "tumor"),
    (r"\w*(normal|optim|initial|recogn|summar|general|organ)is(e|es|ed|ing|ation|er|ers)", "…ize"),
    (r"behaviour", "behavior"),
    (r"artefacts?", "artifact"),
    (r"catalogues?", "catalog"),
    (r"favour\w*", "favor"),
    (r"licenc\w+", "license"),
)  # fmt: skip
"""What not to write, as regular expressions of whole words, and what to write instead."""

_PATTERNS = [(re.compile(rf"(?<![\w-])(?:{pattern})(?![\w-])"), say) for pattern, say in WORDS]
_NOT_PROSE = re.compile(
    r"<!-- generated: ([\w-]+) -->.*?<!-- end: \1 -->|```.*?```|``[^`\n]*``|`[^`\n]*`|<!--.*?-->|\]\([^)]*\)|https?://\S+",
    re.S,
)
_ARGUMENT = re.compile(r"^\s*(:param )?\w+:(?=\s)", re.M)


def prose(markdown: str) -> str:
    """The text without code, comments, addresses and generated parts; lines stay where they are.

    What is generated says what the code says; see `code_texts`.
    """
    return _NOT_PROSE.sub(lambda m: "\n" * m[0].count("\n"), markdown)


def found(text: str) -> Iterator[tuple[int, str, str]]:
    """Line number, word, and what to write instead."""
    for number, line in enumerate(text.splitlines(), start=1):
        for pattern, say in _PATTERNS:
            for match in pattern.finditer(line):
                yield number, match[0], say


def documents() -> list[Path]:
    """What must not have such words. The changelog says what things were called before."""
    resources = ROOT / "Resources"
    folders = (resources / "Documentation", resources / "Checkpoints", resources / "Recipes", ROOT / ".github")
    return [ROOT / "README.md", *(path for folder in folders for path in sorted(folder.rglob("*.md")))]


def _text_of(node: ast.AST) -> str:
    """What a string says, with … for what an f-string fills in; empty for what is not a string."""
    if isinstance(node, ast.JoinedStr):
        return "".join(_text_of(part) or "…" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def code_texts() -> Iterator[tuple[str, str, int, str]]:
    """Kind, path, line and text of what the code says: user interface, messages, docstrings."""
    for path in sorted((ROOT / "SpineSegAI/Resources/UI").glob("*.ui")):
        for node in ElementTree.parse(path).iter("string"):
            yield "user interface", path.name, 0, node.text or ""
    for folder in ("SpineSegAI", "SpineSegAILib"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            docs = {
                id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)
            }
            parts = {id(part) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for part in n.values}
            for node in ast.walk(tree):
                text = _text_of(node) if id(node) not in parts else ""
                if text:
                    kind = "docstrings" if id(node) in docs else "messages"
                    if kind == "docstrings" or " " in text.strip():
                        for name in NAMES:
                            text = text.replace(name, "")
                        if kind == "docstrings":
                            text = _ARGUMENT.sub("", text)
                        yield kind, str(path.relative_to(ROOT)), node.lineno, text


def main() -> None:
    """Reports the code's own texts."""
    counts: Counter[tuple[str, str]] = Counter()
    for kind, path, line, text in code_texts():
        for offset, word, say in found(prose(text)):
            counts[kind, path] += 1
            if "--lines" in sys.argv:
                print(f"{kind}: {path}:{line + offset - 1}: “{word}” → {say}")
    for (kind, path), count in counts.most_common():
        print(f"{count:4} {kind}: {path}")
    for kind in sorted({kind for kind, _ in counts}):
        print(f"{sum(n for (k, _), n in counts.items() if k == kind):4} in all, {kind}")


if __name__ == "__main__":
    main()
