"""Recipes by the pipeline's name that bundles use; a family is imported when one names it."""

from collections.abc import Callable
from typing import Any

from deployments.backends.diffusion.recipe import Recipe


def _flux2_klein_inpaint(config: Any) -> Recipe:
    from deployments.backends.diffusion.flux2_klein import Flux2KleinInpaintRecipe

    return Flux2KleinInpaintRecipe(config)


def _flux_kontext_inpaint(config: Any) -> Recipe:
    from deployments.backends.diffusion.flux_kontext import FluxKontextInpaintRecipe

    return FluxKontextInpaintRecipe(config)


def _flux_kontext(config: Any) -> Recipe:
    from deployments.backends.diffusion.flux_kontext import FluxKontextRecipe

    return FluxKontextRecipe(config)


def _flux_fill(config: Any) -> Recipe:
    from deployments.backends.diffusion.flux_fill import FluxFillRecipe

    return FluxFillRecipe(config)


def _stable_diffusion_inpaint(config: Any) -> Recipe:
    from deployments.backends.diffusion.stable_diffusion import StableDiffusionInpaintRecipe

    return StableDiffusionInpaintRecipe(config)


def _stable_diffusion_xl_inpaint(config: Any) -> Recipe:
    from deployments.backends.diffusion.stable_diffusion import StableDiffusionXLInpaintRecipe

    return StableDiffusionXLInpaintRecipe(config)


def _qwen_image_edit_inpaint(config: Any) -> Recipe:
    from deployments.backends.diffusion.qwen import QwenImageEditInpaintRecipe

    return QwenImageEditInpaintRecipe(config)


def _qwen_image_edit_plus(config: Any) -> Recipe:
    from deployments.backends.diffusion.qwen import QwenImageEditPlusRecipe

    return QwenImageEditPlusRecipe(config)


RECIPES: dict[str, Callable[[Any], Recipe]] = {
    "Flux2KleinInpaintPipeline": _flux2_klein_inpaint,
    "FluxKontextInpaintPipeline": _flux_kontext_inpaint,
    "FluxKontextPipeline": _flux_kontext,
    "FluxFillPipeline": _flux_fill,
    "StableDiffusionInpaintPipeline": _stable_diffusion_inpaint,
    "StableDiffusionXLInpaintPipeline": _stable_diffusion_xl_inpaint,
    "QwenImageEditInpaintPipeline": _qwen_image_edit_inpaint,
    "QwenImageEditPlusPipeline": _qwen_image_edit_plus,
}


def create_recipe(config: Any) -> Recipe:
    """The recipe of one bundle's `backend.recipe`."""
    return RECIPES[config.pipeline](config)
