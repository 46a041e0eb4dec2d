"""What is made at the start where it is missing: tenants and experiments, read from YAML."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from serve.config import Config, load_yaml
from serve.designs import WantedExperiment
from serve.policy import TenantPolicy


class TenantSeed(Config):
    """One tenant that is made at the start when it is missing."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")]
    name: Annotated[str, Field(min_length=1, max_length=200)]
    policy: TenantPolicy = TenantPolicy()


class TenantsConfig(Config):
    """`configs/tenants.yaml`."""

    tenants: tuple[TenantSeed, ...] = ()

    @model_validator(mode="after")
    def _are_ids_unique(self) -> Self:
        ids = [tenant.id for tenant in self.tenants]
        doubled = sorted({tenant_id for tenant_id in ids if ids.count(tenant_id) > 1})
        if doubled:
            raise ValueError(f"listed twice: {', '.join(doubled)}")
        return self


class ExperimentsConfig(Config):
    """`configs/experiments.yaml`."""

    experiments: tuple[WantedExperiment, ...] = ()

    @model_validator(mode="after")
    def _are_ids_unique(self) -> Self:
        ids = [experiment.id for experiment in self.experiments]
        doubled = sorted({each for each in ids if ids.count(each) > 1})
        if doubled:
            raise ValueError(f"listed twice: {', '.join(doubled)}")
        return self


def load_experiments(path: Path) -> ExperimentsConfig:
    """
    Raises:
        ConfigError: the file is missing or does not fit; names file and key.
    """
    return load_yaml(path, ExperimentsConfig)


def load_tenants(path: Path) -> TenantsConfig:
    """
    Raises:
        ConfigError: the file is missing or does not fit; names file and key.
    """
    return load_yaml(path, TenantsConfig)
