"""A server with apps, in this process. Its pages load the client as imjoy-rpc is published, from a static mount."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from hypha.apps import page
from hypha.config import parse_mount
from hypha.testing import LiveServer, open_server
from tests.house import npm

OpenServer = Callable[..., AbstractAsyncContextManager[LiveServer]]

BUNDLE = "hypha-rpc-websocket.js"


@pytest.fixture
def open_apps(browser: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OpenServer:
    """Opens a server like :func:`hypha.testing.open_server`, with a browser for apps."""
    directory = tmp_path / "client"
    directory.mkdir()
    shutil.copy(npm.modules() / "imjoy-rpc" / "dist" / BUNDLE, directory)
    monkeypatch.setattr(page, "CLIENT_SCRIPT", f"../client/{BUNDLE}")

    def open_apps(**config: Any) -> AbstractAsyncContextManager[LiveServer]:
        mounts = (parse_mount(f"/client:{directory}", tmp_path),)
        return open_server(**{"enable_server_apps": True, "chromium_path": browser, "static_mounts": mounts, **config})

    return open_apps
