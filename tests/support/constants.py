"""Constants of the tests: paths, secrets, the frozen time, and names of keys."""

import base64
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
TESTS: Final = ROOT / "tests"
PAYLOADS: Final = TESTS / "payloads"

PROC: Final = Path("/proc")
RELAY: Final = (sys.executable, "-m", "service")
SERVE: Final = (*RELAY, "serve")
"""The command that runs the service as in production."""

SECRET: Final = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER_SECRET: Final = "whsec_" + base64.b64encode(bytes(range(64))).decode()
MESSAGE_ID: Final = "msg_2relaySample"

NOW_S: Final = 1_795_422_800
NOW_MS: Final = NOW_S * 1000
"""The frozen time of the tests. Samples in `payloads` were sent shortly before it."""
HOUR_MS: Final = 3_600_000
DAY_MS: Final = 86_400_000
WEEK_S: Final = 604_800

MAX_BODY_BYTES: Final = 1_048_576
"""The default of that setting."""

NO_REDIS: Final = "unix:///nonexistent/redis.sock"
"""Where nobody listens. Not a TCP port: somebody may listen there."""

SESSION_KEY: Final = "{clerk}:session:sess_1"
USER_KEY: Final = "{clerk}:user:user_1:sessions"
PENDING_KEY: Final = "{clerk}:user:user_1:pending"
GONE_KEY: Final = "{clerk}:user:user_1:gone"
EVENTS_KEY: Final = "{clerk}:events"
EXPIRY_KEY: Final = "{clerk}:expiry"
DEAD_LETTERS_KEY: Final = "{clerk}:dead-letters"
