"""The configuration that operators change while the server runs."""

from __future__ import annotations

from flask import Blueprint, Response

from noj_server.auth import require_role
from noj_server.errors import json_body, parse
from noj_server.replies import model
from noj_server.services import services
from noj_server.views.runners import SMALL_BODY_BYTES
from noj_shared.wire import ApiKeyRole, ServerConfig

blueprint = Blueprint("config", __name__)


@blueprint.get("/config")
@require_role(ApiKeyRole.OPERATOR)
def show() -> Response:
    """What is in force."""
    return model(services().config.get())


@blueprint.put("/config")
@require_role(ApiKeyRole.OPERATOR)
def replace() -> Response:
    """Replace it whole."""
    config = parse(ServerConfig, json_body(SMALL_BODY_BYTES))
    services().config.put(config)
    return model(config)
