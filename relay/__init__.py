"""Edge Relay: live events for browsers, by Server-Sent Events and by polling, from one log."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from relay.publishing import Publisher as Publisher
    from relay.publishing import broadcast_to_resource as broadcast_to_resource

__version__ = "0.1.0"
__all__ = ["Publisher", "__version__", "broadcast_to_resource"]


def __getattr__(name: str) -> Any:
    """The names for publishers, loaded when asked for: a polling function that starts cold needs none of them."""
    if name in ("Publisher", "broadcast_to_resource"):
        return getattr(import_module("relay.publishing"), name)
    raise AttributeError(f"module 'relay' has no attribute {name!r}")
