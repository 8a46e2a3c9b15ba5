"""What `pip install` of a wheel brings along: the library, and all that it reads at run time."""

from __future__ import annotations

from pathlib import Path

from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[2]
LARGEST_MB = 100  # that the package index takes


def test_the_wheel_holds_the_library_and_its_resources():
    found = {file.distribution_path: Path(file.path) for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    library = {p for p in (ROOT / "SpineSegAILib").rglob("*.py")}
    resources = {p for p in (ROOT / "Resources").rglob("*") if p.is_file()}
    wanted = {p.relative_to(ROOT).as_posix() for p in library}
    wanted |= {f"SpineSegAILib/{p.relative_to(ROOT).as_posix()}" for p in resources}
    assert wanted <= set(found)
    more = set(found) - wanted
    assert all(name.startswith("SpineSegAILib/") and name.endswith((".txt", "py.typed")) for name in more), more
    assert sum(path.stat().st_size for path in found.values()) < LARGEST_MB * 1e6


def test_the_container_copies_what_the_build_needs():
    """Every file that the build reads: a wheel made there without one would fail, or lack it."""
    copied = {
        word
        for line in (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
        if line.startswith("COPY ")
        for word in line.split()[1:-1]
    }
    assert {"constraints.txt", "pyproject.toml", "README.md", "LICENSE.txt", "SpineSegAILib", "Resources"} == copied
    assert all((ROOT / name).exists() for name in copied)
