"""The protocol without I/O: no trio, no sockets, no clock."""
