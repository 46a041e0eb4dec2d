"""What the base is told: encoded once per prompt, kept when the encoders are gone."""

from typing import Any

import torch

from deployments.backends.diffusion.device import free_memory
from deployments.backends.diffusion.recipe import Encoded, Recipe
from deployments.recipes import Prompt
from serve.errors import GenerationFailed


class EncodedPrompts:
    """Embeddings by prompt and guidance."""

    def __init__(self, recipe: Recipe, pipe: Any):
        self._recipe = recipe
        self._pipe = pipe
        self._encoded: dict[tuple[Prompt, float], Encoded] = {}
        self._has_encoders = True

    def get(self, prompt: Prompt, guidance: float) -> Encoded:
        """One row's embeddings.

        Raises:
            GenerationFailed: never encoded before, and the encoders were dropped.
        """
        key = (prompt, guidance)
        if key not in self._encoded:
            if not self._has_encoders:
                raise GenerationFailed(
                    f"guidance {guidance} is not the bundle's, and the text encoders were dropped",
                    remedy="ask with the bundle's own, or set prompt.drop_text_encoders: false",
                )
            with torch.inference_mode():
                self._encoded[key] = self._recipe.encode_prompt(self._pipe, prompt, guidance)
        return self._encoded[key]

    def drop_encoders(self) -> None:
        """Give their memory back; what was encoded stays."""
        for name in self._recipe.text_encoders:
            setattr(self._pipe, name, None)
        self._has_encoders = False
        free_memory()
