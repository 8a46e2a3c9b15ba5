"""Writes the parts of the documentation that follow from the code.

A page has a generated part between two comments, ``<!-- generated: NAME -->`` and ``<!-- end: NAME -->``; NAME is a
function of this module. Everything else on a page is written by hand. Pages are committed as they are, so that they can
be read as files; `test_documentation.py` compares them.

    python Testing/Documentation/generate.py
    python Testing/Documentation/generate.py --report report.json   # after an evaluation of the default model
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "Resources/Documentation"
LIBRARY = ROOT / "SpineSegAILib"
MARKED = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end: \2 -->)", re.S)


def cell(text: str) -> str:
    """Text within a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")


def table(*rows: tuple[str, ...]) -> str:
    """A Markdown table; the first row is its head."""
    head, *rest = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *rest])


# --- the command line ------------------------------------------------------------------------------------------------


def commands() -> str:
    """All commands, then the flags of each."""
    from SpineSegAILib.cli import COMMANDS, build_parser

    parsers = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    parts = [table(("command", "what it does"), *((f"[`{n}`](#{n})", cell(c.HELP)) for n, c in COMMANDS.items()))]
    for name, parser in parsers.items():
        parts += [f"## {name}", cell(COMMANDS[name].HELP), f"```text\n{usage(name, parser)}\n```"]
        rows = [(flag(action), cell(action.help or "")) for action in shown(parser)]
        parts.append(table(("argument", "meaning"), *rows))
    return "\n\n".join(parts)


def shown(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Arguments that help shows: the positional ones first."""
    found = [a for a in parser._actions if a.help != argparse.SUPPRESS and not isinstance(a, argparse._HelpAction)]
    return sorted(found, key=lambda a: bool(a.option_strings))


def value(action: argparse.Action) -> str:
    """What stands behind a flag."""
    if action.nargs == 0:
        return ""
    name = str(action.metavar or "|".join(action.choices or ()) or action.dest.upper())
    return {"?": f"[{name}]", "*": f"[{name} …]", "+": f"{name} [{name} …]"}.get(str(action.nargs), name)


def flag(action: argparse.Action) -> str:
    """An argument as it is typed, in code."""
    after = value(action)
    if not action.option_strings:
        return f"`{cell(after)}`"
    return ", ".join(f"`{name}`" for name in action.option_strings) + (f" `{cell(after)}`" if after else "")


def usage(name: str, parser: argparse.ArgumentParser) -> str:
    """What must be given; argparse's own differs between versions of Python."""
    positional = [a for a in shown(parser) if not a.option_strings]
    required = [f"{a.option_strings[-1]} {value(a)}" for a in shown(parser) if a.option_strings and a.required]
    return " ".join(["spinesegai", name, *map(value, positional), *required, "[options]"])


# --- Python ----------------------------------------------------------------------------------------------------------

REFERENCE = (
    ("SpineSegAILib", "What most programs need."),
    ("SpineSegAILib.imaging", "Reading and checking images."),
    ("SpineSegAILib.inference", "Models applied to images."),
    ("SpineSegAILib.results", "Segmentations, and their files."),
    ("SpineSegAILib.results.measurement", "Heights, angles, slips."),
    ("SpineSegAILib.correction", "Corrections of names and voxels."),
    ("SpineSegAILib.datasets", "Training sets."),
    ("SpineSegAILib.evaluation", "Scores."),
)
"""Packages whose faces are documented. What one of them offers again is described where it is at home."""


def python() -> str:
    """Every function and class that the packages offer, from their docstrings."""
    parts, seen = [], set()
    for package, about in REFERENCE:
        parts.append(f"## {package}\n\n{about}")
        for name, path in sorted(exports(package)):
            if (path, name) in seen:
                continue
            seen.add((path, name))
            described = describe(name, path)
            if described:
                parts.append(described)
    return "\n\n".join(parts)


def exports(package: str) -> Iterator[tuple[str, Path]]:
    """Names that a package's ``__init__`` imports for others, with the file that defines them."""
    folder = ROOT / package.replace(".", "/")
    tree = ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))
    blocks = [node.body for node in tree.body if isinstance(node, ast.If)] or [tree.body]
    for node in (n for block in blocks for n in block if isinstance(n, ast.ImportFrom) and n.level == 1):
        path = folder / (node.module or "").replace(".", "/")
        for alias in node.names:
            if path.is_dir():
                yield from (e for e in exports(f"{package}.{node.module}") if e[0] == alias.name)
            elif path.with_suffix(".py").exists() and (package, node.module) != ("SpineSegAILib", "lazy"):
                yield alias.name, path.with_suffix(".py")


