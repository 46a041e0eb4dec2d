"""A caller's `traceparent` that is no text costs the caller its trace, and not its answer."""

from typing import Any

from ray.serve._private.replica import Replica

Headers = list[tuple[bytes, bytes]]


def tolerate_any() -> None:
    """In this process, before its first request.

    Serve decodes the header ahead of the application, and answers 500 where it cannot (2.60,
    `Replica.get_asgi_tracing_context`; only where it traces). There is no public way in between.
    """
    read = Replica.get_asgi_tracing_context

    def read_if_text(self: Replica, headers: Headers) -> dict[str, Any] | None:
        try:
            context: dict[str, Any] | None = read(self, headers)
        except UnicodeDecodeError:
            return None
        return context

    Replica.get_asgi_tracing_context = read_if_text
