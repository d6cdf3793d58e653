"""`vmcore` whose stderr goes to a journal that listens at the path in $TEST_JOURNAL."""

import os

from core_service import journal
from core_service.main import main

status = os.fstat(2)
os.environ[journal.STREAM] = f"{status.st_dev}:{status.st_ino}"
journal.SOCKET = os.environ["TEST_JOURNAL"]  # type: ignore[misc] # its own only here
main()
