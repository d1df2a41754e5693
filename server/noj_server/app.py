"""The WSGI application: services, blueprints, error answers. Starts no thread."""

from __future__ import annotations

from flask import Flask

from noj_server import errors
from noj_server.redis_client import RedisClients
from noj_server.services import EXTENSION, make_services
from noj_server.settings import ServerSettings
from noj_server.views import config, health, keys, problems, queue, results, runners, submissions


def create_app(settings: ServerSettings, clients: RedisClients | None = None) -> Flask:
    """An application on the settings' Redis, or on given clients (the seam for tests)."""
    app = Flask("noj_server", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = settings.upload_limit_bytes
    # Otherwise `//runners` is a redirect, which a client follows without its body.
    app.url_map.merge_slashes = False
    app.extensions[EXTENSION] = make_services(settings, clients)
    for module in (config, health, keys, problems, queue, results, runners, submissions):
        app.register_blueprint(module.blueprint)
    errors.install(app)
    return app
