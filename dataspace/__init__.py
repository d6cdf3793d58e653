"""What memory *is*: memory objects, the address map, quota and the ledger of dataspaces.

Synchronous and self-contained: no gRPC, no event loop, and nothing of `core_service` or
`vmm_client`, which both build upon it. All sizes, offsets and addresses are in bytes.
"""
