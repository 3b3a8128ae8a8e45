"""Log lines: `[STREAM] …`, `[STREAM JOB] …` or `[STREAM {connection}] …`, as text or as JSON with the same as fields.

What comes from outside is escaped, so that no subject or topic can forge a line.
"""

import json
import logging
import logging.config
import time
from typing import Any

EXTRAS = ("connection", "shard", "job")


class TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        connection = getattr(record, "connection", None)
        prefix = "[STREAM JOB]" if getattr(record, "job", None) else f"[STREAM {connection}]" if connection else "[STREAM]"
        line = f"{prefix} {record.levelname} {escaped(record.getMessage())}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "service": "STREAM JOB" if getattr(record, "job", None) else "STREAM",
            "level": record.levelname,
            "message": record.getMessage(),
        }
        fields |= {name: getattr(record, name) for name in EXTRAS if getattr(record, name, None) is not None}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def escaped(text: str) -> str:
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def log_config(log_format: str) -> dict[str, Any]:
    """For `logging.config.dictConfig`: ours and the server's lines alike, to standard error."""
    formatter = JsonFormatter if log_format == "json" else TextFormatter
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"relay": {"()": f"{formatter.__module__}.{formatter.__qualname__}"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "relay"}},
        "loggers": {
            "relay": {"handlers": ["stderr"], "level": "INFO", "propagate": False},
            "_granian": {"handlers": ["stderr"], "level": "WARNING", "propagate": False},
            "granian.access": {"handlers": [], "level": "ERROR", "propagate": False},
        },
    }


def set_up_logs(log_format: str) -> None:
    logging.config.dictConfig(log_config(log_format))
