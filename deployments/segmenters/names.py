"""How receipts name a weighted masker: kind, model, and a digest of all that shapes regions."""

from deployments.sources import ModelSource


def public_name(kind: str, model: ModelSource, digest: str = "") -> str:
    """`parsing/fashn-ai/fashn-human-parser@0123abcd+89ef0123`.

    A directory is named by its last part: callers read this, and where it lies is not theirs.
    """
    label = model.label if model.path is None else (model.path.name or "model")
    return f"{kind}/{label}" + (f"+{digest[:8]}" if digest else "")
