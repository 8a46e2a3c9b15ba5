"""What the networks of several methods are built of."""

from __future__ import annotations

import math

import pytest
import torch

from SpineSegAILib.methods.blocks import coarse_level, group_norm, position_encoding, rank_map, resized, sinusoids


def test_an_untrained_rank_head_says_l2_everywhere():
    assert torch.equal(rank_map(torch.zeros(2, 1, 4, 6), (16, 24)), torch.full((2, 16, 24), 3.0))
    assert rank_map(torch.zeros(1, 1, 2, 4, 6, dtype=torch.half), (2, 16, 24)).dtype == torch.float32


def test_the_rank_is_interpolated_between_coarse_pixels():
    rank = rank_map(torch.tensor([[[[0.0, 1.0]]]]), (1, 4))
    assert torch.allclose(rank, torch.tensor([[[3.0, 4.0, 6.0, 7.0]]]))


def test_maps_of_the_wanted_size_stay():
    maps = torch.rand(1, 2, 3, 4, 5)
    assert resized(maps, (3, 4, 5)) is maps
    assert resized(maps, (3, 8, 10)).shape == (1, 2, 3, 8, 10)


@pytest.mark.parametrize("count, level", [(1, 0), (2, 1), (3, 2), (6, 2)])
def test_the_coarse_level_has_a_quarter_of_the_resolution(count, level):
    assert coarse_level([8] * count) == level


@pytest.mark.parametrize("channels", [1, 6, 24, 32, 100, 320])
def test_group_norm_fits_every_width(channels):
    assert group_norm(channels)(torch.rand(2, channels, 4, 4)).shape == (2, channels, 4, 4)
    assert group_norm(channels, 16, least=1).num_groups == math.gcd(16, channels)


def test_sinusoids_run_from_one_to_the_longest_wavelength():
    waves = sinusoids(torch.tensor([1.0]), 2, longest=100.0)
    assert torch.allclose(waves, torch.tensor([[math.sin(1), math.sin(0.1), math.cos(1), math.cos(0.1)]]))


def test_every_place_has_an_encoding_of_its_own():
    encoding = position_encoding((3, 4, 5), 32, longest=1000.0)
    assert encoding.shape == (32, 3, 4, 5)
    places = encoding.flatten(1).T
    assert (torch.cdist(places, places) + 10 * torch.eye(60)).min() > 0.05
    assert not encoding[30:].any()  # three axes share 30 of 32 channels


def test_centered_places_survive_padding_on_both_sides():
    small, large = (position_encoding((n, 6), 8, centered=True) for n in (4, 8))
    assert torch.allclose(small, large[:, 2:6], atol=1e-6)
