"""The application's autoscaling policy: replicas follow the GPU-seconds that wait for them.

Serve's controller calls `scale_by_load` ten times a second with what every deployment reported
(`admission.load`). A deployment of expert versions gets the replicas that drain its work in the
time the family wants (`admission.autoscale`); every other one goes by its ongoing requests, as
Serve's own policy does. Serve honours it for applications that are deployed by a config only.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from serve.admission.autoscale import DrainPolicy, Load, ScaleState, decide_replicas
from serve.admission.load import sum_loads
from serve.config import DrainTarget

POLICY = "serve.scaling:scale_by_load"
"""As a Serve config names it."""

_STATE, _ERROR = "scale", "error"

Contexts = Mapping[Any, Any]
"""Serve's AutoscalingContext by its DeploymentID; typed as little as it is promised (alpha)."""
Decisions = tuple[dict[Any, float], dict[Any, dict[str, Any]]]


def scale_by_load(contexts: Contexts) -> Decisions:
    """How many replicas each deployment should have, and what to remember of it.

    Never raises: the controller's loop would end there, for every deployment. What cannot be
    decided stays as it is, and the log says so once.
    """
    loads: dict[str, Load] = {}
    try:
        loads = sum_loads(map(_newest, contexts.values()))
    except Exception:
        # Not once only, as below: that needs a deployment to remember it. Requests still count.
        logging.getLogger("ray.serve").exception("the load that replicas report is unreadable")
    decisions: dict[Any, float] = {}
    states: dict[Any, dict[str, Any]] = {}
    for deployment, context in contexts.items():
        try:
            decisions[deployment], states[deployment] = _decide(context, loads)
        except Exception as exc:
            decisions[deployment] = context.target_num_replicas
            states[deployment] = _remember_error(context, exc, str(deployment))
    return decisions, states


def _newest(context: Any) -> dict[str, list[float]]:
    """What each of a deployment's replicas said last: a backlog is a level, no mean is wanted."""
    return {
        name: [float(series[-1].value) for series in by_replica.values() if series]
        for name, by_replica in (context.raw_metrics or {}).items()
    }


def _decide(context: Any, loads: Mapping[str, Load]) -> tuple[float, dict[str, Any]]:
    told: Mapping[str, Any] = context.config.policy.policy_kwargs
    if not told:
        return _by_requests(context), {}
    target = DrainTarget.model_validate(told)
    policy = DrainPolicy(
        min_replicas=context.capacity_adjusted_min_replicas,
        max_replicas=context.capacity_adjusted_max_replicas,
        target_drain_s=target.target_drain_s,
        upscale_delay_s=target.upscale_delay_s,
        downscale_delay_s=target.downscale_delay_s,
    )
    load = _load_of(target.versions, loads)
    if load is None:
        # Nobody reports: what Serve counts itself, as so much work that the same rule applies.
        wanted = context.total_num_requests / context.config.target_ongoing_requests
        load = Load(queued_s=wanted * policy.target_drain_s)
    state = context.policy_state.get(_STATE)
    if not isinstance(state, ScaleState):
        state = ScaleState(context.target_num_replicas)
    if state.replicas > policy.max_replicas:  # narrowed: at once, not after a delay
        state = ScaleState(policy.max_replicas)
    state = decide_replicas(policy, state, load, context.current_time)
    return state.replicas, {_STATE: state}


def _load_of(versions: Iterable[str], loads: Mapping[str, Load]) -> Load | None:
    """Of versions that share replicas, together; None where nobody reported any of them."""
    known = [loads[version] for version in versions if version in loads]
    if not known:
        return None
    return Load(sum(load.queued_s for load in known), sum(load.running_s for load in known))


def _by_requests(context: Any) -> float:
    if context.current_num_replicas == 0:
        return float(context.target_num_replicas)
    return float(context.total_num_requests / context.config.target_ongoing_requests)


def _remember_error(context: Any, exc: Exception, name: str) -> dict[str, Any]:
    text = f"{type(exc).__name__}: {exc}"
    before = context.policy_state if isinstance(context.policy_state, dict) else {}
    if before.get(_ERROR) != text:
        logging.getLogger("ray.serve").error("%s keeps its replicas: %s", name, text, exc_info=exc)
    kept = {_STATE: before[_STATE]} if _STATE in before else {}
    return {**kept, _ERROR: text}
