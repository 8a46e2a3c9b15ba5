"""The parser of the command line: a command is one module and one entry, and a wrong value is one sentence."""

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from SpineSegAILib import cli
from SpineSegAILib.cli.arguments import Parser

NEEDED = {
    "segment": "a.nii.gz --output b.nrrd",
    "relabel": "a.nrrd --output b.nrrd --shift up",
    "train": "a.json --output run",
    "evaluate": "a.json --split test --output b.json",
    "compare": "a.toml folder",
    "import-scenes": "a.mrb --output folder",
    "import-dataset": "folder --format spider --output set",
    "complete": "a.json --checkpoint c --output out",
    "calibrate": "c a.json --output b.safetensors",
    "publish": "c a.json --output out --name n",
    "rank": "a.nii.gz",
    "methods": "",
    "checkpoints": "",
    "text-bank": "--output b.safetensors",
    "sample": "",
    "phantom": "--output b.nrrd",
    "completion": "bash",
    "refine": "a.seg.nrrd b.nii.gz --output c.seg.nrrd",
}
"""The arguments that a command cannot do without."""


def parser_of(name: str) -> Parser:
    """A parser with the flags of one command's module, and no others."""
    parser = Parser(prog=f"spinesegai {name}")
    cli.COMMANDS[name].add_arguments(parser)
    return parser


def checked_flags() -> list[tuple[str, str]]:
    """(command, flag) of all flags whose value is checked while the words are parsed."""
    return [
        (name, next(f for f in action.option_strings if f[:2] == "--"))
        for name in cli.COMMANDS
        for action in parser_of(name)._actions
        if action.type not in (None, Path)
        and action.option_strings
        and action.nargs != "+"
        and action.option_strings != ["--counting"]  # which the library checks
        if (name, action.dest) != ("segment", "output")  # any name may be that of a folder
    ]


def stderr_of(capsys, *words: str) -> str:
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err


# --- commands ---


def test_a_command_is_one_module():
    folder = Path(cli.__file__).parent
    modules = {p.stem for p in folder.glob("*.py")} - {
        "__init__",
        "arguments",
        "kept",
        "terminal",
        "segment_files",
        "segment_many",
    }
    assert modules == {name.replace("-", "_") for name in cli.COMMANDS} and set(NEEDED) == set(cli.COMMANDS)
    for name, command in cli.COMMANDS.items():
        assert command.__name__ == f"SpineSegAILib.cli.{name.replace('-', '_')}"
        assert command.HELP.endswith(".") and "\n" not in command.HELP


