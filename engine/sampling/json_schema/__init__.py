"""What a client's JSON Schema becomes before llguidance compiles it, so that answers are valid."""
