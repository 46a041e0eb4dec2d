"""Every error this system names, and nothing else.

Sm4llError
  RequestError              the caller must change something
    InvalidRequest          400
    Unauthenticated         401
    Forbidden               403
    NotFound                404
    Conflict                409
    ImageTooLarge           413
    InvalidImage            422
    MaskRejected            422
    SubjectNotFound         422
    FetchRefused            422
    ContentRefused          422
    NotSupported            422
  CapacityError             the caller may retry; always carries retry_after_s
    RateLimited             429
    QuotaExhausted          429
    Overloaded              503
      ReplicaLost           503
    StoreUnavailable        503
    DeadlineExceeded        504
  BackendError              ours, for one request
    BundleInvalid           500
    GenerationFailed        500
    OutOfDeviceMemory       503
    UpstreamFailed          502
  ClusterError              control plane; never rendered to a caller
    PackingImpossible
    RolloutFailed
      RolloutTimedOut
      RolloutRefused
    ControlPlaneUnreachable
    ControlPlaneRefused
      FieldConflict
  Cancelled                 the caller left; nobody reads the answer
ConfigError(ValueError)     start-up only
"""

from typing import Any, ClassVar


class Sm4llError(Exception):
    """Base of every error this system raises on purpose."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "Something went wrong on our side"

    def __init__(self, detail: str, *, remedy: str = "", retry_after_s: float | None = None):
        super().__init__(detail)
        self.detail = detail
        self.remedy = remedy
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[Any, ...]:
        # Default pickling loses keyword-only arguments, and with them the type at a Ray caller.
        return type(self), (self.detail,), self.__dict__


class RequestError(Sm4llError):
    """The caller must change something before trying again."""

    status = 400
    code = "request_error"
    title = "The request cannot be served as it is"


class InvalidRequest(RequestError):
    """A field is missing, unknown or out of range."""

    code = "invalid_request"
    title = "The request is not valid"

    def __init__(
        self,
        detail: str,
        *,
        remedy: str = "",
        retry_after_s: float | None = None,
        fields: tuple[tuple[str, str], ...] = (),
    ):
        super().__init__(detail, remedy=remedy, retry_after_s=retry_after_s)
        self.fields = fields
        """(field, what is wrong with it), where single fields are to blame."""


class Unauthenticated(RequestError):
    """No key, or one that is not known."""

    status = 401
    code = "unauthenticated"
    title = "A valid API key is needed"


class Forbidden(RequestError):
    """The key is known and may not do this."""

    status = 403
    code = "forbidden"
    title = "This key may not do that"


class NotFound(RequestError):
    """No such expert, version or object, or it belongs to somebody else."""

    status = 404
    code = "not_found"
    title = "Not found"


class Conflict(RequestError):
    """The request contradicts the present state."""

    status = 409
    code = "conflict"
    title = "Conflict"


class ImageTooLarge(RequestError):
    """More bytes, pixels, frames or a longer side than is allowed; known before decoding."""

    status = 413
    code = "image_too_large"
    title = "The image is too large"


class InvalidImage(RequestError):
    """Not an image of a supported kind, or damaged."""

    status = 422
    code = "invalid_image"
    title = "The image cannot be read"


class MaskRejected(RequestError):
    """The caller's mask is empty, full, a photograph or of the wrong size."""

    status = 422
    code = "mask_rejected"
    title = "The mask cannot be used"


class SubjectNotFound(RequestError):
    """What the expert edits is not visible in the picture; the detail says what was looked for."""

    status = 422
    code = "subject_not_found"
    title = "The part of the person to edit was not found"


class FetchRefused(RequestError):
    """A URL that is not public, not an image or too slow, or fetching is switched off."""

    status = 422
    code = "fetch_refused"
    title = "The image could not be fetched"


class ContentRefused(RequestError):
    """A moderation policy refuses the pictures or the words."""

    status = 422
    code = "content_refused"
    title = "The content was refused"


class NotSupported(RequestError):
    """Well-formed and understood, and not offered by this deployment."""

    status = 422
    code = "not_supported"
    title = "Not supported by this deployment"


