"""Verification: what core's ledger says against what there is, while everybody goes on.

Five comparisons, each in a module of its own: the ledger with core's objects, the objects with the
engines' mappings and with the kernel's view of core, the accounts with what they are charged for,
and the audit log with its hashes.
"""
