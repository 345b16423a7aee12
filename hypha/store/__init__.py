"""The data directory: lock, signing key, documents. Standard library only."""

from hypha.store.datadir import DataDir, open_data_dir, signing_key_of
from hypha.store.documents import Documents

__all__ = ["DataDir", "Documents", "open_data_dir", "signing_key_of"]
