"""``spinesegai completion``: a script that lets a shell complete commands and flags, made from the parsers."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Mapping

from . import arguments

HELP = "Print a script that lets bash or zsh complete commands and flags."

_BASH = """\
# bash completion of spinesegai; to use it: source <(spinesegai completion bash)
_spinesegai() {{
  local cur=${{COMP_WORDS[COMP_CWORD]}} flags=
  COMPREPLY=()
  if ((COMP_CWORD == 1)); then
    COMPREPLY=($(compgen -W "{commands}" -- "$cur"))
    return
  fi
  case ${{COMP_WORDS[1]}} in
{cases}
  esac
  if [[ $cur == -* ]]; then COMPREPLY=($(compgen -W "$flags" -- "$cur")); fi
}}
complete -o bashdefault -o default -F _spinesegai spinesegai
"""
"""What is not a flag falls through to file names (``-o default``)."""

_ZSH = """\
#compdef spinesegai
# zsh completion of spinesegai; to use it: source <(spinesegai completion zsh), after compinit
_spinesegai() {{
  local -a commands flags
  commands=({commands})
  if ((CURRENT == 2)); then
    _describe command commands
    return
  fi
  case $words[2] in
{cases}
  esac
  if [[ $PREFIX == -* ]]; then _describe -o flag flags; else _files; fi
}}
if [[ $funcstack[1] == _spinesegai ]]; then _spinesegai "$@"; else compdef _spinesegai spinesegai; fi
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    parser.add_argument("shell", type=arguments.choice("bash", "zsh"), metavar="bash|zsh", help="shell")


def run(args: argparse.Namespace) -> None:
    """Prints the script."""
    from . import build_parser

    parser = build_parser()
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    about = {action.dest: action.help or "" for action in commands._choices_actions}
    flags = {name: _flags(commands.choices[name]) for name in about}
    print((_bash if args.shell == "bash" else _zsh)(about, flags), end="")


def _flags(parser: argparse.ArgumentParser) -> dict[str, str]:
    """A command's flags, the long ones where there are such, with what they do."""
    return {
        flag: action.help or ""
        for action in parser._actions
        for flag in action.option_strings
        if flag.startswith("--") or len(action.option_strings) == 1
    }


def _bash(commands: Mapping[str, str], flags: Mapping[str, Mapping[str, str]]) -> str:
    cases = "\n".join(f'    {name}) flags="{" ".join(of)}" ;;' for name, of in flags.items())
    return _BASH.format(commands=" ".join([*commands, "--help", "--version"]), cases=cases)


def _zsh(commands: Mapping[str, str], flags: Mapping[str, Mapping[str, str]]) -> str:
    cases = "\n".join(f"    {name}) flags=({_described(of)}) ;;" for name, of in flags.items())
    return _ZSH.format(commands=_described(commands), cases=cases)


def _described(words: Mapping[str, str]) -> str:
    """Words of zsh's ``_describe``: ``name:what it does``, on a line."""
    return " ".join(shlex.quote(f"{word}:{re.sub('%%', '%', told).split(';')[0]}") for word, told in words.items())
