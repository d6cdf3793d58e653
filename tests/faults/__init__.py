"""What goes wrong with whoever takes part, at every instant at which it can: see docs/operations.md."""
