"""API keys with roles, and the signed tokens of code URLs. Secrets are kept as digests (INV8)."""

from __future__ import annotations

from typing import Any

from itsdangerous import BadSignature, SignatureExpired, URLSafeTimedSerializer
from redis import Redis

from noj_server import keys
from noj_server.errors import ApiError
from noj_server.settings import ServerSettings
from noj_shared.ids import digest, new_api_key, new_request_id, same_digest
from noj_shared.problem import ErrorCode
from noj_shared.wire import ApiKeyCreated, ApiKeyRole, ApiKeyView

CODE_URL_MAX_AGE_S = 3600


class ApiKeys:
    """API keys by digest; the first one comes from the settings and needs no Redis."""

    def __init__(self, redis: Redis, settings: ServerSettings) -> None:
        self._redis = redis
        admin = settings.admin_key
        self._admin = digest(admin.get_secret_value()) if admin is not None else ""

    def role_of(self, key: str) -> ApiKeyRole | None:
        """What a key may do; None if it is unknown."""
        hashed = digest(key)
        if same_digest(hashed, self._admin):
            return ApiKeyRole.OPERATOR
        role: Any = self._redis.hget(keys.api_key(hashed), "role")
        return ApiKeyRole(role) if role else None

    def create(self, name: str, role: ApiKeyRole, now_ms: int) -> ApiKeyCreated:
        """A new key, shown this once."""
        key, key_id = new_api_key(), new_request_id()
        hashed = digest(key)
        fields: dict[Any, Any] = {
            "id": key_id,
            "name": name,
            "role": role.value,
            "created_ms": now_ms,
        }
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(keys.api_key(hashed), mapping=fields)
            pipe.hset(keys.API_KEYS, key_id, hashed)
            pipe.execute()
        return ApiKeyCreated(key_id=key_id, key=key, name=name, role=role)

    def list_keys(self) -> list[ApiKeyView]:
        """All keys but the one from the settings, oldest first."""
        index: Any = self._redis.hgetall(keys.API_KEYS)
        views = []
        for key_id, hashed in sorted(index.items()):
            fields: Any = self._redis.hgetall(keys.api_key(hashed))
            if fields:
                views.append(
                    ApiKeyView(
                        key_id=key_id,
                        name=fields["name"],
                        role=fields["role"],
                        created_at=int(fields["created_ms"]) / 1000,
                    )
                )
        return views

    def revoke(self, key_id: str) -> bool:
        """Make a key worthless at once; False if there is none of that id."""
        hashed: Any = self._redis.hget(keys.API_KEYS, key_id)
        if not hashed:
            return False
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(keys.api_key(hashed))
            pipe.hdel(keys.API_KEYS, key_id)
            pipe.execute()
        return True


class CodeUrls:
    """Signed, expiring tokens that let a runner fetch one submission's code."""

    def __init__(self, settings: ServerSettings) -> None:
        secret = settings.secret_key
        self._serializer = (
            URLSafeTimedSerializer(secret.get_secret_value(), salt="noj-code-url")
            if secret is not None
            else None
        )

    def sign(self, submission_id: str) -> str:
        """A token for one submission. Fails closed when no secret is set."""
        if self._serializer is None:
            raise ApiError(503, ErrorCode.UNAVAILABLE, "NOJ_SERVER_SECRET_KEY is not set")
        return self._serializer.dumps(submission_id)

    def check(self, submission_id: str, token: str) -> None:
        """401 for a wrong token, 410 for one that is too old."""
        if self._serializer is None:
            raise unauthorized("NOJ_SERVER_SECRET_KEY is not set")
        try:
            signed_for = self._serializer.loads(token, max_age=CODE_URL_MAX_AGE_S)
        except SignatureExpired as error:
            raise ApiError(410, ErrorCode.GONE, "this code URL has expired") from error
        except BadSignature as error:
            raise unauthorized("this code URL is not signed by this server") from error
        if signed_for != submission_id:
            raise unauthorized("this code URL is signed for another submission")


def unauthorized(detail: str) -> ApiError:
    """401 with the scheme that is expected."""
    headers = {"WWW-Authenticate": "Bearer"}
    return ApiError(401, ErrorCode.UNAUTHORIZED, detail, headers=headers)
