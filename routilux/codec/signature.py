"""Adds and checks the digest and the signature at the end of a document.

Invariants:
- Each covers every byte before its own member, so a signature covers the digest too. Both are
  members of the document, which stays JSON.
- The digest detects damage. The signature (HMAC-SHA256) proves that a holder of the key wrote these
  bytes; it is compared in constant time, before anything is parsed.
- A key is dropped at once: no frame of a traceback, here or in the caller, shows it as a local.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from typing import Final

from routilux.codec.registry import type_name
from routilux.errors import CorruptStateError

MIN_KEY: Final = 16  # bytes; too many to try all keys
DIGEST_BYTES: Final = 200  # more than digest and signature take

_SIGNATURE: Final = b',\n"signature": "hmac-sha256:%s"}\n'
_SIGNATURE_HEAD: Final = _SIGNATURE.partition(b"hmac")[0]
_DIGEST: Final = re.compile(
    rb',\n"digest": "sha256:([0-9a-f]{64})"(?:,\n"signature": "hmac-sha256:[0-9a-f]{64}")?\}\n?\Z'
)


def new_mac(key: bytes | None) -> hmac.HMAC | None:
    """Return the HMAC object that signs with `key`; None if `key` is None.

    Raises `TypeError` if the key is not bytes, and `ValueError` if it is shorter than `MIN_KEY`.

    >>> new_mac(b"secret")
    Traceback (most recent call last):
    ValueError: a key must have at least 16 bytes, not 6; make one with secrets.token_bytes(32)
    """
    if key is None:
        return None
    kind, size = type(key), len(key) if isinstance(key, bytes) else 0
    if size >= MIN_KEY:
        return hmac.new(key, digestmod=hashlib.sha256)
    del key
    cure = "make one with secrets.token_bytes(32)"
    if not issubclass(kind, bytes):
        raise TypeError(f"a key must be bytes, not {type_name(kind)}; {cure}")
    raise ValueError(f"a key must have at least {MIN_KEY} bytes, not {size}; {cure}")


def with_digest(body: bytes, mac: hmac.HMAC | None = None) -> bytes:
    """Add a digest, a signature by `mac` and `}` to `body`, a document without its last brace."""
    text = body + f',\n"digest": "sha256:{hashlib.sha256(body).hexdigest()}"'.encode()
    return text + (b"}\n" if mac is None else _signature(mac, text))


def without_digest(
    data: bytes, mac: hmac.HMAC | None = None, *, verify: bool = True
) -> bytes | None:
    """Return a document without its digest and signature; None if no digest is at the end.

    Checks the signature with `mac`, and the digest if `verify`. Raises `CorruptStateError` if one
    is wrong, or the signature is missing.
    """
    if mac is not None:
        _check_signature(mac, data)
    digest = _DIGEST.search(data)
    if digest is None:
        return None
    body = data[: digest.start()]
    if verify and hashlib.sha256(body).hexdigest().encode() != digest[1]:
        raise CorruptStateError(
            "$.digest",
            "does not match: the file was changed after it was written;"
            " read(path, verify=False) reads the file anyway",
        )
    return body + b"}"


def _check_signature(mac: hmac.HMAC, data: bytes) -> None:
    start = data.rfind(_SIGNATURE_HEAD)
    if start < 0:
        raise CorruptStateError(
            "$.signature",
            "is missing, so nothing proves who wrote this file; ask its writer for a file written"
            " with key=..., or read this file without a key if you trust its source",
        )
    if not hmac.compare_digest(_signature(mac, data[:start]), data[start:]):
        raise CorruptStateError(
            "$.signature",
            "does not match this key: the file was signed with another key, or changed after"
            " that; pass the key that signed this file, or ask its writer for a new file",
        )


def _signature(mac: hmac.HMAC, text: bytes) -> bytes:
    own = mac.copy()
    own.update(text)
    return _SIGNATURE % own.hexdigest().encode()
