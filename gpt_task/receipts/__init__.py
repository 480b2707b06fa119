"""Checks receipts: offline by their signatures and digests, or by a server that reads the answer.

``python -m gpt_task.receipts check FILE`` and ``python -m gpt_task.receipts verify FILE``. FILE is
JSON, ``{"task": ..., "response": ...}``; of a request of another API ``request`` in place of
``task``.
"""

from gpt_task.receipts.check import check
from gpt_task.receipts.claim import Claim, ReceiptWrong, Uncheckable
from gpt_task.receipts.sources import read_claim, read_keys
from gpt_task.receipts.verify import verify

__all__ = ["Claim", "ReceiptWrong", "Uncheckable", "check", "read_claim", "read_keys", "verify"]
