"""The data directory: lock, signing key, documents, state. Standard library only."""

from hypha.store.backup import back_up
from hypha.store.datadir import DataDir, open_data_dir, signing_key_of
from hypha.store.documents import Documents
from hypha.store.state import State, open_state

__all__ = ["DataDir", "Documents", "State", "back_up", "open_data_dir", "open_state", "signing_key_of"]
