"""Images: preparing them, and the memory that they take on their way."""
