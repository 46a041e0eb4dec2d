"""The ways an expert version can run, each a typed recipe; `kind` tells them apart.

A pipeline option that a bundle may set is a field here; nothing is passed through unread.
"""

from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from deployments.sources import ModelSource
from serve.config import Config

Dtype = Literal["auto", "bf16", "fp16", "fp32"]


class Drill(Config):
    """What a version does badly on purpose, to rehearse that it is found and taken back. Its
    bundle's status is `benchmark`: nobody ships one by mistake."""

    colour_shift: float = Field(default=0.0, ge=0, le=30)
    """Turns the product's hues by about so much CIEDE2000 before it is painted."""
    blur_px: float = Field(default=0.0, ge=0, le=100)
    """Softens the product, in pixels of its picture: prints and weaves go."""
    failure_share: float = Field(default=0.0, ge=0, le=1)
    """Of the requests, told by their id. 1 fails all, and Serve replaces the replica."""
    delay_s: float = Field(default=0.0, ge=0, le=60)
    """Before it paints; whoever leaves meanwhile is let go."""


class Drillable(Config):
    """What runs without weights can be bad on purpose anywhere."""

    # Left out of what is written where there is none: fingerprints stay what they were before.
    drill: Drill | None = Field(default=None, exclude_if=lambda drill: drill is None)


class WarpConfig(Drillable):
    """The embedded default: classical computer vision, no weights, a preview."""

    kind: Literal["warp"] = "warp"
    product_cache_mib: NonNegativeInt = Field(
        default=32,
        exclude_if=lambda mib: mib == 32,  # as with `drill`: fingerprints stay
    )
    """Products that were cut out, kept in each replica by tenant and content; 0 keeps none."""


class NoopConfig(Drillable):
    """Gives the crop back unchanged: measures everything around an expert."""

    kind: Literal["noop"] = "noop"
    seconds: NonNegativeFloat = 0.0
    """What one pass takes, asleep: a device that is busy while the processors are not."""
    spread: float = Field(default=0.0, ge=0, le=1)
    """It takes up to so much more or less, as a fraction, by chance: replicas that are all busy
    would end together otherwise, for ever."""
    steps: PositiveInt = 1
    """Reported evenly over that time; a request can be stopped at each."""


class Prompt(Config):
    """What the base is told, the same for every request: part of what it was trained with."""

    text: str
    negative: str = ""
    """Used where guidance is above what the pipeline needs for it."""
    max_tokens: PositiveInt = 512
    drop_text_encoders: bool = True
    """Encode once at load, then free the encoders (9 to 10 GB for FLUX.1)."""


class Adapter(Config):
    """A LoRA that turns the base into this expert."""

    source: ModelSource
    weight_name: str = "pytorch_lora_weights.safetensors"
    scale: PositiveFloat = 1.0


class Speed(Config):
    """What makes it faster. Every lossy switch has its quality delta in the footprint."""

    compile: bool = False
    """torch.compile of the repeated blocks, warmed at start for the bundle's sizes."""
    cuda_graphs: bool = False
    """Replay recorded kernels; needs fixed sizes and `compile`."""
    fp8: bool = False
    """Weights and matrix products in 8 bits where the hardware has them; lossy."""
    channels_last_vae: bool = True
    attention: Literal["auto", "sdpa", "flash"] = "auto"
    vae_tiling_above_megapixels: PositiveFloat = 1.5
    """Larger pictures are decoded in tiles: less memory, a little slower. A diptych is twice its
    crop."""

    @model_validator(mode="after")
    def _graphs_are_of_compiled_kernels(self) -> Self:
        if self.cuda_graphs and not self.compile:
            raise ValueError("cuda_graphs needs compile")
        return self


class Diffusion(Config):
    """What every version on a diffusers pipeline says."""

    model: ModelSource
    """The base, a whole pipeline."""
    transformer: ModelSource | None = None
    """A full fine-tune of the denoiser, in place of the base's own."""
    adapter: Adapter | None = None
    prompt: Prompt
    dtype: Dtype = "auto"
    """auto: bf16 on a GPU that has it, else fp16; fp32 on a CPU."""
    speed: Speed = Speed()
    max_batch_size: PositiveInt = Field(default=4, le=16)
    """Rows (pictures) that may share one pass. Below it the footprint decides, by what was measured
    to pay on the replica's device and fits its share; where none was, requests run one by one."""
    product_cache_mib: PositiveInt = 256
    """Encoded products kept by content."""
    adapter_cache_mib: PositiveInt = 2048
    """Adapters kept in host memory when several versions share this base."""


class ProductAsIpAdapter(Config):
    """The product goes through an image encoder and an IP-Adapter."""

    by: Literal["ip_adapter"] = "ip_adapter"
    source: ModelSource
    weight_name: str = "ip-adapter_sd15.safetensors"
    image_encoder_folder: str = "models/image_encoder"
    scale: NonNegativeFloat = 1.0


