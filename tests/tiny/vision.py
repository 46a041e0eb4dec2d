"""Vision networks at toy size with random weights: a ViT, a CLIP, a ResNet, each in its own way."""

from pathlib import Path

import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTModel,
)

from tests.tiny.segformer import write_preprocessing

SIZE_PX = 32


def _save(model: torch.nn.Module, folder: Path) -> Path:
    model.save_pretrained(folder)  # type: ignore[operator]
    write_preprocessing(folder, (SIZE_PX, SIZE_PX))
    return folder


def build_vit(folder: Path, *, has_pooler: bool = True) -> Path:
    """Tokens, the first of which stands for the picture."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=SIZE_PX,
        patch_size=8,
        initializer_range=0.5,
    )
    return _save(ViTModel(config, add_pooling_layer=has_pooler), folder)


def build_clip(folder: Path) -> Path:
    """Reads text too."""
    torch.manual_seed(0)
    small = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    config = CLIPConfig(
        text_config={**small, "vocab_size": 32, "max_position_embeddings": 8},
        vision_config={**small, "image_size": SIZE_PX, "patch_size": 8},
        projection_dim=12,
    )
    return _save(CLIPModel(config), folder)


def build_resnet(folder: Path) -> Path:
    """Has places instead of tokens."""
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    return _save(ResNetModel(config), folder)