def describe(name: str, path: Path) -> str:
    """Signature and docstring of a function or class; nothing for constants."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name:
            break
    else:
        return ""
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    parts = [f"### {name}", f"```python\n{signature(node)}\n```", docstring(node)]
    if isinstance(node, ast.ClassDef):
        for member in node.body:
            if isinstance(member, ast.FunctionDef) and not member.name.startswith("_") and ast.get_docstring(member):
                parts += [f"#### {name}.{member.name}", f"```python\n{signature(member)}\n```", docstring(member)]
    return "\n\n".join([*filter(None, parts), f"Defined in `{module}`."])


def signature(node: ast.FunctionDef | ast.ClassDef) -> str:
    """As it is written in the code, without the body; of a class that of its construction."""
    if isinstance(node, ast.FunctionDef):
        kept = [d for d in node.decorator_list if ast.unparse(d) in ("property", "classmethod", "staticmethod")]
        lines = [f"@{ast.unparse(d)}" for d in kept]
        after = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        return "\n".join([*lines, f"def {node.name}{parameters(node)}{after}"])
    for member in node.body:
        if isinstance(member, ast.FunctionDef) and member.name == "__init__":
            return f"class {node.name}{parameters(member, skip_self=True)}"
    fields = [ast.unparse(m) for m in node.body if isinstance(m, ast.AnnAssign) and "ClassVar" not in ast.unparse(m)]
    is_data = any("dataclass" in ast.unparse(d) for d in node.decorator_list)
    return f"class {node.name}" + ("(\n    " + ",\n    ".join(fields) + ",\n)" if is_data and fields else "")


def parameters(node: ast.FunctionDef, skip_self: bool = False) -> str:
    """In brackets, one per line where they would be long."""
    arguments = ast.parse(ast.unparse(node)).body[0].args  # a copy
    if arguments.args and arguments.args[0].arg in ("self", "cls") and skip_self:
        arguments.args.pop(0)
    text = ast.unparse(arguments)
    if len(text) < 90:
        return f"({text})"
    lines, depth, start = [], 0, 0
    for at, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            lines.append(text[start:at].strip())
            start = at + 1
    return "(\n    " + ",\n    ".join([*lines, text[start:].strip()]) + ",\n)"


def docstring(node: ast.FunctionDef | ast.ClassDef) -> str:
    """The docstring as Markdown: its sections are lists."""
    text = ast.get_docstring(node) or ""
    text = re.sub(r"``(.+?)``", r"`\1`", text)
    text = re.sub(r":(?:class|func|meth):`(.+?)`", r"`\1`", text)
    found = re.split(r"^(Args|Attributes|Returns|Raises|Yields):[ \t]*$", text, flags=re.M)
    parts = [found[0].strip()]
    for section, body in zip(found[1::2], found[2::2], strict=True):
        title = {"Args": "Arguments"}.get(section, section)
        entries = re.split(r"^(?=\S)", textwrap.dedent(body).strip("\n"), flags=re.M)
        listed = []
        for entry in filter(str.strip, entries):
            words = " ".join(entry.split())
            name, colon, rest = words.partition(": ")
            is_named = colon and re.fullmatch(r"[\w*, .`]+", name) and section not in ("Returns", "Yields")
            listed.append(f"- `{name.strip('`')}`: {rest}" if is_named else f"- {words}")
        parts.append(f"**{title}**\n\n" + "\n".join(listed))
    return "\n\n".join(filter(None, parts))


# --- what is measured, models, methods, rooms -------------------------------------------------------------------------


def measurements() -> str:
    """Every measurement with its column, unit, how it is taken, what is usual, and its drawing."""
    from drawings import DRAWINGS

    from SpineSegAILib.results.measurement import LIMITS, MEASUREMENTS, SPINE_MEASUREMENTS

    drawing = {key: name for name, keys in DRAWINGS.items() for key in keys}
    parts = []
    for title, group in (("Of each structure", MEASUREMENTS), ("Of the spine as a whole", SPINE_MEASUREMENTS)):
        parts.append(f"## {title}")
        shown_before = None
        for m in group:
            unit = f" ({m.unit})" if m.unit else " (ratio)"
            parts.append(f"### {m.label}\n\nColumn `{m.key}`{unit}: {m.method}.")
            limits = [x for x in LIMITS if x.key == m.key]
            if limits:
                rows = [
                    (", ".join(sorted(x.of)), "{:g} to {:g}".format(*x.usual), "{:g} to {:g}".format(*x.possible))
                    for x in limits
                ]
                parts.append(table(("for", "usual", "possible"), *rows))
            name = drawing[m.key]
            if name != shown_before:
                parts.append(f"![How it is taken: {m.label}](pictures/measure-{name}.svg)")
            shown_before = name
    return "\n\n".join(parts)


def models() -> str:
    """The shipped models, by what their files say."""
    from SpineSegAILib.checkpoints import read_header
    from SpineSegAILib.methods.catalog import DEFAULT_METHOD, method_info

    rows = []
    for path in sorted((ROOT / "Resources/Checkpoints").glob("*.safetensors")):
        info = read_header(path)
        if not method_info(info.method).offered:
            continue  # it makes no segmentation; see the page on correcting
        full = info.metadata["validation"]["full"]
        dice = {g: f"{v['dice']:.3f} (n = {v['scored']})" for g, v in full.items() if v.get("dice") is not None}
        levels = full.get("vertebrae", {})
        right = f"{levels['levels_right']}/{levels['levels']}" if levels.get("levels") else "–"
        default = info.method == DEFAULT_METHOD
        rows.append(
            (
                f"[`{info.name}`](../Checkpoints/{info.name}.md){' (default)' if default else ''}",
                method_info(info.method).title, dice.get("vertebrae", "–"), dice.get("discs", "–"), right,
                f"{info.size_bytes / 1e6:.1f}",
            )
        )  # fmt: skip
    rows.sort(key=lambda row: "(default)" not in row[0])
    head = ("model and card", "method", "vertebrae: Dice", "discs: Dice", "levels correctly identified", "MB")
    return table(head, *rows)


def methods() -> str:
    """All methods, by group."""
    from SpineSegAILib.methods.catalog import METHODS

    words = {
        "correction": "for correction",
        "system": "published spine system",
        "baseline": "baseline",
        "comparison": "for comparison only",
    }
    rows = [
        (f"`{m.id}`", m.title, words[m.group], "/".join(f"{d}D" for d in m.dims), cell(m.summary), cell(m.citation))
        for m in METHODS.values()
    ]
    return table(("id", "name", "group", "dims", "idea", "source"), *rows)


def hints() -> str:
    """Which method takes which hint."""
    from SpineSegAILib.cli.segment import HINT_FLAGS
    from SpineSegAILib.methods.catalog import COMMON_HINTS, METHODS

    rows = []
    for name, flag_name in HINT_FLAGS.items():
        takers = [m.title for m in METHODS.values() if name in m.hints and m.group != "comparison"]
        rows.append((f"`{flag_name}`", "every method" if name in COMMON_HINTS else ", ".join(takers)))
    return table(("hint", "used by"), *rows)


def formats() -> str:
    """Public datasets that can be imported, and how their folders look."""
    from SpineSegAILib.datasets.public_sets import _LAYOUTS, NAMES

    return table(("`--format`", "its folder"), *((f"`{name}`", cell(_LAYOUTS[name])) for name in NAMES))


DEFAULT_RESULTS = PAGES / "results/default.json"
ROWS = (
    ("vertebrae", "spider"), ("vertebrae", "chu"), ("vertebrae", "myo"), ("discs", "spider"), ("canal", "spider"),
)  # fmt: skip
"""What the short table of the default's results shows: a group of structures of a source."""


