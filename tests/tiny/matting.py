"""Matting networks at toy size: a VitMatte that takes bright for opaque, a Sapiens2 at random."""

from pathlib import Path

import torch
from transformers import (
    Sapiens2Config,
    Sapiens2ForImageMatting,
    VitDetConfig,
    VitMatteConfig,
    VitMatteForImageMatting,
)
from transformers.models.sapiens2.configuration_sapiens2 import Sapiens2HeadConfig

from tests.tiny.segformer import write_preprocessing

GAIN = 20.0
SAPIENS_SIZE = (48, 64)
"""Width and height of its input."""


def build_vitmatte(folder: Path) -> Path:
    """Save a VitMatte whose opacity is the picture's brightness, steep around the middle."""
    torch.manual_seed(0)
    backbone = VitDetConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=64,
        pretrain_image_size=64,
        patch_size=16,
        num_channels=4,
        out_features=["stage1"],
    )
    model = VitMatteForImageMatting(
        VitMatteConfig(
            backbone_config=backbone,
            hidden_size=8,
            convstream_hidden_sizes=[4, 4, 4],
            fusion_hidden_sizes=[4, 4, 4, 4],
        )
    )
    with torch.no_grad():
        _look_at_brightness(model)
    model.save_pretrained(folder)
    settings = {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3, "do_resize": False}
    write_preprocessing(folder, (8, 8), **settings, size_divisor=32)
    return folder


def _look_at_brightness(model: VitMatteForImageMatting) -> None:
    last = model.decoder.fusion_blocks[-1].conv
    last.conv.weight.zero_()
    last.conv.weight[0, :3, 1, 1] = 1 / 3  # the picture comes first among its inputs
    first, norm, _, second = model.decoder.matting_head.matting_convs
    for weight in (first.weight, first.bias, second.weight, second.bias):
        weight.zero_()
    first.weight[0, 0, 1, 1] = 1.0
    second.weight[0, 0] = GAIN
    second.bias.fill_(-0.3 * GAIN)
    for every in (last.batch_norm, norm):
        every.weight.fill_(1.0)
        every.bias.zero_()


def build_sapiens_matting(folder: Path) -> Path:
    """Save a Sapiens2 matting network with random weights."""
    torch.manual_seed(0)
    width, height = SAPIENS_SIZE
    model = Sapiens2ForImageMatting(
        Sapiens2Config(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_attention_heads=2,
            num_register_tokens=1,
            image_size=[height, width],
            patch_size=16,
            num_labels=4,
            head_config=Sapiens2HeadConfig(upsample_out_channels=[8, 8], conv_out_channels=[8]),
        )
    )
    with torch.no_grad():
        model.decode_head.predictor.weight.mul_(200)  # opacities that vary over the picture
    model.save_pretrained(folder)
    write_preprocessing(folder, SAPIENS_SIZE)
    return folder
