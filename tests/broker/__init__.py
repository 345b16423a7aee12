"""Tests of hypha/broker."""
