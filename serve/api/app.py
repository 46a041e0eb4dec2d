"""The HTTP application: middleware, problem rendering and one router per resource."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from serve import __version__
from serve.api.assets import build_assets_router
from serve.api.authentication import Authentication
from serve.api.batches import build_batches_router, open_batches
from serve.api.erasures import build_erasures_router
from serve.api.experiments import build_experiments_router
from serve.api.experts import build_experts_router
from serve.api.health import ReadWaiting, build_health_router
from serve.api.idempotency import Idempotency
from serve.api.job_events import build_job_events_router
from serve.api.jobs import build_jobs_router, open_job_desk
from serve.api.keys import build_keys_router
from serve.api.middleware import BodyLimit, RequestContext
from serve.api.models import ReadStates, build_models_router
from serve.api.openapi import install_openapi
from serve.api.outcomes import build_outcomes_router
from serve.api.pictures import FetchPicture
from serve.api.pins import build_pins_router
from serve.api.problems import install_problem_handlers
from serve.api.rate import RateLimit
from serve.api.reports import build_reports_router
from serve.api.request_log import RequestLog
from serve.api.rollouts import build_rollouts_router
from serve.api.shortcut import add_shortcuts
from serve.api.tenants import build_audit_router, build_tenants_router
from serve.api.tryon import build_tryon_router
from serve.api.usage import build_usage_router
from serve.api.versions import build_versions_router
from serve.api.watching import Watching
from serve.api.webhooks import build_webhooks_router
from serve.catalog import Catalog
from serve.choosing import Chooser
from serve.experiments.defaults import Defaults
from serve.experiments.desk import ExperimentDesk
from serve.experiments.steering import Steering
from serve.experiments.versions import ServedVersions
from serve.imaging.limits import ImageLimits
from serve.jobs.quote import PredictUnits
from serve.pipeline import Pipeline
from serve.services import Services
from serve.tenancy.erasure import Erasure, Forget, forget_nothing

DESCRIPTION = """Virtual try-on by specialised experts. A person photo and a product photo go in;
the person wearing the product comes out; nothing else in the picture changes, and the answer
proves it (`Sm4ll-Outside-Max-Diff`)."""


def build_api(
    catalog: Catalog,
    pipeline: Pipeline,
    limits: ImageLimits,
    fetch: FetchPicture,
    read_states: ReadStates,
    read_waiting: ReadWaiting,
    logger: logging.Logger,
    *,
    services: Services,
    predict: PredictUnits,
    forget: Forget = forget_nothing,
    is_id_echoed_outside: bool = False,
) -> FastAPI:
    """Put the application together; nothing here knows Ray.

    Args:
        predict: what work of a version will take, for what is accepted before it is decoded.
        forget: makes the replicas forget pictures that were erased.
    """
    router_config = catalog.family.router
    chooser = Chooser(catalog, services.routing, services.pins)

    @asynccontextmanager
    async def close_services(_: FastAPI) -> AsyncIterator[None]:
        services.sampler.also(services.requests.look)
        services.sampler.start()
        try:
            yield
        finally:
            await services.close()

    app = FastAPI(
        title="sm4ll-serve",
        version=__version__,
        description=DESCRIPTION,
        lifespan=close_services,
        redoc_url=None,
        # Behind a balancer that speaks TLS it would send whoever asks, and the key, to http://.
        redirect_slashes=False,
        # Its spans would begin at the caller's, past Serve's, and its counts are ours already.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    install_problem_handlers(app, logger)
    install_openapi(app)
    # Added last runs first: every refusal carries the request id, and nothing is read of a body
    # before it is known whose it is.
    app.add_middleware(Idempotency, answers=services.first_answers, logger=logger)
    app.add_middleware(RateLimit, hit=services.limits.hit)
    app.add_middleware(Authentication, find_caller=services.keys.find_caller)
    app.add_middleware(BodyLimit, max_body_bytes=router_config.max_body_mib * 2**20)
    app.add_middleware(RequestContext, is_echoed_outside=is_id_echoed_outside)
    app.add_middleware(RequestLog)
    app.add_middleware(Watching, requests=services.requests)
    tryons = build_tryon_router(
        pipeline, chooser, limits, fetch, router_config.default_timeout_s, services
    )
    app.include_router(tryons)
    add_shortcuts(app, tryons)
    erasure = Erasure(services.database, services.assets, services.first_answers, forget)
    app.include_router(build_assets_router(services.assets, erasure, limits))
    app.include_router(build_erasures_router(erasure))
    desk = open_job_desk(services, chooser, catalog, limits, fetch, predict)
    app.include_router(build_jobs_router(desk))
    app.include_router(build_job_events_router(services.database))
    app.include_router(build_models_router(catalog, services.routing, read_states))
    batches = open_batches(services, chooser, catalog, limits, predict)
    app.include_router(build_batches_router(batches))
    app.include_router(build_webhooks_router(services.database, router_config.webhooks))
    app.include_router(build_tenants_router(services.database, services.registry))
    app.include_router(build_keys_router(services.database, services.registry))
    app.include_router(build_audit_router(services.database))
    app.include_router(build_pins_router(services.database, chooser, services.pins))
    defaults = Defaults(services.database)
    app.include_router(build_experts_router(catalog, services.routing, defaults))
    experiments = ExperimentDesk(
        services.database, lambda: frozenset(bundle.version for bundle in catalog)
    )
    app.include_router(build_experiments_router(services.database, experiments, services.routing))
    app.include_router(build_reports_router(services.database, services.assets, limits))
    app.include_router(
        build_rollouts_router(
            services.database,
            catalog,
            services.routing,
            Steering(services.database),
            router_config.webhooks,
        )
    )
    price = catalog.family.pricing.usd_per_gpu_second
    app.include_router(build_usage_router(services.database, price))
    app.include_router(build_outcomes_router(services.database, router_config.evidence_retention_s))
    served = ServedVersions(
        services.database, [deployed.version for deployed in catalog.family.experts]
    )
    app.include_router(build_versions_router(services.database, served))
    app.include_router(build_health_router(read_waiting))
    return app
