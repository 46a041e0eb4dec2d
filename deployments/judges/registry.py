"""The judges that a configuration names."""

from functools import partial
from pathlib import Path

from deployments.extras import needing_weights
from deployments.judge_models import JudgeModels
from deployments.judges.base import Judge
from serve.config import WeightsConfig


def create_judges(models: JudgeModels, home: Path, weights: WeightsConfig) -> tuple[Judge, ...]:
    """Build them; `load` is the caller's.

    Raises:
        BundleInvalid: a library they need is not installed.
    """
    judges: list[Judge] = []
    with needing_weights("the judge"):
        # torch and transformers take seconds to import.
        from deployments.judges.embedding import LikenessJudge
        from deployments.judges.identity import IdentityJudge
        from deployments.judges.vision import load_embedder

    if models.embedding is not None:
        judges.append(LikenessJudge(partial(load_embedder, models.embedding, home, weights)))
    if models.face is not None:
        judges.append(IdentityJudge(partial(load_embedder, models.face, home, weights)))
    return tuple(judges)
