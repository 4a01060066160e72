"""What happens to batches, for those who want to hear of it. Sent inside the transaction that makes it so."""

from django.dispatch import Signal

# A batch changed its state: `batch_id`, `to` (BatchStatus) and `at` (datetime).
moved = Signal()

# Lines of a batch got results: `batch_id`, `before` and `after` (finished lines), `total`.
progressed = Signal()

# A worker no longer holds a lease: `lease`, and `outcome`, done or released. Sent after that transaction.
let_go = Signal()
