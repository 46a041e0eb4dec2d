"""On whose behalf a request runs, and what that key may do."""

from dataclasses import dataclass

from serve.errors import Forbidden
from serve.policy import Priority, Scope, TenantPolicy

NAMING: frozenset[Scope] = frozenset({"versions", "review", "admin"})
"""Any of them lets a request say which version it wants."""


@dataclass(frozen=True, slots=True)
class Caller:
    """One key of one tenant, as it was read at most a few seconds ago."""

    tenant_id: str
    key_id: str
    scopes: frozenset[Scope]
    policy: TenantPolicy

    def require(self, scope: Scope) -> None:
        """
        Raises:
            Forbidden: the key does not have the scope.
        """
        if scope not in self.scopes:
            has = ", ".join(sorted(self.scopes)) or "none"
            raise Forbidden(
                f"this needs a key with the scope {scope!r}; this one has: {has}",
                remedy="ask whoever runs this service for a key with that scope",
            )

    @property
    def may_name_version(self) -> bool:
        return not self.scopes.isdisjoint(NAMING)

    def priority(self, wanted: Priority = "interactive") -> Priority:
        """The class its work gets: what was wanted, or the tenant's ceiling."""
        return "batch" if "batch" in (wanted, self.policy.max_priority) else "interactive"
