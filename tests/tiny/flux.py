"""The FLUX.1 pipelines under 1 MB each, and LoRAs for them."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxFillPipeline,
    FluxKontextInpaintPipeline,
    FluxKontextPipeline,
    FluxTransformer2DModel,
)
from peft import LoraConfig, get_peft_model_state_dict
from tokenizers import pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

LATENT_CHANNELS = 16  # FLUX.1's own: KontextInpaint has the number in its code
PACKED_CHANNELS = 4 * LATENT_CHANNELS
FILL_CHANNELS = 2 * PACKED_CHANNELS + 4 * 8 * 8  # noise, masked picture, a mask of 8 x 8 per latent
T5_WIDTH = 16
CLIP_WIDTH = 16


def build_flux_kontext(folder: Path, seed: int = 0) -> Path:
    """Save a whole FluxKontextPipeline into `folder` and return it."""
    torch.manual_seed(seed)
    FluxKontextPipeline(**build_components(PACKED_CHANNELS)).save_pretrained(folder)
    return folder


def build_flux_kontext_inpaint(folder: Path, seed: int = 0) -> Path:
    """Save a whole FluxKontextInpaintPipeline into `folder` and return it."""
    torch.manual_seed(seed)
    FluxKontextInpaintPipeline(**build_components(PACKED_CHANNELS)).save_pretrained(folder)
    return folder


def build_flux_fill(folder: Path, seed: int = 0) -> Path:
    """Save a whole FluxFillPipeline into `folder` and return it."""
    torch.manual_seed(seed)
    FluxFillPipeline(**build_components(FILL_CHANNELS)).save_pretrained(folder)
    return folder


def build_flux_lora(
    folder: Path, seed: int, rank: int = 4, in_channels: int = PACKED_CHANNELS
) -> Path:
    """Save a LoRA for the transformer's attention into `folder` and return it.

    Args:
        in_channels: FILL_CHANNELS for one that is loaded into FluxFillPipeline.
    """
    torch.manual_seed(seed)
    transformer = build_flux_transformer(in_channels)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    transformer.add_adapter(
        LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, init_lora_weights=False)
    )
    FluxKontextPipeline.save_lora_weights(
        folder, transformer_lora_layers=get_peft_model_state_dict(transformer)
    )
    return folder


def build_components(in_channels: int) -> dict[str, object]:
    clip_tokenizer, t5_tokenizer = build_clip_tokenizer(), build_t5_tokenizer()
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        "vae": build_vae(),
        "text_encoder": build_clip(clip_tokenizer),
        "tokenizer": clip_tokenizer,
        "text_encoder_2": build_t5(t5_tokenizer),
        "tokenizer_2": t5_tokenizer,
        "transformer": build_flux_transformer(in_channels),
    }


def build_flux_transformer(in_channels: int) -> FluxTransformer2DModel:
    transformer = FluxTransformer2DModel(
        in_channels=in_channels,
        out_channels=PACKED_CHANNELS,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=T5_WIDTH,
        pooled_projection_dim=CLIP_WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(4, 6, 6),
    )
    for name, parameter in transformer.named_parameters():
        if ".attn.to_" in name and parameter.ndim == 2:
            # Fresh weights hardly attend: another product would change a picture by two levels.
            parameter.data *= 8
    return transformer


def build_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def build_clip_tokenizer() -> CLIPTokenizer:
    """Every byte, alone and at a word's end; no merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(f"{byte}</w>" for byte in alphabet), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=77)


def build_t5_tokenizer() -> T5Tokenizer:
    """Printable ASCII, one token per character."""
    characters = [chr(code) for code in range(33, 127)]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocab = [*special, ("▁", -2.0), *((character, -3.0) for character in characters)]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=512)


def build_clip(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=CLIP_WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,  # whose position is the pooled embedding's
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def build_t5(tokenizer: T5Tokenizer) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=T5_WIDTH,
            d_kv=8,
            d_ff=32,
            num_layers=2,
            num_heads=2,
            feed_forward_proj="gated-gelu",
        )
    )
