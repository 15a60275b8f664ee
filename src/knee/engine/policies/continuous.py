"""Continuous batching: a finished request's slot is filled in the very next step (Orca, Yu et al. 2022)."""

from __future__ import annotations

from knee.engine.policies.base import Admission, Policy, View


class Continuous(Policy):
    """Every step admits waiting requests into all free slots."""

    name = "continuous"

    def admit(self, view: View) -> Admission:
        return Admission(len(view.waiting))
