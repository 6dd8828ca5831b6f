"""API keys: read, kept as SHA-256 digests, compared in constant time."""

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

from exodus_service.errors import ServiceError
from exodus_service.settings import Settings


class Keys:
    """The keys that may use the service; none at all means that every caller may."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple(hashlib.sha256(key.encode()).digest() for key in keys)

    @classmethod
    def of(cls, settings: Settings) -> "Keys":
        """The keys of the settings and of the key file. Raises ValueError where the file cannot be read."""
        keys = [key.get_secret_value() for key in settings.api_keys]
        if settings.api_keys_file is not None:
            keys += _read(settings.api_keys_file)
        return cls(keys)

    def check(self, authorization: bytes | None) -> str:
        """Who calls: the digest of their key in hexadecimal digits, "" where there are no keys.

        Raises:
            ServiceError: the value of the Authorization header does not carry one of the keys.
        """
        if not self._digests:
            return ""
        scheme, _, key = (authorization or b"").partition(b" ")
        if scheme.lower() != b"bearer" or not key.strip():
            raise ServiceError("unauthorized", "send the header Authorization: Bearer KEY")
        digest = hashlib.sha256(key.strip()).digest()
        # All are compared, so that the time taken tells nothing about which one was nearly right.
        accepted = False
        for known in self._digests:
            accepted |= hmac.compare_digest(digest, known)
        if not accepted:
            raise ServiceError("forbidden", "the key in the Authorization header is not one of the service's")
        return digest.hex()


def _read(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except OSError as error:
        raise ValueError(f"the API key file {path} must be readable, got {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"the API key file {path} must be UTF-8 text, got {error}") from error
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ValueError(f"the API key file {path} must be one API key a line, got none")
    return keys
