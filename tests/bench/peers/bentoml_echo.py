"""BentoML's echo of a multipart upload; `bentoml serve bentoml_echo:Echo`."""

from pathlib import Path
from typing import Annotated

import bentoml
from bentoml.validators import ContentType


@bentoml.service(
    workers=1,
    traffic={"timeout": 120, "max_concurrency": 256},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
class Echo:
    """As its documentation does with pictures: each upload is a file, and so is the answer."""

    @bentoml.api(route="/echo")
    def echo(
        self, person: Path, product: Path, mask: Path
    ) -> Annotated[Path, ContentType("image/jpeg")]:
        return person
