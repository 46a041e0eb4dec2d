"""A FLUX.2 klein inpainting pipeline under 1 MB, and LoRAs for it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinInpaintPipeline,
    Flux2Transformer2DModel,
)
from peft import LoraConfig, get_peft_model_state_dict
from transformers import Qwen3Config, Qwen3ForCausalLM

from tests.tiny.tokenizer import build_tokenizer

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def build_klein(folder: Path, seed: int = 0) -> Path:
    """Save a whole pipeline into `folder` and return it."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    text_encoder = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=28,  # the pipeline reads hidden states 9, 18 and 27
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=8,
        )
    )
    Flux2KleinInpaintPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=AutoencoderKLFlux2(
            block_out_channels=(8, 8, 8, 8),
            latent_channels=4,
            norm_num_groups=4,
            layers_per_block=1,
        ),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=build_transformer(),
        is_distilled=True,
    ).save_pretrained(folder)
    return folder


# At random small weights the answer hardly depends on product and prompt: 1 level of 255.
STRONG = ("modulation", "to_v", "to_out", "to_qkv", "proj_out")


def build_transformer() -> Flux2Transformer2DModel:
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=48,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    with torch.no_grad():
        for name, weight in transformer.named_parameters():
            if any(part in name for part in STRONG):
                weight.mul_(3)
    return transformer


def build_klein_lora(
    folder: Path,
    seed: int,
    rank: int = 4,
    *,
    targets: Sequence[str] = ATTENTION,
    ranks: Mapping[str, int] | None = None,
    alpha: float | None = None,
) -> Path:
    """Save a LoRA for that transformer into `folder` and return it.

    Args:
        targets: names of layers, or their ends.
        ranks: for those that differ from `rank`.
        alpha: the file says it, as a trainer's would; the rank when absent, and nothing is said.
    """
    torch.manual_seed(seed)
    transformer = build_transformer()
    ranks = dict(ranks or {})
    config = LoraConfig(
        r=rank,
        lora_alpha=rank if alpha is None else alpha,
        target_modules=list(targets),
        rank_pattern=ranks,
        alpha_pattern=ranks if alpha is None else {},
        init_lora_weights=False,
    )
    transformer.add_adapter(config)
    Flux2KleinInpaintPipeline.save_lora_weights(
        folder,
        transformer_lora_layers=get_peft_model_state_dict(transformer),
        transformer_lora_adapter_metadata=None if alpha is None else config.to_dict(),
    )
    return folder
