"""Uses the client that openapi-python-client generated."""

import os

from service_client import AuthenticatedClient, Client
from service_client.api.auth import login, refresh, register
from service_client.api.users import me
from service_client.models import LoginForm, RefreshRequest, RegisterRequest

EMAIL, PASSWORD = "info@münchen.de", "secret123"

base = os.environ["SERVICE"]
client = Client(base, raise_on_unexpected_status=True)


def check(pair):
    user = me.sync(client=AuthenticatedClient(base, pair.access_token))
    assert user.email == EMAIL, user


check(register.sync(client=client, body=RegisterRequest(EMAIL, PASSWORD, "Grete")))
pair = login.sync(client=client, body=LoginForm(EMAIL, PASSWORD))
check(pair)
check(refresh.sync(client=client, body=RefreshRequest(pair.refresh_token)))

wrong = login.sync(client=client, body=LoginForm(EMAIL, "wrong-password"))
assert wrong.detail == "incorrect email or password", wrong
short = register.sync(client=client, body=RegisterRequest("a@example.com", "short", "Grete"))
assert short.detail[0].loc == ["body", "password"] and short.detail[0].ctx["min_length"] == 8, short
