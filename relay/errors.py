"""Every error that the relay raises on purpose; all else that is raised is a bug.

RelayError
├── SettingsError          the operator's: a setting is wrong (relay exits with 2)
├── Unopened               whoever made it, or changed it: a seal that doesn't open
├── LogUnavailable         nobody's: Valkey is away, full or not ready; temporary, so 503 or a polite end of stream
│   ├── LogAway                the same, known before anything was asked of it
│   ├── LogFull                it takes no events, and is read as ever: its memory or disk is full, or it has too few replicas
│   └── NotReplicated          it is in the log, but too few replicas have it: it may not outlive a failover
├── Fenced                 nobody's: another process does this now, so nothing was done
└── Problem                a client's: told to it as problem details (RFC 9457)
    ├── Malformed          400   the request can't be understood
    ├── Unauthorized       401   no token, or one that doesn't hold
    ├── NotSubscribed      402   no active subscription
    ├── Forbidden          403   not granted, or a foreign origin
    ├── NotFound           404   no such path or version
    ├── MethodNotAllowed   405   a path that answers other methods
    ├── TooSlow            408   a body that doesn't come
    ├── TooLarge           413   a body or an event beyond its bound
    ├── WrongMediaType     415   a body that is not JSON by its header
    ├── Unprocessable      422   JSON of the wrong shape, or a key used again for something else
    ├── TooMany            429   a limit of this process or of this client; temporary
    └── Unavailable        503   can't be decided or done now; temporary
"""

import msgspec


class RelayError(Exception):
    """The root: catch this to catch whatever the relay means to raise."""


class SettingsError(RelayError):
    """A setting is wrong. Each mistake is a line that names the variable and its fix."""

    def __init__(self, mistakes: list[str]) -> None:
        super().__init__("\n".join(mistakes))
        self.mistakes = mistakes


class Unopened(RelayError):
    """A seal that doesn't open: changed, too old, or for another password."""


class LogUnavailable(RelayError):
    """Valkey didn't answer, or answered that it can't now. What was asked of it may have happened or not."""


class LogAway(LogUnavailable):
    """Nothing was asked of Valkey: the tail has found it away, and has logged that once for everybody."""


class LogFull(LogUnavailable):
    """Valkey answers, and writes nothing for now. What was asked of it has not happened."""


class NotReplicated(LogUnavailable):
    """Whoever waits for this call is told so, also if its own event wasn't sent any more."""


class Fenced(RelayError):
    """Another process has taken over what only one may do; nothing was done."""


class Problem(RelayError):
    """What a client is told: a status, a code for programs, and a sentence with the way out."""

    status = 500
    code = "internal"
    title = "Internal error"

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        retry_after_s: float | None = None,
        index: int | None = None,
        cause: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code or self.code
        self.retry_after_s = retry_after_s
        self.index = index  # which item of a batch
        self.cause = cause or detail  # what the operator is told, and no client

    @property
    def temporary(self) -> bool:
        """Whether the same request may succeed later without a change."""
        return self.status in (429, 503)

    def body(self) -> bytes:
        """RFC 9457, section 3. `type` is absent, so `about:blank`: the code is what programs branch on."""
        members: dict[str, object] = {
            "title": self.title,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
        }
        if self.index is not None:
            members["index"] = self.index
        return msgspec.json.encode(members)


class Malformed(Problem):
    status, code, title = 400, "malformed", "Malformed request"


class Unauthorized(Problem):
    status, code, title = 401, "unauthorized", "No valid token"


class NotSubscribed(Problem):
    status, code, title = 402, "not_subscribed", "No active subscription"


class Forbidden(Problem):
    status, code, title = 403, "forbidden", "Not granted"


class NotFound(Problem):
    status, code, title = 404, "not_found", "Not found"


class MethodNotAllowed(Problem):
    status, code, title = 405, "method_not_allowed", "Method not allowed"


class TooSlow(Problem):
    status, code, title = 408, "too_slow", "Too slow"


class TooLarge(Problem):
    status, code, title = 413, "too_large", "Too large"


class WrongMediaType(Problem):
    status, code, title = 415, "wrong_media_type", "Not JSON"


class Unprocessable(Problem):
    status, code, title = 422, "wrong_shape", "Wrong shape"


class TooMany(Problem):
    status, code, title = 429, "too_many", "Too many"


class Unavailable(Problem):
    status, code, title = 503, "unavailable", "Unavailable for now"

    @staticmethod
    def of(error: LogUnavailable) -> "Unavailable":
        if isinstance(error, NotReplicated):
            detail = "too few replicas have what was published, which may be in the log: repeat it, with the same idempotency key"
            return Unavailable(detail, code="not_replicated", cause=str(error))
        if isinstance(error, LogFull):
            return Unavailable("the log takes no events for now: publish this again later", cause=f"the log takes no events: {error}")
        cause = "the log is away" if isinstance(error, LogAway) else f"the log did not answer: {error}"
        return Unavailable("the log is away: try again, with an idempotency key if you publish", cause=cause)
