"""Boards: devices wired to one machine, without an engine and without a connection."""
