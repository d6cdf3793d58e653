"""Streams of instructions for two engines in lockstep."""
