"""The Autobahn cases (websocket framing, RFC 6455) against an echo server of our own parts, and against ``/ws``."""
