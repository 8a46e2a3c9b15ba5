"""The documentation is written in the words of the field."""

import pytest
import words


@pytest.mark.parametrize("path", words.documents(), ids=lambda p: p.relative_to(words.ROOT).as_posix())
def test_worst_words_stay_out(path):
    text = words.prose(path.read_text(encoding="utf-8"))
    assert not [f"line {n}: “{word}”; write: {say}" for n, word, say in words.found(text)]


@pytest.mark.parametrize("kind", ["user interface", "messages", "docstrings"])
def test_the_code_says_none_of_them(kind):
    places = [
        f"{path}:{line}: “{word}”; write: {say}"
        for found_kind, path, line, text in words.code_texts()
        if found_kind == kind
        for _, word, say in words.found(words.prose(text))
    ]
    assert not places, "\n".join(places)


def test_words_are_found_in_prose_alone():
    text = "A phantom is made anew.\n`--phantoms 3`\n```sh\nspinesegai phantom\n```\nLabelled by [it](phantom.md)."
    assert [word for _, word, _ in words.found(words.prose(text))] == ["phantom", "anew"]
    assert [word for _, word, _ in words.found("S1 is no disc. There is no sacrum.")] == ["is no"]
