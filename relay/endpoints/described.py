"""How the relay's endpoints are described in OpenAPI."""

from relay.openapi import operation

LIVE_TOPIC = operation("live_topic", "Live events of one topic")
LIVE = operation("live", "Live events of several topics")
PUBLISH = operation("publish", "Publish one event")
PUBLISH_BATCH = operation("publish_batch", "Publish a batch")
STATUS = operation("status", "How this process is")
HEALTH = operation("healthz", "Alive")
READY = operation("readyz", "Wants traffic")
METRICS = operation("metrics", "Prometheus")
