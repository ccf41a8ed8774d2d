"""Tests without Redis, sockets and processes."""
