"""What a server has besides its routes for data: health, metrics, keys, limits and jobs."""

import asyncio

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import PlainTextResponse

from qinco.server.auth import KeyCheck
from qinco.server.direct import Direct
from qinco.server.jobs import Jobs
from qinco.server.limits import RequestLimits
from qinco.server.metrics import CONTENT_TYPE, Metrics
from qinco.server.observed import Observer, Traffic

router = APIRouter(tags=["operations"])


def install(app: FastAPI) -> None:
    """Add them to an app whose state has `catalog`, `settings` and `work`; it gets `jobs`, `metrics` and `traffic`."""
    state = app.state
    state.jobs, state.metrics, state.traffic = Jobs(), Metrics(state.catalog), Traffic()
    state.work.on_batch = state.metrics.batch_size.observe
    state.jobs.on_end = state.metrics.optimize_seconds.observe
    app.add_middleware(Direct)  # the last that is added is the first that is called
    app.add_middleware(RequestLimits, settings=state.settings)
    app.add_middleware(KeyCheck, settings=state.settings)
    app.add_middleware(
        Observer, traffic=state.traffic, metrics=state.metrics, logs_requests=state.settings.log_requests
    )
    app.include_router(router)


@router.get("/healthz", response_class=PlainTextResponse)
@router.get("/livez", response_class=PlainTextResponse)
async def alive() -> str:
    """That the process answers."""
    return "ok"


@router.get("/readyz", response_class=PlainTextResponse)
async def ready(request: Request) -> Response:
    """Whether requests should be sent: all collections are open, and the server does not end."""
    is_ending = request.app.state.traffic.is_ending
    return PlainTextResponse("ending" if is_ending else "ok", 503 if is_ending else 200)


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Counters for Prometheus."""
    text = await asyncio.to_thread(request.app.state.metrics.text)
    return Response(text, media_type=CONTENT_TYPE)
