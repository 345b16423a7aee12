"""The data directory: lock, signing key. Standard library only."""
