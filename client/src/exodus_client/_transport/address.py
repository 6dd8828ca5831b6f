"""Address of a server: its URL, the proxy that the environment names for it, and advice if it cannot be reached.

httpx reads all of the environment for any server it may be asked for, and fails on what it does not know in it. A
client has one server.
"""

from __future__ import annotations

import http.client
import ipaddress
import os
import socket
import ssl
import urllib.request
from collections.abc import Iterator
from typing import cast
from urllib.parse import SplitResult, urlsplit

import httpx

from exodus_client._transport.sockets import SocketTransport, tcp, unix

_EXPECTED = "http://HOST:PORT, https://HOST or unix:/PATH"

#: What OpenSSL calls bytes that are not TLS.
_NOT_TLS = frozenset({"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG"})
_ALERT = "\x15\x03"


def resolve(
    base_url: str, transport: httpx.BaseTransport | None, max_connections: int
) -> tuple[str, httpx.BaseTransport, str]:
    """The URL to build on, and the transport for it: `unix:/path` is HTTP through a socket of the file system.

    TLS and proxies of the environment are httpx's business.
    """
    if not isinstance(base_url, str):
        raise TypeError(f"base_url must be {_EXPECTED}, got {base_url!r:.80}")
    scheme, _, path = base_url.partition(":")
    if scheme == "unix" and path:
        return "http://localhost", transport or SocketTransport(unix(path), max_connections), ""
    try:
        parts = urlsplit(base_url)
    except ValueError as error:  # half a bracket, for example
        raise _no_address(base_url) from error
    fits = parts.scheme in ("http", "https") and parts.hostname and not (parts.query or parts.fragment)
    if not fits or " " in base_url or not _has_port(parts) or not _is_host(base_url, parts):
        raise _no_address(base_url)
    if parts.username is not None or parts.password is not None:
        raise ValueError("base_url must be without user and password, got one of them; keys go to api_key")
    host = cast(str, parts.hostname)
    proxy = None
    if transport is None:
        proxy = proxy_of(parts.scheme, host, parts.port or (443 if parts.scheme == "https" else 80))
        if parts.scheme == "http" and proxy is None:
            transport = SocketTransport(tcp(host, parts.port or 80), max_connections)
        else:
            limits = httpx.Limits(max_connections=max_connections, max_keepalive_connections=max_connections)
            transport = httpx_transport(proxy, limits)
    return base_url.rstrip("/"), transport, proxy[0] if proxy else ""


def _no_address(base_url: str) -> ValueError:
    shown = base_url.rpartition("@")[2]  # without the password
    return ValueError(f"base_url must be {_EXPECTED}, got {shown!r}")


def _is_host(base_url: str, parts: SplitResult) -> bool:
    """True if the name service can be asked for the host."""
    try:
        httpx.URL(base_url)
        return bool(cast(str, parts.hostname).encode("idna"))
    except (httpx.InvalidURL, UnicodeError):
        return False


def _has_port(parts: SplitResult) -> bool:
    """True if the port is missing or valid."""
    try:
        return parts.port != 0
    except ValueError:
        return False


def proxy_of(scheme: str, host: str, port: int) -> tuple[str, str] | None:
    """Name of the variable and URL of the proxy for a server; None if there is none, or `no_proxy` has the host."""
    proxies = urllib.request.getproxies()
    name = next((name for name in (scheme, "all") if proxies.get(name)), None)
    if name is None or _is_excepted(scheme, host, port, proxies.get("no", "")):
        return None
    wanted = f"{name}_proxy"
    # A lower-case name goes before an upper-case one, as in urllib.
    named = sorted((variable for variable in os.environ if variable.lower() == wanted), reverse=True)
    return f"the environment variable {named[0]}" if named else "the proxy of this system", proxies[name]


def httpx_transport(proxy: tuple[str, str] | None, limits: httpx.Limits) -> httpx.HTTPTransport:
    """httpx's transport, through the proxy of `proxy_of` if there is one.

    Raises:
        ValueError: a variable of the environment does not fit, which the message names.
        ModuleNotFoundError: the proxy needs a package that is not installed.
    """
    tls = _tls()
    if proxy is None:
        return httpx.HTTPTransport(verify=tls, limits=limits)
    name, url = proxy
    try:
        return httpx.HTTPTransport(
            verify=tls, limits=limits, proxy=httpx.Proxy(url if "://" in url else f"http://{url}")
        )
    except ImportError as error:
        reason = f"{name} asks for a SOCKS proxy, which needs socksio"
        raise ModuleNotFoundError(f"{reason}: pip install 'httpx[socks]', or unset it") from error
    except (httpx.InvalidURL, ValueError) as error:
        shown = url.rpartition("@")[2]  # without the password
        raise ValueError(f"{name} must be the URL of a proxy, such as http://HOST:PORT, got {shown!r:.200}") from error


def _tls() -> ssl.SSLContext:
    """The certificates that a server may have. Raises ValueError."""
    try:
        return httpx.create_ssl_context()
    except OSError as error:  # ssl.SSLError among them
        names = ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE")
        got = ", ".join(f"{name}={os.environ[name]!r:.200}" for name in names if name in os.environ)
        wanted = "the environment variables for TLS must name files that can be used"
        raise ValueError(f"{wanted}, got {got}: {error}") from error


def _is_excepted(scheme: str, host: str, port: int, excepted: str) -> bool:
    """True if a list of `no_proxy` has all in it, or the host: by name, domain, address or network (fe80::/10).

    Entries may have a port, a scheme (all://localhost) and brackets.
    """
    entries = []
    for given in excepted.lower().split(","):
        only, _, entry = given.strip().rpartition("://")
        if only in ("", "all", scheme):
            entries.append(entry.rstrip("/").replace("[", "").replace("]", ""))
    shown = f"[{host}]" if ":" in host else host
    if "*" in entries or urllib.request.proxy_bypass(f"{shown}:{port}"):
        return True
    names = (f".{host}", f".{host}:{port}")
    if any(entry and name.endswith(f".{entry.lstrip('.')}") for entry in entries for name in names):
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    for entry in entries:
        try:
            if address in ipaddress.ip_network(entry, strict=False):
                return True
        except ValueError:
            continue
    return False


def advice(error: BaseException, *, ever_answered: bool, proxy: str = "") -> str:
    """A sentence on what to do, for an error of the way to a server; "" if there is nothing to say.

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
            return "the server does not speak TLS on this port: is it http:// instead of https://?"
        if isinstance(cause, http.client.BadStatusLine) and not ever_answered:
            closed = isinstance(cause, http.client.RemoteDisconnected)
            if closed or str(cause).startswith(_ALERT):
                return "the server does not speak plain HTTP on this port: is it https:// instead of http://?"
    return ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
