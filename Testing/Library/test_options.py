"""Run-time options mean the same in every method, and what cannot be read is refused."""

from __future__ import annotations

import pytest
import SimpleITK as sitk
import torch

from SpineSegAILib.errors import ConfigError
from SpineSegAILib.inference import Predictor
from SpineSegAILib.methods.base import Context
from SpineSegAILib.methods.catalog import build_method, make_config
from SpineSegAILib.methods.options import OFF, ON, choice_option, number_option, switch_option, whole_option


@pytest.mark.parametrize("words, meant", [(ON, True), (OFF, False)])
def test_a_switch_understands_words_and_truth_values(words, meant):
    for word in (*words, *(w.upper() for w in words), meant, int(meant)):
        assert switch_option({"rank": word}, "rank", not meant) is meant
    assert switch_option({}, "rank", meant) is meant


@pytest.mark.parametrize("value", ["", "maybe", 2, None])
def test_what_is_neither_on_nor_off_is_refused(value):
    with pytest.raises(ConfigError, match=f"rank is “{value}”") as refused:
        switch_option({"rank": value}, "rank", True)
    assert all(word in refused.value.remedy for word in (*ON, *OFF))


def test_numbers_and_choices():
    assert number_option({"overlap": "0.25"}, "overlap", 0.5) == 0.25
    assert whole_option({"steps": "20"}, "steps", 1) == 20
    assert choice_option({"sampler": "DDIM"}, "sampler", ("ddim", "ddpm"), "ddpm") == "ddim"
    assert choice_option({"source": "oracle"}, "source", ("self",), "", unlisted=("oracle",)) == "oracle"
    with pytest.raises(ConfigError, match="not a number"):
        number_option({"overlap": "half"}, "overlap", 0.5)
    with pytest.raises(ConfigError, match="not a whole number"):
        whole_option({"steps": "2.5"}, "steps", 1)
    with pytest.raises(ConfigError, match="no prompt source “guess”") as refused:
        choice_option({"prompt_source": "guess"}, "prompt_source", ("self",), "", unlisted=("oracle",))
    assert "oracle" not in refused.value.remedy


@pytest.mark.parametrize("method_id", ["atm-net", "scar-net"])
def test_rank_off_means_the_same_in_every_method(method_id):
    method = build_method(make_config(method_id, "tiny", rank_weight=0.5)).eval()
    image = torch.rand(1, 1, 64, 64)

    def maps(**options: str) -> dict[str, torch.Tensor]:
        options |= {"prompt_source": "generic"} if method_id == "atm-net" else {}
        with torch.no_grad():
            return method.evidence(image, Context(torch.zeros(1, 2, 64, 64), options=options))

    assert "rank" in maps()
    for word in OFF:
        assert "rank" not in maps(rank=word)
    with pytest.raises(ConfigError, match="neither on nor off"):
        maps(rank="perhaps")


def test_la_caf_refuses_a_text_that_it_does_not_know():
    method = build_method(make_config("la-caf", "tiny", text_encoder="hashed")).eval()
    with pytest.raises(ConfigError, match="no text “scrambled”"), torch.no_grad():
        method.evidence(
            torch.rand(1, 1, 8, 32, 32), Context(torch.zeros(1, 3, 8, 32, 32), options={"text": "scrambled"})
        )


def test_an_unreadable_switch_is_said_before_the_image_is_looked_at(tiny_checkpoint):
    with pytest.raises(ConfigError, match="consistency is “perhaps”"):
        Predictor(tiny_checkpoint, "cpu").segment(
            sitk.Image(4, 4, 4, sitk.sitkInt16), options={"consistency": "perhaps"}
        )
