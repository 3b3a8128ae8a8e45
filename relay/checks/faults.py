"""The table of what `relay check` may find wrong, each with why it matters and what to change.

What the server of the log says of itself has a table of its own, `relay.fitness`, since a relay that starts tells it too.
"""

from relay.finding import Fault

NGINX = "in nginx: `proxy_buffering off; proxy_http_version 1.1;`, and no `proxy_ignore_headers X-Accel-Buffering`"

# fmt: off

# Settings, and the machine

BAD_SETTING = Fault(
    "error", "settings", "{mistake}",
    why="the relay doesn't start",
    fix="change the variable",
)
UNKNOWN_SETTING = Fault(
    "warning", "settings", "{told}",
    why="what it was to change is as it was",
    fix="correct or remove the variable",
)
TOO_FEW_FILES = Fault(
    "error", "files", "RELAY_MAX_STREAMS={streams}, but the file limit leaves {most}",
    why="the clients beyond that hang instead of being told to come back",
    fix="raise the hard limit (LimitNOFILE= in systemd, --ulimit nofile= in containers), or lower the setting",
)
PORT_TAKEN = Fault(
    "error", "port", "{mistake}",
    why="the relay doesn't start",
    fix="stop what runs there, or set RELAY_PORT",
)
NO_VALKEY = Fault(
    "error", "Valkey", "RELAY_VALKEY_URL is unset, and there is no embedded Valkey",
    why="the relay doesn't start",
    fix="python3 -m pip install 'edge-relay[embedded]', or set RELAY_VALKEY_URL",
)
VALKEY_AWAY = Fault(
    "error", "Valkey", "it doesn't answer: {error}",
    why="nothing is published or read",
    fix="start it, or correct RELAY_VALKEY_URL and what lies between",
)
OTHER_SHARDS = Fault(
    "error", "Valkey", "{mistake}",
    why="the relay doesn't start",
    fix="a log keeps the number of shards it began with",
)

# Keys

GUESSABLE_SECRET = Fault(
    "error", "token key", "RELAY_JWT_SECRET is long enough, but no random text: too few different characters, or a short piece repeated",
    why="whoever has one token can find it by trying, and then make tokens for anybody",
    fix="make one with: openssl rand -base64 48",
)
NO_KEY_SET = Fault(
    "error", "JWKS", "RELAY_JWT_JWKS_URL: {reason}",
    why="tokens can't be checked: streams are told to come back, and all else is 503",
    fix="correct the address (redirects aren't followed), open the way from here to it, or name its certificate's issuer in SSL_CERT_FILE",
)
NO_KEY_IN_SET = Fault(
    "error", "JWKS", "RELAY_JWT_JWKS_URL: {reason}",
    why="tokens can't be checked: streams are told to come back, and all else is 503",
    fix="name the address of a key set with public keys for signatures: RSA of 2048 bits or more, P-256, P-384, P-521 or Ed25519",
)
ONE_KEY_FOR_BOTH = Fault(
    "warning", "seal key", "SSE_ENCRYPTION_KEY and RELAY_JWT_SECRET have a key in common",
    why="whoever is given it for one purpose has the other: to make tokens, and to open what is sealed",
    fix="make another one with: openssl rand -base64 48",
)
SEALED_FOR_NOBODY = Fault(
    "warning", "seal key", "RELAY_SEAL_KEYS=shared, and RELAY_REQUIRE_SEALED={topics} is had sealed alone",
    why="browsers are given no keys then, so that pages of RELAY_ALLOWED_ORIGINS can't read these topics",
    fix="RELAY_SEAL_KEYS=topic; or if only backends read them, leave RELAY_ALLOWED_ORIGINS unset",
)

# What is asked of others

NO_SUBSCRIPTIONS = Fault(
    "error", "subscriptions", "{cause}",
    why="who may read can't be decided: streams are told to come back, and all else is 503",
    fix='let it answer 200 with {{"status": …}} within 2 s, also for subjects that it doesn\'t know (null)',
)
ANYBODY_SUBSCRIBED = Fault(
    "warning", "subscriptions", "RELAY_SUBSCRIPTION_URL says `active` of a subject that there is not",
    why="whoever has a token reads, paid or not",
    fix="let it answer what it knows of the subject in `sub`; or set RELAY_SUBSCRIPTION=off, which asks nobody",
)
BAD_SOURCES = Fault(
    "error", "sources", "{mistake}",
    why="neither the relay nor the update job starts",
    fix="correct the file",
)
SOURCE_FAILS = Fault(
    "error", "source {name}", "it {reason}",
    why="as long as that is so, nothing new comes from it",
    fix="look at its url in the file, at the way to it from here, and at the upstream itself",
)
SOME_UNFIT = Fault(
    "warning", "source {name}", "{unfit} of {items} items can't become events: {why}",
    why="these are skipped, and nobody gets them",
    fix="correct the source's key, version, topic, event or data",
)
ALL_UNFIT = Fault(
    "error", "source {name}", "none of {items} items can become an event: {why}",
    why="nothing comes of it",
    fix="correct the source's items, key, version, topic, event or data",
)

# The way to a URL

