"""A FastAPI dependency that refuses requests of sessions that are not live.

    REDIS_URL=redis://… uvicorn api:app
    curl -H "Authorization: Bearer sess_…" http://127.0.0.1:8000/me

It needs `fastapi`, `uvicorn` and clerk-session-feed. 401: the session is not live. 503: Redis can't say, and
a request that can't be checked is refused.
"""

import contextlib
from collections.abc import AsyncIterator
from typing import Annotated

from clerk_session_feed import AsyncSessionFeed, RedisError
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer


@contextlib.asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, AsyncSessionFeed]]:
    async with AsyncSessionFeed.from_env() as feed:  # one for all requests
        yield {"feed": feed}


async def live_session(request: Request, bearer: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]) -> str:
    """Return the id of the request's session."""
    # This trusts the client. A real API verifies Clerk's token HERE, and takes its `sid`:
    # https://clerk.com/docs/guides/sessions/manual-jwt-verification
    session_id = bearer.credentials
    feed: AsyncSessionFeed = request.state.feed
    try:
        if await feed.is_live(session_id):
            return session_id
    except RedisError:
        raise HTTPException(503, "It is unknown whether the session is live", {"Retry-After": "1"}) from None
    raise HTTPException(401, "The session is not live", {"WWW-Authenticate": "Bearer"})


app = FastAPI(lifespan=lifespan)


@app.get("/me")
async def me(session_id: Annotated[str, Depends(live_session)]) -> dict[str, str]:
    return {"session_id": session_id}
