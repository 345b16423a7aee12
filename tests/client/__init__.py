"""Tests of the client for trio programs, against the real server."""
