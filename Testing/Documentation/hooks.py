"""What the website adds to the pages: the model cards, pictures from elsewhere, and links to the repository.

Pages link to files of the repository by their relative paths, so that they work on a code host. Here cards and pictures
become part of the site; other files are linked at the repository's address, or only named where none is configured.
"""

from __future__ import annotations

import posixpath
import re

from generate import PAGES, ROOT
from mkdocs.structure.files import File

LINK = re.compile(r"(!?)\[([^\]]*)\]\((\.\./[^)#\s]+)(#[^)\s]*)?\)")
PREFIX = "Resources/Documentation"
TAKEN = {"Resources/Checkpoints": "models", "Resources/Screenshots": "pictures"}
"""Folder of the repository → folder of the site, for cards and pictures."""


def on_files(files, config):
    """Cards and pictures as files of the site."""
    for source, target in TAKEN.items():
        for path in sorted((ROOT / source).iterdir()):
            if path.suffix in (".md", ".png", ".jpg"):
                files.append(File.generated(config, f"{target}/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links out of the folder."""
    here = posixpath.dirname(page.file.src_uri)

    def replaced(match):
        image, text, target, anchor = match.groups()
        path = posixpath.normpath(posixpath.join(PREFIX, here, target))
        if path.startswith(PREFIX):
            return match[0]
        if not (ROOT / path).exists():
            raise ValueError(f"{page.file.src_uri}: there is no {path}")
        folder, name = posixpath.split(path)
        if folder in TAKEN:
            inside = posixpath.relpath(f"{TAKEN[folder]}/{name}", here or ".")
            return f"{image}[{text}]({inside}{anchor or ''})"
        return f"[{text}]({config.repo_url}/blob/main/{path})" if config.repo_url else text

    return LINK.sub(replaced, markdown)


assert PAGES == ROOT / PREFIX