NOT_REACHED = Fault(
    "error", "address", "{url} can't be reached: {error}",
    why="nobody can",
    fix="name the address that clients use",
)
NO_RELAY = Fault(
    "error", "address", "/healthz is {health} and a poll {poll}",
    why="this is no relay, or a proxy keeps paths from it",
    fix="let the proxy hand /stream/ on as it is, without a prefix added or taken away",
)
TOKEN_REFUSED = Fault(
    "error", "token", "a poll is {status}: {detail}",
    why="without a token that may read and publish canary/** nothing else can be seen",
    fix="set the relay's RELAY_JWT_SECRET here too, or give --token",
)
NOT_LOOKED_AT = Fault(
    "error", "{about}", "could not be looked at: {reason}",
    why="something on the way breaks requests",
    fix="look in the proxy's log",
)
PLAIN_HTTP = Fault(
    "error", "TLS", "plain http",
    why="tokens are readable on the way, and browsers have no WebCrypto there, which sealed streams need",
    fix="put TLS in front",
)
ALSO_PLAIN_HTTP = Fault(
    "warning", "TLS", "http://{host} is answered too, without TLS",
    why="a client with the wrong address sends its token in the clear",
    fix="answer port 80 with a redirect, or not at all",
)
NO_HTTP2 = Fault(
    "warning", "HTTP version", "{protocol}",
    why="a browser opens six connections to an origin, and each stream takes one: the seventh tab hangs",
    fix="turn HTTP/2 on where TLS ends; in nginx: `http2 on;`",
)
HELD_BACK = Fault(
    "error", "buffering", "{what}",
    why="something on the way holds events back, and clients fall back to polling",
    fix=NGINX,
)
MAY_BE_KEPT = Fault(
    "warning", "headers", "a stream's Cache-Control arrives as {kept!r}",
    why="a cache on the way may keep a stream, or change it",
    fix="don't replace the Cache-Control that the relay sends",
)
COMPRESSED = Fault(
    "warning", "headers", "a stream arrives as {encoding}",
    why="a proxy that compresses streams holds events back until its buffer is full",
    fix="leave text/event-stream out of what the proxy compresses; in nginx: `gzip_types` without it",
)
CLOCK_APART = Fault(
    "warning", "clock", "the relay's clock and this one are {apart_s:.0f} s apart",
    why="tokens that are made here may count as not valid yet, or as ended",
    fix="let both run NTP",
)
CUT_WHEN_QUIET = Fault(
    "error", "quiet streams", "a quiet stream was cut after {lasted_s:.0f} s, at heartbeats of {heartbeat_s:g} s",
    why="each client reconnects that often",
    fix="set the idle or read timeout on the way above {heartbeat_s:g} s (nginx: `proxy_read_timeout`), "
    "or RELAY_HEARTBEAT_SECONDS below it",
)
NO_HEARTBEAT = Fault(
    "error", "quiet streams", "no heartbeat in {waited_s:.0f} s, where one is due each {heartbeat_s:g} s",
    why="clients take the connection for dead",
    fix=NGINX,
)
NOT_RESUMED = Fault(
    "error", "resuming", "a stream with Last-Event-ID began as {resume!r}",
    why="clients miss what came while they were away",
    fix="let the proxy hand the header Last-Event-ID on",
)
POLL_CUT = Fault(
    "error", "long polls", "one of {wait_s:g} s {outcome} after {took_s:.0f} s",
    why="old clients get errors whenever nothing happens",
    fix="set the timeout on the way above {most_s:g} s",
)
PATH_CHANGED = Fault(
    "error", "paths", "a topic with %3A for its colon is {status}",
    why="topics that a client encodes are lost",
    fix="let the proxy hand the path on as it came; in nginx: `proxy_pass` without a path",
)
FOREIGN_ALLOWED = Fault(
    "error", "origins", "a page of {origin} gets {status} with Access-Control-Allow-Origin {allowed}",
    why="any page may read streams with the cookies of its visitor",
    fix="don't set CORS headers in the proxy, and hand Origin on: the relay has RELAY_ALLOWED_ORIGINS",
)
OWN_REFUSED = Fault(
    "error", "origins", "{request} of {origin} is {status} with Access-Control-Allow-Origin {allowed}",
    why="that page can't use the relay",
    fix="name it in RELAY_ALLOWED_ORIGINS, hand OPTIONS on, and don't add the header in the proxy a second time",
)
SHOWN_TO_STRANGERS = Fault(
    "error", "caches", "a page that needs a token was shown without one",
    why="anybody reads what others may",
    fix="don't cache answers to requests with Authorization, Cookie or a token; or take canary/** from RELAY_PUBLIC_TOPICS",
)
METRICS_OPEN = Fault(
    "warning", "metrics", "/metrics is open to everybody",
    why="it tells strangers how busy you are",
    fix="close the path in the proxy, or set RELAY_METRICS_TOKEN",
)
TOKEN_TOLD = Fault(
    "error", "tokens", "a token from the query comes back in {where}",
    why="it gets into the logs and histories of whoever is told",
    fix="let clients ask the final address at once, and don't redirect with the query",
)
REFERRER_TOLD = Fault(
    "warning", "tokens", "Referrer-Policy doesn't arrive as the relay sends it",
    why="a page's URL, and a token in it, is told to other sites",
    fix="don't replace the header in the proxy",
)
NO_SEALS = Fault(
    "error", "sealing", "keys are {keys}, and a sealed poll is {poll}",
    why="nobody can read sealed topics",
    fix="let the proxy hand /stream/keys on, and give all relays behind it an SSE_ENCRYPTION_KEY",
)
SEAL_SHUT = Fault(
    "error", "sealing", "a sealed canary doesn't open with the keys for it: {reason}",
    why="readers of sealed topics get nothing that they can read, or only from some of the relays",
    fix="give all relays the same SSE_ENCRYPTION_KEY: /stream/status tells their fingerprints; and let clocks run NTP",
)
