"""The scripts that complete commands and flags know all of them; bash runs its own."""

from __future__ import annotations

import re
import subprocess

import pytest
from test_cli import run

from SpineSegAILib import cli


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_every_command_and_flag_is_completed(shell, capsys):
    assert run("completion", shell) == 0
    script = capsys.readouterr().out
    for command in cli.COMMANDS:
        assert run(command, "--help") == 0
        flags = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", capsys.readouterr().out.partition("\n\n")[0]))
        (case,) = re.findall(rf"^    {command}\) .*$", script, re.MULTILINE)
        assert flags <= set(re.findall(r"--[a-z][a-z-]+", case)) and re.search(rf"\W{command}\W", script)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("spinesegai se", "segment"),
        ("spinesegai segment image.nii.gz --measurements-", "--measurements-all"),
        ("spinesegai relabel --sw", "--swap"),
        ("spinesegai segment ima", ""),  # bash then completes names of files
        ("spinesegai nonsense --", ""),
    ],
)
def test_bash_completes(typed, offered, capsys):
    assert run("completion", "bash") == 0
    script = capsys.readouterr().out
    ask = f'COMP_WORDS=({typed}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _spinesegai; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(
        ["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, encoding="utf-8", check=True
    )
    assert done.stdout.strip() == offered and not done.stderr


def test_another_shell_is_refused(capsys):
    assert run("completion", "fish") == 2
    assert "Use bash or zsh." in capsys.readouterr().err
