"""Converts values to JSON and back.

Invariants:
- A value comes back equal and of the same type, or saving it fails and names the path.
- Bytes, values, depth and digits have limits, the same for writing and for reading.
"""

from routilux.codec.decoding import decode, foreign_types, loads
from routilux.codec.encoding import (
    bounded,
    dumps,
    dumps_object,
    encode,
    encoded_object,
    quoted,
    value_text,
)
from routilux.codec.limits import MAX_BYTES, MAX_DEPTH, MAX_DIGITS, MAX_NODES
from routilux.codec.registry import register_type
from routilux.codec.schema import Fields, check_fields

__all__ = [
    "MAX_BYTES",
    "MAX_DEPTH",
    "MAX_DIGITS",
    "MAX_NODES",
    "Fields",
    "bounded",
    "check_fields",
    "decode",
    "dumps",
    "dumps_object",
    "encode",
    "encoded_object",
    "foreign_types",
    "loads",
    "quoted",
    "register_type",
    "value_text",
]
