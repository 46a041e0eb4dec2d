"""Amounts as Kubernetes writes them itself, so that what was applied differs in nothing."""


def gib(amount: float) -> str:
    """`1536Mi`, `4Gi`: as Kubernetes writes it itself."""
    mib = round(amount * 1024)
    return f"{mib // 1024}Gi" if mib % 1024 == 0 else f"{mib}Mi"


def cores(amount: float) -> str:
    """`500m`, `4`."""
    return f"{round(amount * 1000)}m" if amount % 1 else f"{amount:.0f}"
