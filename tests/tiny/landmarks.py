"""Keypoint networks and detectors at toy size; the first finds points by their colour."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import (
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrResNetConfig,
    Sapiens2Config,
    Sapiens2ForPoseEstimation,
    VitPoseBackboneConfig,
    VitPoseConfig,
    VitPoseForPoseEstimation,
    YolosConfig,
    YolosForObjectDetection,
)
from transformers.models.sapiens2.configuration_sapiens2 import Sapiens2HeadConfig

from tests.tiny.segformer import write_preprocessing

POSE_SIZE = (192, 256)
"""Width and height of the keypoint network's input."""
CARRIER = 100.0
"""Two channels of this size with opposite signs make the layer norm all but linear."""
HIDDEN = 32
NEARNESS = 1.2
"""Of 3 at the corner itself: tokens that are at least so much of its colour see it."""
Corner = tuple[int, int, int]
"""A corner of the RGB cube but black, which is what lies outside the picture."""


def build_vitpose(folder: Path, num_points: int, colours: Mapping[int, Corner]) -> Path:
    """Save a ViTPose that sees point k where the picture has the k-th colour, and no others."""
    backbone = VitPoseBackboneConfig(
        image_size=(POSE_SIZE[1], POSE_SIZE[0]),
        patch_size=(8, 8),
        hidden_size=HIDDEN,
        num_hidden_layers=1,
        num_attention_heads=1,
        mlp_ratio=1,
        out_indices=[1],
    )
    names = {index: f"point {index}" for index in range(num_points)}
    model = VitPoseForPoseEstimation(
        VitPoseConfig(
            backbone_config=backbone,
            id2label=names,
            label2id={name: index for index, name in names.items()},
        )
    )
    with torch.no_grad():
        _see_colours(model, colours)
    model.save_pretrained(folder)
    write_preprocessing(folder, POSE_SIZE, image_mean=(0.5,) * 3, image_std=(0.5,) * 3)
    return folder


def _see_colours(model: VitPoseForPoseEstimation, colours: Mapping[int, Corner]) -> None:
    for weight in model.parameters():
        weight.zero_()
    palette = sorted(set(colours.values()))
    projection = model.backbone.embeddings.patch_embeddings.projection
    for channel, corner in enumerate(palette):
        # Positive near its own corner only; its negative keeps the channels' mean at zero.
        for sign, place in ((1.0, channel), (-1.0, channel + len(palette))):
            for axis, value in enumerate(corner):
                # The embedding pads by two pixels: its window starts that much too early.
                projection.weight[place, axis, 2:, 2:] = sign * (1 if value else -1) / 36
            projection.bias[place] = -NEARNESS * sign
    projection.bias[-2], projection.bias[-1] = CARRIER, -CARRIER
    model.backbone.layernorm.weight.fill_(CARRIER * math.sqrt(2 / HIDDEN))
    for index, corner in colours.items():
        model.head.conv.weight[index, palette.index(corner), 1, 1] = 1 / NEARNESS


def build_sapiens_pose(folder: Path) -> Path:
    """Save a Sapiens2 keypoint network of 308 points with random weights."""
    torch.manual_seed(0)
    names = {index: f"point {index}" for index in range(308)}
    model = Sapiens2ForPoseEstimation(
        Sapiens2Config(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_attention_heads=2,
            num_register_tokens=1,
            image_size=[64, 48],
            patch_size=16,
            id2label=names,
            label2id={name: index for index, name in names.items()},
            head_config=Sapiens2HeadConfig(upsample_out_channels=[8, 8], conv_out_channels=[8]),
        )
    )
    model.save_pretrained(folder)
    write_preprocessing(folder, (48, 64))
    return folder


def build_detector(
    folder: Path, box: tuple[float, float, float, float], is_sure: bool = True
) -> Path:
    """Save a YOLOS that always answers this box (centre and size, as shares of the picture)."""
    model = YolosForObjectDetection(
        YolosConfig(
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=8,
            image_size=[32, 32],
            patch_size=16,
            num_detection_tokens=2,
            use_mid_position_embeddings=False,
            id2label={0: "N/A", 1: "person", 2: "bicycle"},
            label2id={"N/A": 0, "person": 1, "bicycle": 2},
        )
    )
    with torch.no_grad():
        for head in (model.class_labels_classifier, model.bbox_predictor):
            for weight in head.parameters():
                weight.zero_()
        nothing, person = (0.0, 6.0) if is_sure else (6.0, 0.0)
        model.class_labels_classifier.layers[-1].bias.copy_(
            torch.tensor([0.0, person, 0.0, nothing])
        )
        shares = torch.tensor(box)
        model.bbox_predictor.layers[-1].bias.copy_(torch.log(shares / (1 - shares)))
    model.save_pretrained(folder)
    write_preprocessing(folder, (32, 32))
    return folder


def build_rt_detr(folder: Path) -> Path:
    """Save an RT-DETR with random boxes that is sure of a person in each."""
    torch.manual_seed(0)
    backbone = RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 8, 8],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    model = RTDetrForObjectDetection(
        RTDetrConfig(
            backbone_config=backbone,
            encoder_hidden_dim=16,
            encoder_in_channels=[8, 8, 8],
            encoder_ffn_dim=16,
            encoder_attention_heads=2,
            d_model=16,
            decoder_in_channels=[16, 16, 16],
            decoder_ffn_dim=16,
            decoder_layers=1,
            decoder_attention_heads=2,
            num_queries=10,
            num_denoising=0,
            id2label={0: "person", 1: "bicycle"},
            label2id={"person": 0, "bicycle": 1},
        )
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "class_embed" in name and name.endswith("bias"):
                weight.copy_(torch.tensor([4.0, -4.0]))
    model.save_pretrained(folder)
    write_preprocessing(folder, (64, 64))
    return folder
