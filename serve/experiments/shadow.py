"""Which requests a challenger paints as well, unasked; pure.

The draw is of requests, not of units, by the published hash (`assignment`): purpose `shadow`, and
the request's id in place of the unit.
"""

from serve.designs import Arm, ExperimentDesign, Share
from serve.experiments.assignment import bucket_of


def is_sampled(experiment: ExperimentDesign, request_id: str, share: Share) -> bool:
    """Whether a request is among the share; raising it leaves out nobody who was in."""
    return bucket_of("shadow", experiment.id, experiment.salt, request_id) < share


def find_challenger(experiment: ExperimentDesign, arm: str, request_id: str) -> Arm | None:
    """Who shall paint what an arm was asked, if anybody; only the control's requests are shared."""
    shadow = experiment.shadow
    if shadow is None or arm != experiment.control.name:
        return None
    if not is_sampled(experiment, request_id, shadow.share):
        return None
    return experiment.arm(shadow.arm)