@pytest.mark.parametrize("name", NEEDED)
def test_its_flags_come_from_its_own_module(name, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    shown = []
    for show in (lambda: cli.main([name, "--help"]), lambda: parser_of(name).parse_args(["--help"])):
        with pytest.raises(SystemExit) as stopped:
            show()
        assert not stopped.value.code
        shown.append(capsys.readouterr().out)
    whole, own = shown
    assert whole.replace(f"{cli.COMMANDS[name].HELP}\n\n", "", 1) == own


def test_a_new_command_is_one_entry(monkeypatch, capsys):
    def add_arguments(parser):
        parser.add_argument("name", help="whom to greet")

    new = SimpleNamespace(HELP="Greet.", add_arguments=add_arguments, run=lambda args: print(f"Hello, {args.name}"))
    monkeypatch.setattr(cli, "COMMANDS", {**cli.COMMANDS, "greet": new})
    assert cli.main(["greet", "L5"]) == 0 and capsys.readouterr().out == "Hello, L5\n"
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert "Greet." in capsys.readouterr().out


def test_every_argument_is_explained():
    for name in cli.COMMANDS:
        for action in parser_of(name)._actions:
            assert action.help and action.help != argparse.SUPPRESS, (name, action.dest)
            assert action.nargs == 0 or action.metavar, (name, action.dest)


# --- wrong values ---


@pytest.mark.parametrize(("name", "flag"), checked_flags())
def test_a_wrong_value_is_one_sentence(name, flag, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    message, *remedy = stderr_of(capsys, name, *NEEDED[name].split(), flag, ",").splitlines()
    assert message.startswith(f"spinesegai: {flag}: ") and message.endswith(".")
    assert len(remedy) <= 1 and all(line.startswith("  ") and line.endswith(".") for line in remedy)
    assert not list(tmp_path.iterdir())


def test_flags_of_all_kinds_are_checked():
    flags = {flag for _, flag in checked_flags()}
    assert flags >= {"--device", "--output", "--json", "--structures", "--split", "--steps", "--hours", "--validation"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("train --steps 1.5", "--steps: “1.5” is not a whole number. Use a number such as 3."),
        ("train --hours nan", "--hours: “nan” is not a number. Use a number such as 1.5."),
        ("train --device mps", "--device: “mps” is not a valid choice. Use auto, cpu or cuda."),
        ("evaluate --worst -1", "--worst: “-1” is not a whole number of 0 or more. Use a number such as 3."),
        ("phantom --seed -1", "--seed: “-1” is not a whole number of 0 or more. Use a number such as 3."),
        ("import-dataset --validation 1", "--validation: “1” is not a share. Use a number from 0 to below 1,"),
        ("import-dataset --extent all", "--extent: “all” is not a valid choice. Use body or whole."),
        ("segment --device cuda:x", "--device: “cuda:x” is not a device. Use auto, cpu, gpu, cuda, cuda:N or mps."),
        ("segment --visible S1:L1", "--visible: S1 lies below L1. Give the upper level first."),
        ("segment --visible canal:", "--visible: canal is not a vertebra. Use vertebrae, as in T11:S1."),
        ("segment --uncertainty u.seg.nrrd", "Unsupported file extension: u.seg.nrrd. Use .nii.gz, .nii, .nrrd or"),
        ("relabel --merge L1", "--merge: “L1” does not name two structures. Use two names, as in L3,L4."),
    ],
)
def test_it_says_what_is_wrong_and_what_to_use(words, sentence, capsys):
    name, *words = words.split()
    assert sentence in " ".join(stderr_of(capsys, name, *NEEDED[name].split(), *words).split())


def test_the_first_of_several_is_named(capsys):
    err = stderr_of(capsys, "segment", "a.nii.gz", "--output", "b.txt", "--device", "abacus", "--json", "c.txt")
    assert "--output" in err and "--device" not in err and "--json" not in err


@pytest.mark.parametrize("words", ["rank a.nii.gz --output b.txt --json", "segment a --json - --output b.txt"])
def test_it_is_an_error_for_machines_too(words, capsys):
    assert cli.main(words.split()) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["kind"] == "OutputError" and error["message"] == "--output: Unsupported file extension: b.txt."
    assert error["remedy"].startswith("Use ")


# --- what cannot be parsed ---


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("resegment a.nii.gz", "resegment"),
        ("segmnt a.nii.gz", "“segmnt” is not a command. Did you mean “segment”?"),
        ("segment a.nii.gz --messurements b.csv", "Did you mean “--measurements”?"),
        ("segment --output b.nrrd", "required: IMAGE"),
        ("segment a.nii.gz --output", "expected one argument"),
        ("segment a.nii.gz --output b.nrrd --speed 3", "unrecognized arguments: --speed"),
        ("segment a.nii.gz --output b.nrrd --device abacus --speed 3", "unrecognized arguments: --speed"),
        ("relabel a.nrrd --output b.nrrd --shift", "expected one argument"),
    ],
)
def test_a_syntax_error_shows_the_usage(words, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(words.split())
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("usage: spinesegai") and said in err


def test_a_flag_of_another_command_is_not_suggested(capsys):
    with pytest.raises(SystemExit):
        cli.main(["sample", "--measurments"])
    assert "Did you mean" not in capsys.readouterr().err
