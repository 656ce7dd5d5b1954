"""Errors of the service: each carries the HTTP status and the stable code that API.md promises.

MaskBitError
└── ServiceError
    ├── InvalidRequest 422 · UnsupportedMedia 415 · PayloadTooLarge 413 · BodyTimeout 408 · Misdirected 421
    ├── NotFound 404 · ResultExpired 410 · JobCancelled 409 · IdempotencyConflict 422
    ├── Unauthorized 401 · TooManyFailedKeys 429 · RateLimited 429 · QuotaExceeded 429
    ├── TenantLimit 429 · QueueFull 503 · Unavailable 503 (Moved, NoWorker)
    └── DeadlineUnmeetable 504 · DeadlinePassed 504 · JobFailed 500 · Poisoned 500
"""

from models.errors import MaskBitError


class ServiceError(MaskBitError):
    """An error with an HTTP face. `retry_after_s`, when set, becomes the Retry-After header."""

    status = 500
    code = "internal"

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s


class InvalidRequest(ServiceError):
    status = 422
    code = "invalid_request"


class UnsupportedMedia(ServiceError):
    status = 415
    code = "unsupported_media_type"


class PayloadTooLarge(ServiceError):
    status = 413
    code = "payload_too_large"


class Misdirected(ServiceError):
    status = 421
    code = "misdirected"


class BodyTimeout(ServiceError):
    status = 408
    code = "request_timeout"


class NotFound(ServiceError):
    status = 404
    code = "not_found"


class ResultExpired(ServiceError):
    status = 410
    code = "result_expired"


class JobCancelled(ServiceError):
    status = 409
    code = "cancelled"


class IdempotencyConflict(ServiceError):
    status = 422
    code = "idempotency_conflict"


class Unauthorized(ServiceError):
    status = 401
    code = "unauthorized"


class TooManyFailedKeys(ServiceError):
    status = 429
    code = "too_many_failed_keys"


class RateLimited(ServiceError):
    status = 429
    code = "rate_limited"


class QuotaExceeded(ServiceError):
    status = 429
    code = "quota_exceeded"


class TenantLimit(ServiceError):
    status = 429
    code = "too_many_jobs"


class QueueFull(ServiceError):
    status = 503
    code = "queue_full"


class Unavailable(ServiceError):
    status = 503
    code = "unavailable"


class Moved(Unavailable):
    """This revision of a model takes no new jobs any more; a newer one does."""


class NoWorker(Unavailable):
    """No worker of `model` is alive."""

    def __init__(self, model: str, *, retry_after_s: float) -> None:
        message = f"no worker with the weights of the model {model!r} is alive"
        super().__init__(message, retry_after_s=retry_after_s)
        self.model = model


class DeadlineUnmeetable(ServiceError):
    status = 504
    code = "deadline_unmeetable"


class DeadlinePassed(ServiceError):
    status = 504
    code = "deadline_passed"


class JobFailed(ServiceError):
    status = 500
    code = "job_failed"


class Poisoned(ServiceError):
    status = 500
    code = "poisoned"
