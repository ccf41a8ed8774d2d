"""Tests of processes, over HTTP, and of several Redis servers."""
