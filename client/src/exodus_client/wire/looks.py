"""Tells a body that was sent under the wrong header: by its first bytes, with what to do about it."""

from __future__ import annotations

from exodus_client.wire.bounds import WireError

#: How bodies begin. A message is a map in every form, which settles the first byte.
_BEGINNINGS: dict[str, tuple[bytes, ...]] = {
    "zstd": (b"\x28\xb5\x2f\xfd",),
    "gzip": (b"\x1f\x8b",),
    "JSON": (b"{", b"["),
    "msgpack": (*(bytes([tag]) for tag in range(0x80, 0x90)), b"\xde", b"\xdf"),
}
_ADVICE = {
    "zstd": "send it with Content-Encoding: zstd",
    "gzip": "send it as it is, or as zstd",
    "JSON": "send it with Content-Type: application/json",
    "msgpack": "send it with Content-Type: application/vnd.msgpack",
}


def looks_like(body: memoryview) -> str:
    """The form or compression that the body begins as; "" where it is none of them."""
    start = bytes(body[:64]).lstrip(b" \t\r\n")
    return next((form for form, beginnings in _BEGINNINGS.items() if start.startswith(beginnings)), "")


def require_form(body: memoryview, form: str, header: str) -> None:
    """Refuse a body that is evidently of another form than its header says; what is none of them is not looked into.

    Raises:
        WireError: with the header that the body should have had.
    """
    found = looks_like(body)
    if found in ("", form):
        return
    advice = "leave out Content-Encoding" if form == "zstd" else _ADVICE[found]
    raise WireError(
        f"body: expected {form}, as the header {header} says, got what looks like {found}; {advice}",
        expected=f"{form}, as the header {header} says",
        got=f"what looks like {found}; {advice}",
    )