class CapacityError(Sm4llError):
    """The same request may succeed later; retry_after_s says when."""

    status = 503
    code = "capacity"
    title = "Not enough capacity right now"

    def __init__(self, detail: str, *, remedy: str = "", retry_after_s: float | None = 1.0):
        super().__init__(detail, remedy=remedy, retry_after_s=retry_after_s)


class RateLimited(CapacityError):
    """Too many requests in the window."""

    status = 429
    code = "rate_limited"
    title = "Too many requests"


class QuotaExhausted(CapacityError):
    """The budget of the period is spent."""

    status = 429
    code = "quota_exhausted"
    title = "The quota is used up"


class Overloaded(CapacityError):
    """More is waiting than can be done in time."""

    code = "overloaded"
    title = "The service is at capacity"


class ReplicaLost(Overloaded):
    """The replica that worked on it died; Serve brings another, and the work may be to blame."""

    code = "replica_lost"
    title = "The replica stopped"


class StoreUnavailable(CapacityError):
    """The database or the object store does not answer."""

    code = "store_unavailable"
    title = "The service cannot reach its data right now"


class DeadlineExceeded(CapacityError):
    """The work did not finish before its deadline."""

    status = 504
    code = "deadline_exceeded"
    title = "The deadline passed"


class BackendError(Sm4llError):
    """An expert failed on this request."""

    code = "backend_error"
    title = "The expert failed"


class BundleInvalid(BackendError):
    """An expert bundle is inconsistent or does not reproduce its golden samples."""

    code = "bundle_invalid"
    title = "The expert bundle is not valid"


class GenerationFailed(BackendError):
    """The backend raised or answered something unusable."""

    code = "generation_failed"
    title = "Generation failed"


class OutOfDeviceMemory(BackendError):
    """The device had no memory left for this request."""

    status = 503
    code = "out_of_device_memory"
    title = "The device ran out of memory"


class UpstreamFailed(BackendError):
    """A third-party API failed."""

    status = 502
    code = "upstream_failed"
    title = "The upstream API failed"


class ClusterError(Sm4llError):
    """A control-plane failure, for the person who runs the cluster."""

    code = "cluster_error"
    title = "The cluster could not do that"


class PackingImpossible(ClusterError):
    """The wanted replicas do not fit the devices."""

    code = "packing_impossible"
    title = "The plan does not fit"


class RolloutFailed(ClusterError):
    """A rollout stopped before it was complete."""

    code = "rollout_failed"
    title = "The rollout failed"


class RolloutTimedOut(RolloutFailed):
    """What was applied did not become ready in time; it may still do so."""

    code = "rollout_timed_out"
    title = "The rollout takes too long"


class RolloutRefused(RolloutFailed):
    """Nothing was begun: somebody else is at it, or nobody agreed."""

    code = "rollout_refused"
    title = "The rollout was not begun"


class ControlPlaneUnreachable(ClusterError):
    """The Kubernetes API does not answer, or not in time."""

    code = "control_plane_unreachable"
    title = "The Kubernetes API does not answer"


class ControlPlaneRefused(ClusterError):
    """The Kubernetes API answered with a refusal."""

    code = "control_plane_refused"
    title = "The Kubernetes API refused"

    def __init__(
        self,
        detail: str,
        *,
        remedy: str = "",
        retry_after_s: float | None = None,
        http_status: int = 0,
        reason: str = "",
        causes: tuple[tuple[str, str], ...] = (),
    ):
        super().__init__(detail, remedy=remedy, retry_after_s=retry_after_s)
        self.http_status = http_status
        self.reason = reason
        """Kubernetes' own word, such as `Invalid` or `AlreadyExists`."""
        self.causes = causes
        """(field, what is wrong with it), where it said so."""


class FieldConflict(ControlPlaneRefused):
    """Another field manager owns fields that would be changed; `causes` names both."""

    code = "field_conflict"
    title = "Somebody else owns these fields"


class Cancelled(Sm4llError):
    """The caller went away; work stops at the next step."""

    status = 499  # nginx's "client closed request": for logs and metrics, nobody receives it
    code = "cancelled"
    title = "The caller closed the request"


class ConfigError(ValueError):
    """Configuration that cannot be used; raised at start-up only."""
