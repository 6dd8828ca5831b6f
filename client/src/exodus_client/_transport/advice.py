"""Advice on a server that cannot be talked to."""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Iterator

#: What OpenSSL calls bytes that are not TLS.
_NOT_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG"})
_ALERT = "\x15\x03"


def advice(error: BaseException, *, ever_answered: bool, proxy: str = "") -> str:
    """A sentence on what to do, for an error of the way to a server; "" where there is nothing to say.

    `ever_answered`: whether the server has answered before, so that its address is right.
    """
    for cause in _causes(error):
        if proxy and isinstance(cause, ConnectionRefusedError | socket.gaierror):
            return f"{proxy} names a proxy, which cannot be reached: is it right? NO_PROXY takes hosts without one"
        if isinstance(cause, ConnectionRefusedError):
            if ever_answered:
                return "nothing listens there any more: was the service stopped, or did it end?"
            return "nothing listens there: is the service running (exodus-service starts one), and is this its address?"
        if isinstance(cause, FileNotFoundError):
            return "there is no such socket: is the service running, and is this the path in its EXODUS_UDS?"
        if isinstance(cause, PermissionError):
            return "this user may not connect to it"
        if isinstance(cause, socket.gaierror):
            return "the host is not known here: is base_url right?"
        if isinstance(cause, ssl.SSLCertVerificationError):
            return (
                "the certificate is not trusted here: name that of its authority in the environment variable "
                "SSL_CERT_FILE, or pass transport=httpx.HTTPTransport(verify=...)"
            )
        if isinstance(cause, ssl.SSLError) and cause.reason in _NOT_TLS:
            return "the server does not speak TLS on this port: is it http:// in place of https://?"
        if isinstance(cause, http.client.BadStatusLine) and not ever_answered:
            closed = isinstance(cause, http.client.RemoteDisconnected)
            if closed or str(cause).startswith(_ALERT):
                return "the server does not speak plain HTTP on this port: is it https:// in place of http://?"
    return ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
