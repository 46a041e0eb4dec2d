"""Pipelines at their published sizes with random weights: speed does not depend on the values.

Text encoders have the width that the denoiser expects and almost no depth: prompts are encoded once
and the encoders freed before anything is timed.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinInpaintPipeline,
    Flux2Transformer2DModel,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLInpaintPipeline,
    UNet2DConditionModel,
)
from peft import LoraConfig, get_peft_model_state_dict
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests.tiny.flux import build_clip_tokenizer
from tests.tiny.tokenizer import build_tokenizer

KLEIN_LORA_RANK = 16


def fill(build: Callable[[], Any], dtype: torch.dtype) -> Any:
    """A module with random weights, made where it is fast and returned on the CPU."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device("meta"):
        module = build().to(dtype)
    module = module.to_empty(device=device)
    for name, parameter in module.named_parameters():
        with torch.no_grad():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.02)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    for name, buffer in module.named_buffers():
        buffer.fill_(1 if name.endswith("running_var") else 0)
    return module.to("cpu").eval()


KLEIN_SIZES = {
    # 3.876 billion parameters: black-forest-labs/FLUX.2-klein-4B config.
    "real": {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24},
    # A large enough share of a process to be seen in its memory, on a laptop.
    "small": {"num_layers": 2, "num_single_layers": 4, "num_attention_heads": 8},
    "tiny": {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2},
}


def klein_transformer(size: str) -> Flux2Transformer2DModel:
    """FLUX.2 klein's denoiser at one of KLEIN_SIZES."""
    return Flux2Transformer2DModel(
        in_channels=128,
        attention_head_dim=128,
        joint_attention_dim=7680,
        axes_dims_rope=(32, 32, 32, 32),
        guidance_embeds=False,
        **KLEIN_SIZES[size],
    )


def flux2_vae(tiny: bool) -> AutoencoderKLFlux2:
    return AutoencoderKLFlux2(block_out_channels=(32,) * 4) if tiny else AutoencoderKLFlux2()


def build_klein(folder: Path, tiny: bool = False, size: str = "") -> None:
    size = size or ("tiny" if tiny else "real")
    tokenizer = build_tokenizer()
    text_encoder = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=2560,
            intermediate_size=64,
            num_hidden_layers=28,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
        )
    )
    Flux2KleinInpaintPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=fill(lambda: flux2_vae(size != "real"), torch.bfloat16),
        text_encoder=text_encoder.to(torch.bfloat16),
        tokenizer=tokenizer,
        transformer=fill(lambda: klein_transformer(size), torch.bfloat16),
        is_distilled=True,
    ).save_pretrained(folder)


def build_klein_lora(folder: Path, seed: int, size: str = "real") -> None:
    """A rank-16 LoRA over the attention of that transformer."""
    torch.manual_seed(seed)
    with torch.device("meta"):
        transformer = klein_transformer(size).to(torch.bfloat16)
        targets = ["to_q", "to_k", "to_v", "to_out.0"]
        rank = KLEIN_LORA_RANK
        transformer.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))
    state = {
        name: torch.randn(tensor.shape, dtype=torch.bfloat16) * 0.02
        for name, tensor in get_peft_model_state_dict(transformer).items()
    }
    Flux2KleinInpaintPipeline.save_lora_weights(folder, transformer_lora_layers=state)


def clip(width: int, projected: bool) -> Any:
    tokenizer = build_clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=width // 64,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    kind = CLIPTextModelWithProjection if projected else CLIPTextModel
    return tokenizer, kind(config).to(torch.float16)


def build_sd(folder: Path, tiny: bool = False) -> None:
    """SD 1.5 inpainting: a UNet of 859.5 million parameters."""
    blocks = (32, 64, 64, 64) if tiny else (320, 640, 1280, 1280)
    tokenizer, text_encoder = clip(768, projected=False)
    StableDiffusionInpaintPipeline(
        vae=fill(lambda: sd_vae(tiny), torch.float16),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=fill(
            lambda: UNet2DConditionModel(
                sample_size=64,
                in_channels=9,
                out_channels=4,
                block_out_channels=blocks,
                cross_attention_dim=768,
                attention_head_dim=8,
            ),
            torch.float16,
        ),
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def sd_vae(tiny: bool) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(32,) * 4 if tiny else (128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
    )


def build_sdxl(folder: Path, tiny: bool = False) -> None:
    """SDXL inpainting: a UNet of 2,567 million parameters."""
    blocks = (32, 64, 64) if tiny else (320, 640, 1280)
    tokenizer, text_encoder = clip(768, projected=False)
    tokenizer_2, text_encoder_2 = clip(1280, projected=True)
    StableDiffusionXLInpaintPipeline(
        vae=fill(lambda: sd_vae(tiny), torch.float16),
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=fill(
            lambda: UNet2DConditionModel(
                sample_size=128,
                in_channels=9,
                out_channels=4,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                block_out_channels=blocks,
                transformer_layers_per_block=(1, 2, 10),
                cross_attention_dim=2048,
                attention_head_dim=(4, 4, 4) if tiny else (5, 10, 20),
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=2816,
            ),
            torch.float16,
        ),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
        ),
    ).save_pretrained(folder)


BUILDERS = {"sd": build_sd, "sdxl": build_sdxl, "klein": build_klein}
