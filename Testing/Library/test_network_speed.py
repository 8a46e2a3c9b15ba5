"""The measurement in `Testing/Benchmarks/network_speed.py`."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "Benchmarks"))

import network_speed


def test_arithmetic_and_time_are_those_of_a_pass():
    network = torch.nn.Conv2d(3, 8, 1)
    seconds, gigaflops = network_speed.measure(network_speed.bare_pass(network, 3, 2, (5, 30, 30), 16), 1)
    assert gigaflops == 2 * 3 * 8 * 5 * 32 * 32 / 1e9  # multiply and add, sides padded
    assert seconds > 0


def test_a_baseline_has_its_network_s_arithmetic_and_no_more(monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["network_speed.py", "--slices", "2", "--pixel-mm", "6", "--repeats", "1", "--only", "segresnet"]
    )
    network_speed.main()
    *_, row = capsys.readouterr().out.strip().splitlines()
    assert row.startswith("| segresnet |") and row.endswith("| 1.00 |")


def test_every_row_can_be_built():
    titles = [title for title, *_ in network_speed.cases()]
    assert titles == [*network_speed.BASELINES, "atm-net on swin-unetr", "la-caf on swin-unetr"]