def keep_report(report: Path) -> None:
    """Takes from a report of `spinesegai evaluate` what the short table shows."""
    document = json.loads(report.read_text(encoding="utf-8"))
    sources = document["variants"]["full"]["sources"]
    kept = {
        "checkpoint": document["checkpoint"],
        "split": document["split"],
        "library": document["library"],
        "peak_mb": max(case["peak_mb"] for case in document["variants"]["full"]["cases"]),
        "sources": {
            source: {
                group: {key: row[key] for key in ("scored", "cases", "dice", "hd95_mm", "levels", "levels_right")}
                | {"patients": patients(document, source, group), "dice_interval": row["intervals"]["dice"]}
                for group, row in groups.items()
            }
            for source, groups in sources.items()
        },
    }
    DEFAULT_RESULTS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def default_results() -> str:
    """The default's results in a few rows, with n, interval and data."""
    kept = json.loads(DEFAULT_RESULTS.read_text(encoding="utf-8"))
    about = {
        "spider": "SPIDER, midline slabs, T2", "chu": "Chu et al., T2", "myo": "MyoSegmenTUM, water images",
    }  # fmt: skip
    rows = []
    for group, source in ROWS:
        row = kept["sources"][source][group]
        low, high = row["dice_interval"]
        right = f"{row['levels_right']}/{row['levels']}" if row["levels"] else "–"
        rows.append(
            (group, about[source], f"{row['scored']} in {row['patients']}", f"{row['dice']:.3f}",
             f"{low:.3f} to {high:.3f}", f"{row['hd95_mm']:.1f}", right)
        )  # fmt: skip
    head = ("structures", "data", "n, in patients", "Dice", "95 % interval", "HD95, mm", "levels correctly identified")
    return table(head, *rows)


