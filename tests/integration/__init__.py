"""Tests in this process, with Redis."""
