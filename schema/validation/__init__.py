"""A task's errors, each with its field and the way out; what is counted before anything is read."""