def layers() -> list[list[str]]:
    """The rooms of the library, top down, as the import contract has them."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^layers = \[(.*?)^\]", text, re.S | re.M)[1]
    return [row.split(" : ") for row in re.findall(r'"([^"]+)"', listed)]


def rooms() -> str:
    """What each room is for: the first line of its docstring."""
    rows = []
    for name in (room for row in layers() for room in row):
        path = LIBRARY / name / "__init__.py"
        path = path if path.exists() else LIBRARY / f"{name}.py"
        first = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")[0]
        rows.append((f"`{name}`", cell(" ".join(re.sub(r"``(.+?)``", r"`\1`", first).split()))))
    return table(("room", "what it is for"), *rows)


def recipes() -> str:
    """What comes along to train again and to compare."""
    rows = []
    for folder in ("Recipes", "Compare"):
        for path in sorted((ROOT / "Resources" / folder).glob("*.toml")):
            title = re.search(r'^title = "(.*)"', path.read_text(encoding="utf-8"), re.M)
            rows.append((f"[`{path.stem}`](../{folder}/{path.name})", folder.lower(), cell(title[1]) if title else ""))
    return table(("name", "for", "title"), *rows)


GENERATORS: dict[str, Callable[[], str]] = {
    function.__name__: function
    for function in (
        commands,
        python,
        measurements,
        models,
        default_results,
        methods,
        hints,
        formats,
        rooms,
        recipes,
    )
}


def filled(text: str) -> str:
    """A page with its generated parts as they should be."""
    return MARKED.sub(lambda m: f"{m[1]}\n{GENERATORS[m[2]]()}\n\n{m[3]}", text)


def pages() -> list[Path]:
    """Every page, and the README."""
    return [ROOT / "README.md", *sorted(PAGES.rglob("*.md"))]


def patients(document: dict[str, Any], source: str, group: str) -> int:
    """How many patients of a source have structures of a group."""
    cases = document["variants"]["full"]["cases"]
    having = [c for c in cases if c["source"] == source and any(s["group"] == group for s in c["structures"])]
    return len({c.get("patient") or c["case"] for c in having})


def main() -> None:
    """Brings all pages up to date, and says which changed."""
    parser = argparse.ArgumentParser(description="Write the generated parts of the documentation.")
    parser.add_argument("--report", type=Path, help="report of the default model: the source of the short table")
    if report := parser.parse_args().report:
        keep_report(report)
    for path in pages():
        old = path.read_text(encoding="utf-8")
        new = filled(old)
        if new != old:
            path.write_text(new, encoding="utf-8")
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
