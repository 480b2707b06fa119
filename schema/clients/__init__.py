"""Requests as clients of other APIs send them, and the tasks that they mean."""
