"""Stable Diffusion inpainting pipelines under 2 MB each, with LoRAs and IP-Adapters for them."""

from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLInpaintPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

TEXT_WIDTH = 16
CLIP_SIDE_PX = 28
CLIP_EMBEDDING = 12
IP_TOKENS = 4
"""How many tokens an IP-Adapter of the first kind makes of one picture."""


def build_sd_inpaint(
    folder: Path, seed: int = 0, has_checker: bool = False, in_channels: int = 9
) -> Path:
    """Save a StableDiffusionInpaintPipeline and return its folder.

    Args:
        has_checker: with the safety checker that published repositories bring.
        in_channels: 4 for a base that was never trained to inpaint.
    """
    torch.manual_seed(seed)
    tokenizer = build_clip_tokenizer()
    StableDiffusionInpaintPipeline(
        vae=_build_vae(),
        text_encoder=CLIPTextModel(_text_config(tokenizer)),
        tokenizer=tokenizer,
        unet=build_sd_unet(in_channels),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=_build_checker() if has_checker else None,
        feature_extractor=CLIPImageProcessor(size=CLIP_SIDE_PX, crop_size=CLIP_SIDE_PX),
        requires_safety_checker=has_checker,
    ).save_pretrained(folder)
    return folder


def build_sdxl_inpaint(folder: Path, seed: int = 0) -> Path:
    """Save a StableDiffusionXLInpaintPipeline and return its folder."""
    torch.manual_seed(seed)
    tokenizer = build_clip_tokenizer()
    StableDiffusionXLInpaintPipeline(
        vae=_build_vae(),
        text_encoder=CLIPTextModel(_text_config(tokenizer)),
        text_encoder_2=CLIPTextModelWithProjection(_text_config(tokenizer)),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=build_sdxl_unet(),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing="leading",
            steps_offset=1,
        ),
    ).save_pretrained(folder)
    return folder


def build_sd_unet(in_channels: int = 9) -> UNet2DConditionModel:
    unet = UNet2DConditionModel(
        sample_size=64,
        in_channels=in_channels,  # noise, mask, masked picture
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=2,
    )
    return _strengthen(unet)


def build_sdxl_unet() -> UNet2DConditionModel:
    unet = UNet2DConditionModel(
        sample_size=128,
        in_channels=9,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=2 * TEXT_WIDTH,  # both encoders' states, side by side
        attention_head_dim=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=6 * 8 + TEXT_WIDTH,
    )
    return _strengthen(unet)


@torch.no_grad()
def _strengthen(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Let attention and conditions count, as training would: else far pixels change nothing."""
    unet.conv_in.weight[:, 4:] *= 8
    for name, parameter in unet.named_parameters():
        if ".attn" in name and name.endswith("weight"):
            parameter *= 3
    return unet


def build_unet_lora(folder: Path, unet: UNet2DConditionModel, seed: int, rank: int = 4) -> Path:
    """Save a LoRA for that UNet's attention into `folder` and return it."""
    torch.manual_seed(seed)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    unet.add_adapter(
        LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, init_lora_weights=False)
    )
    StableDiffusionInpaintPipeline.save_lora_weights(
        folder, unet_lora_layers=get_peft_model_state_dict(unet)
    )
    return folder


def build_ip_adapter(
    folder: Path, unet: UNet2DConditionModel, weight_name: str, seed: int = 0, plus: bool = False
) -> Path:
    """Save an IP-Adapter as h94/IP-Adapter has it: `models/<weight_name>` and its image encoder.

    Args:
        plus: the kind that reads the encoder's hidden states and resamples them.
    """
    torch.manual_seed(seed)
    (folder / "models").mkdir(parents=True)
    tensors = dict(_projection(unet, plus)) | dict(_attention(unet))
    save_file(tensors, folder / "models" / weight_name)
    CLIPVisionModelWithProjection(_vision_config()).save_pretrained(
        folder / "models" / "image_encoder"
    )
    return folder


def _projection(unet: UNet2DConditionModel, plus: bool) -> Iterator[tuple[str, torch.Tensor]]:
    width = unet.config.cross_attention_dim
    if plus:
        yield from _resampler(width)
        return
    yield "image_proj.proj.weight", torch.randn(IP_TOKENS * width, CLIP_EMBEDDING)
    yield "image_proj.proj.bias", torch.zeros(IP_TOKENS * width)
    yield "image_proj.norm.weight", torch.ones(width)
    yield "image_proj.norm.bias", torch.zeros(width)


def _resampler(width: int) -> Iterator[tuple[str, torch.Tensor]]:
    # diffusers always builds four blocks with heads of 64.
    inner, clip_width = 64, _vision_config().hidden_size
    matrices = {
        "latents": (1, IP_TOKENS, inner),
        "proj_in.weight": (inner, clip_width),
        "proj_out.weight": (width, inner),
    }
    norms = {"norm_out": width}
    for layer in range(4):
        matrices |= {
            f"layers.{layer}.0.to_q.weight": (64, inner),
            f"layers.{layer}.0.to_kv.weight": (128, inner),
            f"layers.{layer}.0.to_out.weight": (inner, 64),
            f"layers.{layer}.1.1.weight": (4 * inner, inner),
            f"layers.{layer}.1.3.weight": (inner, 4 * inner),
        }
        norms |= {f"layers.{layer}.{place}": inner for place in ("0.norm1", "0.norm2", "1.0")}
    for name, shape in matrices.items():
        yield f"image_proj.{name}", torch.randn(shape) / 8
    yield "image_proj.proj_in.bias", torch.zeros(inner)
    yield "image_proj.proj_out.bias", torch.zeros(width)
    for name, size in norms.items():
        yield f"image_proj.{name}.weight", torch.ones(size)
        yield f"image_proj.{name}.bias", torch.zeros(size)


def _attention(unet: UNet2DConditionModel) -> Iterator[tuple[str, torch.Tensor]]:
    number = 1
    for name, module in unet.named_modules():
        if not name.endswith("attn2"):
            continue
        for projection in ("to_k", "to_v"):
            # Strong, so that an untrained network's answer depends on the product.
            weight = 4 * torch.randn_like(getattr(module, projection).weight)
            yield f"ip_adapter.{number}.{projection}_ip.weight", weight
        number += 2


def build_clip_tokenizer() -> CLIPTokenizer:
    """Every byte, alone and at a word's end; no merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(f"{byte}</w>" for byte in alphabet), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)


def _build_checker() -> StableDiffusionSafetyChecker:
    config = CLIPConfig(
        text_config={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        vision_config=_vision_config().to_dict(),
        projection_dim=CLIP_EMBEDDING,
    )
    return StableDiffusionSafetyChecker(config)


def _build_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
    )


def _text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=TEXT_WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _vision_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=CLIP_SIDE_PX,
        patch_size=14,
        projection_dim=CLIP_EMBEDDING,
    )
