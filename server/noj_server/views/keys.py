"""API keys: operators make them for backends and for one another."""

from __future__ import annotations

from flask import Blueprint, Response

from noj_server.auth import checked_id, require_role
from noj_server.errors import json_body, not_found, parse
from noj_server.replies import empty, model
from noj_server.services import services
from noj_server.views.runners import SMALL_BODY_BYTES
from noj_shared.ids import is_request_id
from noj_shared.wire import ApiKeyRole, ApiKeysReply, CreateApiKeyBody

blueprint = Blueprint("keys", __name__)


@blueprint.get("/keys")
@require_role(ApiKeyRole.OPERATOR)
def list_keys() -> Response:
    """All keys but the one from the settings; never the secrets."""
    return model(ApiKeysReply(keys=tuple(services().api_keys.list_keys())))


@blueprint.post("/keys")
@require_role(ApiKeyRole.OPERATOR)
def create() -> Response:
    """A new key, told this once."""
    body = parse(CreateApiKeyBody, json_body(SMALL_BODY_BYTES))
    now_ms = services().queue.now_ms()
    return model(services().api_keys.create(body.name, body.role, now_ms), 201)


@blueprint.delete("/keys/<key_id>")
@require_role(ApiKeyRole.OPERATOR)
def revoke(key_id: str) -> Response:
    """Make a key worthless at once."""
    if not services().api_keys.revoke(checked_id(key_id, is_request_id, "key")):
        raise not_found("key")
    return empty()
