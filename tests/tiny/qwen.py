"""The Qwen-Image-Edit pipelines under 2 MB each, and LoRAs for them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditInpaintPipeline,
    QwenImageEditPlusPipeline,
    QwenImageTransformer2DModel,
)
from diffusers.pipelines.qwenimage import (
    pipeline_qwenimage_edit_inpaint,
    pipeline_qwenimage_edit_plus,
)
from peft import LoraConfig, get_peft_model_state_dict
from tokenizers import pre_tokenizers
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessorPil,
)

TEXT_WIDTH = 16
LATENT_CHANNELS = 4
SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
)


def build_qwen_inpaint(folder: Path, seed: int = 0) -> Path:
    """Save a QwenImageEditInpaintPipeline into `folder` and return it."""
    return _save(QwenImageEditInpaintPipeline, folder, seed)


def build_qwen_edit(folder: Path, seed: int = 0) -> Path:
    """Save a QwenImageEditPlusPipeline into `folder` and return it."""
    return _save(QwenImageEditPlusPipeline, folder, seed)


def work_at_a_sixteenth(patch: pytest.MonkeyPatch) -> None:
    """Let the pipelines bring pictures to 256 x 256 instead of their 1024 x 1024, as they do it."""
    for module in (pipeline_qwenimage_edit_inpaint, pipeline_qwenimage_edit_plus):
        stock = module.calculate_dimensions
        patch.setattr(
            module,
            "calculate_dimensions",
            lambda area_px, ratio, stock=stock: stock(area_px / 16, ratio),
        )


def build_qwen_lora(folder: Path, seed: int, rank: int = 4) -> Path:
    """Save a LoRA for that transformer's attention into `folder` and return it."""
    torch.manual_seed(seed)
    transformer = build_transformer()
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    transformer.add_adapter(
        LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, init_lora_weights=False)
    )
    QwenImageEditPlusPipeline.save_lora_weights(
        folder, transformer_lora_layers=get_peft_model_state_dict(transformer)
    )
    return folder


def build_transformer() -> QwenImageTransformer2DModel:
    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=4 * LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        axes_dims_rope=(4, 6, 6),
    )
    with torch.no_grad():
        # Let the conditions count, as training would: else other pictures change nothing.
        for name, parameter in transformer.named_parameters():
            if name.endswith("weight") and (".attn." in name or "proj_out" in name):
                parameter *= 4
    return transformer


def build_tokenizer() -> Qwen2Tokenizer:
    """Every byte, and the special tokens; no merges."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *SPECIAL]
    return Qwen2Tokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=[],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        extra_special_tokens=list(SPECIAL[1:]),
    )


def build_text_encoder(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [1, 1, 2],
        },
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": TEXT_WIDTH,
        "window_size": 56,
        "fullatt_block_indexes": [0],
    }
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config=text,
            vision_config=vision,
            image_token_id=ids["<|image_pad|>"],
            video_token_id=ids["<|video_pad|>"],
            vision_start_token_id=ids["<|vision_start|>"],
            vision_end_token_id=ids["<|vision_end|>"],
        )
    )


def build_vae() -> AutoencoderKLQwenImage:
    # The pipelines work at a megapixel: without residual blocks, and at a sixteenth of the side,
    # that takes a CPU a second.
    vae = AutoencoderKLQwenImage(
        base_dim=2,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 1, 1, 1, 1],
        num_res_blocks=0,
        temperal_downsample=[False] * 4,
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
    )
    with torch.no_grad():
        vae.decoder.conv_out.weight *= 8
        vae.quant_conv.weight *= 8
    return vae


def _save(pipeline_class: Any, folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    pipeline_class(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=build_vae(),
        text_encoder=build_text_encoder(tokenizer),
        tokenizer=tokenizer,
        processor=None,
        transformer=build_transformer(),
    ).save_pretrained(folder)
    _save_processor(folder, tokenizer)
    return folder


def _save_processor(folder: Path, tokenizer: Qwen2Tokenizer) -> None:
    """As the published repositories have it: the stock class cannot be made without torchvision."""
    pictures = Qwen2VLImageProcessorPil(min_pixels=4 * 28 * 28, max_pixels=16 * 28 * 28)
    pictures.save_pretrained(folder / "processor")
    tokenizer.save_pretrained(folder / "processor")
    index = folder / "model_index.json"
    parts = json.loads(index.read_text()) | {"processor": ["transformers", "Qwen2VLProcessor"]}
    index.write_text(json.dumps(parts))
