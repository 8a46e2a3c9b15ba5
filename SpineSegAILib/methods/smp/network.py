"""The networks of segmentation-models-pytorch.

Where they differ: group for batch normalization, since batches are small and the pooled branches of some have one value
per channel and image.
"""

from __future__ import annotations

from torch import nn

from ...errors import ConfigError
from ..base import Tiling
from ..blocks import group_norm
from ..class_network import ClassNetwork
from .config import SmpConfig

_CLASSES = {
    "unetplusplus": "UnetPlusPlus",
    "deeplabv3plus": "DeepLabV3Plus",
    "fpn": "FPN",
    "upernet": "UPerNet",
    "segformer": "Segformer",
}


def build(config: SmpConfig) -> ClassNetwork:
    """The method of a configuration.

    Raises:
        ConfigError: there is no such encoder, or it does not fit the decoder.
    """
    import segmentation_models_pytorch as smp

    make = getattr(smp, _CLASSES[config.method])
    try:
        network = make(
            config.encoder, encoder_weights=None, in_channels=config.input_channels,
            classes=config.label_scheme.channels,
        )  # fmt: skip
    except (KeyError, ValueError) as error:
        some = ", ".join(smp.encoders.get_encoder_names()[:5])
        raise ConfigError(
            f"{_CLASSES[config.method]} cannot be made with the encoder “{config.encoder}”: {error}",
            f"Choose another with --set method.encoder=NAME, such as {some}.",
        ) from None
    _replace_batch_norm(network)
    return ClassNetwork(config, network, Tiling(32), "segmentation_head.0")


def _replace_batch_norm(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, group_norm(child.num_features))
        else:
            _replace_batch_norm(child)
