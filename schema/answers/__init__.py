"""What comes back of a task: its response, and what can be said about a response."""
