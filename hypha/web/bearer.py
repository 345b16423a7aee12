"""Who asks over HTTP, by the token of the request, and how often an address may come with a bad one."""

from __future__ import annotations

from hypercorn.typing import HTTPScope, WebsocketScope

from hypha.broker.access import Principal
from hypha.broker.broker import Broker
from hypha.broker.throttle import place
from hypha.errors import NotAuthenticated
from hypha.web.http import bearer_token, client_address


def principal_of(broker: Broker, scope: HTTPScope) -> Principal:
    """The principal that the token of a request proves, a new anonymous one without a token.

    Raises :class:`NotAuthenticated` for a bad one, and :class:`LimitExceeded` for too many from one address.
    """
    try:
        return broker.authenticate(bearer_token(scope))
    except NotAuthenticated:
        count_bad_token(broker, scope)
        raise


def count_bad_token(broker: Broker, scope: HTTPScope | WebsocketScope) -> None:
    """Count a bad token against the address that it came from. Raises :class:`LimitExceeded` for one too many.

    A good one is never refused for that: many share an address, and one of their programs may go on showing a token
    that has expired.
    """
    address = client_address(scope, broker.config.trusted_proxies)
    broker.bad_tokens.take(place(address), broker.now())
