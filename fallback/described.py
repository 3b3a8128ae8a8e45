"""How polling is described in OpenAPI."""

from relay.openapi import operation

POLL_TOPIC = operation("poll_topic", "A page of one topic's events")
POLL = operation("poll", "A page of several topics' events")
