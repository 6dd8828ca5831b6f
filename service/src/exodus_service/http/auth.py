"""API keys, kept as SHA-256 digests and compared in constant time."""

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

from exodus_service.errors import ServiceError
from exodus_service.settings import Settings


class Keys:
    """API keys that are accepted. With none, every caller is."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple(hashlib.sha256(key.encode()).digest() for key in keys)

    @classmethod
    def of(cls, settings: Settings) -> "Keys":
        """The keys of the settings and of the key file.

        Raises:
            ValueError: the file cannot be read, or has no key.
        """
        keys = [key.get_secret_value() for key in settings.api_keys]
        if settings.api_keys_file is not None:
            keys += _read(settings.api_keys_file)
        return cls(keys)

    def check(self, authorization: str) -> str:
        """The owner of the caller's models: the hexadecimal digest of their key, or "" without keys.

        Raises:
            ServiceError: unauthorized: no key in the Authorization header; forbidden: another key.
        """
        if not self._digests:
            return ""
        scheme, _, key = authorization.encode("latin-1").partition(b" ")
        if scheme.lower() != b"bearer" or not key.strip():
            raise ServiceError("unauthorized", "send the header Authorization: Bearer KEY")
        digest = hashlib.sha256(key.strip()).digest()
        # All are compared, so that the time taken reveals nothing about any of them.
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
