"""The documentation is current, complete and small; its links lead somewhere, its commands are understood."""

import re
from pathlib import Path

import architecture
import drawings
import generate
import pytest
from generate import PAGES, ROOT
from pages import blocks, commands, page_name

ALL_PAGES = [*generate.pages(), *sorted((ROOT / ".github").glob("*.md"))]
HEADING = re.compile(r"^#+ (.+)$", re.M)


@pytest.mark.parametrize("path", generate.pages(), ids=page_name)
def test_generated_parts_are_current(path):
    text = path.read_text(encoding="utf-8")
    assert generate.filled(text) == text, "run: python Testing/Documentation/generate.py"


def test_the_picture_of_the_rooms_is_current():
    assert architecture.PICTURE.read_text(encoding="utf-8") == architecture.svg(), (
        "run: python Testing/Documentation/architecture.py"
    )


def test_every_measurement_has_a_drawing():
    from SpineSegAILib.results.measurement import EVERY

    drawn = [key for keys in drawings.DRAWINGS.values() for key in keys]
    assert sorted(drawn) == sorted(EVERY), "see Testing/Documentation/drawings.py"
    assert set(drawings.DRAWINGS) == set(drawings.FUNCTIONS)
    assert all((drawings.PICTURES / f"measure-{name}.svg").is_file() for name in drawings.DRAWINGS)


def test_a_drawing_is_what_the_library_measures(tmp_path):
    drawings.save(drawings.heights(), tmp_path / "heights.svg")
    text = (tmp_path / "heights.svg").read_text(encoding="utf-8")
    assert f">{drawings.straight().rows['L3']['height_middle_mm']:.1f}<" in text
    assert (drawings.PICTURES / "measure-heights.svg").read_text(encoding="utf-8").count("<text") == text.count("<text")


@pytest.mark.parametrize("path", ALL_PAGES, ids=page_name)
def test_links_lead_somewhere(path):
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.S)
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    for link in links:
        if re.match(r"https?://", link):
            continue
        target, _, anchor = link.partition("#")
        to = (path.parent / target).resolve() if target else path
        assert to.exists(), link
        if anchor:
            headings = HEADING.findall(re.sub(r"```.*?```", "", to.read_text(encoding="utf-8"), flags=re.S))
            assert anchor in {re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in headings}, link


def test_what_is_said_of_s1_was_measured():
    page = (PAGES / "results/sacrum.md").read_text(encoding="utf-8")
    tilt = re.search(r"tilt: 10 of 10 measured; .* mean error ([\d.]+), largest ([\d.]+)°", page)
    slip = re.search(r"slip: 8 of 10 measured; .* mean error ([\d.]+), largest ([\d.]+) mm", page)
    card = " ".join((ROOT / "Resources/Checkpoints/lumbar-mr-resenc.md").read_text(encoding="utf-8").split())
    assert "off by {}° on average, {}° at most".format(*tilt.groups()) in card
    assert "in eight of them, and off by {} mm on average, {} mm at most".format(*slip.groups()) in card
    assert f"off by {tilt[1]}° on average" in (PAGES / "results.md").read_text(encoding="utf-8")


def test_every_page_is_in_the_menu_and_small():
    menu = (Path(__file__).parent / "mkdocs.yml").read_text(encoding="utf-8")
    for path in PAGES.glob("*.md"):
        assert f": {path.name}\n" in menu, path.name
    for path in [*(PAGES / "pictures").iterdir(), *(ROOT / "Resources/Screenshots").iterdir(), *PAGES.rglob("*.json")]:
        assert path.stat().st_size < 300_000, f"{path} is too large"
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize("path", ALL_PAGES, ids=page_name)
def test_every_command_is_understood(path):
    """Also of those that do not run here: flags and values are what the parsers take."""
    from SpineSegAILib.cli import build_parser

    for _, code in blocks(path, "sh"):
        for words in commands(code):
            words = ["unet" if word == "plain" else word for word in words]  # the example of a method to add
            args = build_parser().parse_args(words)
            assert args.wrong_value is None, f"{words}: {args.wrong_value}"
