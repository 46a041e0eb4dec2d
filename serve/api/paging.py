"""How every list is asked for: newest first, page after page."""

from typing import Annotated

from fastapi import Query

Limit = Annotated[int, Query(ge=1, le=200, description="how many of them at most")]
After = Annotated[
    str | None,
    Query(
        pattern=r"^[a-z]{3}_[0-9a-z]{26}$",
        description="`next` of the page before: what is older than that",
    ),
]
DEFAULT_LIMIT = 50
