"""How fast the server is, beside what its stack can do: ``python3 -m tests bench`` (``docs/performance.md``)."""
