"""Fixtures of the tests with Redis."""

from support.redis_fixtures import *  # noqa: F403  # pytest looks for fixtures among the names of a conftest
