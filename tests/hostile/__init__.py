"""Campaigns of hostile input on every boundary. Each has a short form, and one for `make soak`."""
