"""The apps that are installed, in memory and in a directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from hypha.apps.catalog import Catalog, Installed, NotKept
from hypha.apps.source import Source, parse
from hypha.config import Limits
from hypha.errors import LimitExceeded, NotFound
from hypha.store import Documents

SOURCE = parse("api.export({})", {"type": "window"})


def app(number: int, owner: str = "owner", *, anonymous: bool = False) -> Installed:
    return Installed(f"lab/app-{number}", "lab", owner, anonymous, float(number), {"id": f"lab/app-{number}"})


def nothing_runs(app_id: str) -> bool:
    return False


async def opened(path: Path, limits: Limits | None = None) -> Catalog:
    catalog = Catalog(Documents(path), limits or Limits())
    await catalog.load()
    return catalog


async def test_what_is_installed_is_there_after_a_restart(tmp_path: Path) -> None:
    catalog = await opened(tmp_path / "apps")
    for number in (2, 1):
        await catalog.install(app(number), SOURCE, nothing_runs)
    await catalog.install(app(2), Source("other", "window", "1", {}), nothing_runs)
    again = await opened(tmp_path / "apps")
    assert again.of("lab") == [app(1), app(2)]
    assert again.of("elsewhere") == []
    assert await again.source(again.get("lab/app-1")) == SOURCE
    assert (await again.source(again.get("lab/app-2"))).name == "other"
    await again.uninstall(app(1))
    with pytest.raises(NotFound, match="Invalid app id: lab/app-1"):
        again.get("lab/app-1")
    assert (await opened(tmp_path / "apps")).of("lab") == [app(2)]


async def test_a_document_that_cannot_be_read_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    catalog = await opened(tmp_path)
    await catalog.install(app(1), SOURCE, nothing_runs)
    broken = [tmp_path / "broken.json", tmp_path / "strange name.json"]
    for path in broken:
        path.write_text("{")
    (tmp_path / "draft.json.new").write_text("half")
    assert (await opened(tmp_path)).of("lab") == [app(1)]
    assert "the app in the document broken cannot be read" in caplog.text
    assert all(path.exists() for path in broken)
    assert not (tmp_path / "draft.json.new").exists()


async def test_a_disk_that_does_not_take_it_is_told(tmp_path: Path) -> None:
    (tmp_path / "apps").write_text("a file in the way")
    catalog = await opened(tmp_path / "apps")
    with pytest.raises(NotKept, match="cannot use its data directory"):
        await catalog.install(app(1), SOURCE, nothing_runs)
    assert catalog.of("lab") == []


async def test_the_apps_of_one_user_are_bounded_exactly(tmp_path: Path) -> None:
    catalog = await opened(tmp_path, Limits(apps_per_user=2))
    for number in (1, 2):
        await catalog.install(app(number), SOURCE, nothing_runs)
    with pytest.raises(LimitExceeded, match="apps_per_user = 2"):
        await catalog.install(app(3), SOURCE, nothing_runs)
    await catalog.install(app(2), SOURCE, nothing_runs)  # again
    await catalog.install(app(3, "another"), SOURCE, nothing_runs)


async def test_all_apps_are_bounded_exactly_and_those_of_anonymous_users_go(tmp_path: Path) -> None:
    catalog = await opened(tmp_path, Limits(installed_apps=3))
    await catalog.install(app(1), SOURCE, nothing_runs)
    for number in (2, 3):
        await catalog.install(app(number, f"u{number}", anonymous=True), SOURCE, nothing_runs)
    await catalog.install(app(4), SOURCE, lambda name: name == "lab/app-2")  # that one runs
    assert [found.id for found in catalog.of("lab")] == ["lab/app-1", "lab/app-2", "lab/app-4"]
    await catalog.install(app(5), SOURCE, nothing_runs)
    with pytest.raises(LimitExceeded, match="installed_apps = 3"):
        await catalog.install(app(6), SOURCE, nothing_runs)
    assert {found.id for found in (await opened(tmp_path)).of("lab")} == {"lab/app-1", "lab/app-4", "lab/app-5"}
