"""One input for everything between the socket and the router: the codec, the reader of messages, the look at bodies.

With `atheris <https://pypi.org/project/atheris/>`_ installed beside hypha::

    python -m tests.fuzz.target -max_total_time=60 -max_len=4096 [CORPUS]

Whatever the bytes are: each piece is a message, a refusal with a reason, or an answer of the protocol. Any other
exception ends the run and is kept as a file. The property tests of the suite run the same function.
"""

from __future__ import annotations

import sys
from typing import Any

from hypha.errors import ProtocolViolation
from hypha.web.codec import Closed, Codec, Message
from hypha.wire.body import BodyScan, check_body
from hypha.wire.calls import is_declared, parse_call
from hypha.wire.frame import Fields, Frame, FrameReader, HeaderBounds, encode_header

_LIMIT = 100_000
#: One for all inputs: what one of them leaves behind would be found in the next.
_READER = FrameReader(HeaderBounds())
_STAMP = Fields.encode({"from": "ws/a", "user": {"id": "a"}, "ws": "ws"})


def one_input(data: bytes) -> int:
    """Read *data* as a stream of websocket frames, and as one message. Returns how many messages could be read."""
    count = read_stream(data)
    return count + (read_message(data) is not None)


def read_stream(data: bytes) -> int:
    """Feed *data* to a codec in two pieces; the first byte says where it is cut."""
    codec, found = Codec(_LIMIT), 0
    cut = 1 + data[0] if data else 0
    for piece in (data[1:cut], data[cut:]):
        for item in codec.feed(piece):
            if isinstance(item, Message):
                found += read_message(item) is not None
            elif isinstance(item, Closed):
                return found
    return found


def read_message(data: bytes | bytearray) -> Frame | None:
    """Read one message as the router does, and its body in all the ways in which it is looked at."""
    try:
        frame = _READER.read(data)
    except ProtocolViolation:
        return None
    encode_header(frame.fields, _STAMP)
    is_declared(frame.method or "")
    long = Frame(frame.to, frame.type, frame.method, None, None, {}, memoryview(bytes(frame.body)))
    verdicts = [_verdict(frame), _verdict(long)]
    assert verdicts[0] == verdicts[1], verdicts
    if verdicts[0] is None:
        scan = BodyScan()
        scan.feed(frame.body)
        assert scan.complete or not len(frame.body)
        _refusal(lambda: parse_call(frame.extra(), frame.session))
    return frame


def _verdict(frame: Frame) -> str | None:
    return _refusal(lambda: check_body(frame))


def _refusal(look: Any) -> str | None:
    try:
        look()
    except ProtocolViolation as violation:
        return str(violation)
    return None


def main() -> None:
    """Let atheris look for inputs that break something."""
    import atheris

    atheris.instrument_all()
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
