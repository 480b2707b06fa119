"""What a model writes beside plain text: its reasoning, and its calls of tools."""
