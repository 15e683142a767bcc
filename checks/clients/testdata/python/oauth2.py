"""Uses two OAuth2 clients, which refresh at the URL of the login."""

import os

os.environ["OAUTHLIB_INSECURE_TRANSPORT"] = "1"  # allows HTTP

import requests
from authlib.integrations.base_client import OAuthError
from authlib.integrations.requests_client import OAuth2Session as Authlib
from oauthlib.oauth2 import InvalidGrantError, LegacyApplicationClient
from requests_oauthlib import OAuth2Session as RequestsOAuthlib

BASE = os.environ["SERVICE"]
LOGIN = BASE + "/auth/login"
ADMIN = {"username": "admin@example.com", "password": "admin-password"}
WRONG = ADMIN | {"password": "wrong-password"}


def check(session, refreshed):
    """Reads /me, and reads it again after the access token has expired."""
    assert session.get(BASE + "/me").json()["id"] == "admin-0"
    assert not refreshed, refreshed
    login = session.token
    session.token = dict(login) | {"expires_in": -1, "expires_at": 1}
    assert session.get(BASE + "/me").json()["id"] == "admin-0"
    assert len(refreshed) == 1 and refreshed[0]["access_token"] != login["access_token"], refreshed


refreshed = []
session = Authlib("client", token_endpoint=LOGIN, update_token=lambda token, **_: refreshed.append(token))
session.fetch_token(**ADMIN)
check(session, refreshed)
access = session.token["access_token"]
assert session.revoke_token(BASE + "/auth/revoke", session.token["refresh_token"], "refresh_token").status_code == 200
assert requests.get(BASE + "/me", headers={"Authorization": "Bearer " + access}).status_code == 401
try:
    session.fetch_token(**WRONG)
    raise AssertionError("Authlib: got no error")
except OAuthError as e:
    assert e.error == "invalid_grant", e

refreshed, legacy = [], LegacyApplicationClient("client")
session = RequestsOAuthlib(
    client=legacy, auto_refresh_url=LOGIN, token_updater=refreshed.append
)
session.fetch_token(LOGIN, **ADMIN)
check(session, refreshed)
access, token = session.token["access_token"], session.token["refresh_token"]
url, headers, body = legacy.prepare_token_revocation_request(BASE + "/auth/revoke", token)
assert requests.post(url, body, headers=headers).status_code == 200
assert requests.get(BASE + "/me", headers={"Authorization": "Bearer " + access}).status_code == 401
try:
    session.fetch_token(LOGIN, **WRONG)
    raise AssertionError("requests-oauthlib: got no error")
except InvalidGrantError:
    pass
