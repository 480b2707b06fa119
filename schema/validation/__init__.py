"""A task's errors, each with its field and what to do; counts that are checked first."""
