"""The data directory: lock, signing key. Standard library only."""

from hypha.store.datadir import DataDir, open_data_dir

__all__ = ["DataDir", "open_data_dir"]
