"""Log lines on standard error, as text or JSON, each with the id of its request."""

import json
import logging
from datetime import UTC, datetime
from typing import Any, Literal

from exodus_service.context import current_request_id


def configure_logging(log_format: Literal["plain", "json"], level: str) -> None:
    """Send all log records to standard error. Called once, by the command line."""
    # Not shown in any line: threads and processes need not be looked up for every record.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = logging.StreamHandler()
    handler.setFormatter(PlainFormatter() if log_format == "plain" else JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    request_id = current_request_id.get()
    fields: dict[str, Any] = getattr(record, "fields", {})
    return {"request_id": request_id, **fields} if request_id else fields


def _moment(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


class PlainFormatter(logging.Formatter):
    """Time, level, message and name=value fields in a line; tracebacks on lines of their own."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={value}" for name, value in _fields(record).items())
        line = f"{_moment(record)} {record.levelname.lower():7} {record.getMessage().rstrip()}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _moment(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage().rstrip(),
            **_fields(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
