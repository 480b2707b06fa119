"""A server under faults, overload, long use and wrong requests."""
