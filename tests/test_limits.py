"""Every limit is tried at its value and one over, and its error names it.

The tests stand with what they test; this table says which they are, so that a new limit without one is found here.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from hypha.broker.broker import Credentials
from hypha.config import Config, Limits
from hypha.errors import NotAuthenticated
from tests.broker.memory import EPOCH, Scene
from tests.house.steps import ROOT
from tests.web.stack import memory_stack
from tests.web.wires import Rejected, join, upgrade

LEEWAY = 30  # seconds by which the clocks of two machines may differ


@dataclass(frozen=True)
class Tried:
    """Where a limit is tried. *quiet*: why reaching it is no error that could name it."""

    tests: tuple[str, ...]
    quiet: str | None = None


def by(*tests: str, quiet: str | None = None) -> Tried:
    return Tried(tests, quiet)


TABLE = {
    "connections": by(
        "web/test_accept.py::test_the_connections_are_bounded_exactly_and_one_more_waits",
        "process/test_connections.py::test_one_connection_too_many_waits",
    ),
    "frame_bytes": by("web/test_ws.py::test_a_message_of_the_limit_is_taken_and_one_more_byte_is_not"),
    "header_bytes": by("wire/test_frame.py::test_the_size_of_the_header_is_bounded_exactly"),
    "header_keys": by("wire/test_frame.py::test_the_number_of_fields_is_bounded_exactly"),
    "header_depth": by("wire/test_frame.py::test_the_nesting_of_unknown_fields_is_bounded_exactly"),
    "python_frame_bytes": by(
        "test_limits.py::test_a_message_that_a_python_client_cannot_take_fails_at_its_sender",
        "broker/test_router.py::test_a_call_of_the_exact_limit_passes_and_one_byte_more_fails_at_its_sender",
        quiet="the error says how much the receiver takes, whichever of two limits that is",
    ),
    "modern_python_frame_bytes": by(
        "web/test_modern.py::test_what_a_python_client_cannot_take_fails_at_its_sender",
        quiet="the error says how much the receiver takes, whichever of two limits that is",
    ),
    "handshake_seconds": by("web/test_ws.py::test_a_modern_client_that_says_nothing_is_let_go"),
    "outbox_bytes": by(
        "broker/test_outbox.py::test_messages_are_taken_up_to_the_limit_and_not_a_byte_more",
        "broker/test_router.py::test_a_full_target_is_named_and_nothing_has_changed",
        quiet="the sender waits",
    ),
    "outbox_reserve_bytes": by(
        "broker/test_outbox.py::test_control_messages_use_the_reserve_and_are_counted_when_it_is_full",
        quiet="what has no room is counted",
    ),
    "stall_seconds": by(
        "web/test_ws.py::test_a_client_that_stops_reading_is_cut_and_its_callers_are_told",
        "web/test_ws.py::test_a_sender_waits_for_room_at_most_so_long",
        quiet="the callers learn that their peer is gone",
    ),
    "ping_seconds": by("web/test_ws.py::test_a_client_that_answers_pings_stays", quiet="a ping is sent"),
    "silence_seconds": by("web/test_ws.py::test_a_silent_client_is_let_go", quiet="nobody is there to be told"),
    "busy_silence_seconds": by(
        "web/test_ws.py::test_a_client_that_works_may_be_silent_for_longer", quiet="nobody is there to be told"
    ),
    "turn_frames": by("web/test_ws.py::test_a_client_gives_way_after_so_many_frames", quiet="others have their turn"),
    "turn_seconds": by("web/test_ws.py::test_a_client_gives_way_after_so_long", quiet="others have their turn"),
    "turn_connections": by(
        "web/test_turnstile.py::test_clients_that_come_at_once_and_go_at_once_take_turns",
        quiet="others have their turn",
    ),
    "server_calls_per_peer": by("broker/test_endpoint.py::test_a_hundred_calls_run_at_once_and_the_next_is_rejected"),
    "server_call_bytes_per_peer": by("broker/test_endpoint.py::test_the_bytes_of_calls_that_run_are_bounded"),
    "inflight_per_peer": by(
        "broker/test_router.py::test_the_newest_calls_are_remembered_and_none_is_refused",
        "broker/test_router.py::test_the_default_number_of_calls_in_flight",
        quiet="the oldest call is not watched any more",
    ),
    "correspondents_per_peer": by(
        "broker/test_router.py::test_correspondents_are_bounded_and_the_oldest_is_forgotten_on_both_sides",
        quiet="the oldest is forgotten",
    ),
    "chunked_messages_per_peer": by(
        "wire/test_chunks.py::test_the_number_of_open_messages_is_bounded_exactly_and_overwriting_needs_no_room",
        "broker/test_endpoint.py::test_the_parts_that_wait_are_bounded_in_number_and_bytes_and_belong_to_one_session",
    ),
    "chunked_bytes_per_peer": by(
        "wire/test_chunks.py::test_the_bytes_of_all_parts_are_bounded_exactly_and_empty_parts_are_not_free",
        "broker/test_endpoint.py::test_the_parts_that_wait_are_bounded_in_number_and_bytes_and_belong_to_one_session",
    ),
    "sessions_per_workspace": by("broker/test_registry.py::test_the_sessions_of_a_workspace_are_bounded_exactly"),
    "sessions_per_principal": by("broker/test_lifetimes.py::test_the_clients_of_one_user_are_bounded_exactly"),
    "services_per_session": by(
        "broker/test_registry.py::test_the_services_of_a_session_are_bounded_exactly_and_too_many_change_nothing"
    ),
    "services_per_workspace": by(
        "broker/test_administration.py::"
        "test_the_services_of_a_workspace_are_bounded_exactly_and_those_that_return_are_not"
    ),
    "description_bytes": by("broker/test_registry.py::test_the_size_of_a_description_is_bounded_exactly"),
    "descriptions_bytes_per_session": by(
        "broker/test_registry.py::"
        "test_the_descriptions_of_a_session_are_bounded_exactly_together_and_too_many_change_nothing"
    ),
    "list_bytes": by("broker/test_registry.py::test_a_list_is_bounded_exactly", quiet="the list is shorter"),
    "subscriptions_per_session": by("broker/test_registry.py::test_the_subscriptions_of_a_session_are_bounded_exactly"),
    "workspaces_per_principal": by("broker/test_builtin.py::test_the_workspaces_of_one_user_are_bounded_exactly"),
    "anonymous_workspaces": by(
        "broker/test_administration.py::test_the_workspaces_of_users_without_an_account_are_bounded_exactly"
    ),
    "anonymous_workspaces_per_principal": by(
        "broker/test_administration.py::test_the_workspaces_of_one_user_without_an_account_are_bounded_exactly"
    ),
    "service_types_bytes_per_workspace": by("broker/test_service_types.py::test_the_types_are_bounded_exactly"),
    "bookmarks_bytes_per_workspace": by("broker/test_bookmarks.py::test_the_bookmarks_are_bounded_exactly"),
    "environment_bytes_per_workspace": by(
        "broker/test_environment.py::test_the_variables_are_bounded_exactly_and_can_always_be_removed"
    ),
    "event_bytes": by("broker/test_journal.py::test_the_data_of_an_event_is_bounded_exactly"),
    "events_bytes_per_workspace": by(
        "broker/test_journal.py::test_the_newest_events_are_kept_and_the_room_is_exact",
        "broker/test_journal.py::test_the_events_of_a_workspace_have_so_much_room",
        quiet="the oldest is forgotten",
    ),
    "call_seconds": by("broker/test_endpoint.py::test_the_default_patience_is_a_minute"),
    "http_body_bytes": by("web/test_proxy.py::test_a_body_may_be_so_large"),
    "http_bodies_bytes": by("web/test_proxy.py::test_the_bodies_of_all_calls_are_bounded_together"),
    "http_body_seconds": by("web/test_proxy.py::test_a_body_must_come_in_time"),
    "http_body_bytes_per_second": by(
        "web/test_proxy.py::test_a_large_body_may_take_long_if_it_comes_fast_enough",
        "web/test_proxy.py::test_a_body_must_come_in_time",
    ),
    "app_finish_seconds": by(
        "web/test_apps.py::test_work_behind_the_answer_goes_on_for_a_while",
        quiet="the client has its answer, or has left",
    ),
    "json_array_bytes": by("wire/test_values.py::test_the_limit_of_an_array_is_exact"),
    "token_seconds": by("test_limits.py::test_a_token_lives_so_long", quiet="the token has expired"),
    "token_depth": by("broker/test_revocations.py::test_tokens_are_issued_one_through_the_other_so_often"),
    "listed_tokens": by(
        "broker/test_issued.py::test_the_listed_tokens_are_bounded_exactly", quiet="the oldest is not listed any more"
    ),
    "listed_tokens_per_principal": by(
        "broker/test_issued.py::test_the_listed_tokens_are_bounded_exactly", quiet="the oldest is not listed any more"
    ),
    "revoked_tokens": by("broker/test_revocations.py::test_the_revoked_tokens_are_bounded_exactly"),
    "revoked_tokens_per_principal": by("broker/test_revocations.py::test_the_revoked_tokens_are_bounded_exactly"),
    "reconnection_token_seconds": by(
        "test_limits.py::test_a_reconnection_token_lives_so_long", quiet="the token has expired"
    ),
    "login_keys": by(
        "broker/test_login.py::test_the_logins_that_wait_are_bounded_exactly",
        quiet="the oldest is forgotten, and its program told that there is no such login",
    ),
    "login_seconds": by(
        "broker/test_login.py::test_waiting_ends",
        "broker/test_login.py::test_a_key_lives_for_login_seconds_and_is_then_forgotten",
    ),
    "accounts": by("accounts/test_accounts.py::test_the_accounts_are_bounded_exactly"),
    "invitations": by("accounts/test_accounts.py::test_the_invitations_are_bounded_exactly"),
    "invitation_seconds": by(
        "accounts/test_accounts.py::test_invitations_are_of_an_administrator_and_expire",
        quiet="the link is like one that was used",
    ),
    "sign_in_tries": by("accounts/test_accounts.py::test_the_tries_for_one_name_are_bounded_exactly"),
    "sign_in_tries_per_account": by(
        "accounts/test_tries.py::test_the_tries_for_one_account_from_everywhere_are_bounded_exactly"
    ),
    "sign_in_tries_per_address": by("accounts/test_accounts.py::test_the_tries_from_one_address_are_bounded_exactly"),
    "bad_tokens_per_address": by("web/test_bearer.py::test_bad_tokens_are_bounded_exactly_and_good_ones_pass"),
    "browsers_per_account": by(
        "accounts/test_accounts.py::test_the_browsers_of_an_account_are_bounded_and_the_oldest_is_signed_out",
        quiet="the oldest is signed out",
    ),
    "browser_seconds": by(
        "accounts/test_accounts.py::test_a_browser_is_signed_in_for_so_long", quiet="one is asked to sign in"
    ),
    "oidc_attempts": by(
        "accounts/test_oidc.py::test_the_attempts_are_bounded_exactly_and_the_oldest_is_forgotten",
        quiet="the oldest is forgotten, and its browser told to start again",
    ),
    "oidc_attempt_seconds": by(
        "accounts/test_oidc.py::test_an_attempt_has_so_long", quiet="one is told to start again, for whatever reason"
    ),
    "tokens_per_account": by(
        "accounts/test_tokens.py::test_the_tokens_of_an_account_are_bounded_exactly_and_expired_ones_are_forgotten"
    ),
    "shares_per_account": by("accounts/test_shares.py::test_the_links_of_an_account_are_bounded_exactly"),
    "app_source_bytes": by("apps/test_service.py::test_the_source_of_an_app_is_bounded_exactly"),
    "apps_per_user": by("apps/test_catalog.py::test_the_apps_of_one_user_are_bounded_exactly"),
    "installed_apps": by("apps/test_catalog.py::test_all_apps_are_bounded_exactly_and_those_of_anonymous_users_go"),
    "running_apps": by("apps/test_service.py::test_the_apps_that_run_are_bounded_exactly"),
    "running_apps_per_user": by("apps/test_service.py::test_the_apps_that_run_are_bounded_exactly"),
    "app_log_lines": by(
        "apps/test_log.py::test_the_newest_lines_of_each_type_are_kept", quiet="the oldest line is forgotten"
    ),
    "app_launch_seconds": by("apps/test_service.py::test_an_app_that_does_not_become_ready_is_ended"),
    "app_idle_seconds": by(
        "apps/test_service.py::test_an_app_that_nobody_calls_is_ended", quiet="nobody is there to be told"
    ),
    "session_grace": by(
        "broker/test_lifetimes.py::test_what_is_kept_is_kept_for_an_hour", quiet="the services are forgotten"
    ),
    "suspended_sessions": by(
        "broker/test_lifetimes.py::test_the_suspended_are_bounded_for_each_user_and_in_all_and_the_oldest_go_first",
        quiet="the oldest is forgotten",
    ),
    "suspended_per_principal": by(
        "broker/test_lifetimes.py::test_the_suspended_are_bounded_for_each_user_and_in_all_and_the_oldest_go_first",
        quiet="the oldest is forgotten",
    ),
    "reclaim_seconds": by(
        "broker/test_lifetimes.py::test_another_user_takes_a_lost_id_after_a_minute_and_only_with_write_permission",
        quiet="the error says that the client may come back",
    ),
    "return_seconds": by(
        "broker/test_returning.py::test_who_does_not_come_in_time_is_gone",
        quiet="the error says that the client has not come back",
    ),
    "returning_requests": by("broker/test_returning.py::test_requests_that_wait_are_bounded"),
    "drain_seconds": by(
        "process/test_stop.py::test_a_stalled_reader_holds_the_end_up_for_the_drain_time_only",
        "process/test_stop.py::test_a_worker_that_hangs_is_killed_after_the_drain_time",
        quiet="the server ends",
    ),
}


@cache
def functions(path: Path) -> dict[str, str]:
    """Every test of a file and its source."""
    source = path.read_text()
    found = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {node.name: ast.get_source_segment(source, node) or "" for node in found}


def test_every_limit_is_in_the_table() -> None:
    assert list(TABLE) == [item.name for item in fields(Limits)]


@pytest.mark.parametrize("name", TABLE)
def test_the_tests_of_a_limit_are_there_and_read_its_name_in_the_error(name: str) -> None:
    tried = TABLE[name]
    sources = []
    for test in tried.tests:
        file, _, function = test.partition("::")
        sources.append(functions(ROOT / "tests" / file)[function])
    assert sources
    assert tried.quiet or any(f"{name} = " in source for source in sources)


# --- those that no other room tries -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("agent", "limit"),
    [("Python/3.11 websockets/12.0", Limits().python_frame_bytes), ("Mozilla/5.0", Limits().frame_bytes)],
    ids=["python", "browser"],
)
async def test_a_message_that_a_python_client_cannot_take_fails_at_its_sender(
    agent: str, limit: int, tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with memory_stack(Config(data_dir=tmp_path)) as stack:
        sender = await join(stack, "s")
        place = f"&workspace={sender.workspace}&token={await sender.manager('generate_token')}"
        receiver = await upgrade(stack.connect(), f"/ws?client_id=r{place}", {"User-Agent": agent})
        main = {"type": "method", "to": "r", "method": "services.x.y", "session": "s1"}
        size = limit - 100_000
        await sender.send(main, {"args": [bytes(size)]})
        smaller = await receiver.receive()
        assert isinstance(smaller, bytes)
        size += limit - len(smaller)
        await sender.send(main, {"args": [bytes(size)]})
        largest = await receiver.receive()
        assert isinstance(largest, bytes)
        assert len(largest) == limit
        if limit < Limits().frame_bytes:  # the server itself takes no more than that
            with pytest.raises(
                Rejected, match=f"larger than python_frame_bytes = {limit}, which is all that {sender.workspace}/r"
            ):
                await sender.call("r", "services.x.y", bytes(size))


async def test_a_token_lives_so_long(mock_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        scene = Scene(Limits(token_seconds=100.0), nursery, wall=lambda: EPOCH + trio.current_time())
        owner = scene.attach(scene.broker.admit(Credentials("a")))  # anonymous: its own access has no end
        token = (await owner.ask("generate_token")).partition("@imjoy@")[2]
        mock_clock.jump(100 + LEEWAY)
        assert scene.broker.authenticate(token).expires_at == EPOCH + 100
        mock_clock.jump(1)
        with pytest.raises(NotAuthenticated, match="expired"):
            scene.broker.authenticate(token)
        nursery.cancel_scope.cancel()


async def test_a_reconnection_token_lives_so_long(mock_clock: MockClock) -> None:
    scene = Scene(Limits(reconnection_token_seconds=100.0), wall=lambda: EPOCH + trio.current_time())
    peer = scene.attach(scene.broker.admit(Credentials("a")))
    token = scene.broker.resumption_token(peer.session)
    peer.leave(clean=False)
    mock_clock.jump(100 + LEEWAY)
    assert scene.broker.admit(Credentials("a", reconnection_token=token)).resumed
    mock_clock.jump(1)
    with pytest.raises(NotAuthenticated, match="expired"):
        scene.broker.admit(Credentials("a", reconnection_token=token))
