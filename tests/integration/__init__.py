"""Tests in this process, with Redis, or that wait or compute for long."""
