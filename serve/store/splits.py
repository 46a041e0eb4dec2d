"""How many units each arm has had: counted where the exposures lie."""

from datetime import datetime

from sqlalchemy import distinct, func, select

from serve.store.engine import Session
from serve.store.experiment_tables import Exposure


async def count_split(
    session: Session, experiment_id: str, revision: int, since: datetime
) -> dict[str, int]:
    """Distinct units by arm that were exposed under one allocation; no shadows.

    The index on experiment, revision and time is walked from `since` on.
    """
    # The same unit of two tenants is hashed with its tenant: it is two.
    counted = (
        select(Exposure.arm, func.count(distinct(Exposure.unit)))
        .where(
            Exposure.experiment_id == experiment_id,
            Exposure.revision == revision,
            Exposure.at >= since,
            Exposure.is_shadow.is_(False),
        )
        .group_by(Exposure.arm)
    )
    return {arm: number for arm, number in (await session.execute(counted)).all()}
