"""Whatever one connection does, another one does not notice: the neighbour test (``docs/robustness.md``)."""
