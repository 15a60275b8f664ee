"""Static batching: fill a batch, run it until its last request is done, then fill the next."""

from __future__ import annotations

from knee.engine.policies.base import Admission, Policy, View, preempted


class Static(Policy):
    """A batch starts when `max_batch_size` requests wait, or fewer if no more will come."""

    name = "static"

    def admit(self, view: View) -> Admission:
        members = preempted(view)
        if view.running or members:
            return Admission(members)  # the batch is not done: only those who lost their slot come back
        full = len(view.waiting) >= self.max_batch_size
        return Admission(self.max_batch_size if full or not view.more_expected else 0)
