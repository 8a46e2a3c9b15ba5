import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from SpineSegAILib.methods.losses import (
    decided_channel,
    group_channels,
    grouped_logits,
    marginal_cross_entropy,
    partial_dice_loss,
    rank_loss,
)


def one_hot(labels: torch.Tensor, channels: int) -> torch.Tensor:
    return F.one_hot(labels, channels).movedim(-1, 1).bool()


def test_marginal_loss_is_cross_entropy_where_everything_is_known():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 6, 7, generator=g)
    labels = torch.randint(0, 5, (2, 6, 7), generator=g)
    expected = F.cross_entropy(logits, labels)
    assert torch.allclose(marginal_cross_entropy(logits, one_hot(labels, 5)), expected, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), channel=st.integers(1, 4))
def test_an_unknown_structure_gets_no_gradient_there_and_full_gradient_elsewhere(seed, channel):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, 5, 4, 4, generator=g, requires_grad=True)
    allowed = one_hot(torch.zeros(1, 4, 4, dtype=torch.long), 5).clone()
    allowed[:, channel, :2] = True  # in the upper half the structure may be there or not
    loss = marginal_cross_entropy(logits, allowed) + partial_dice_loss(logits, allowed)
    (gradient,) = torch.autograd.grad(loss, logits)
    # Exchanging background for the unknown structure there changes nothing: the sum of both is what counts.
    probabilities = logits.detach().softmax(1)
    pull = gradient[:, [0, channel], :2]
    share = probabilities[:, [0, channel], :2]
    assert torch.allclose(pull[:, 0] * share[:, 1], pull[:, 1] * share[:, 0], atol=1e-6)
    assert (gradient[:, channel, 2:] > 0).all()  # elsewhere it is pushed down


def test_dice_ignores_undecided_voxels_and_absent_channels():
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    labels[:, 2:] = 1
    allowed = one_hot(labels, 3).clone()
    good = torch.where(one_hot(labels, 3), 20.0, -20.0)
    assert partial_dice_loss(good, allowed) < 1e-3
    allowed[:, 1, 0] = True  # the first row may be structure 1 too
    claims = good.clone()
    claims[:, :, 0] = torch.tensor([-20.0, 20.0, -20.0])[None, :, None]
    assert partial_dice_loss(claims, allowed) < 1e-3
    assert partial_dice_loss(claims, one_hot(labels, 3)) > 0.15


def test_both_losses_are_what_their_definitions_say_where_some_voxels_are_undecided():
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 6, 7, generator=g)
    allowed = one_hot(torch.randint(0, 4, (2, 6, 7), generator=g), 5)  # nothing is decided to be the last channel
    allowed |= torch.rand(allowed.shape, generator=g) < 0.1
    probabilities = logits.softmax(1)
    entropy = -torch.log((probabilities * allowed).sum(1)).mean()
    assert torch.allclose(marginal_cross_entropy(logits, allowed), entropy, atol=1e-6)
    single = allowed.sum(1, keepdim=True) == 1
    target, decided = (allowed & single).float(), (~allowed | single).float()
    axes = (0, 2, 3)
    total = (probabilities * decided).sum(axes) + target.sum(axes)
    dice = (2 * (probabilities * target).sum(axes) + 1e-5) / (total + 1e-5)
    assert torch.allclose(partial_dice_loss(logits, allowed), 1 - dice[1:4].mean(), atol=1e-6)
    assert torch.allclose(partial_dice_loss(logits, allowed, background=True), 1 - dice[:4].mean(), atol=1e-6)


def test_a_voxel_of_many_channels_is_undecided():
    allowed = torch.zeros(1, 250, 1, 4, dtype=torch.bool)
    allowed[0, 249, 0, 0] = True
    allowed[0, 100:, 0, 1] = True  # the sum of these channels' numbers does not fit into a byte
    allowed[0, :, 0, 2] = True
    allowed[0, 0, 0, 3] = True
    assert decided_channel(allowed).tolist() == [[[249, -1, -1, 0]]]


def test_rank_loss_without_ranks_is_zero_with_zero_gradient():
    predicted = torch.randn(1, 3, 3, requires_grad=True)
    loss = rank_loss(predicted, torch.full((1, 3, 3), float("nan")))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(predicted.grad, torch.zeros(1, 3, 3))
    assert rank_loss(predicted, torch.full((1, 3, 3), 2.0)).item() > 0


def test_groups_are_the_union_of_their_channels():
    allowed = torch.from_numpy(np.array([[True, False, True, False]]))[:, :, None, None]
    grouped = group_channels(allowed, [0, 1, 1, 2], 3)
    assert grouped[0, :, 0, 0].tolist() == [True, True, False]


def test_the_probability_of_a_group_is_the_sum_of_its_channels():
    logits = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    p = logits.softmax(1)
    expected = torch.stack([p[:, 0], p[:, 1] + p[:, 2], p[:, 3]], 1)
    assert torch.allclose(grouped_logits(logits, [0, 1, 1, 2]).softmax(1), expected, atol=1e-6)
