"""Edge Relay: live events for browsers, by Server-Sent Events and by polling, from one log."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from relay.publishing import Publisher as Publisher
    from relay.publishing import broadcast_to_resource as broadcast_to_resource
    from relay.updates.function import Update as Update

__version__ = "0.1.0"
__all__ = ["Publisher", "Update", "__version__", "broadcast_to_resource"]
HOMES = {"Publisher": "relay.publishing", "broadcast_to_resource": "relay.publishing", "Update": "relay.updates.function"}


def __getattr__(name: str) -> Any:
    """The names for other programs, loaded when asked for: a polling function that starts cold needs none of them."""
    if name in HOMES:
        return getattr(import_module(HOMES[name]), name)
    raise AttributeError(f"module 'relay' has no attribute {name!r}")
