"""The keeper: a small process that holds what must not end with core. Standard library only."""