class ProductAsDiptych(Config):
    """Product left, person right in one picture twice as wide; the right half is kept."""

    by: Literal["diptych"] = "diptych"


ProductInput = Annotated[ProductAsIpAdapter | ProductAsDiptych, Field(discriminator="by")]


class Flux2KleinInpaint(Config):
    """The product is the reference image."""

    pipeline: Literal["Flux2KleinInpaintPipeline"] = "Flux2KleinInpaintPipeline"
    strength: PositiveFloat = Field(default=1.0, le=1.0)
    """Below 1 the old picture shines through the region."""


class FluxKontextInpaint(Config):
    """The product is the reference image."""

    pipeline: Literal["FluxKontextInpaintPipeline"] = "FluxKontextInpaintPipeline"
    strength: PositiveFloat = Field(default=1.0, le=1.0)
    true_cfg: PositiveFloat = Field(default=1.0, ge=1.0)
    """Above 1 the negative prompt steers too, at twice the cost; guidance is the distilled one."""


class StableDiffusionInpaint(Config):
    """SD 1.5 or 2 inpainting."""

    pipeline: Literal["StableDiffusionInpaintPipeline"] = "StableDiffusionInpaintPipeline"
    product: ProductInput = ProductAsDiptych()
    strength: PositiveFloat = Field(default=1.0, le=1.0)


class StableDiffusionXLInpaint(Config):
    """SDXL inpainting."""

    pipeline: Literal["StableDiffusionXLInpaintPipeline"] = "StableDiffusionXLInpaintPipeline"
    product: ProductInput = ProductAsDiptych()
    strength: PositiveFloat = Field(default=0.9999, le=1.0)


class QwenImageEditInpaint(Config):
    """Takes no reference, so the product is a diptych half."""

    pipeline: Literal["QwenImageEditInpaintPipeline"] = "QwenImageEditInpaintPipeline"
    strength: PositiveFloat = Field(default=1.0, le=1.0)


class FluxFill(Config):
    """The concat recipe of CatVTON-Flux, with the aspect ratio kept."""

    pipeline: Literal["FluxFillPipeline"] = "FluxFillPipeline"


class FluxKontext(Config):
    """Person and product side by side in one conditioning picture."""

    pipeline: Literal["FluxKontextPipeline"] = "FluxKontextPipeline"
    true_cfg: PositiveFloat = Field(default=1.0, ge=1.0)
    """Above 1 the negative prompt steers too, at twice the cost; guidance is the distilled one."""


class QwenImageEditPlus(Config):
    """Person and product as two conditioning pictures."""

    pipeline: Literal["QwenImageEditPlusPipeline"] = "QwenImageEditPlusPipeline"


class InpaintConfig(Diffusion):
    """A pipeline that takes picture and mask."""

    kind: Literal["inpaint"] = "inpaint"
    recipe: Annotated[
        Flux2KleinInpaint
        | FluxKontextInpaint
        | StableDiffusionInpaint
        | StableDiffusionXLInpaint
        | QwenImageEditInpaint,
        Field(discriminator="pipeline"),
    ]


class DiptychConfig(Diffusion):
    """Product and person in one picture, the person's half painted."""

    kind: Literal["diptych"] = "diptych"
    recipe: FluxFill = FluxFill()


class KontextConfig(Diffusion):
    """An instruction editor without a mask; paste-back enforces the region."""

    kind: Literal["kontext"] = "kontext"
    recipe: Annotated[FluxKontext | QwenImageEditPlus, Field(discriminator="pipeline")]


DiffusionConfig = InpaintConfig | DiptychConfig | KontextConfig


class FashnProvider(Config):
    """FASHN's API: POST /v1/run, then GET /v1/status/{id}."""

    api: Literal["fashn"] = "fashn"
    base_url: str = "https://api.fashn.ai"
    model: Literal["tryon-v1.6", "tryon-max"] = "tryon-v1.6"
    mode: Literal["performance", "balanced", "quality"] = "balanced"
    usd_per_credit: NonNegativeFloat = 0.075


class OpenAiProvider(Config):
    """OpenAI's image edits: POST /v1/images/edits."""

    api: Literal["openai"] = "openai"
    base_url: str = "https://api.openai.com"
    model: str = "gpt-image-1.5"
    input_fidelity: Literal["low", "high"] = "high"
    usd_per_image: NonNegativeFloat = 0.04


class HostedConfig(Config):
    """A third party's API, as an arm to compare with. The crop leaves this cluster."""

    kind: Literal["hosted"] = "hosted"
    provider: Annotated[FashnProvider | OpenAiProvider, Field(discriminator="api")]
    prompt: str = ""
    timeout_s: PositiveFloat = 120.0
    """Of one generation, retries included."""
    max_attempts: PositiveInt = 4
    poll_s: PositiveFloat = 1.0


BackendConfig = Annotated[
    WarpConfig | NoopConfig | InpaintConfig | DiptychConfig | KontextConfig | HostedConfig,
    Field(discriminator="kind"),
]
