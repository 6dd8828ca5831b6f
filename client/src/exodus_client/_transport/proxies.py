"""The proxy that the environment names for a server, and the httpx transport that goes through it.

httpx reads all of the environment for any server it may be asked for, and fails on what it does not know in it. A
client has one server.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
import urllib.request

import httpx


def proxy_of(scheme: str, host: str, port: int) -> tuple[str, str] | None:
    """Name of the variable and URL of the proxy for a server; None where there is none, or `no_proxy` has the host."""
    proxies = urllib.request.getproxies()
    name = next((name for name in (scheme, "all") if proxies.get(name)), None)
    if name is None or _is_excepted(scheme, host, port, proxies.get("no", "")):
        return None
    wanted = f"{name}_proxy"
    # A lower-case name goes before an upper-case one, as in urllib.
    named = sorted((variable for variable in os.environ if variable.lower() == wanted), reverse=True)
    return f"the environment variable {named[0]}" if named else "the proxy of this system", proxies[name]


def httpx_transport(proxy: tuple[str, str] | None, limits: httpx.Limits) -> httpx.HTTPTransport:
    """httpx's transport, through the proxy of `proxy_of` where there is one.

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
