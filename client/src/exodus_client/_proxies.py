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


def proxy_of(scheme: str, host: str) -> tuple[str, str] | None:
    """Name of the variable and URL of the proxy for a server; None where there is none, or `no_proxy` has the host."""
    proxies = urllib.request.getproxies()
    name = next((name for name in (scheme, "all") if proxies.get(name)), None)
    if name is None or urllib.request.proxy_bypass(host) or _is_excepted(host, proxies.get("no", "")):
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
        raise ValueError(f"{name}: got {shown!r:.200}, want the URL of a proxy, such as http://HOST:PORT") from error


def _tls() -> ssl.SSLContext:
    """The certificates that a server may have. Raises ValueError."""
    try:
        return httpx.create_ssl_context()
    except OSError as error:  # ssl.SSLError among them
        names = ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE")
        got = ", ".join(f"{name}={os.environ[name]!r:.200}" for name in names if name in os.environ)
        raise ValueError(f"the environment variables for TLS: got {got}, which cannot be used: {error}") from error


def _is_excepted(host: str, excepted: str) -> bool:
    """Whether a list of `no_proxy` has all in it, or an address, also as a network (fe80::/10) or in brackets."""
    entries = [entry.strip().replace("[", "").replace("]", "") for entry in excepted.split(",")]
    if "*" in entries:
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False  # names are for urllib
    for bare in entries:
        try:
            if address in ipaddress.ip_network(bare, strict=False):
                return True
        except ValueError:
            continue
    return False
