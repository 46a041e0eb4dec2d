"""The HTTP application: middleware, problem rendering and one router per resource."""

import logging

from fastapi import FastAPI

from serve import __version__
from serve.api.health import ReadWaiting, build_health_router
from serve.api.middleware import BodyLimit, RequestContext
from serve.api.models import ReadStates, build_models_router
from serve.api.pictures import FetchPicture
from serve.api.problems import install_problem_handlers
from serve.api.tryon import build_tryon_router
from serve.catalog import Catalog
from serve.imaging.limits import ImageLimits
from serve.pipeline import Pipeline

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
    is_id_echoed_outside: bool = False,
) -> FastAPI:
    """Put the application together; nothing here knows Ray."""
    router_config = catalog.family.router
    app = FastAPI(title="sm4ll-serve", version=__version__, description=DESCRIPTION)
    install_problem_handlers(app, logger)
    # Added last runs first: the body limit's refusal already carries the request id.
    app.add_middleware(BodyLimit, max_body_bytes=router_config.max_body_mib * 2**20)
    app.add_middleware(RequestContext, is_echoed_outside=is_id_echoed_outside)
    app.include_router(build_tryon_router(pipeline, limits, fetch, router_config.default_timeout_s))
    app.include_router(build_models_router(catalog, read_states))
    app.include_router(build_health_router(read_waiting))
    return app
