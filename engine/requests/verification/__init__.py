"""What verifies a claimed response: its tokens as they are drawn, then its fields."""
