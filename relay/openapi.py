"""The OpenAPI description of handlers that read their requests themselves."""

from litestar.openapi.spec import Operation


def operation(operation_id: str, summary: str) -> type[Operation]:
    class Described(Operation):
        def __post_init__(self) -> None:
            self.operation_id = operation_id
            self.summary = summary

    return Described
