"""The stock Qwen-Image-Edit pipelines, loading without torchvision.

Imported only when such a pipeline is loaded: it costs seconds.
"""

from pathlib import Path
from typing import Any

from diffusers import QwenImageEditInpaintPipeline, QwenImageEditPlusPipeline
from transformers import Qwen2VLProcessor


class PictureProcessor(Qwen2VLProcessor):  # type: ignore[misc]
    """The stock processor without its part for videos, the only one that needs torchvision.

    transformers finds a processor's parts by the names of these arguments.
    """

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None
    ):
        super().__init__(image_processor, tokenizer, None, chat_template=chat_template)


def _load_processor(folder: str | Path) -> PictureProcessor:
    processor: PictureProcessor = PictureProcessor.from_pretrained(
        folder, subfolder="processor", local_files_only=True
    )
    return processor


class QwenInpaintPipeline(QwenImageEditInpaintPipeline):  # type: ignore[misc]
    """QwenImageEditInpaintPipeline from a local folder."""

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs: Any) -> Any:
        return super().from_pretrained(folder, processor=_load_processor(folder), **kwargs)


class QwenEditPipeline(QwenImageEditPlusPipeline):  # type: ignore[misc]
    """QwenImageEditPlusPipeline from a local folder."""

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs: Any) -> Any:
        return super().from_pretrained(folder, processor=_load_processor(folder), **kwargs)
