"""From raw rows to an answer. Pure functions over what a run left behind: the same on an old record, on any machine."""
