"""A FastAPI dependency that lets in who has a token of Clerk's, unless the session has ended.

    REDIS_URL=redis://… CLERK_JWT_KEY="$(cat clerk.pem)" CLERK_AUTHORIZED_PARTIES=https://example.com uvicorn api:app
    curl -H "Authorization: Bearer <what getToken() returns in the browser>" http://127.0.0.1:8000/me

It needs `fastapi`, `uvicorn`, `pyjwt[crypto]` and clerk-session-feed. CLERK_JWT_KEY is the JWKS public key from the API
keys page of Clerk's dashboard, in PEM. CLERK_AUTHORIZED_PARTIES: the origins of your front ends, separated by commas.

401: the token is not valid, or the session has ended. 503: Redis can't say, and a request that can't be checked is
refused.

A mirror has the state of all sessions in memory, so no request waits for Redis. When the mirror is not ready yet, or
may have missed something for more than five seconds, it asks Redis.
"""

import contextlib
import os
import sys
from collections.abc import AsyncIterator
from typing import Annotated, Any

import jwt
from clerk_session_feed import AsyncAskingMirror, AsyncSessionFeed, ConfigurationError, RedisError
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

try:
    PUBLIC_KEY = os.environ["CLERK_JWT_KEY"].replace("\\n", "\n")  # some dashboards keep a variable on one line
    AUTHORIZED_PARTIES = set(os.environ["CLERK_AUTHORIZED_PARTIES"].split(","))
    FEED = AsyncSessionFeed.from_env()  # one for all requests
except KeyError as missing:
    sys.exit(f"{missing.args[0]}: is missing; set it as the top of api.py says")
except ConfigurationError as error:
    sys.exit(str(error))
CLOCK_SKEW = 5
"""Seconds by which this machine's clock and Clerk's may differ."""
SHORT_LIVED = 60
"""Seconds that Clerk's session tokens are valid."""


@contextlib.asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
    # FEED stays open: under a test client, an application begins again and again.
    async with FEED.mirror(past_max_age="ask") as mirror:
        yield {"mirror": mirror}


def mirrored(request: Request) -> AsyncAskingMirror:
    mirror: AsyncAskingMirror = request.state.mirror
    return mirror


def refusal(detail: str) -> HTTPException:
    return HTTPException(401, detail, {"WWW-Authenticate": 'Bearer error="invalid_token"'})


async def verified(bearer: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]) -> dict[str, Any]:
    """Return the claims of the request's token, if Clerk signed it. Nobody is asked for that.

    The rules are Clerk's: https://clerk.com/docs/guides/sessions/manual-jwt-verification
    """
    try:
        claims = jwt.decode(
            bearer.credentials,
            PUBLIC_KEY,
            algorithms=["RS256"],
            leeway=CLOCK_SKEW,
            options={"require": ["exp", "iat", "nbf", "sid", "sub"]},  # the first three are also checked
        )
    except jwt.InvalidTokenError:
        raise refusal("The token is not valid") from None
    if "azp" in claims and claims["azp"] not in AUTHORIZED_PARTIES:
        raise refusal("The token was made for another site")
    if claims.get("sts") == "pending":
        raise refusal("The user has to complete the sign-in first")
    return claims


async def session_id(
    claims: Annotated[dict[str, Any], Depends(verified)], mirror: Annotated[AsyncAskingMirror, Depends(mirrored)]
) -> str:
    """Return Clerk's id of the request's session, which is the claim `sid` of its token."""
    sid: str = claims["sid"]
    try:
        status = await mirror.status(sid, user_id=claims["sub"])
    except RedisError:
        raise HTTPException(503, "It is unknown whether the session is live", {"Retry-After": "1"}) from None
    # `unknown`: the session began a moment ago, and its webhook is on the way; or it began before the relay was
    # there. Clerk made the token a minute ago at most. The session was live then: Clerk makes none once it has ended.
    # (A token from a JWT template may last longer, so it does not count. To be sure, ask Clerk: GET /sessions/{sid}.)
    is_fresh = claims["exp"] - claims["iat"] <= SHORT_LIVED
    if status == "live" or (status == "unknown" and is_fresh):
        return sid
    raise refusal("The session is not live")


app = FastAPI(lifespan=lifespan)


@app.get("/me")
async def me(session_id: Annotated[str, Depends(session_id)]) -> dict[str, str]:
    return {"session_id": session_id}
