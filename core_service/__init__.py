"""Core: sessions, dataspaces and their ledger, offered over gRPC. See ARCHITECTURE.md."""
