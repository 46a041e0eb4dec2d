"""What the base is told: encoded once per prompt, kept when the encoders are gone."""

import copy
from typing import Any

import torch

from deployments.backends.diffusion.device import free_memory
from deployments.backends.diffusion.recipe import Encoded, Recipe
from deployments.recipes import Prompt
from serve.errors import GenerationFailed


class EncodedPrompts:
    """Embeddings by prompt and guidance. Moves the encoders to the device, and nothing else: at
    load they are gone again before the denoiser needs the room."""

    def __init__(self, recipe: Recipe, pipe: Any, device: torch.device):
        self._recipe = recipe
        self._pipe = pipe
        self._device = device
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
                self._encoded[key] = self._recipe.encode_prompt(self._alone(), prompt, guidance)
        return self._encoded[key]

    def _alone(self) -> Any:
        """The pipeline with its encoders only, on the device: it takes its place from its parts."""
        fork = copy.copy(self._pipe)
        for name, part in self._pipe.components.items():
            if isinstance(part, torch.nn.Module):
                encodes = name in self._recipe.text_encoders
                setattr(fork, name, part.to(self._device) if encodes else None)
        return fork

    def drop_encoders(self) -> None:
        """Give their memory back; what was encoded stays."""
        for name in self._recipe.text_encoders:
            setattr(self._pipe, name, None)
        self._has_encoders = False
        free_memory()
