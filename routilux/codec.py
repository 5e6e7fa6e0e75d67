"""Values ⇄ JSON: the one way to saved forms and back, for all of the engine.

Laws:
- A value comes back equal and of the same type, or saving it fails and names the path.
- Bytes, values, depth and digits are bounded, the same for writing and for reading.
- How it is done is in `encoding` and `decoding`, which nobody else needs to know.
"""

from routilux.bounds import MAX_BYTES, MAX_DEPTH, MAX_DIGITS, MAX_NODES
from routilux.decoding import decode, foreign_types, loads
from routilux.encoding import bounded, dumps, dumps_object, encode, quoted, saved
from routilux.fields import Fields, check_fields
from routilux.tags import register_type

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
    "foreign_types",
    "loads",
    "quoted",
    "register_type",
    "saved",
]
