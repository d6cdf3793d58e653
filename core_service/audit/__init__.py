"""The audit log on disk: every event of every object, chained by hash, recorded before its answer."""

from core_service.audit.check import Checked, Discrepancy, verify_chain
from core_service.audit.errors import AuditError, AuditFailure
from core_service.audit.query import Query, Recorded
from core_service.audit.writer import AuditLog, Committed

__all__ = [
    "AuditError",
    "AuditFailure",
    "AuditLog",
    "Checked",
    "Committed",
    "Discrepancy",
    "Query",
    "Recorded",
    "verify_chain",
]
